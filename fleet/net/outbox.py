"""The one writer of a link: frames go out in order, keep-alive and cancels are never held up by a full queue."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio

from fleet.errors import PeerUnreachableError
from fleet.net.frames import Frame, encode

#: Bytes that may wait before `send` blocks. A token event is ~50 bytes, a long prompt up to 1 MiB.
HIGH_WATER: Final = 1024 * 1024
#: Bytes that may wait in all: past it the peer asks for more answers than it reads, or the network is too slow for it.
MAX_QUEUED: Final = 8 * 1024 * 1024
_MAX_WRITE: Final = 256 * 1024


class Writable(Protocol):
    """The sending half of a byte stream."""

    async def write(self, data: bytes) -> None:
        """Write all of it; raises PeerUnreachableError when the stream is broken."""


class Outbox:
    """Queue and writer task of one link.

    A frame is encoded when it is queued, so an oversized one fails its sender and not the link. Because only the
    writer task touches the stream, cancelling a sender never leaves half a frame on the wire. `on_overflow` is called
    once, when more than 8 MiB wait; what waited is then thrown away, and the link is to be ended.
    """

    def __init__(self, on_overflow: Callable[[], None]) -> None:
        self._on_overflow = on_overflow
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        #: When something was last handed to the stream (trio's clock).
        self.last_write = -math.inf
        self._line = trio.Lock()
        self._room = trio.Event()
        self._wake = trio.Event()

    async def send(self, frame: Frame) -> None:
        """Queue a frame, waiting while 1 MiB is already queued; whoever waits first comes first.

        The order matters beyond fairness: the ids of calls only ever rise on the wire.

        Raises PeerUnreachableError when the link is over and FrameError when the frame is past the limit. Cancelling
        it before it returns means that the frame was not queued.
        """
        data = encode(frame)
        if self._bytes <= HIGH_WATER and not self._line.locked():
            self._put(data)
            return
        async with self._line:
            while self._bytes > HIGH_WATER and not self._closed:
                if self._room.is_set():
                    self._room = trio.Event()
                await self._room.wait()
            self._put(data)

    def send_now(self, frame: Frame) -> None:
        """Queue a small frame although others wait; for cancels, notifications, and answers to pings and errors."""
        self._put(encode(frame))

    def _put(self, data: bytes) -> None:
        if self._closed:
            raise PeerUnreachableError("the link to the peer is over")
        self._queue.append(data)
        self._bytes += len(data)
        self._wake.set()
        if self._bytes > MAX_QUEUED:
            self._queue.clear()
            self._bytes = 0
            self.close()
            self._on_overflow()

    def close(self) -> None:
        """Refuse what comes from here on, so that `run` returns once what is queued has been written.

        Whoever waits in `send` gets PeerUnreachableError.
        """
        self._closed = True
        self._wake.set()
        self._room.set()

    async def run(self, stream: Writable) -> None:
        """Write frames as they are queued until closed and empty; raises what `stream.write` raises."""
        while True:
            while not self._queue:
                if self._closed:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
            batch = bytearray()
            while self._queue and (not batch or len(batch) + len(self._queue[0]) <= _MAX_WRITE):
                batch += self._queue.popleft()
            self._bytes -= len(batch)
            self.last_write = trio.current_time()
            await stream.write(bytes(batch))
            if self._bytes <= HIGH_WATER:
                self._room.set()
