"""One source of a fetch, as the picker sees it: what it has, what was asked of it, and how fast it answers. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

#: Blocks to have asked of one source at a time.
MIN_DEPTH: Final = 2
MAX_DEPTH: Final = 8
#: Seconds of answers to have asked for, besides what one round trip takes.
HORIZON: Final = 0.25
#: How much of a new measurement goes into the pace.
_NEW: Final = 0.3


@dataclass(slots=True)
class Source:
    """`bits` are the blocks it has that were missing when it said so, `asked` when each outstanding block was asked for
    (oldest first), `asked_mask` the same as a set.

    `pace` is seconds a block, None until the first came; `last` when something last came or was cancelled. `late`: the
    oldest block is later than it should be; `crawls`: the last that came was late too; `hoped`: a turn was wanted.
    """

    bits: int
    rtt: float = 0.0
    share: float = 1.0
    asked: dict[int, float] = field(default_factory=dict)
    asked_mask: int = 0
    pace: float | None = None
    last: float = 0.0
    late: bool = False
    crawls: bool = False
    hoped: bool = False

    @property
    def depth(self) -> int:
        """How many blocks to have asked for: enough for HORIZON and a round trip, and a single one of a crawler."""
        if self.late or self.crawls:
            return 1
        if self.pace is None:
            return MIN_DEPTH
        if self.pace <= 0:
            return MAX_DEPTH
        return max(MIN_DEPTH, min(MAX_DEPTH, 1 + math.ceil((HORIZON + self.rtt) / self.pace)))

    @property
    def counts(self) -> bool:
        """Whether it counts as one that is sending: one that crawls must not keep others out."""
        return bool(self.asked) and not (self.late or self.crawls)

    def ask(self, index: int, now: float) -> None:
        """A block is asked for."""
        self.asked[index] = now
        self.asked_mask |= 1 << index

    def drop(self, index: int) -> bool:
        """A block is not expected any more; whether it was."""
        if self.asked.pop(index, None) is None:
            return False
        self.asked_mask ^= 1 << index
        if self.late and not self.asked:
            self.late, self.crawls = False, True
        return True

    def since(self) -> float:
        """Since when the oldest outstanding block is waited for. There is one."""
        return max(self.last, next(iter(self.asked.values())))

    def came(self, index: int, now: float) -> float | None:
        """A block has come. How long it was waited for after the one before it; None where it was not asked for."""
        asked_at = self.asked.get(index)
        if asked_at is None:
            return None
        took = max(0.0, now - max(self.last, asked_at))
        self.pace = took if self.pace is None else self.pace + _NEW * (took - self.pace)
        self.last = now
        self.drop(index)
        return took

    def due(self, index: int, pace: float, now: float) -> float:
        """When an outstanding block is to be expected at that pace; what is overdue is expected after as much again."""
        first = self.since() + pace
        if now > first:
            first = 2 * now - first
        return first + pace * list(self.asked).index(index)

    def would_have(self, pace: float, now: float) -> float:
        """When one more block would come at that pace."""
        if not self.asked:
            return now + pace + self.rtt
        return self.due(next(reversed(self.asked)), pace, now) + pace
