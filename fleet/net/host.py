"""The libp2p host of a box: TCP, Noise and Yamux only, one protocol, and a thin stream over it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import psutil
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.rcmgr import Direction
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from fleet.errors import DeniedError, FleetError, PeerRefusedError, PeerUnreachableError
from fleet.net import libp2p_fixes as fixes
from fleet.net import libp2p_inbound as inbound
from fleet.net.dial_failure import describe
from fleet.net.gate import Gate
from fleet.net.libp2p_streams import DirectStream, flatten_connections
from fleet.net.link import ByteStream

LINK_PROTOCOL: Final = "/shoal/link/1"
MAX_CONNECTIONS: Final = 512
#: Interfaces that containers bring along; their addresses lead nowhere from another box.
_VIRTUAL: Final = ("docker", "veth", "br-", "virbr", "cni", "flannel", "cali")
#: Seconds for each of the two steps of closing a link: its stream, then its connection.
_CLOSE_LIMIT: Final = 0.5
#: Seconds a peer whose link is over is given to hang up first.
_LINGER: Final = 1.0
_BROKEN: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class LinkStream:
    """A ByteStream over one libp2p stream. `on_closed` is awaited once, when the stream has been closed."""

    def __init__(self, stream: Any, on_closed: Callable[[LinkStream], Awaitable[None]] | None = None) -> None:
        self._stream = stream
        self._on_closed = on_closed
        self.connection = stream.muxed_conn
        self._direct = DirectStream(stream)
        self.peer_id: str = str(stream.muxed_conn.peer_id)
        self.remote_addr: str = fixes.remote_address(stream.muxed_conn)

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte, or none at the end; raises PeerUnreachableError when the stream is broken."""
        try:
            return await self._direct.read(max_bytes)
        except _BROKEN as error:
            raise PeerUnreachableError(f"the connection to the peer broke ({type(error).__name__})") from error

    async def write(self, data: bytes) -> None:
        """Write all of it; raises PeerUnreachableError when the stream is broken or stalled for 5 s."""
        try:
            await self._direct.write(data)
        except _BROKEN as error:
            raise PeerUnreachableError(f"the connection to the peer broke ({type(error).__name__})") from error

    async def close(self) -> None:
        """Close the stream; takes a second at most."""
        on_closed, self._on_closed = self._on_closed, None
        try:
            with trio.move_on_after(_CLOSE_LIMIT), contextlib.suppress(*_BROKEN):
                await self._stream.close()
        finally:
            if on_closed is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_LIMIT):
                    await on_closed(self)


