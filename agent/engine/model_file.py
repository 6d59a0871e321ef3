"""The file of one model: which model it holds, and whether it is still the one that was looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from agent.engine.identify import HashCache, Identity, identify, stamp_of

#: Seconds between looks at the file of a model that failed.
LOOK_AGAIN: Final = 1.0


class ModelFile:
    """A file, and what it held when it was last looked at."""

    def __init__(self, path: Path, cache: HashCache) -> None:
        self.path = path
        self.identity = Identity(None)
        self._cache = cache

    @property
    def unchanged(self) -> bool:
        """Whether it is the file that was looked at."""
        return stamp_of(self.path) == self.identity.stamp

    async def identify(self) -> None:
        """Look at it, and hash it where its hash is not cached, in a thread. Cancel-safe; the thread then ends soon."""
        stop = threading.Event()
        try:
            self.identity = await trio.to_thread.run_sync(
                identify,
                self.path,
                self._cache,
                stop,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs that libp2p brings are older than trio
            )
        finally:
            stop.set()

    async def wait_change(self, due: Callable[[], float]) -> None:
        """Return when it is another file, and no longer being written; at the time `due` at the latest. Cancel-safe."""
        before = self.identity.stamp
        while True:
            # A look now and then: the kernel's own watch (inotify) says nothing of a file on a network mount.
            await trio.sleep_until(min(due(), trio.current_time() + LOOK_AGAIN))
            if trio.current_time() >= due():
                return
            now = stamp_of(self.path)
            if now == before and now != self.identity.stamp:
                return
            before = now
