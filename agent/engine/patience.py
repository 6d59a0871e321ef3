"""When a process that owes an answer is taken to hang. Pure.

An answer is owed between two steps. How long that takes by the clock says nothing of the process: on a box where
other programs want the cores, or the weights come from a slow disk, any time may go by. So what is judged is what it
does: one that hangs either does nothing at all, or computes for much longer than a step takes.
"""

from __future__ import annotations

from typing import Final

from agent.engine.vitals import Vitals

#: Seconds between two looks.
LOOK_EVERY: Final = 0.5
#: Seconds for which a process that owes an answer may do nothing: neither compute, nor wait for a core or a disk.
ASLEEP_LIMIT: Final = 2.0
#: Seconds on a core, not by the clock, that it may compute without coming to the answer.
BUSY_LIMIT: Final = 10.0
#: Steps that it may compute, where that is longer.
_STEPS: Final = 8


class Patience:
    """Looks at one process, from the moment it owes an answer. `step` is how many seconds a step of it may take."""

    def __init__(self, step: float) -> None:
        self._limit = max(BUSY_LIMIT, _STEPS * step)
        self._first: Vitals | None = None
        self._last: Vitals | None = None
        self._asleep = 0
        self._unseen = 0

    def is_over(self, now: Vitals | None) -> bool:
        """Whether it hangs, by another look, LOOK_EVERY seconds after the last one; None where there is nothing to see.

        Looks are counted, and not the time between them: whoever looks may have been kept from it, and from reading the
        answer, by what keeps the process from giving it.
        """
        last, self._last = self._last, now
        if now is None:
            self._unseen += 1
            return self._unseen * LOOK_EVERY > self._limit
        if self._first is None:
            self._first = now
        idle = last is not None and now.total <= last.total and not now.awake
        self._asleep = self._asleep + 1 if idle else 0
        return (
            self._asleep * LOOK_EVERY >= ASLEEP_LIMIT
            or now.main - self._first.main >= self._limit
            # Its main thread may wait for others that go round in circles.
            or now.total - self._first.total >= self._limit * now.threads
        )
