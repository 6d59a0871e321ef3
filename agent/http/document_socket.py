"""GET /v1/fleet/document as a websocket: the fleet document, live and read-only, over the Yjs sync protocol.

A y-websocket provider with the URL ws://HOST:PORT/v1/fleet and the room `document` is a client, and so is whatever
else speaks y-protocols/sync. A client asks with its state vector (sync step 1), gets what it lacks (step 2), and then
every update. What it writes into its own copy (step 2, updates, awareness) is counted and dropped: the document says
what signed operations say, and nothing else.

Every 15 s the box asks each client in turn for what it has. The answer is of no interest, but that there is one: a
client that is gone without a word is noticed, and y-websocket, which leaves a server that is silent for 30 s, stays.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from agent.errors import AgentError, DrainingError, OverloadedError
from agent.http import websocket_fixes
from agent.http.auth import Gate
from agent.http.errors import NotFoundError, Problem, internal, problem_of
from agent.http.exchange import Exchange, Receive, Scope, Send
from agent.http.sse import encode_json
from fleet.document import yjs
from fleet.document.yjs import StaleClientError

log = structlog.get_logger("shoal.http")

PATH: Final = "/v1/fleet/document"
#: Clients at a time.
MAX_CLIENTS: Final = 16
#: Bytes of one message from a client; the longest one that matters is a state vector.
MAX_MESSAGE: Final = 64 * 1024
#: Updates, and bytes of them, that wait for a client; past either it gets one update with all it lacks instead.
MAX_WAITING: Final = 256
MAX_WAITING_BYTES: Final = 1024 * 1024
#: Seconds between two questions to a client, and how long it may say nothing at all.
ASK_EVERY: Final = 15.0
MAX_SILENCE: Final = 45.0
#: Seconds for saying goodbye.
_FAREWELL: Final = 2.0

# The wire: y-protocols/sync.js, and the message types of y-websocket.
_SYNC: Final = 0
_STEP_1, _STEP_2, _UPDATE = 0, 1, 2
_OTHER_TYPES: Final = {1: "awareness", 2: "auth", 3: "awareness_query"}

# y-websocket takes 4400 to 4499 as final and comes back after every other code.
NOT_YJS: Final = 4400
STALE_COPY: Final = 4409
NOT_BINARY: Final = 1003
TOO_BIG: Final = 1009
RESTARTING: Final = 1012
TRY_AGAIN: Final = 1013


class Source(Protocol):
    """The document as it is served; `fleet.document.projection.Projection` is one."""

    def vector(self) -> bytes:
        """The state vector of who has every update up to now."""

    def answer(self, vector: bytes) -> bytes:
        """The update that brings a copy with this state vector to the present; raises YjsError, StaleClientError."""

    def subscribe_updates(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `listener` with every update from now on; returns what ends that."""


class DocumentSocket:
    """Serves one agent's document. `find` gives it, or None while this box belongs to no fleet.

    `dropped` counts what clients sent that changes nothing, by sort.
    """

    def __init__(self, find: Callable[[], Source | None]) -> None:
        websocket_fixes.install()
        self.dropped: Final[Counter[str]] = Counter()
        self._find = find
        self._clients: set[_Client] = set()
        self._draining = False

    def drain(self) -> None:
        """Say goodbye to every client, and take no more."""
        self._draining = True
        for client in self._clients:
            client.end(RESTARTING, "this box is shutting down")

    async def serve(self, scope: Scope, receive: Receive, send: Send, gate: Gate) -> None:
        """Serve one websocket until it ends; never raises but to pass on a cancellation."""
        try:
            gate.check(Exchange({**scope, "method": "GET"}, receive, send))
            source = self._open(scope["path"])
        except AgentError as error:
            await refuse(send, problem_of(error) or internal(None))
            return
        client = _Client(source, receive, send, self.dropped)
        self._clients.add(client)
        try:
            await client.serve()
        except Exception:
            # One client's trouble is no other's; the connection ends with it.
            log.exception("document.client_failed")
        finally:
            self._clients.discard(client)

    def _open(self, path: str) -> Source:
        if path != PATH:
            raise NotFoundError(f"there is no websocket at {path[:200]}; there is one at {PATH}")
        if self._draining:
            raise DrainingError("this box is shutting down", retry_after=5)
        if len(self._clients) >= MAX_CLIENTS:
            raise OverloadedError(f"{MAX_CLIENTS} clients follow the document, the limit", retry_after=30)
        source = self._find()
        if source is None:
            raise NotFoundError("this box belongs to no fleet yet, so there is no document")
        return source


