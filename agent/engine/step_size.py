"""How many tokens of texts a step reads, so that it takes about as long as it may. Pure."""

from __future__ import annotations

from typing import Final

#: Tokens of a step, one of these.
SIZES: Final = (16, 32, 64, 128)
#: A step may take this much longer than the smallest one does, whatever the limit: where other programs want the cores
#: too, a step takes long however small it is, and many small ones would never come to an end.
_WORTH: Final = 1.5
_NEWEST: Final = 0.3
#: Steps after which what was too slow is tried again.
_FORGET: Final = 64


class StepSize:
    """What steps of each size have taken, and which size is next."""

    def __init__(self) -> None:
        self._took: dict[int, float] = {}
        self._steps = 0

    def next(self, limit: float) -> int:
        """The size for a step of about `limit` seconds: the largest that kept to it, or one more that is not known."""
        allowed = max(limit, _WORTH * self._took.get(SIZES[0], 0.0))
        best = SIZES[0]
        for size in SIZES:
            took = self._took.get(size)
            if took is None:
                return size
            if took > allowed:
                break
            best = size
        return best

    def note(self, count: int, seconds: float) -> None:
        """A step of `count` tokens took so long; one that was cut short by the end of its texts says nothing."""
        if count not in SIZES:
            return
        known = self._took.get(count)
        self._took[count] = seconds if known is None else known + _NEWEST * (seconds - known)
        self._steps += 1
        if self._steps % _FORGET == 0:
            for size in SIZES[SIZES.index(count) + 1 :]:
                self._took.pop(size, None)
