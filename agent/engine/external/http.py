"""One HTTP/1.1 request to a server that is not trusted: every size bounded, nothing followed, cancelled by closing.

h11 does the protocol and trio the bytes. A connection serves one request, so that closing it is all there is to a
cancel, and no answer can be taken for another's. Headers are bounded by h11 (its limit on an incomplete event holds for
the header block, for a chunk's header and for trailers), bodies by whoever reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import h11
import trio

from agent.engine.external.trouble import ConnectTroubleError, ServerTroubleError, StatusTroubleError, quoted
from agent.engine_url import EngineUrl
from agent.version import VERSION

MAX_HEAD: Final = 32 * 1024
#: Bytes of a list of models, and of what is said about one.
MAX_LIST: Final = 1024 * 1024
#: Interim answers (1xx) before the answer itself.
_MAX_INTERIM: Final = 8
#: Seconds a server has to take a request in.
_SEND_LIMIT: Final = 30.0
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True)
class Server:
    """Where to ask, with which key (empty for none), and how many seconds connecting may take."""

    url: EngineUrl
    key: str = ""
    connect_limit: float = 1.5


class Answer:
    """The head of an answer, and its body as it arrives."""

    def __init__(self, head: h11.Response, exchange: _Exchange) -> None:
        self.status = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self._exchange = exchange

    @property
    def content_type(self) -> str:
        """The media type without its parameters, lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def piece(self, silence: float) -> bytes | None:
        """The body's next bytes, at once as they come; None at its end.

        Raises ServerTroubleError where it breaks off, is no HTTP, or nothing comes for `silence` seconds.
        """
        return await self._exchange.body(silence)

    async def read(self, most: int, silence: float) -> bytes:
        """The whole body. Raises ServerTroubleError as `piece` does, and where it has more than `most` bytes."""
        body = bytearray()
        while (piece := await self.piece(silence)) is not None:
            body += piece
            if len(body) > most:
                raise ServerTroubleError(f"sends more than {most} bytes")
        return bytes(body)


@asynccontextmanager
async def ask(
    server: Server, method: str, path: str, body: bytes = b"", *, accept: str = "application/json", silence: float
) -> AsyncIterator[Answer]:
    """Send one request and give the answer once its head is there; the connection is closed at the end of the block.

    `path` is that behind the server's own prefix. Raises ConnectTroubleError when there is no connection within the
    limit or its certificate is wrong, ServerTroubleError for anything that is no answer, also when nothing comes for
    `silence` seconds. Redirects are answers like any other here. Cancelling closes the connection without delay.
    """
    stream = await _connect(server)
    try:
        exchange = _Exchange(stream)
        headers = [
            ("Host", server.url.authority),
            ("User-Agent", f"shoal/{VERSION}"),
            ("Accept", accept),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        if server.key:
            headers.append(("Authorization", f"Bearer {server.key}"))
        if method == "POST":
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        await exchange.send(method, server.url.prefix + path, headers, body)
        yield Answer(await exchange.head(silence), exchange)
    finally:
        # A farewell (of TLS) would wait for a server that may not answer; the request asked to close anyway.
        await trio.aclose_forcefully(stream)


async def fetch(server: Server, path: str, post: object = None) -> object:
    """The JSON that a server answers to a GET, or to a POST of `post`. No time limit but that for connecting.

    Raises ConnectTroubleError, StatusTroubleError (any status but 200), ServerTroubleError (too long, no JSON).
    """
    body = b"" if post is None else json.dumps(post).encode()
    async with ask(server, "GET" if post is None else "POST", path, body, silence=30.0) as answer:
        if 300 <= answer.status < 400:
            raise StatusTroubleError(answer.status, "answers with a redirect, which is not followed")
        if answer.status != 200:
            raise StatusTroubleError(answer.status, f"answers {answer.status} to {path}")
        data = await answer.read(MAX_LIST, 30.0)
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError):
        raise ServerTroubleError(f"answers {path} with something that is no JSON") from None
    return found


async def _connect(server: Server) -> trio.abc.Stream:
    url = server.url
    with trio.move_on_after(server.connect_limit):
        try:
            tcp = await trio.open_tcp_stream(url.host, url.port)
        except OSError as error:
            raise ConnectTroubleError(_why_not(error)) from None
        if not url.tls:
            return tcp
        tls = trio.SSLStream(tcp, ssl.create_default_context(), server_hostname=url.host, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(tcp)
            cause = error.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ConnectTroubleError(f"has no valid certificate: {cause.verify_message}") from None
            raise ConnectTroubleError("does not speak TLS as it should") from None
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise
        return tls
    raise ConnectTroubleError(f"did not take a connection within {server.connect_limit:g} s")


def _why_not(error: OSError) -> str:
    """Of an OSError of trio, which may stand for one attempt an address, the words of the system."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        elif isinstance(inner, OSError) and inner.strerror:
            # trio puts the address before the system's words; numbers of getaddrinfo are not errno's.
            words = (
                inner.strerror if isinstance(inner, socket.gaierror) or not inner.errno else os.strerror(inner.errno)
            )
            return f"cannot be connected to: {words.lower()}"
        else:
            inner = inner.__cause__ or inner.__context__
    return "cannot be connected to"


class _Exchange:
    """One request and its answer on a fresh connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def send(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        data = self._http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(_SEND_LIMIT):
            with contextlib.suppress(trio.BrokenResourceError):  # it may have refused it half-way and said why
                await self._stream.send_all(data)
            return
        raise ServerTroubleError(f"did not take a request in within {_SEND_LIMIT:g} s")

    async def head(self, silence: float) -> h11.Response:
        for _ in range(_MAX_INTERIM + 1):
            event = await self._event(silence)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        raise ServerTroubleError("does not answer as HTTP asks")

    async def body(self, silence: float) -> bytes | None:
        """The next bytes of the body, None at its end."""
        while True:
            event = await self._event(silence)
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            else:
                return None

    async def _event(self, silence: float) -> h11.Event:
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._bytes(silence))
                elif isinstance(event, h11.Event):
                    return event
                else:
                    raise ServerTroubleError("does not answer as HTTP asks")
        except h11.RemoteProtocolError as error:
            if self._http.trailing_data[1]:
                raise ServerTroubleError("closed the connection before the answer's end") from None
            raise ServerTroubleError(f"does not answer as HTTP asks: {quoted(str(error))}") from None

    async def _bytes(self, silence: float) -> bytes:
        with trio.move_on_after(silence):
            try:
                return bytes(await self._stream.receive_some(_CHUNK))
            except trio.BrokenResourceError:
                raise ServerTroubleError("broke the connection off") from None
        raise ServerTroubleError(f"said nothing for {silence:g} s")
