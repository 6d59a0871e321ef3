"""Server-sent events from bytes, each line and each event bounded. Pure. (WHATWG HTML, 9.2.6)

A line ends with LF or CR LF; the lone CR that the standard also allows is used by no server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.engine.external.trouble import ServerTroubleError

#: Bytes of a line, and of all data of one event.
MAX_EVENT: Final = 256 * 1024
#: Bytes of a whole stream: what is skipped (comments, names) costs time, too.
MAX_STREAM: Final = 64 * 1024 * 1024
#: Lines in a row that are no data: a server sends one now and then to keep a connection open.
MAX_IDLE: Final = 1000


class EventStream:
    """Cuts a byte stream into the data of its events. Every method raises ServerTroubleError past a limit."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._total = 0
        self._idle = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of each event that `piece` completes."""
        self._total += len(piece)
        if self._total > MAX_STREAM:
            raise ServerTroubleError(f"sends a stream of more than {MAX_STREAM} bytes")
        # Only what is new is searched, so a long line that comes in small pieces costs no more than its length.
        searched = len(self._rest)
        self._rest += piece
        begin = 0
        try:
            while (end := self._rest.find(b"\n", max(searched, begin))) >= 0:
                line = bytes(self._rest[begin:end])
                begin = end + 1
                data = self._line(line.removesuffix(b"\r"))
                if data is not None:
                    yield data
        finally:
            del self._rest[:begin]
        if len(self._rest) > MAX_EVENT:
            raise ServerTroubleError(f"sends a line of more than {MAX_EVENT} bytes")

    def _line(self, line: bytes) -> str | None:
        """Take a line in; the event's data where it was the empty one at the end of an event."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                value = value.removeprefix(b" ")
                self._size += len(value) + 1
                if self._size > MAX_EVENT:
                    raise ServerTroubleError(f"sends an event of more than {MAX_EVENT} bytes")
                self._data.append(value)
                self._idle = 0
                return None
        if not self._data or line:
            self._idle += 1
            if self._idle > MAX_IDLE:
                raise ServerTroubleError(f"sends {MAX_IDLE} lines in a row that say nothing")
            return None
        data = b"\n".join(self._data).decode("utf-8", "replace")
        self._data, self._size = [], 0
        return data
