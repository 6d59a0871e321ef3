"""How often something may be done: so much a second on average, some of it at once. Pure."""

from __future__ import annotations


class Rate:
    """A bucket of `most` turns that fills by `per_second`; `now` is seconds on any clock that does not go back."""

    def __init__(self, per_second: float, most: float, now: float = 0.0) -> None:
        self._per_second = per_second
        self._most = max(1.0, most)
        self._left = self._most
        self._at = now

    def take(self, now: float) -> float:
        """0 where there is a turn, which is then taken; else the seconds until there is one."""
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = max(self._at, now)
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self._per_second
