"""What a peer may ask of this box's time, and how often it may be wrong. Pure: the clock is an argument.

One link's frames are handled in one task, and whatever they cost the rest of the box waits for. Events and answers to
calls are not limited here: they were asked for. Everything else is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

#: Frames of one link that are handled before other tasks have a turn.
FRAMES_A_TURN: Final = 32

#: What unasked frames cost, in units, and how many units a peer has: a second's worth at once, then so many a second.
#: On a small box a unit is about 10 us of work.
CHEAP: Final = 1
CALL: Final = 2
NOTIFY: Final = 10
REFUSED_CALL: Final = 10
ABANDONED_CALL: Final = 100
UNITS_A_SECOND: Final = 10_000

#: A link is closed when its peer sends this many messages that cannot be used within the window (seconds).
MAX_BAD: Final = 100
BAD_WINDOW: Final = 10.0


class Pace:
    """How far a peer has run ahead of what it may ask. An honest one never does."""

    def __init__(self) -> None:
        self._debt = 0.0
        self._at = 0.0

    def charge(self, units: int) -> None:
        """Note work that the peer caused."""
        self._debt += units

    def pause(self, now: float) -> float:
        """Seconds for which nothing more is to be read of the peer, 0.0 while it keeps within its units."""
        self._debt = max(0.0, self._debt - (now - self._at) * UNITS_A_SECOND)
        self._at = now
        return max(0.0, self._debt / UNITS_A_SECOND - 1.0)


class BadMessages:
    """Counts messages that could not be used, within a sliding window."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MAX_BAD)

    def note(self, now: float) -> bool:
        """One more; True when there have been too many."""
        self._times.append(now)
        return len(self._times) == MAX_BAD and now - self._times[0] <= BAD_WINDOW


class Seldom:
    """Says which of many like events are worth a line in the log: the first, and each doubling, by their key."""

    def __init__(self, keys: int = 256) -> None:
        self._keys = keys
        self._counts: OrderedDict[object, int] = OrderedDict()

    def worth_a_line(self, key: object) -> int:
        """How often the event has happened, if that is worth telling, else 0. Keys not seen for long are forgotten."""
        count = self._counts.pop(key, 0) + 1
        self._counts[key] = count
        if len(self._counts) > self._keys:
            self._counts.popitem(last=False)
        return count if count & (count - 1) == 0 else 0
