"""How many connections the gate has turned away of late, as far as that says that somebody floods this box."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

import trio

#: What counts, of what `fleet.net.gate.Gate.counts` has. Refused keys are named one by one, see `KnockFact`.
KINDS: Final = ("half_open_dropped", "handshake_timed_out", "no_place_left", "too_many_of_one_key")
#: Seconds over which counters are compared, and between two looks at them.
WINDOW: Final = 600.0
_STEP: Final = 30.0


class Floods:
    """Remembers the gate's counters for WINDOW seconds, so that a flood of last week is not today's problem.

    The counters grow without an event, in the midst of a flood where nothing must be added to its cost; they are
    looked at every 30 s instead.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._seen: deque[tuple[float, Counter[str]]] = deque()

    async def run(self) -> None:
        """Look at the counters until cancelled."""
        while True:
            self.look(trio.current_time())
            await trio.sleep(_STEP)

    def look(self, now: float) -> None:
        """Note the counters as they are at `now`, in seconds."""
        self._seen.append((now, Counter({kind: self._counts.get(kind, 0) for kind in KINDS})))
        # One look from before the window stays: what came since it came within the window, or a step before.
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()

    def recent(self) -> Mapping[str, int]:
        """By how much each counter has grown within the window; those that have not are left out."""
        before = self._seen[0][1] if self._seen else Counter[str]()
        return {kind: grown for kind in KINDS if (grown := self._counts.get(kind, 0) - before[kind]) > 0}
