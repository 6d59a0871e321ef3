"""How often values fell between given bounds: what a histogram is made of. Cheap enough for every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

#: Seconds between two tokens.
TOKEN_GAPS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


class Distribution:
    """Counts values by the first of `bounds` that is not below them; the last count is of those above every bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: Final = tuple(bounds)
        self.counts: Final = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def merge(self, other: Distribution) -> None:
        """Add the counts of another of the same bounds. Raises ValueError for other bounds."""
        if other.bounds != self.bounds:
            raise ValueError("only distributions of the same bounds can be merged")
        for index, count in enumerate(other.counts):
            self.counts[index] += count
        self.sum += other.sum

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bounds as Prometheus writes them, with the count of all values up to each; +Inf is the last."""
        found, total = [], 0
        for bound, count in zip((*(str(bound) for bound in self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found
