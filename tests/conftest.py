"""What holds for every test."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import structlog

from tests import preloaded

# A run that a shell started in the background ignores Ctrl-C, and so would every process it starts, for ever: a process
# that handles it starts others that do not ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every agent, every command and every worker of pytest would compile the whole source anew: a second of each agent's
# start, and half of the time that pytest takes to collect the tests. The compiled files are left out of git.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

preloaded.in_use = True

# What a box within the tests' own process logs goes where an agent's log goes: the standard output of a command that
# runs here at the same time is read.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests without collecting garbage: what they are made of stays to the end, and there is much of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_unconfigure() -> None:
    """No process outlives the tests."""
    preloaded.end()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are cores: tests of real processes wait for them half of the time."""
    return len(os.sched_getaffinity(0)) + 1
