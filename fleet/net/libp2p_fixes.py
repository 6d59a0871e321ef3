"""Workarounds for defects of py-libp2p 0.8.1 in dialling, closing and accounting, one function each, and nothing else.

Those of inbound connections stand in libp2p_inbound.py, those under a link's stream in libp2p_streams.py. Line
numbers are those of the 0.8.1 release. tests/integration/test_libp2p_fixes.py shows each defect without its
workaround, so that a version in which it is gone is noticed.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import libp2p.network.swarm as swarm_module
import trio
from libp2p.network.config import RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.stream_muxer.yamux.yamux import GO_AWAY_NORMAL, TYPE_GO_AWAY, YAMUX_HEADER_FORMAT

#: Addresses of known peers never expire by themselves (seconds; ten years).
LONG_TTL: Final = 315_360_000
_FAREWELL_LIMIT: Final = 0.25


def shorten_happy_eyeballs() -> None:
    """Every dial sleeps the whole happy-eyeballs delay of 250 ms, even with one address (swarm.py 935)."""
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.005


def dial_once(swarm: Any) -> None:
    """A dial that fails is tried four times with growing pauses before its caller hears of it (swarm.py 1000); who
    dials again, and when, is decided in `fleet.net.dialler`."""
    swarm.retry_config = RetryConfig(max_retries=0)


def never_dial_unasked(swarm: Any) -> None:
    """The auto-connector dials every peer it has an address of, by itself and unreliably, whatever the watermarks
    say (auto_connector.py 300: its target is the middle between them)."""

    async def nothing() -> None:
        return None

    swarm.auto_connector.maybe_connect = nothing


def speak_links_only(host: Any) -> None:
    """Every connection, inbound or outbound, is asked to identify itself, in a system task that dials again where the
    connection has gone meanwhile (basic_host.py 1183, swarm.py 1588): a refused key then knocks twice, and one that
    has just been shut out is dialled. What a peer answers, or pushes unasked, goes into the address book.

    No box needs any of it, so none asks, and libp2p's own protocols (identify, its push, ping) are not offered.
    """

    def ask_nothing(peer_id: Any, *, reason: str) -> None:
        return None

    host._schedule_identify = ask_nothing
    for protocol in tuple(host.multiselect.handlers):
        host.multiselect.remove_handler(protocol)


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


def remote_address(conn: Any) -> str:
    """`host:port` of a connection's other end, empty where libp2p does not know it."""
    try:
        remote = conn.get_remote_address()
    except Exception:  # noqa: BLE001 - asked of many classes, each with errors of its own
        return ""
    return f"{remote[0]}:{remote[1]}" if remote else ""
