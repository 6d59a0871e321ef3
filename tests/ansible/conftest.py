"""What the tests of the playbooks share: whether they can run here, and the table of times."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import requirement
from tests.ansible.control import BIN
from tests.containers import engine

_TIMES: list[tuple[str, float]] = []


def missing() -> str:
    """Why they cannot run on this machine, with the remedy; empty where they can."""
    if not (BIN / "ansible-playbook").exists() or not (BIN / "ansible-lint").exists():
        return "ansible-core and ansible-lint are not installed: make test-ansible"
    if not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        return "there is no ssh here: apt-get install openssh-client"
    try:
        version = engine.docker("version", "--format", "{{.Server.Version}}", check=False, limit=20)
    except OSError:
        version = ""
    if not version:
        return "no Docker Engine answers: docker/get-docker installs and starts one, or says why it cannot"
    for image in (engine.SLIM, engine.AGENT):
        if not engine.docker("image", "inspect", "--format", "{{.Id}}", image, check=False):
            return f"the image {image} is not built: docker/build agent slim"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where they cannot run they are skipped with the reason, and with CI=true that fails them."""
    here = [item for item in items if Path(__file__).parent in item.path.parents and item.get_closest_marker("docker")]
    requirement.require(config, here, missing)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In CI a machine without Docker or Ansible has failed."""
    requirement.check(item)


@pytest.fixture(scope="session")
def times() -> list[tuple[str, float]]:
    """Lines of the table of times: what was done, and the seconds that it took."""
    return _TIMES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of times."""
    if _TIMES:
        terminalreporter.section("times of the playbooks, three boxes")
        for what, seconds in _TIMES:
            terminalreporter.write_line(f"{seconds:8.1f} s  {what}")
