"""One HTTP request and its response, over ASGI, with the limits a request must keep."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl

import trio

from agent.errors import BadRequestError, RequestTooLargeError
from agent.http.errors import Problem, RequestTimeoutError
from agent.http.sse import encode_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[str, str]]

#: Bytes of a request body.
MAX_BODY: Final = 4 * 1024 * 1024
#: Seconds a client may take to send its body.
BODY_TIMEOUT: Final = 30.0
#: After an early answer: how many bytes, for how many seconds, of the rest of the request are read and thrown away.
LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_SECONDS: Final = 5.0


class ClientGoneError(Exception):
    """The client closed the connection before it had sent its request; there is nobody to answer."""


class Exchange:
    """One request, its body read at most once, and its response, started at most once.

    `headers` go on every response. `job` is the id of the job that the request became, if it did.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.path_params: MutableMapping[str, Any] = {}
        self._query: bytes = scope.get("query_string", b"")
        #: Bytes of the path, the query and the headers, as they came.
        self.head_bytes = len(scope.get("raw_path") or b"") + len(self._query)
        self.head_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        self.headers: list[tuple[str, str]] = []
        self.job: str | None = None
        self.started = False
        self._http2 = str(scope["http_version"]).startswith("2")
        self._request_headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        self._receive = receive
        self._send = send
        self._complete = not self._http2 and not self._has_body()

    def header(self, name: str) -> str | None:
        """The value of a request header, by its lower-case name."""
        return self._request_headers.get(name)

    def query(self, name: str) -> str | None:
        """The last value of a query parameter."""
        found = parse_qsl(self._query.decode("latin-1"), keep_blank_values=True, max_num_fields=32)
        return dict(found).get(name)

    async def body(self) -> bytes:
        """The whole request body, at most MAX_BODY bytes.

        Raises RequestTooLargeError (before reading where the length is announced), RequestTimeoutError after
        BODY_TIMEOUT seconds, ClientGoneError. Cancel-safe.
        """
        announced = self.header("content-length")
        if announced is not None and announced.isascii() and announced.isdigit() and _longer(announced, MAX_BODY):
            raise _too_large()
        chunks: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_TIMEOUT) as limit:
            while not self._complete:
                message = await self._next()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                size += len(message.get("body", b""))
                if size > MAX_BODY:
                    raise _too_large()
                chunks.append(message.get("body", b""))
        if limit.cancelled_caught:
            raise RequestTimeoutError(f"the request body did not arrive within {BODY_TIMEOUT:g} s; nothing was run")
        return b"".join(chunks)

    async def wait_gone(self) -> None:
        """Return when the client has closed the connection. To be used only after the body has been read."""
        while (await self._next())["type"] != "http.disconnect":
            pass

    async def reply(self, status: int, value: object, headers: Headers = ()) -> None:
        """Send a whole JSON response. Does nothing but close when a response has been started."""
        if self.started:
            await self.end()
            return
        body = encode_json(value)
        await self.start(status, "application/json", [*headers, ("content-length", str(len(body)))])
        await self.end(body)

    async def refuse(self, problem: Problem) -> None:
        """Answer with an error."""
        await self.reply(problem.status, problem.body(), problem.headers())

    async def start(self, status: int, content_type: str, headers: Headers = ()) -> None:
        """Send the status and headers; they reach the client with the first bytes of the body."""
        self.started = True
        every = [("content-type", content_type), *self.headers, *headers]
        if not self._complete and not self._http2:
            every.append(("connection", "close"))
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in every]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send body bytes at once; returns when the operating system has taken them (this is the backpressure)."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last bytes of the body and finish.

        Where the client is still sending its request, the rest of it is thrown away, bounded in bytes and time:
        closing a socket with unread data resets the connection, and the client would lose the answer.
        """
        if self._complete:
            await self._send({"type": "http.response.body", "body": data})
            return
        await self.write(data)
        async with trio.open_nursery() as nursery:
            enough = trio.Event()
            nursery.start_soon(self._discard, enough)
            with trio.move_on_after(LINGER_SECONDS):
                await enough.wait()
            # Goes on discarding: the server's queue of body parts is bounded, and finishing waits for room in it.
            await self._send({"type": "http.response.body", "body": b""})
            nursery.cancel_scope.cancel()

    async def _discard(self, enough: trio.Event) -> None:
        discarded = 0
        while True:
            message = await self._next()
            discarded += len(message.get("body", b""))
            if self._complete or message["type"] == "http.disconnect" or discarded > LINGER_BYTES:
                enough.set()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._complete = True
        return message

    def _has_body(self) -> bool:
        return "transfer-encoding" in self._request_headers or self._request_headers.get("content-length", "0") != "0"


def text_of(body: bytes) -> str:
    """The body as text, without a byte order mark; raises BadRequestError that says where it stops being UTF-8."""
    try:
        return body.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the body is not UTF-8 (at byte {error.start}); send JSON in UTF-8") from None


def _too_large() -> RequestTooLargeError:
    return RequestTooLargeError(
        f"the request body is larger than the limit of {MAX_BODY} bytes (4 MiB)", details={"limit_bytes": MAX_BODY}
    )


def _longer(digits: str, limit: int) -> bool:
    # Compared by length first: Python refuses to convert thousands of digits.
    digits = digits.lstrip("0")
    return len(digits) > len(str(limit)) or int(digits or "0") > limit
