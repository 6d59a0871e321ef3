"""How many blocks a second have come lately. Pure: the time is an argument."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Seconds that count, and the grain in which arrivals are kept.
WINDOW: Final = 8.0
GRAIN: Final = 0.25


class Meter:
    """Arrivals of the last WINDOW seconds; memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()
        self._began: float | None = None
        self._last = 0.0

    @property
    def last(self) -> float:
        """When something came last (seconds); 0.0 before."""
        return self._last

    def add(self, now: float) -> None:
        """One block has come."""
        # What came after a pause as long as the window is a new start, not a slow one.
        if self._began is None or now - self._last > WINDOW:
            self._began = now
            self._counts.clear()
        self._last = now
        grain = int(now / GRAIN)
        if self._counts and self._counts[-1][0] >= grain:
            grain, count = self._counts.pop()
            self._counts.append((grain, count + 1))
        else:
            self._counts.append((grain, 1))
            while self._counts[0][0] < grain - WINDOW / GRAIN:
                self._counts.popleft()

    def rate(self, now: float) -> float:
        """Blocks a second; 0.0 before the second block and when nothing has come for WINDOW seconds."""
        if self._began is None:
            return 0.0
        first = int((now - WINDOW) / GRAIN)
        total = sum(count for grain, count in self._counts if grain > first)
        # The first block says when counting began, the others how long it took.
        span = now - self._began
        if span < WINDOW:
            return (total - 1) / span if total > 1 and span > 0 else 0.0
        return total / WINDOW
