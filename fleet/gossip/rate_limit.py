"""Token buckets: how much of something a peer or an author may cause. Pure; the time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

#: Keys remembered by one `Buckets`. The one untouched for longest is forgotten first, and starts full again.
MAX_KEYS: Final = 16_384

K = TypeVar("K")


@dataclass(frozen=True)
class Rate:
    """`per_second` in the long run, `burst` at once."""

    per_second: float
    burst: float


class Buckets(Generic[K]):
    """One bucket for every key, full at first. Time is in seconds on any clock that only goes forward."""

    def __init__(self, rate: Rate, max_keys: int = MAX_KEYS) -> None:
        self.rate: Final = rate
        self._max_keys = max_keys
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def level(self, key: K, now: float) -> float:
        """How much there is now; negative after a `charge` beyond what there was."""
        known = self._buckets.get(key)
        if known is None:
            return self.rate.burst
        tokens, at = known
        return min(self.rate.burst, tokens + max(0.0, now - at) * self.rate.per_second)

    def take(self, key: K, now: float, cost: float = 1.0) -> bool:
        """Take `cost` out, or nothing and return False where there is less."""
        level = self.level(key, now)
        if level < cost:
            return False
        self._set(key, level - cost, now)
        return True

    def charge(self, key: K, now: float, cost: float) -> None:
        """Take `cost` out even where there is less, for what turned out dear afterwards; at most a burst of debt."""
        self._set(key, max(-self.rate.burst, self.level(key, now) - cost), now)

    def _set(self, key: K, level: float, now: float) -> None:
        self._buckets[key] = (level, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
