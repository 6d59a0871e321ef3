"""One process of a model, from its start through loading to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from agent.engine.box_memory import oom_kills
from agent.engine.child import Child
from agent.engine.death import Death
from agent.engine.protocol import Failed, Load, Loaded, Up, encode

#: Seconds after which it is said again in the log that conversations are not saved.
_SAY_AGAIN: Final = 3600.0

log = structlog.get_logger("shoal.engine")


class Loading:
    """A child that is to load a model, and then runs it.

    `run` does the waiting; all else returns at once. Must be made on the main thread, see `Child`.
    """

    def __init__(self, name: str, load: Load, *, limit: float, unchanged: Callable[[], bool]) -> None:
        """Start the process; raises OSError.

        `limit` is how many seconds loading may take (`engine.load_timeout`). `unchanged` says whether the file is still
        the one that was looked at.
        """
        self._name = name
        self._limit = limit
        self._unchanged = unchanged
        self._kills = oom_kills()
        self.child = Child()
        self.child.on_unsaved = self._note_unsaved
        self.child.post(encode(load))
        self._say_unsaved_at = 0.0
        self._scope = trio.CancelScope()
        self._refused = ""
        #: Whether the file was replaced after it was looked at and before it was opened.
        self.changed = False
        #: Whether it was asked to leave.
        self.left = False

    def leave(self) -> None:
        """End the process; `run` then returns None."""
        self.left = True
        self._scope.cancel()

    async def run(
        self, on_loaded: Callable[[Loaded, trio.Nursery], None], on_message: Callable[[Up], None]
    ) -> Death | None:
        """Live until the process has ended; how it did, None where it was asked to leave or the file has changed.

        `on_loaded` is called once, with a nursery that lives as long as the process does, and `on_message` with all
        that comes after. On cancel the process is ended within seconds.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self.child.run(lambda message: self._take(message, nursery, on_loaded, on_message))
                nursery.cancel_scope.cancel()
        if self.left or self.changed:
            return None
        child = self.child
        return Death(
            child.death,
            last_line=child.stderr_tail.rpartition("\n")[2][:200],
            loaded=child.loaded.is_set(),
            refused=self._refused,
            killed=child.killed,
            ended_here=child.ended_here,
            excused=child.excused,
            # This very child was killed by the kernel, or by somebody while another process ran out of memory.
            out_of_memory=child.killed and not child.ended_here and oom_kills() > self._kills,
        )

    async def _watch(self) -> None:
        with trio.move_on_after(self._limit) as waiting:
            await self.child.loaded.wait()
        if waiting.cancelled_caught:
            self._refused = f"it did not load within {self._limit:g} s (engine.load_timeout)"
            self.child.kill()

    def _note_unsaved(self, reason: str) -> None:
        """Say it, however often a disk that is nearly full takes one conversation and not the next."""
        if reason and trio.current_time() >= self._say_unsaved_at:
            self._say_unsaved_at = trio.current_time() + _SAY_AGAIN
            log.warning(
                "engine.conversations_unsaved", model=self._name, pid=self.child.pid, reason=reason,
                remedy="free space on the disk of the state folder; see engine.session_cache_mib",
            )  # fmt: skip

    def _take(
        self,
        message: Up,
        nursery: trio.Nursery,
        on_loaded: Callable[[Loaded, trio.Nursery], None],
        on_message: Callable[[Up], None],
    ) -> None:
        match message:
            case Loaded() if not self._unchanged():
                # These may be other bytes than were hashed.
                self.changed = True
                self.child.kill()
            case Loaded():
                self.child.loaded.set()
                log.info(
                    "engine.loaded", model=self._name, pid=self.child.pid, load_ms=round(message.load_ms),
                    warm_ms=round(message.warm_ms), decode_rate=round(message.decode_rate, 1),
                    gpu_layers=message.gpu_layers,
                )  # fmt: skip
                on_loaded(message, nursery)
            case Failed(id=-1):
                self._refused = message.message
            case _:
                on_message(message)
