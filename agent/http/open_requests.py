"""How many requests are being answered, so that a box that stops can wait for the last words of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class OpenRequests:
    """Counts requests from the end of their head to the end of their answer."""

    def __init__(self) -> None:
        self._count = 0
        self._none = trio.Event()
        self._none.set()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a request while the block runs."""
        if not self._count:
            self._none = trio.Event()
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def wait_none(self) -> None:
        """Return when no request is being answered."""
        await self._none.wait()
