"""Connections of the HTTP server: how many, how long a client may take to ask or refuse to read, and closing them all.

hypercorn 0.18 writes under a shield from cancellation (trio/tcp_server.py, protocol_send) and never gives a client
that stopped reading a deadline, so such a client would hold its job, and the shutdown, for ever. The streams it is
given here have the deadline inside.

Every connection holds a file descriptor from the moment it is accepted. When there is no room for a new one, the one
that has been without a request for the longest goes: it has sent no head yet, or is kept open for a next request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from agent.errors import AgentError, OverloadedError
from agent.http.errors import RequestTimeoutError, problem_of
from agent.http.sse import encode_json

#: Connections at a time.
MAX_CONNECTIONS: Final = 128
#: Connections past these that are told so at a time; more are closed without a word.
MAX_REFUSALS: Final = 32
#: Of these, how many may ask for the health of the box instead and get it, and for how many seconds.
MAX_HEALTH_CHECKS: Final = 8
_HEALTH_SECONDS: Final = 5.0
_HEALTH_CHECKS: Final = (b"GET /healthz ", b"GET /readyz ")
#: Seconds in which a client must send the head of a request once it has begun, and of its first one from the start.
HEAD_TIMEOUT: Final = 10.0
#: Seconds in which a client must take one write, which is at most a response body or a chunk of a stream.
WRITE_TIMEOUT: Final = 20.0
#: Seconds for which a refused connection is still read, so that its client sees the refusal.
_REFUSAL_SECONDS: Final = 1.0
#: Seconds that a request whose client has gone has to notice that.
_WIND_DOWN: Final = 0.1


class ClientStream:
    """A connection as hypercorn uses it: a trio stream whose writes, and heads of requests, have a deadline."""

    def __init__(self, stream: trio.SocketStream, begun: bytes = b"") -> None:
        """`begun` is what has been read of it already."""
        self._stream = stream
        self._begun = begun
        self._in_head = bool(begun)
        self._answering = 0
        self.socket = stream.socket
        #: Since when it has had no request, on trio's clock.
        self.free_since = trio.current_time()
        #: Ends with the time for a head.
        self.patience = trio.CancelScope(deadline=trio.current_time() + HEAD_TIMEOUT)
        #: Set once the client has closed its side, or the connection broke.
        self.ended = trio.Event()

    @property
    def free(self) -> bool:
        """Whether no request of it is being answered."""
        return not self._answering

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around the answer to one request, whose head is complete."""
        self._answering += 1
        self._in_head = False
        self.patience.deadline = math.inf
        try:
            yield
        finally:
            self._answering -= 1
            self.free_since = trio.current_time()

    async def send_all(self, data: bytes) -> None:
        """Write; a client that does not read for WRITE_TIMEOUT is disconnected (trio.BrokenResourceError)."""
        with trio.move_on_after(WRITE_TIMEOUT) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            self.close()
            raise trio.BrokenResourceError("the client stopped reading")

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read; b"" at the end."""
        if self._begun:
            begun, self._begun = self._begun, b""
            return begun
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self.ended.set()
        if not self._answering and not self._in_head:
            self._in_head = True
            self.patience.deadline = min(self.patience.deadline, trio.current_time() + HEAD_TIMEOUT)
        return data

    async def refuse(self, error: AgentError) -> None:
        """Answer with an error without reading a request, and close once the client has seen it; bounded in time."""
        problem = problem_of(error)
        if problem is None:
            raise AssertionError(f"{error.code} has no status")
        body = encode_json(problem.body())
        fields = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in [*fields, *problem.headers()])
        with trio.move_on_after(_REFUSAL_SECONDS):
            try:
                await self._stream.send_all(f"HTTP/1.1 {problem.status} \r\n{head}\r\n".encode() + body)
                await self._stream.send_eof()
                while await self._stream.receive_some():
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                pass
        self.close()

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
        self._refusing: set[ClientStream] = set()
        self._health_checks = 0

    async def accept(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it ends."""
        if len(self._open) >= MAX_CONNECTIONS and not self._make_room():
            if len(self._refusing) >= MAX_REFUSALS:
                stream.socket.close()
            else:
                await self._refuse(stream)
            return
        client = ClientStream(stream)
        self._open.add(client)
        try:
            await self._serve(client)
        finally:
            self._open.discard(client)

    def _make_room(self) -> bool:
        """Close the connection that has been without a request for the longest; False where all are being answered."""
        oldest = min((c for c in self._open if c.free), key=lambda c: c.free_since, default=None)
        if oldest is None:
            return False
        self._open.discard(oldest)
        oldest.close()
        return True

    async def _serve(self, client: ClientStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_after_client, client, nursery.cancel_scope)
                await self._handle(client)
                nursery.cancel_scope.cancel()
        finally:
            client.close()

    async def _end_after_client(self, client: ClientStream, scope: trio.CancelScope) -> None:
        """hypercorn 0.18 keeps what belongs to a connection for the whole keep-alive time after its client has gone
        (trio/tcp_server.py: nobody cancels the idle task), so a few requests a second would use up the limit. Nor
        does it mind how long a head takes that goes on arriving."""
        with client.patience:
            await client.ended.wait()
            await trio.sleep(_WIND_DOWN)
        if client.patience.cancelled_caught:
            await client.refuse(
                RequestTimeoutError(
                    f"the head of the request did not arrive within {HEAD_TIMEOUT:g} s; nothing was run"
                )
            )
        scope.cancel()

    async def _refuse(self, stream: trio.SocketStream) -> None:
        """Say that there is no room, but to a health check, which is answered all the same."""
        refused = ClientStream(stream)
        self._refusing.add(refused)
        try:
            begun = b""
            with trio.move_on_after(_REFUSAL_SECONDS):
                try:
                    begun = bytes(await stream.receive_some(4096))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            if begun.startswith(_HEALTH_CHECKS) and self._health_checks < MAX_HEALTH_CHECKS:
                await self._check_health(ClientStream(stream, begun))
            else:
                await refused.refuse(
                    OverloadedError(f"{MAX_CONNECTIONS} connections are being answered, the limit", retry_after=1)
                )
        finally:
            self._refusing.discard(refused)
            refused.close()

    async def _check_health(self, client: ClientStream) -> None:
        self._health_checks += 1
        try:
            with trio.move_on_after(_HEALTH_SECONDS):
                await self._serve(client)
        finally:
            self._health_checks -= 1

    def close_all(self) -> None:
        """Close every connection at once, also those that are writing."""
        for client in [*self._open, *self._refusing]:
            client.close()
