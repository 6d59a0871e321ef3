"""Workarounds for the websockets of hypercorn 0.18, one each, and nothing else.

tests/integration/test_document_socket.py shows each defect without its workaround, so that a version in which it is
gone is noticed.
"""

from __future__ import annotations

from io import BytesIO, StringIO
from typing import Any

from hypercorn.protocol import ws_stream
from wsproto.events import BytesMessage, TextMessage


class UncompressedHandshake(ws_stream.Handshake):  # type: ignore[misc]
    """Declines every extension.

    hypercorn takes permessage-deflate whenever it is offered (protocol/ws_stream.py, Handshake.accept), and wsproto
    inflates whatever came in one read at once: 64 KiB off the wire become 64 MiB before any limit is looked at. And
    deflating megabytes of document for a client on this very machine would hold up the whole event loop.
    """

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        super().__init__([pair for pair in headers if pair[0].lower() != b"sec-websocket-extensions"], http_version)


class BoundedBuffer(ws_stream.WebsocketBuffer):  # type: ignore[misc]
    """Keeps one byte more than the limit of a message, drops the rest, and leaves the verdict to the application.

    hypercorn's own says "too big" to the client after it has stored the part, and goes on storing what still comes
    (protocol/ws_stream.py, WebsocketBuffer.extend): memory grows as long as the client sends, and the application
    never hears of it.
    """

    value: Any

    def extend(self, event: BytesMessage | TextMessage) -> None:
        """Take one part of a message."""
        if self.value is None:
            self.value = StringIO() if isinstance(event, TextMessage) else BytesIO()
        self.length += self.value.write(event.data[: max(0, self.max_length + 1 - self.length)])


def install() -> None:
    """Make hypercorn use both. Idempotent; concerns the whole process."""
    ws_stream.Handshake = UncompressedHandshake
    ws_stream.WebsocketBuffer = BoundedBuffer
