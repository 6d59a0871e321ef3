"""What lies under a link's stream, made straight: frames read off the socket in one coroutine, and held to rules.

Line numbers are those of libp2p 0.8.1; docs/adr/ on links straight on the socket says why.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
)

#: Streams a peer may have open on one connection; a link needs one, libp2p's own protocols a few more.
MAX_STREAMS: Final = 64
_READ_AHEAD: Final = 64 * 1024
#: Noise's 65535 bytes a message, less the 16 of its tag.
_MAX_PLAIN: Final = 65535 - 16
_MAX_DIRECT: Final = MAX_MESSAGE_SIZE - HEADER_SIZE


def flatten_connections(swarm: Any, on_go_away: Callable[[str, int], None]) -> None:
    """Three defects of what lies under a stream, mended in one place because they are about the same reads.

    Yamux logs the code of a GO_AWAY and forgets it (yamux.py 1455), and a muxer class named in `muxer_opt` is not
    used (muxer_multistream.py `new_conn`): here the code is reported as `on_go_away(peer_id, code)`. A peer that
    sends more than its window only gets a line in the log, and the bytes are kept (yamux.py 1537), as are streams
    without number (yamux.py 1284): see FrameRules. And each frame passes nine coroutines, four locks and a new cancel
    scope on its way from the socket (io/msgio.py, security/noise, secure_session.py, yamux.py 1177): see FlatNoise.
    """
    add_conn = swarm.add_conn

    async def add_flattened(muxed_conn: Any, direction: str = "unknown") -> Any:
        peer_id = str(muxed_conn.peer_id)
        rules = FrameRules(muxed_conn.streams, lambda code: on_go_away(peer_id, code))
        flat = muxed_conn.secured_conn = FlatNoise(muxed_conn.secured_conn, rules.check)
        read_slowly = muxed_conn._read_data_body

        async def read_body(length: int) -> Any:
            ready = flat.take(length)
            if ready is not None:
                return ready
            # A body of twelve bytes must not be taken for the next header.
            flat.on_header = None
            try:
                return await read_slowly(length)
            finally:
                flat.on_header = rules.check

        muxed_conn._read_data_body = read_body
        return await add_conn(muxed_conn, direction=direction)

    swarm.add_conn = add_flattened


class FrameRules:
    """What a frame's header may say: no data past the window that was given, no stream past MAX_STREAMS."""

    def __init__(self, streams: Mapping[int, Any], on_go_away: Callable[[int], None]) -> None:
        self._streams = streams
        self._on_go_away = on_go_away

    def check(self, header: bytes) -> None:
        """Look at a header before its body is read; raises ConnectionClosedError when it breaks a rule."""
        version, kind, flags, number, length = struct.unpack(YAMUX_HEADER_FORMAT, header)
        if version != 0:
            raise ConnectionClosedError("the peer does not speak Yamux", transport="tcp")
        if kind == TYPE_GO_AWAY:
            self._on_go_away(int(length))
        new = flags & FLAG_SYN and kind in (TYPE_DATA, TYPE_WINDOW_UPDATE) and number not in self._streams
        if new and len(self._streams) >= MAX_STREAMS:
            raise ConnectionClosedError(f"the peer opened more than {MAX_STREAMS} streams", transport="tcp")
        if kind == TYPE_DATA:
            stream = self._streams.get(number)
            if length > (DEFAULT_WINDOW_SIZE if stream is None else stream.recv_window):
                raise ConnectionClosedError("the peer sent more than its window", transport="tcp")


