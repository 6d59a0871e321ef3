"""Connections of the HTTP server: how many, how long a client may refuse to read, and closing them all at once.

hypercorn 0.18 writes under a shield from cancellation (trio/tcp_server.py, protocol_send) and never gives a client
that stopped reading a deadline, so such a client would hold its job, and the shutdown, for ever. The streams it is
given here have the deadline inside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from agent.errors import OverloadedError
from agent.http.errors import problem_of
from agent.http.sse import encode_json

#: Connections at a time.
MAX_CONNECTIONS: Final = 128
#: Seconds in which a client must take one write, which is at most a response body or a chunk of a stream.
WRITE_TIMEOUT: Final = 20.0
#: Seconds for which a refused connection is still read, so that its client sees the refusal.
_REFUSAL_SECONDS: Final = 1.0
#: Seconds that a request whose client has gone has to notice that.
_WIND_DOWN: Final = 0.1


class ClientStream:
    """A connection as hypercorn uses it: a trio stream whose writes have a deadline."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        #: Set once the client has closed its side, or the connection broke.
        self.ended = trio.Event()

    async def send_all(self, data: bytes) -> None:
        """Write; a client that does not read for WRITE_TIMEOUT is disconnected (trio.BrokenResourceError)."""
        with trio.move_on_after(WRITE_TIMEOUT) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            self.close()
            raise trio.BrokenResourceError("the client stopped reading")

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read; b"" at the end."""
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self.ended.set()
        return data

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()

    def close(self) -> None:
        """Close at once; whoever reads or writes is woken with trio.ClosedResourceError."""
        self.socket.close()


class Connections:
    """Hands each new connection to `handle`, at most MAX_CONNECTIONS at a time; more are refused in words."""

    def __init__(self, handle: Callable[[ClientStream], Awaitable[None]]) -> None:
        self._handle = handle
        self._open: set[ClientStream] = set()

    async def accept(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it ends."""
        if len(self._open) >= MAX_CONNECTIONS:
            await _refuse(stream)
            return
        client = ClientStream(stream)
        self._open.add(client)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_after_client, client, nursery.cancel_scope)
                await self._handle(client)
                nursery.cancel_scope.cancel()
        finally:
            self._open.discard(client)
            client.close()

    async def _end_after_client(self, client: ClientStream, scope: trio.CancelScope) -> None:
        """hypercorn 0.18 keeps what belongs to a connection for the whole keep-alive time after its client has gone
        (trio/tcp_server.py: nobody cancels the idle task), so a few requests a second would use up the limit."""
        await client.ended.wait()
        await trio.sleep(_WIND_DOWN)
        scope.cancel()

    def close_all(self) -> None:
        """Close every connection at once, also those that are writing."""
        for client in list(self._open):
            client.close()


async def _refuse(stream: trio.SocketStream) -> None:
    problem = problem_of(OverloadedError(f"{MAX_CONNECTIONS} connections are open, the limit", retry_after=1))
    if problem is None:
        raise AssertionError("overloaded has a status")
    body = encode_json(problem.body())
    head = (
        f"HTTP/1.1 {problem.status} Too Many Connections\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with trio.move_on_after(_REFUSAL_SECONDS):
        try:
            await stream.send_all(head.encode() + body)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    stream.socket.close()
