"""The audit trail: one line for each outcome, on disk soon after, without a wait for whoever has a job to run.

`record` puts a line into memory and returns. A task writes what is there, in a thread. Where the disk is slower, or
does not take it, up to MAX_WAITING lines wait; beyond, new ones are dropped and counted, and the trail itself says how
many are missing once it can be written again. What waits is lost with the process where it is killed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.jobs.audit_files import FOLDER, AuditFiles
from agent.jobs.outcome import Outcome
from agent.jobs.repeats import Repeats

#: Lines that wait for the disk; 4 MiB of the longest.
MAX_WAITING: Final = 4096
#: Lines that are written at once.
_BATCH: Final = 512
#: Seconds before a disk that did not take a line is tried again, and between two looks for files that are too old.
_TRY_AGAIN: Final = 5.0
_TIDY: Final = 3600.0

log = structlog.get_logger("shoal.audit")


class AuditTrail:
    """The trail of one box. `keep_days` and `max_mib` bound what is kept of it. Belongs to one trio run."""

    def __init__(self, state_dir: Path, *, keep_days: int, max_mib: int, wall: Callable[[], float] = time.time) -> None:
        self.folder: Final = state_dir / FOLDER
        self.written = 0
        self.lost = 0
        self._files = AuditFiles(self.folder, most=max_mib << 20, keep=keep_days * 86_400.0)
        self._waiting: deque[bytes] = deque()
        self._repeats = Repeats()
        self._unsaid = 0
        self._failures = 0
        #: Why the disk did not take what was last to be written; empty where it did.
        self.problem = ""
        self._wake = trio.Event()
        self._grown = trio.Event()
        self._wall = wall

    @property
    def taken_together(self) -> int:
        """Refusals that were written as part of a number."""
        return self._repeats.taken_together

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._waiting)

    @property
    def grown(self) -> trio.Event:
        """Set when lines are next written. Ask for it before reading, so that none comes between the two."""
        return self._grown

    def record(self, outcome: Outcome) -> None:
        """Take one outcome. Neither blocks nor raises; what is dropped is counted in `lost`."""
        holding = self._repeats.holding
        self._put(self._repeats.take(outcome, trio.current_time()))
        if self._repeats.holding > holding:
            self._wake.set()  # a number is due sooner than the task expects

    def _put(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if len(self._waiting) >= MAX_WAITING:
                self.lost += outcome.count
                self._unsaid += outcome.count
                continue
            self._waiting.append(outcome.line())
        if self._waiting:
            self._wake.set()

    async def run(self) -> None:
        """Write what is recorded until cancelled; what is there then is written before it returns."""
        next_tidy = 0.0
        try:
            while True:
                now = trio.current_time()
                if now >= next_tidy:
                    await self._tidy()
                    next_tidy = now + _TIDY
                self._put(self._repeats.due(now))
                if await self._write():
                    due = self._repeats.wait(now)
                    with trio.move_on_after(next_tidy - now if due is None else min(due, next_tidy - now)):
                        await self._wake.wait()
                else:
                    await trio.sleep(_TRY_AGAIN)
        finally:
            with trio.CancelScope(shield=True):
                self._put(self._repeats.due(trio.current_time(), everything=True))
                await self._write()
                await trio.to_thread.run_sync(self._close)

    async def _write(self) -> bool:
        """Write what waits; False where the disk does not take it."""
        self._wake = trio.Event()
        while self._waiting or self._unsaid:
            batch = [line for line, _ in zip(self._waiting, range(_BATCH), strict=False)]
            if self._unsaid:
                batch.insert(0, Outcome(at=self._wall(), job="", role="box", outcome="lost", count=self._unsaid).line())
            said = self._unsaid
            try:
                await trio.to_thread.run_sync(self._files.append, batch, self._wall())
            except OSError as error:
                self._failures += 1
                self.problem = error.strerror or type(error).__name__
                if self._failures & (self._failures - 1) == 0:
                    log.error(
                        "audit.unwritten",
                        reason=self.problem,
                        waiting=len(self._waiting),
                        lost=self.lost,
                        remedy="free space on the disk of the state folder; see audit.max_mib",
                    )
                return False
            self._failures, self.problem = 0, ""
            self._unsaid -= said
            for _ in range(len(batch) - bool(said)):
                self._waiting.popleft()
                self.written += 1
            self._grown.set()
            self._grown = trio.Event()
        return True

    async def _tidy(self) -> None:
        try:
            await trio.to_thread.run_sync(self._files.tidy, self._wall())
        except OSError as error:
            log.warning("audit.untidy", reason=error.strerror or str(error))

    def _close(self) -> None:
        try:
            self._files.close()
        except OSError as error:
            log.warning("audit.unsynced", reason=error.strerror or str(error))
