"""Which jobs are running, and the way from serving to stopped: draining takes no new ones and waits for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from agent.errors import DrainingError


class ActiveJobs:
    """Counts the jobs that run on this box's behalf or are lent to peers."""

    def __init__(self) -> None:
        self._running = 0
        self._draining = False
        self._idle = trio.Event()

    @property
    def draining(self) -> bool:
        """True once `drain` has been called."""
        return self._draining

    @property
    def running(self) -> int:
        """How many jobs are running."""
        return self._running

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a job while the block runs; raises DrainingError when this box is shutting down."""
        if self._draining:
            raise DrainingError("this box is shutting down and takes no new jobs; ask again shortly", retry_after=5)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._note_idle()

    def drain(self) -> None:
        """Take no new jobs from now on."""
        self._draining = True
        self._note_idle()

    def _note_idle(self) -> None:
        if self._draining and not self._running:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when, after `drain`, the last job has ended."""
        await self._idle.wait()
