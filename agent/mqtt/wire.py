"""What paho takes for its socket: bytes in memory, with every packet of the broker bounded. No I/O.

paho-mqtt speaks the protocol and knows nothing of the connection; bytes come and go over a trio stream, so there is no
thread, and TLS is trio's. A packet announces its length before it comes: a PUBLISH past the limit is cut to it here,
before it takes memory, and is acknowledged and refused as any message; another packet past its limit ends the
connection.
"""

from __future__ import annotations

from typing import Final

#: Bytes of a PUBLISH that are kept: the largest payload that is taken, and its topic and properties.
MAX_PUBLISH: Final = 1024 * 1024 + 128 * 1024
#: Bytes of any other packet.
MAX_CONTROL: Final = 64 * 1024
_PUBLISH: Final = 3
_QOS_2: Final = 0x04
_MAX_LENGTH_BYTES: Final = 4


class WireError(Exception):
    """The broker sent what MQTT does not allow, or a packet past its limit; the connection is of no more use."""


class Bounds:
    """Follows the packets in a stream of bytes, and cuts those that are too long."""

    def __init__(self, publish: int = MAX_PUBLISH, control: int = MAX_CONTROL) -> None:
        self._publish = publish
        self._control = control
        self._head = bytearray()
        self._keep = 0
        self._skip = 0

    def take(self, data: bytes | bytearray) -> bytearray:
        """The bytes as they may be read on. Raises WireError."""
        kept, view, at = bytearray(), memoryview(data), 0
        while at < len(view):
            if self._keep:
                piece = view[at : at + self._keep]
                kept += piece
                self._keep -= len(piece)
                at += len(piece)
            elif self._skip:
                passed = min(self._skip, len(view) - at)
                self._skip -= passed
                at += passed
            else:
                self._head.append(view[at])
                at += 1
                self._begin(kept)
        return kept

    def _begin(self, kept: bytearray) -> None:
        """Begin a packet once its length is known."""
        if len(self._head) == 1 or self._head[-1] & 0x80:
            if len(self._head) > _MAX_LENGTH_BYTES:
                raise WireError("the broker announced a packet of a length that takes more than four bytes")
            return
        length = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(self._head[1:]))
        is_publish = self._head[0] >> 4 == _PUBLISH
        if is_publish and self._head[0] & _QOS_2:
            # No subscription asks for it, and paho would keep each message until the broker lets go of it.
            raise WireError("the broker sent a message with QoS 2, which was not asked for")
        most = self._publish if is_publish else self._control
        if length > most and not is_publish:
            raise WireError(f"the broker sent a packet of {length} bytes, and {most} is the limit")
        self._keep, self._skip = min(length, most), max(0, length - most)
        kept.append(self._head[0])
        kept += _length(self._keep)
        self._head.clear()


class Pipe:
    """A socket as paho knows one; what it has written is in `out`, to be taken from there."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.out = bytearray()
        self.closed = False
        self._bounds = bounds or Bounds()
        self._in = bytearray()
        self._at = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Let paho read these bytes of the broker. Raises WireError."""
        del self._in[: self._at]
        self._at = 0
        self._in += self._bounds.take(data)

    @property
    def waiting(self) -> int:
        """Bytes that paho has not read."""
        return len(self._in) - self._at

    def recv(self, buffer_size: int) -> bytes:
        """As a socket that does not block."""
        if not self.waiting:
            raise BlockingIOError
        piece = bytes(self._in[self._at : self._at + buffer_size])
        self._at += len(piece)
        return piece

    def send(self, buffer: bytes | bytearray) -> int:
        """As a socket that always takes everything."""
        self.out += buffer
        return len(buffer)

    def close(self) -> None:
        """paho is done with the connection."""
        self.closed = True

    def fileno(self) -> int:
        """None: nobody waits for this socket."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""


def _length(value: int) -> bytes:
    """A remaining length as MQTT writes it."""
    digits = bytearray()
    while True:
        value, low = divmod(value, 128)
        digits.append(low | (0x80 if value else 0))
        if not value:
            return bytes(digits)
