"""Whether this box is quick enough at a model to run it itself, without going to and fro. Pure.

A rate that swings about the threshold would send jobs away and back; once below it, a model has to reach 1.2 times the
threshold before jobs run here again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Of the threshold: what a rate has to reach before the box counts as quick again.
BACK_AT: Final = 1.2
#: Seconds after which a rate that nothing has measured again is no longer held against the box: what made it slow may
#: be over, and while all its jobs go elsewhere nothing can show that.
STALE_AFTER: Final = 600.0
#: Models that are remembered; past it, the one looked at longest ago is forgotten.
_REMEMBERED: Final = 256


def is_slow(rate: float | None, threshold: float, was_slow: bool) -> bool:
    """Whether a rate (tokens per second) is too slow; one that has not been measured is not."""
    if rate is None:
        return False
    return rate < (threshold * BACK_AT if was_slow else threshold)


def borrow_only(best_rate: float | None, floor: float) -> bool:
    """Whether a box is too slow to run models for others: the best that any of its models reached is below `floor`.

    A box that has measured nothing is not: it has to run something first to be known.
    """
    return best_rate is not None and best_rate < floor


def best_of(rates: Iterable[float | None]) -> float | None:
    """The best of the rates that have been measured."""
    return max((rate for rate in rates if rate is not None), default=None)


@dataclass(frozen=True)
class _Seen:
    rate: float
    slow: bool
    since: float


class Pace:
    """Which models this box was too slow at when it last looked."""

    def __init__(self, threshold: float, floor: float = 0.0) -> None:
        self._threshold = threshold
        self._floor = floor
        self._seen: dict[str, _Seen] = {}

    def look(self, model: str, rate: float | None, now: float) -> bool:
        """Whether the box is too slow at a model now; looking twice changes nothing. `now` in seconds.

        A rate that is STALE_AFTER old is tried again, unless it is below the floor, where a try would be a bad answer.
        """
        if rate is None:
            self._seen.pop(model, None)
            return False
        before = self._seen.pop(model, None)
        slow = is_slow(rate, self._threshold, before is not None and before.slow)
        since = before.since if before is not None and before.rate == rate else now
        self._seen[model] = _Seen(rate, slow, since)
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return slow and (rate < self._floor or now - since < STALE_AFTER)