class Host:
    """Listens, dials, and hands over link streams of admitted peers.

    `on_link` handles an inbound stream and returns when the link is over. The gate is asked after every handshake,
    before every dial, and again for every stream, since a connection outlives a change of the rules.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        listen: Sequence[str],
        announce: Sequence[str] = (),
        gate: Gate,
        on_link: Callable[[ByteStream], Awaitable[None]],
    ) -> None:
        self._listen = [Multiaddr(addr) for addr in listen]
        self._announce = tuple(announce)
        self._gate = gate
        self._on_link = on_link
        self._refused: dict[str, trio.CancelScope] = {}
        self._links: dict[Any, set[LinkStream]] = {}
        fixes.shorten_happy_eyeballs()
        key_pair = create_new_key_pair(seed)
        # A stock host also accepts plaintext; naming the security options is what forbids it.
        self._host = new_host(
            key_pair=key_pair,
            sec_opt={NOISE: NoiseTransport(key_pair, noise_privkey=create_noise_key().private_key)},
            muxer_opt={TProtocol(YAMUX): Yamux},
            connection_config=ConnectionConfig(
                max_connections=MAX_CONNECTIONS,
                min_connections=0,
                low_watermark=0,
                high_watermark=MAX_CONNECTIONS,
            ),
        )
        self.peer_id: str = str(self._host.get_id())
        fixes.speak_links_only(self._host)
        swarm = self._host.get_network()
        fixes.dial_once(swarm)
        fixes.never_dial_unasked(swarm)
        inbound.forgo_resource_manager(swarm)
        half_open = inbound.bound_half_open(swarm, gate.note)
        inbound.release_inbound_slots(swarm)
        fixes.close_promptly(swarm)
        flatten_connections(swarm, self._went_away)
        inbound.gate_connections(swarm, self._admit, half_open, gate.note)
        self._host.set_stream_handler(TProtocol(LINK_PROTOCOL), self._inbound)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen while the block runs; raises FleetError when an address cannot be listened on."""
        for addr in self._listen:
            _check_free(addr)
        async with self._host.run(listen_addrs=self._listen):
            if len(self._host.get_addrs()) < len(self._listen):
                raise FleetError(f"cannot listen on {', '.join(map(str, self._listen))}; is another agent running?")
            yield

    def addrs(self) -> tuple[str, ...]:
        """Addresses others can dial, ending in /p2p/PEERID; 0.0.0.0 becomes this machine's own addresses.

        Where some are to be announced, these and no others.
        """
        if self._announce:
            return tuple(f"{addr}/p2p/{self.peer_id}" for addr in self._announce)
        found: dict[str, None] = {}
        for addr in self._host.get_addrs():
            text = str(addr).split("/p2p/")[0]
            parts = text.split("/")
            if len(parts) == 5 and parts[2] in ("0.0.0.0", "::"):
                for ip in _own_addresses(parts[1]):
                    found[f"/{parts[1]}/{ip}/tcp/{parts[4]}/p2p/{self.peer_id}"] = None
            else:
                found[f"{text}/p2p/{self.peer_id}"] = None
        return tuple(found)

    def connected(self) -> tuple[str, ...]:
        """PeerIDs with a live connection."""
        return tuple(str(peer) for peer in self._host.get_connected_peers())

    async def open_link(self, peer_id: str, addrs: Sequence[str], *, timeout: float) -> ByteStream:
        """Dial a peer, one address after the other, and open its link stream.

        Raises PeerRefusedError as soon as the other box says that our key is not allowed there, DeniedError when our
        own gate does not allow its key, PeerUnreachableError when no address led to that key within `timeout`
        seconds. A dial that fails or is cancelled leaves no connection behind; hanging up on a frozen peer takes up
        to a quarter of a second of its own.
        """
        if not self._gate.allowed(peer_id):
            raise DeniedError(f"this box does not allow {peer_id}: it is no member of the fleet, or denied")
        deadline = trio.current_time() + timeout
        problems: list[str] = []
        for index, addr in enumerate(addrs):
            left = deadline - trio.current_time()
            if left <= 0:
                break
            # Later addresses keep their share of the time when the first one swallows packets.
            limit = left / (len(addrs) - index)
            try:
                return await self._dial(peer_id, addr, limit)
            except PeerUnreachableError as error:
                problems.append(f"{addr.split('/p2p/')[0]}: {error.message}")
        raise PeerUnreachableError("; ".join(problems) or "no address is known")

    async def _dial(self, peer_id: str, addr: str, limit: float) -> ByteStream:
        before = self._connections(peer_id)
        refused = self._refused[peer_id] = trio.CancelScope()
        stream: Any = None
        try:
            with refused:
                stream = await fixes.bounded(limit, lambda: self._open_stream(peer_id, addr))
        except trio.TooSlowError:
            raise PeerUnreachableError(f"timed out: no answer within {limit:.1f} s") from None
        except Exception as error:
            # libp2p raises many classes here, and groups of them; each means that this address led nowhere.
            if not refused.cancel_called:
                raise PeerUnreachableError(describe(error, f"{addr}/p2p/{peer_id}")) from error
        finally:
            if self._refused.get(peer_id) is refused:
                del self._refused[peer_id]
            if stream is None:
                await self._hang_up_unused(peer_id, before)
        if refused.cancel_called:
            raise PeerRefusedError(
                f"the other box refused our key: {self.peer_id} is no member of its fleet, or denied",
                details={"our_key": self.peer_id},
            )
        link = LinkStream(stream, self._link_over)
        self._links.setdefault(link.connection, set()).add(link)
        return link

    async def _open_stream(self, peer_id: str, addr: str) -> Any:
        peer, address = ID.from_string(peer_id), Multiaddr(addr.split("/p2p/")[0])
        fixes.forget_failures(self._host.get_network(), peer)
        fixes.use_one_address(self._host, peer, address)
        await self._host.connect(PeerInfo(peer, [address]))
        if not self._connections(peer_id):
            # `new_stream` would dial once more (swarm.py 1588), and so knock twice where it was turned away.
            raise PeerUnreachableError("it closed the connection at once")
        return await self._host.new_stream(peer, [TProtocol(LINK_PROTOCOL)])

    def _connections(self, peer_id: str) -> list[Any]:
        try:
            return list(self._host.get_network().get_connections(ID.from_string(peer_id)))
        except ValueError:
            return []

    async def _hang_up_unused(self, peer_id: str, known: Sequence[Any]) -> None:
        """After a failed dial: close what it opened, and what it found and could not use.

        A connection that the peer opened meanwhile is about to get its link and stays, as does one that has a link.
        """
        for conn in self._connections(peer_id):
            if conn.muxed_conn not in self._links and (conn in known or conn.direction == Direction.OUTBOUND):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_LIMIT):
                    await conn.close()

    async def _link_over(self, link: LinkStream) -> None:
        """Close the connection of a link that is over, unless another link uses it."""
        users = self._links.get(link.connection, set())
        users.discard(link)
        if not users:
            self._links.pop(link.connection, None)
            await link.connection.close()

    async def disconnect(self, peer_id: str) -> None:
        """Close every connection to a peer; takes half a second at most, however it behaves."""
        with trio.move_on_after(_CLOSE_LIMIT):
            async with trio.open_nursery() as nursery:
                for conn in self._connections(peer_id):
                    nursery.start_soon(conn.close)

    async def _inbound(self, stream: Any) -> None:
        link = LinkStream(stream)
        if not self._gate.admit(link.peer_id, "inbound", link.remote_addr):
            # Allowed when it connected, and no longer: it is told as at the handshake, and cut off.
            await link.connection.close(inbound.GATED)
            return
        self._links.setdefault(link.connection, set()).add(link)
        try:
            await self._on_link(link)
        finally:
            # Closing at once could reset the connection under what the peer has not read yet.
            with trio.move_on_after(_LINGER):
                await link.connection.event_closed.wait()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_LIMIT):
                await self._link_over(link)

    def _admit(self, peer_id: str, direction: str, remote_addr: str) -> bool:
        return self._gate.admit(peer_id, "outbound" if direction == "outbound" else "inbound", remote_addr)

    def _went_away(self, peer_id: str, code: int) -> None:
        scope = self._refused.get(peer_id)
        if code == inbound.GATED and scope is not None:
            scope.cancel()


def _check_free(addr: Multiaddr) -> None:
    """libp2p logs a port in use and carries on; a box that nobody can reach should say so at once."""
    parts = str(addr).split("/")
    ip, port = parts[2], int(parts[4])
    family = socket.AF_INET6 if parts[1] == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            raise FleetError(
                f"cannot listen on {addr}: {error.strerror}; change net.listen or stop what uses it"
            ) from None


def _own_addresses(family: str) -> list[str]:
    """This machine's addresses of a family, without link-local ones and those of container bridges."""
    wanted = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    found = []
    for name, entries in psutil.net_if_addrs().items():
        if name.startswith(_VIRTUAL):
            continue
        for entry in entries:
            if entry.family == wanted and not ipaddress.ip_address(entry.address.split("%")[0]).is_link_local:
                found.append(entry.address)
    return sorted(found, key=lambda ip: ipaddress.ip_address(ip).is_loopback)
