"""Every workaround for a defect of py-libp2p 0.8.1, one function each, and nothing else.

Line numbers are those of the 0.8.1 release. tests/integration/test_libp2p_fixes.py shows each defect without its
workaround, so that a version in which it is gone is noticed.
"""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import libp2p.network.swarm as swarm_module
import trio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.network.config import RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    GO_AWAY_NORMAL,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
)

#: libp2p specification, error codes: the connection was refused by a connection gate.
GATED: Final = 0x1007
#: Seconds an inbound connection may take from TCP accept to the end of the muxer's negotiation.
HANDSHAKE_LIMIT: Final = 5.0
#: Inbound connections that may be in their handshake at once, in all and from one address.
MAX_HALF_OPEN: Final = 128
MAX_HALF_OPEN_PER_ADDRESS: Final = 32
#: Addresses of known peers never expire by themselves (seconds; ten years).
LONG_TTL: Final = 315_360_000
#: Streams a peer may have open on one connection; a link needs one, libp2p's own protocols a few more.
MAX_STREAMS: Final = 64
_REFUSAL_LINGER: Final = 1.0
_FAREWELL_LIMIT: Final = 0.25
_READ_AHEAD: Final = 64 * 1024
#: Noise's 65535 bytes a message, less the 16 of its tag.
_MAX_PLAIN: Final = 65535 - 16
_MAX_DIRECT: Final = MAX_MESSAGE_SIZE - HEADER_SIZE


def shorten_happy_eyeballs() -> None:
    """Every dial sleeps the whole happy-eyeballs delay of 250 ms, even with one address (swarm.py 935)."""
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.005


def release_inbound_slots(swarm: Any) -> None:
    """An inbound slot is given back only when the swarm stops (swarm.py 1999, 2044, 2060).

    After about 250 connections in its life a node would refuse everyone. The handler waits for the swarm's end after
    a successful upgrade; here the upgrade itself lasts as long as the connection and then raises, which is the one
    way to the handler's `finally`.
    """
    upgrade = swarm.upgrade_inbound_raw_conn

    async def upgrade_and_hold(raw_conn: Any, maddr: Any) -> Any:
        muxed_conn = await upgrade(raw_conn, maddr)
        await muxed_conn.event_closed.wait()
        raise SwarmException("the connection is closed")

    swarm.upgrade_inbound_raw_conn = upgrade_and_hold


def bound_half_open(swarm: Any) -> None:
    """300 connections that say nothing fill all inbound slots for the 10 s of the upgrade time-out (swarm.py 2044).

    A handshake gets 5 s, at most 128 run at once and 32 from one address; past that the oldest one is dropped, so
    that an honest peer, who needs milliseconds, gets through a flood. Apply before `release_inbound_slots`.
    """
    upgrade = swarm.upgrade_inbound_raw_conn
    half_open: OrderedDict[int, tuple[str, trio.CancelScope]] = OrderedDict()

    def make_room(address: str) -> None:
        same = [key for key, (other, _) in half_open.items() if other == address]
        victim = same[0] if len(same) >= MAX_HALF_OPEN_PER_ADDRESS else None
        if victim is None and len(half_open) >= MAX_HALF_OPEN:
            victim = next(iter(half_open))
        if victim is not None:
            half_open.pop(victim)[1].cancel()

    async def upgrade_bounded(raw_conn: Any, maddr: Any) -> Any:
        address = remote_address(raw_conn).rsplit(":", 1)[0]
        make_room(address)
        scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_LIMIT)
        key = id(scope)
        half_open[key] = (address, scope)
        try:
            with scope:
                return await upgrade(raw_conn, maddr)
        finally:
            half_open.pop(key, None)
        raise SwarmException("the handshake took too long, or others came after it")

    swarm.upgrade_inbound_raw_conn = upgrade_bounded


def gate_connections(swarm: Any, admit: Callable[[str, str, str], bool]) -> None:
    """libp2p's own ConnectionGate knows IP addresses only; keys are known after the handshake (swarm.py 2375).

    `admit(peer_id, direction, remote_addr)` decides. A refused inbound connection is told so with the muxer's
    GO_AWAY and the code GATED, given a second to read it, and closed; it is never registered with the swarm.
    """
    add_conn = swarm.add_conn

    async def add_if_admitted(muxed_conn: Any, direction: str = "unknown") -> Any:
        peer_id = str(muxed_conn.peer_id)
        side = "outbound" if direction == "outbound" else "inbound"
        if not admit(peer_id, side, remote_address(muxed_conn)):
            await _refuse(muxed_conn)
            raise SwarmException(f"{peer_id} is not allowed")
        return await add_conn(muxed_conn, direction=direction)

    swarm.add_conn = add_if_admitted


