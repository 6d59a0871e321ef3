"""An in-memory ByteStream pair for tests of links, with a way to freeze one end."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import memory_stream_pair

from fleet.errors import PeerUnreachableError


class MemoryStream:
    """One end of a pair; `peer_id` is the other end's."""

    def __init__(self, stream: trio.StapledStream, peer_id: str) -> None:
        self._stream = stream
        self.peer_id = peer_id
        self.remote_addr = "memory"
        self.frozen = False
        self.writes = 0
        self._writing = trio.Lock()

    async def read(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerUnreachableError("broken") from None

    async def write(self, data: bytes) -> None:
        self.writes += 1
        if self.frozen:
            return
        try:
            async with self._writing:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerUnreachableError("broken") from None

    async def close(self) -> None:
        await self._stream.aclose()

    async def end(self) -> None:
        """Say that nothing more will be written; the other direction stays open."""
        send = self._stream.send_stream
        assert isinstance(send, trio.testing.MemorySendStream)
        await send.aclose()


def pair(a: str = "peer-a", b: str = "peer-b") -> tuple[MemoryStream, MemoryStream]:
    """The ends held by box `a` and by box `b`."""
    left, right = memory_stream_pair()
    return MemoryStream(left, b), MemoryStream(right, a)