async def refuse(send: Send, problem: Problem) -> None:
    """Answer a websocket's handshake with an HTTP error."""
    body = encode_json(problem.body())
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), *problem.headers()]
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers]
    await send({"type": "websocket.http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "websocket.http.response.body", "body": body})


class _Client:
    """One client. One task reads it, one writes to it; what is still to be written is bounded whatever it does."""

    def __init__(self, source: Source, receive: Receive, send: Send, dropped: Counter[str]) -> None:
        self._source = source
        self._receive = receive
        self._send = send
        self._dropped = dropped
        self._scope = trio.CancelScope()
        self._farewell: tuple[int, str] | None = None
        self._wake = trio.Event()
        #: The latest question that has not been answered.
        self._asked: bytes | None = None
        #: Updates, and the state vector of who has taken them.
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        #: Set when updates were thrown away because too many waited.
        self._behind = False
        #: The state vector of who has taken all that was sent so far.
        self._position = b""

    def end(self, code: int, reason: str) -> None:
        """Close the websocket; the first code given counts."""
        if self._farewell is None:
            self._farewell = (code, reason)
        self._scope.cancel()

    async def serve(self) -> None:
        """Accept, and serve until the client leaves or is sent away. The client's goodbye needs none of ours."""
        unsubscribe = self._source.subscribe_updates(self._updated)
        try:
            with self._scope:
                await self._send({"type": "websocket.accept"})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            unsubscribe()
        if self._farewell is not None:
            code, reason = self._farewell
            with trio.move_on_after(_FAREWELL):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    # --- what the client says --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            with trio.move_on_after(MAX_SILENCE) as limit:
                message = await self._receive()
            if limit.cancelled_caught:
                self.end(TRY_AGAIN, f"nothing was heard for {MAX_SILENCE:g} s")
                return
            if message["type"] == "websocket.disconnect":
                return
            if message["type"] != "websocket.receive":
                continue  # the handshake
            self._take(message.get("bytes"), message.get("text"))

    def _take(self, data: bytes | None, text: str | None) -> None:
        if data is None:
            self.end(TOO_BIG if len(text or "") > MAX_MESSAGE else NOT_BINARY, "the Yjs sync protocol is binary")
        elif len(data) > MAX_MESSAGE:
            self.end(TOO_BIG, f"a message from a client has at most {MAX_MESSAGE} bytes")
        else:
            try:
                self._understand(yjs.Reader(data))
            except yjs.YjsError as error:
                self.end(NOT_YJS, f"not the Yjs sync protocol: {error}")

    def _understand(self, message: yjs.Reader) -> None:
        sort = message.integer()
        if sort != _SYNC:
            self._dropped[_OTHER_TYPES.get(sort, "unknown")] += 1
            return
        step, content = message.integer(), message.bytes()
        if step == _STEP_1:
            yjs.read_vector(content)
            self._asked = content
            self._wake.set()
        elif step == _STEP_2 and not yjs.brings_items(content):
            pass  # the answer to our question, from a copy that nobody wrote into
        elif step in (_STEP_2, _UPDATE):
            if not self._dropped["write"]:
                log.warning("document.write_dropped", hint="the document is read-only; change it with shoal's commands")
            self._dropped["write"] += 1
        else:
            raise yjs.YjsError(f"there is no sync message {step}")

    # --- what the client gets --------------------------------------------------------------------------------------

    def _updated(self, update: bytes) -> None:
        if not self._position or self._behind:
            return  # has not asked yet, or will get it all together
        self._waiting.append((update, self._source.vector()))
        self._waiting_bytes += len(update)
        if len(self._waiting) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            self._forget_waiting()
            self._behind = True
        self._wake.set()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    async def _write(self) -> None:
        ask_at = trio.current_time() + ASK_EVERY
        while True:
            message = self._next()
            if message is not None:
                await self._send({"type": "websocket.send", "bytes": message})
                continue
            self._wake = trio.Event()
            with trio.move_on_at(ask_at) as limit:
                await self._wake.wait()
            if limit.cancelled_caught:
                ask_at = trio.current_time() + ASK_EVERY
                await self._send({"type": "websocket.send", "bytes": _sync(_STEP_1, self._source.vector())})

    def _next(self) -> bytes | None:
        """The next message for the client; None when it has everything."""
        if self._asked is not None:
            vector, self._asked, self._behind = self._asked, None, False
            self._forget_waiting()
            return self._catch_up(_STEP_2, vector)
        if self._behind:
            self._behind = False
            return self._catch_up(_UPDATE, self._position)
        if not self._waiting:
            return None
        update, self._position = self._waiting.popleft()
        self._waiting_bytes -= len(update)
        return _sync(_UPDATE, update)

    def _catch_up(self, step: int, vector: bytes) -> bytes | None:
        try:
            update = self._source.answer(vector)
        except StaleClientError as error:
            self.end(STALE_COPY, str(error))
            return None
        self._position = self._source.vector()
        return _sync(step, update)


def _sync(step: int, content: bytes) -> bytes:
    return yjs.integer(_SYNC) + yjs.integer(step) + yjs.byte_string(content)
