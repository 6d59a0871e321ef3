"""The hybrid logical clock (Kulkarni et al. 2014): wall time where it can be had, and order in any case.

A timestamp is one integer: milliseconds since the epoch times 65536, plus a counter. It grows along every chain of
ops that saw one another, whatever the boxes' clocks say.
"""

from __future__ import annotations

from typing import Final

MAX_HLC: Final = (1 << 63) - 1
#: A timestamp further ahead of this box's clock is not followed: one bad clock must not drag all others along.
MAX_AHEAD_MS: Final = 24 * 3600 * 1000
_COUNTER_BITS: Final = 16


class HybridClock:
    """The clock of one author. Not thread-safe; every call gets the wall time in milliseconds."""

    def __init__(self, last: int = 0) -> None:
        self._last = last

    def observe(self, seen: int, now_ms: int) -> None:
        """Another op's timestamp: what is written from now on comes after it, unless it is absurdly ahead."""
        if seen > self._last and seen >> _COUNTER_BITS <= now_ms + MAX_AHEAD_MS:
            self._last = seen

    def tick(self, now_ms: int) -> int:
        """A timestamp for a new op: after all that was seen, and not before now."""
        self._last = min(max(self._last + 1, now_ms << _COUNTER_BITS), MAX_HLC)
        return self._last


def is_wall_time(hlc: int) -> bool:
    """Whether a timestamp is what its author's own clock said, and does not merely follow one that was seen."""
    return hlc % (1 << _COUNTER_BITS) == 0


def milliseconds(hlc: int) -> int:
    """The wall time of a timestamp, in milliseconds since the epoch, for people."""
    return hlc >> _COUNTER_BITS
