"""How fast a box gives, over all lanes together: a cap that may change at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

#: Bytes sent at a time where there is a cap: a block in one go would be seconds of a slow link.
SLICE: Final = 32 * 1024


class Bandwidth:
    """Shares out bytes a second to whoever sends. Thread-safe; `cap` gives the limit now, None for none."""

    def __init__(self, cap: Callable[[], float | None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap = cap
        self._clock = clock
        self._free_at = 0.0
        self._lock = threading.Lock()

    def slice(self, size: int) -> int:
        """How many of `size` bytes to send at a time now."""
        return size if self._cap() is None else min(size, SLICE)

    def take(self, size: int) -> float:
        """Account for `size` bytes that are about to be sent; how many seconds to wait before sending them."""
        cap = self._cap()
        if cap is None:
            return 0.0
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + size / max(cap, 1.0)
            return begin - now
