"""What may come in at libp2p's port: places for connections, time for their handshakes, and whose key is admitted.

Workarounds for py-libp2p 0.8.1, one function each; line numbers are those of that release. They are applied in the
order in which they stand here.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.network.exceptions import SwarmException
from libp2p.stream_muxer.yamux.yamux import TYPE_GO_AWAY, YAMUX_HEADER_FORMAT

from fleet.net.half_open import HalfOpen, Stage
from fleet.net.libp2p_fixes import remote_address

#: libp2p specification, error codes: the connection was refused by a connection gate.
GATED: Final = 0x1007
#: Seconds an inbound connection may take from TCP accept to the end of the muxer's negotiation.
HANDSHAKE_LIMIT: Final = 5.0
#: Inbound connections one admitted key may have; a box needs one, and a second while it dials again.
MAX_CONNECTIONS_PER_KEY: Final = 8
_REFUSAL_LINGER: Final = 1.0

#: Is told what was turned away before it had a key that could be named; see `Gate.note`.
Note = Callable[[str], None]


def forgo_resource_manager(swarm: Any) -> None:
    """The resource manager's 1000 places for connections are used up for good by strangers.

    A place taken before the handshake is not given back when the handshake is cancelled (swarm.py 2136: the clean-up
    awaits before it gets there), nor is the one taken after it when our gate refuses the key (swarm.py 2211: it belongs
    to a connection that is never registered). At the end of them nobody is let in and nobody can be dialled (1107),
    until the agent restarts. It also closes a peer's connections past ten a second without a word, and halves its
    own limits when they are reached.

    Nothing of it is missed: connections are counted by the swarm itself, half-open ones and those of one key below,
    streams in `FrameRules`.
    """
    swarm.set_resource_manager(None)


def bound_half_open(swarm: Any, note: Note = lambda what: None) -> HalfOpen:
    """300 connections that say nothing fill all inbound slots for the 10 s of the upgrade time-out (swarm.py 2044).

    A handshake gets 5 s, and there are only so many at once: see `HalfOpen`, which is returned for `gate_connections`.
    """
    half_open = HalfOpen()
    upgrade, handle = swarm.upgrade_inbound_raw_conn, swarm._handle_inbound_connection

    async def upgrade_bounded(raw_conn: Any, maddr: Any) -> Any:
        task = id(trio.lowlevel.current_task())
        scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_LIMIT)
        dropped = half_open.enter(task, remote_address(raw_conn).rsplit(":", 1)[0], scope.cancel)
        if dropped is not None and dropped is not Stage.REFUSED:
            note("half_open_dropped")
        _when_heard(raw_conn, lambda: half_open.show(task, Stage.SPEAKING))
        muxed_conn = None
        try:
            with scope:
                muxed_conn = await upgrade(raw_conn, maddr)
        finally:
            half_open.leave(task)
        if muxed_conn is None:
            if trio.current_time() >= scope.deadline:
                note("handshake_timed_out")
            raise SwarmException("the handshake took too long, or others came after it")
        return muxed_conn

    async def handle_counted(stream: Any, maddr: Any) -> None:
        if swarm._inbound_limiter.available_tokens < 1:
            note("no_place_left")
        await handle(stream, maddr)

    swarm.upgrade_inbound_raw_conn = upgrade_bounded
    swarm._handle_inbound_connection = handle_counted
    return half_open


def _when_heard(raw_conn: Any, heard: Callable[[], None]) -> None:
    """Call `heard` once, when the first bytes have been read; the connection then is as it was."""
    read = raw_conn.read

    async def read_first(n: int | None = None) -> Any:
        data = await read(n)
        if data:
            raw_conn.read = read
            heard()
        return data

    raw_conn.read = read_first


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


def gate_connections(
    swarm: Any,
    admit: Callable[[str, str, str], bool],
    half_open: HalfOpen | None = None,
    note: Note = lambda what: None,
) -> None:
    """libp2p's own ConnectionGate knows IP addresses only; keys are known after the handshake (swarm.py 2375).

    `admit(peer_id, direction, remote_addr)` decides. A refused inbound connection is told so with the muxer's
    GO_AWAY and the code GATED, given a second to read it, and closed; it is never registered with the swarm. While it
    reads it is the first in `half_open` to be dropped.
    """
    add_conn = swarm.add_conn

    async def add_if_admitted(muxed_conn: Any, direction: str = "unknown") -> Any:
        peer_id = str(muxed_conn.peer_id)
        side = "outbound" if direction == "outbound" else "inbound"
        if not admit(peer_id, side, remote_address(muxed_conn)):
            if half_open is not None:
                half_open.show(id(trio.lowlevel.current_task()), Stage.REFUSED)
            await _refuse(muxed_conn)
            raise SwarmException(f"{peer_id} is not allowed")
        if side == "inbound" and len(swarm.get_connections(muxed_conn.peer_id)) >= MAX_CONNECTIONS_PER_KEY:
            note("too_many_of_one_key")
            await muxed_conn.secured_conn.close()
            raise SwarmException(f"{peer_id} has {MAX_CONNECTIONS_PER_KEY} connections already")
        return await add_conn(muxed_conn, direction=direction)

    swarm.add_conn = add_if_admitted


async def _refuse(muxed_conn: Any) -> None:
    """Say GATED and wait for the other side to hang up: closing with unread data would reset the connection, and a
    reset throws away what the other side has not read yet."""
    secured = muxed_conn.secured_conn
    try:
        with trio.move_on_after(_REFUSAL_LINGER):
            with contextlib.suppress(Exception):  # whatever the transport raises, the connection ends here
                await secured.write(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, GATED))
                while await secured.read(4096):
                    pass
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await secured.close()
