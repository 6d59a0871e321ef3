"""Makes what is written durable now and then, beside those who write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

#: Bytes after which the disk is told to keep what it has. A power cut loses about so much.
FLUSH_EVERY: Final = 64 << 20
#: What may wait for the disk before those who write wait too; it is memory that others cannot have.
_MOST_WAITING: Final = 2 * FLUSH_EVERY


class Flusher:
    """Calls `sync` in a thread of its own for every FLUSH_EVERY bytes. Thread-safe.

    `sync` keeps to itself what goes wrong.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._waiting = 0
        self._running = False
        self._changed = threading.Condition()

    def note(self, size: int) -> None:
        """So many bytes more were written. Blocks while more than twice FLUSH_EVERY wait for the disk."""
        with self._changed:
            self._waiting += size
            if self._waiting >= FLUSH_EVERY and not self._running:
                threading.Thread(target=self._run, name="shoal-flush", daemon=True).start()
                self._running = True  # it waits for the lock; were there no thread to be had, nobody would end it
            while self._running and self._waiting >= _MOST_WAITING:
                self._changed.wait()

    def wait(self) -> None:
        """Block until nothing is being synced."""
        with self._changed:
            while self._running:
                self._changed.wait()

    def _run(self) -> None:
        with self._changed:
            taken = self._waiting
        try:
            self._sync()
        finally:
            with self._changed:
                self._waiting -= taken
                self._running = False
                self._changed.notify_all()
