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
        self._scopes: set[trio.CancelScope] = set()
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
        """Count a job while the block runs.

        Raises DrainingError when this box is shutting down, and from within the block when `end_now` is called.
        """
        if self._draining:
            raise DrainingError("this box is shutting down and takes no new jobs; ask again shortly", retry_after=5)
        self._running += 1
        scope = trio.CancelScope()
        self._scopes.add(scope)
        try:
            with scope:
                yield
        finally:
            self._scopes.discard(scope)
            self._running -= 1
            self._note_idle()
        if scope.cancelled_caught:
            raise DrainingError("this box has shut down before the job was done; send it again", retry_after=5)

    def drain(self) -> None:
        """Take no new jobs from now on."""
        self._draining = True
        self._note_idle()

    def end_now(self) -> None:
        """End every job that still runs with a DrainingError, which its client or its peer is told."""
        for scope in self._scopes:
            scope.cancel()

    def _note_idle(self) -> None:
        if self._draining and not self._running:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when, after `drain`, the last job has ended."""
        await self._idle.wait()