async def _refuse(muxed_conn: Any) -> None:
    """Say GATED and wait for the other side to hang up: closing with unread data would reset the connection, and a
    reset throws away what the other side has not read yet."""
    secured = muxed_conn.secured_conn
    with trio.move_on_after(_REFUSAL_LINGER):
        with contextlib.suppress(Exception):  # whatever the transport raises, the connection ends here
            await secured.write(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, GATED))
            while await secured.read(4096):
                pass
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
        await secured.close()


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


def close_promptly(swarm: Any) -> None:
    """Closing a connection sleeps 0.1 s twice (yamux.py 823, swarm_connection.py 218), shielded when a dial failed
    (swarm.py 2728), and waits without end for a frozen peer to take the farewell (yamux.py 795).

    A refusal that arrived after 20 ms was thereby told after 220. Here the farewell gets a quarter of a second and
    the pauses are one pass of the scheduler, which is all that they are there for.
    """
    SwarmConn._cleanup = _clean_up_at_once
    add_conn = swarm.add_conn

    async def add_prompt(muxed_conn: Any, direction: str = "unknown") -> Any:
        async def close(error_code: int = GO_AWAY_NORMAL) -> None:
            if muxed_conn.event_closed.is_set():
                return
            if not muxed_conn.event_shutting_down.is_set():
                farewell = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, error_code)
                with trio.move_on_after(_FAREWELL_LIMIT), contextlib.suppress(Exception):
                    await muxed_conn._write_frame(farewell)
            await muxed_conn._cleanup_on_error()

        muxed_conn.close = close
        return await add_conn(muxed_conn, direction=direction)

    swarm.add_conn = add_prompt


async def _clean_up_at_once(conn: Any) -> None:
    conn.swarm.remove_conn(conn)
    for stream in conn.streams.copy():
        with contextlib.suppress(Exception):  # the connection is closed; only the stream's own state is left to set
            await stream.reset()
    await trio.lowlevel.checkpoint()
    await conn._notify_disconnected()


def dial_once(swarm: Any) -> None:
    """A dial that fails is tried four times with growing pauses before its caller hears of it (swarm.py 1000); who
    dials again, and when, is decided in `fleet.net.dialler`."""
    swarm.retry_config = RetryConfig(max_retries=0)


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


def never_dial_unasked(swarm: Any) -> None:
    """The auto-connector dials every peer it has an address of, by itself and unreliably, whatever the watermarks
    say (auto_connector.py 300: its target is the middle between them)."""

    async def nothing() -> None:
        return None

    swarm.auto_connector.maybe_connect = nothing


def forget_failures(swarm: Any, peer_id: Any) -> None:
    """A failed dial blacklists the peer for 60 s (swarm.py 950), and a connection that is ending stays in the table,
    where `connect` takes it for a live one (basic_host.py 1134)."""
    swarm.unblock_peer(peer_id)
    known = swarm.get_connections(peer_id)
    alive = [conn for conn in known if not (conn.is_closed or conn.muxed_conn.event_shutting_down.is_set())]
    if alive:
        swarm.connections[peer_id] = alive
    else:
        swarm.connections.pop(peer_id, None)


def use_one_address(host: Any, peer_id: Any, address: Any) -> None:
    """Of several addresses of one transport only one is ever dialled (swarm.py 889), and `connect` stores addresses
    for 120 s only (basic_host.py 1131): the address to dial is made the only one, with a long life."""
    peerstore = host.get_peerstore()
    peerstore.clear_addrs(peer_id)
    peerstore.add_addrs(peer_id, [address], LONG_TTL)


async def bounded(limit: float, step: Callable[[], Awaitable[Any]]) -> Any:
    """Outbound security upgrades and stream negotiation have no time-out of their own (swarm.py 1254).

    Raises trio.TooSlowError after `limit` seconds.
    """
    with trio.fail_after(limit):
        return await step()


def remote_address(conn: Any) -> str:
    """`host:port` of a connection's other end, empty where libp2p does not know it."""
    try:
        remote = conn.get_remote_address()
    except Exception:  # noqa: BLE001 - asked of many classes, each with errors of its own
        return ""
    return f"{remote[0]}:{remote[1]}" if remote else ""
