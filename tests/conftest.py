"""What holds for every test."""

from __future__ import annotations

import os
import signal

import pytest

# A run that a shell started in the background ignores Ctrl-C, and so would every process it starts, for ever: a process
# that handles it starts others that do not ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are cores: tests of real processes wait for them half of the time."""
    return len(os.sched_getaffinity(0)) + 1
