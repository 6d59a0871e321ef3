"""What the container tests share: one network, one sweep before and after, and the table of times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import pytest

from tests import requirement
from tests.containers import engine

_TIMES: Final[list[tuple[str, float]]] = []
Timed = Callable[[str], AbstractContextManager[None]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without Docker the tests here are skipped with the reason, and with CI=true that fails them."""
    here = [item for item in items if "tests/containers/" in item.nodeid]
    for item in here:
        item.add_marker(pytest.mark.docker)
    requirement.require(config, here, engine.missing)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In CI a machine without Docker has failed."""
    requirement.check(item)


@pytest.fixture(scope="session", autouse=True)
def swept() -> Iterator[None]:
    """What a killed run has left goes first, and what this one made goes at its end."""
    if engine.missing():
        yield
        return
    engine.sweep_dead()
    yield
    engine.sweep(f"{engine.RUN_LABEL}={engine.RUN}")


@pytest.fixture(scope="session")
def network(swept: None) -> Any:
    """The network of every box of the run; it goes with the sweep, after what is in it."""
    from testcontainers.core.network import Network

    return Network(docker_network_kw={"labels": dict(engine.LABELS)}).create()


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Timed:
    """`with timed("what"):` puts a line into the table of times."""

    @contextmanager
    def measure(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        _TIMES.append((what, time.perf_counter() - began))

    return measure


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of times: each test, and what tests measured within."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if "tests/containers/" in report.nodeid and report.when == "call"
    ]
    if not reports:
        return
    terminalreporter.section("times of the container tests")
    for report in reports:
        terminalreporter.write_line(f"{report.duration:8.1f} s  {report.outcome}  {report.nodeid.split('::')[-1]}")
    for what, seconds in _TIMES:
        terminalreporter.write_line(f"{seconds:8.2f} s  {what}")
