"""Which process hangs, and which one is slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from agent.engine.patience import ASLEEP_LIMIT, BUSY_LIMIT, LOOK_EVERY, Patience
from agent.engine.vitals import Vitals, vitals_of


def looks(patience: Patience, *, main: float, total: float, awake: bool, threads: int = 4, most: int = 2000) -> int:
    """Looks until a process hangs that computes so many seconds between two looks; `most` where it does not."""
    for look in range(most):
        if patience.is_over(Vitals(awake, main * look, total * look, threads)):
            return look
    return most


def test_a_process_that_does_nothing_hangs_after_a_while() -> None:
    assert looks(Patience(0.1), main=0, total=0, awake=False) == ASLEEP_LIMIT / LOOK_EVERY


def test_one_that_waits_for_a_core_or_a_disk_does_not() -> None:
    assert looks(Patience(0.1), main=0, total=0, awake=True) == 2000


def test_one_that_sleeps_now_and_then_does_not() -> None:
    assert looks(Patience(0.1), main=0.01, total=0.01, awake=False, most=500) == 500


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_one_that_goes_round_in_circles_hangs_after_seconds_of_its_own(share: float) -> None:
    found = looks(Patience(0.1), main=LOOK_EVERY * share, total=LOOK_EVERY, awake=True)
    assert found == BUSY_LIMIT / (LOOK_EVERY * share)


def test_it_is_seen_too_where_its_main_thread_waits_for_the_others() -> None:
    found = looks(Patience(0.1), main=0, total=4 * LOOK_EVERY, awake=True, threads=4)
    assert found == BUSY_LIMIT / LOOK_EVERY


def test_where_steps_are_long_there_is_more_time_for_them() -> None:
    assert looks(Patience(30.0), main=LOOK_EVERY, total=LOOK_EVERY, awake=True) > 4 * 30 / LOOK_EVERY


def test_what_cannot_be_seen_has_the_time_of_one_that_computes() -> None:
    patience = Patience(0.1)
    assert not any(patience.is_over(None) for _ in range(int(BUSY_LIMIT / LOOK_EVERY)))
    assert patience.is_over(None)


def test_the_vitals_of_processes() -> None:
    own = vitals_of(os.getpid())
    assert own is not None
    assert own.awake
    assert 0 < own.main <= own.total + 0.1
    code = "import time\nprint('a', flush=True)\nwhile True: time.process_time()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            first, then = vitals_of(child.pid), vitals_of(child.pid)
            assert first is not None
            assert not first.awake
            assert then == first
        finally:
            child.kill()
    assert vitals_of(child.pid) is None
