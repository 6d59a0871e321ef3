"""The lane that is always there: blocks as calls of the link itself, in pieces that go between its other messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

from fleet.blobs import messages as wire
from fleet.blobs.manifest import Manifest
from fleet.errors import MessageError, RemoteError
from fleet.net.link import Link
from fleet.net.messages import parse


class Work(Protocol):
    """What a lane does for a fetch. `write` is called in a thread, the others in the event loop."""

    def take(self) -> tuple[list[int], list[int]]:
        """The blocks to ask for now, and those to take back."""

    def refused(self, index: int) -> None:
        """The source does not send this block."""

    def moved(self, size: int) -> None:
        """So many bytes of blocks have come."""

    def useless(self, size: int) -> None:
        """So many bytes came that nobody needs any more."""

    def write(self, index: int, data: bytearray) -> None:
        """A block has come: check it and write it. Blocks."""


class StreamLane:
    """One lane over one link. `wake` may be called from any thread; `post` runs something in the event loop, soon."""

    def __init__(
        self,
        link: Link,
        manifest: Manifest,
        work: Work,
        post: Callable[[Callable[[], None]], None],
        writers: trio.CapacityLimiter,
    ) -> None:
        self._link: Final = link
        self._manifest = manifest
        self._work = work
        self._post = post
        self._writers = writers
        self._woken = trio.Event()
        self._gets: dict[int, trio.CancelScope] = {}

    def wake(self) -> None:
        """There may be something to ask for, or to take back."""
        self._post(self._wake)

    def _wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Ask and receive until cancelled; raises PeerUnreachableError when the link is over, MessageError where what
        comes is no block."""
        async with trio.open_nursery() as nursery:
            while True:
                self._woken = trio.Event()
                asks, cancels = self._work.take()
                for index in cancels:
                    if index in self._gets:
                        self._gets[index].cancel()
                for index in asks:
                    self._gets[index] = trio.CancelScope()
                    nursery.start_soon(self._get, index, self._gets[index])
                await self._woken.wait()

    async def _get(self, index: int, scope: trio.CancelScope) -> None:
        data = bytearray(self._manifest.block_size(index))
        filled = 0

        async def on_event(event: object) -> None:
            nonlocal filled
            piece = parse(wire.Piece, event).data
            self._work.moved(len(piece))
            if filled + len(piece) > len(data):
                raise MessageError("more bytes than the block has")
            data[filled : filled + len(piece)] = piece
            filled += len(piece)

        written = False
        try:
            with scope:
                await self._link.call(wire.METHOD_GET, {"blob": self._manifest.sha256, "index": index}, on_event)
                if filled < len(data):
                    raise MessageError("fewer bytes than the block has")
                written = True
                await trio.to_thread.run_sync(self._work.write, index, data, limiter=self._writers)
        except RemoteError:
            self._work.refused(index)
        finally:
            if self._gets.get(index) is scope:
                del self._gets[index]
            if not written:
                self._work.useless(filled)
