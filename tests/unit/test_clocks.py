"""Whose clock is wrong, by what boxes have written."""

from __future__ import annotations

import pytest

from agent.observe.clocks import TOLERANCE, ClockFact, newest_date, suspect
from fleet.document.clock import HybridClock
from fleet.document.op import Op

NOW_MS = 1_900_000_000_000
HOUR_MS = 3_600_000


def op(hlc: int) -> Op:
    return Op(b"", b"", b"", 1, hlc, "node", "node", b"", (), b"")


@pytest.mark.parametrize(
    ("ahead", "names", "own"),
    [
        ((), None, False),
        ((0.0, -5.0, TOLERANCE), None, False),
        ((-86_400.0, -3600.0), None, False),  # boxes that were quiet
        ((3600.0,), "0", True),
        ((3600.0, -86_400.0), "0", True),
        ((3600.0, 3601.0, -2.0), "01", True),
        ((3600.0, -2.0), "0", False),
        ((-2.0, 1.0, 301.0), "2", False),
    ],
)
def test_the_clock_is_wrong_that_fewer_agree_with(ahead: tuple[float, ...], names: str | None, own: bool) -> None:
    found = suspect([ClockFact(str(at), seconds) for at, seconds in enumerate(ahead)])
    if names is None:
        assert found is None
    else:
        assert found is not None
        assert ("".join(clock.name for clock in found.ahead), found.own) == (names, own)


def test_a_box_that_follows_a_clock_that_is_ahead_is_not_taken_for_one() -> None:
    fast, follower = HybridClock(), HybridClock()
    ahead = fast.tick(NOW_MS + HOUR_MS)
    before = follower.tick(NOW_MS)
    follower.observe(ahead, NOW_MS)
    after = [follower.tick(NOW_MS + at) for at in (1, 1000, 2000)]
    assert min(after) > ahead
    assert newest_date([op(ahead)]) == NOW_MS + HOUR_MS
    assert newest_date(map(op, (before, *after))) == NOW_MS
    assert newest_date(map(op, after)) is None