class FlatNoise:
    """A Noise connection after its handshake, straight on the socket: same bytes, one coroutine.

    `on_header` sees each 12-byte read, which is a Yamux header unless a body is being read, and may raise.

    Noise (revision 34, section 3): a message is a 16-bit big-endian length and that much ciphertext.
    """

    def __init__(self, session: Any, on_header: Callable[[bytes], None] | None) -> None:
        self._session = session
        self._noise = session.conn.noise_state
        self._socket: trio.SocketStream = session.conn.read_writer.read_write_closer.stream.stream
        self.on_header = on_header
        self._cipher = bytearray()
        self._plain = bytearray(session._drain(None))
        self._writing = trio.Lock()

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, or with None whatever one message holds.

        Raises IncompleteReadError at the end of the connection, ConnectionClosedError when it broke.
        """
        wanted = 1 if n is None else n
        while len(self._plain) < wanted:
            await self._receive(wanted)
        data = bytes(self._plain[: len(self._plain) if n is None else n])
        del self._plain[: len(data)]
        if n == HEADER_SIZE and self.on_header is not None:
            self.on_header(data)
        return data

    def take(self, n: int) -> bytes | None:
        """`n` bytes if they have arrived already."""
        if len(self._plain) < n:
            return None
        data = bytes(self._plain[:n])
        del self._plain[:n]
        return data

    async def _receive(self, wanted: int) -> None:
        """Add one Noise message to the plain text."""
        cipher = self._cipher
        while len(cipher) < 2 or len(cipher) < 2 + int.from_bytes(cipher[:2], "big"):
            try:
                data = await self._socket.receive_some(_READ_AHEAD)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error
            if not data:
                got = len(self._plain) + len(cipher)
                raise IncompleteReadError("the peer closed the connection", expected_bytes=wanted, received_bytes=got)
            cipher += data
        end = 2 + int.from_bytes(cipher[:2], "big")
        message = bytes(cipher[2:end])
        del cipher[:end]
        self._plain += self._noise.decrypt(message)

    async def write(self, data: bytes) -> None:
        """Write all of it; raises ConnectionClosedError when the connection broke.

        Cancelling it may leave half a message on the wire: the connection can then only be closed.
        """
        async with self._writing:
            parts = []
            for at in range(0, len(data), _MAX_PLAIN):
                message = self._noise.encrypt(data[at : at + _MAX_PLAIN])
                parts.append(len(message).to_bytes(2, "big") + message)
            try:
                await self._socket.send_all(b"".join(parts))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class DirectStream:
    """Reads and writes a Yamux stream with one pass of the scheduler where libp2p takes a dozen.

    Every read sends a WINDOW_UPDATE however little was read (yamux.py 440: the branch for partial slack comes before
    the threshold counts), and every read and write takes three locks, each a checkpoint (yamux.py 229, 1051). With
    one token a read that is a frame back for each frame in, and most of a small box's time. Here credit is given
    back when half the window has been read, as go-yamux does, the window stays 256 KiB, and locks are taken only
    where they protect something: one task reads a link, one writes it.
    """

    def __init__(self, net_stream: Any) -> None:
        self._net_stream = net_stream
        self._stream = net_stream.muxed_stream
        self._conn = self._stream.conn
        self._owed = 0

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte, or none at the end; raises MuxedStreamReset when the stream or connection broke."""
        stream, conn, number = self._stream, self._conn, self._stream.stream_id
        while not (buffer := conn.stream_buffers.get(number)):
            if stream.reset_received:
                raise MuxedStreamReset("the stream was reset")
            if buffer is None or stream.recv_closed:
                return b""
            if conn.stream_events[number].is_set():
                conn.stream_events[number] = trio.Event()
            await conn.stream_events[number].wait()
        data = bytes(buffer[:max_bytes])
        del buffer[: len(data)]
        self._owed += len(data)
        if self._owed >= DEFAULT_WINDOW_SIZE // 2:
            credit, self._owed = self._owed, 0
            stream.recv_window += credit
            await stream.send_window_update(credit)
        return data

    async def write(self, data: bytes) -> None:
        """Write all of it; what does not fit the window, or is larger than a frame, goes libp2p's own way."""
        stream, conn = self._stream, self._conn
        if stream.send_closed or stream.closed or not len(data) <= min(stream.send_window, _MAX_DIRECT):
            await self._net_stream.write(data)
            return
        stream.send_window -= len(data)
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream.stream_id, len(data))
        async with conn._write_lock:
            await conn.secured_conn.write(header + data)
