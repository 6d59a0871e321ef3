"""From how many sources to take blocks at a time: few, unless more bring more. Pure: the time is an argument.

Where the own link is what limits a fetch, more sources at a time bring nothing: each only sends more slowly, and holds
a slot that another box could have used better. A simulated fleet of 100 that all fetch at once takes a quarter longer
when each takes what it is offered. Where the sources' links are the limit, every source helps. Which of the two it is
shows in what comes when some more are taken for a while, and then as many as before again.
"""

from __future__ import annotations

import math
from typing import Final, Literal

#: Sources at a time: at first and at least, and at most.
LEAST: Final = 4
MOST: Final = 20
#: How many times as many are tried, and how many times as much must come then for them to be kept.
STEP: Final = 1.25
GAIN: Final = 1.12
#: Seconds of a measurement, and blocks that it takes at least.
WINDOW: Final = 3.0
ENOUGH: Final = 24
#: Seconds that a fetch must still take at the present rate for an attempt to be worth what it may cost.
LONG: Final = 120.0
#: Seconds until the first attempt, and after one in vain; it doubles up to MAX_PAUSE.
SETTLE: Final = 20.0
PAUSE: Final = 120.0
MAX_PAUSE: Final = 600.0


class Intake:
    """The limit for one fetch."""

    def __init__(self) -> None:
        #: How many sources may be sending now.
        self.limit = LEAST
        self._limit = LEAST
        self._phase: Literal["as usual", "more", "as before"] = "as usual"
        self._refused = False
        self._since: float | None = None
        self._count = 0
        self._next = 0.0
        self._pause = PAUSE
        self._before = 0.0
        self._with_more = 0.0

    def full(self, sending: int) -> bool:
        """Whether no other source is to be asked while so many are sending."""
        if sending < self.limit:
            return False
        self._refused = True
        return True

    def came(self, now: float, left: int) -> None:
        """A block has come, and so many are still missing."""
        if self._since is None:
            self._since, self._next = now, now + SETTLE
            return
        self._count += 1
        passed = now - self._since
        if passed >= WINDOW and self._count >= ENOUGH:
            self._judge(self._count / passed, now, left)
            self._since, self._count, self._refused = now, 0, False
            self.limit = min(MOST, math.ceil(self._limit * STEP)) if self._phase == "more" else self._limit

    def _judge(self, rate: float, now: float, left: int) -> None:
        if self._phase == "as usual":
            worth = left > LONG * rate and self._limit < MOST
            if self._refused and now >= self._next and worth:
                self._phase, self._before = "more", rate
        elif self._phase == "more":
            self._phase, self._with_more = "as before", rate
        else:
            # What comes changes by itself too: only what ends together with the attempt was its doing.
            gained = self._with_more >= GAIN * max(self._before, rate)
            if gained:
                self._limit = min(MOST, math.ceil(self._limit * STEP))
            self._next = now if gained else now + self._pause
            self._pause = PAUSE if gained else min(2 * self._pause, MAX_PAUSE)
            self._phase = "as usual"
