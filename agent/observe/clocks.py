"""Whose clock is wrong, by the dates of what linked boxes have written. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fleet.document.clock import is_wall_time, milliseconds
from fleet.document.op import Op

#: Seconds by which clocks may differ before it is worth a word.
TOLERANCE: Final = 300.0


@dataclass(frozen=True)
class ClockFact:
    """A linked box, and how many seconds after this box's time its newest fact is dated.

    Negative for a fact that lies in the past, as most do: then it says no more than how long that box was quiet.
    """

    name: str
    ahead: float


@dataclass(frozen=True)
class Suspicion:
    """The boxes whose facts are dated too far ahead, and whether it is rather this box's clock that is behind."""

    ahead: Sequence[ClockFact]
    own: bool


def newest_date(ops: Iterable[Op]) -> int | None:
    """When a box wrote last, by its own clock, in milliseconds since the epoch; None where nothing says so.

    Dates that only follow another box's are passed over: one clock that runs ahead shows in everybody's new ops.
    """
    return max((milliseconds(op.hlc) for op in ops if is_wall_time(op.hlc)), default=None)


def suspect(clocks: Sequence[ClockFact]) -> Suspicion | None:
    """Who is to be suspected; None where nothing is dated ahead of this box's time, which no right clock can do.

    This box's clock is the wrong one if more boxes are ahead of it than agree with it. A box with a clock that runs
    ahead finds nothing by this, for its neighbours' facts may as well be old: they are the ones that see it.
    """
    ahead = [clock for clock in clocks if clock.ahead > TOLERANCE]
    agreeing = sum(abs(clock.ahead) <= TOLERANCE for clock in clocks)
    return Suspicion(ahead, own=len(ahead) > agreeing) if ahead else None
