"""Finding boxes on the LAN by libp2p's mDNS: service `_p2p._udp.local`, one `dnsaddr=` TXT entry an address.

Spec: libp2p specs, discovery/mdns.md. What is found is a hint, not a truth: who answers at an address is settled by
the handshake.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

if TYPE_CHECKING:
    from zeroconf import ServiceInfo

SERVICE: Final = "_p2p._udp.local."
MAX_ADDRS: Final = 8
_MAX_ADDR_LENGTH: Final = 256
_RETRY: Final = 60.0
_QUEUE: Final = 256
_LOOKUP_LIMIT_MS: Final = 1000

log = structlog.get_logger("shoal.discovery")

Found = Callable[[str, tuple[str, ...]], None]


def parse_addresses(entries: Sequence[bytes | None]) -> tuple[str, tuple[str, ...]] | None:
    """PeerID and multiaddrs from the values of `dnsaddr` entries; None if there is no usable one. Pure.

    Only /ip4|ip6/ADDRESS/tcp/PORT/p2p/PEERID is taken, all of one PeerID, at most 8; everything else is skipped.
    """
    peer_id, addrs = "", []
    for entry in entries:
        if entry is None or len(entry) > _MAX_ADDR_LENGTH:
            continue
        try:
            parts = entry.decode("ascii").split("/")
        except UnicodeDecodeError:
            continue
        if len(parts) != 7 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp" or parts[5] != "p2p":
            continue
        try:
            version = ipaddress.ip_address(parts[2]).version
        except ValueError:
            continue
        if parts[1] != f"ip{version}" or not parts[4].isdigit() or not 0 < int(parts[4]) < 65536:
            continue
        if not parts[6].isalnum() or (peer_id and parts[6] != peer_id):
            continue
        peer_id = parts[6]
        addrs.append("/".join(parts))
    return (peer_id, tuple(addrs[:MAX_ADDRS])) if addrs else None


async def discover(peer_id: str, addrs: Sequence[str], found: Found) -> None:
    """Advertise this box and report others until cancelled; `found` is called on the trio thread.

    A network without multicast gets one warning and a new try each minute; it never ends the agent. Loopback
    addresses are not advertised: they would lead every other box to itself.
    """
    warned = False
    while True:
        try:
            await _session(peer_id, _shareable(addrs), found)
        except OSError as error:
            if not warned:
                log.warning("mdns.unavailable", reason=str(error), remedy="configure net.peers, or set net.mdns: false")
                warned = True
        await trio.sleep(_RETRY)


def _shareable(addrs: Sequence[str]) -> list[str]:
    return [addr for addr in addrs if not ipaddress.ip_address(addr.split("/")[2]).is_loopback][:MAX_ADDRS]


async def _session(peer_id: str, addrs: Sequence[str], found: Found) -> None:
    """One zeroconf instance, with its own thread; names it sees come over a bounded channel."""
    from zeroconf import ServiceBrowser, ServiceStateChange, Zeroconf

    send, receive = trio.open_memory_channel[str](_QUEUE)
    token = trio.lowlevel.current_trio_token()

    def offer(name: str) -> None:
        try:
            send.send_nowait(name)
        except trio.WouldBlock:
            return  # a flood of records: what is real is announced again

    def on_change(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change is not ServiceStateChange.Removed and len(name) <= _MAX_ADDR_LENGTH:
            try:
                token.run_sync_soon(offer, name)
            except trio.RunFinishedError:
                return

    zeroconf = await trio.to_thread.run_sync(Zeroconf)
    try:
        if addrs:
            await trio.to_thread.run_sync(zeroconf.register_service, _service(peer_id, addrs))
        browser = await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[on_change]))
        try:
            async for name in receive:
                info = await trio.to_thread.run_sync(
                    lambda name=name: zeroconf.get_service_info(SERVICE, name, _LOOKUP_LIMIT_MS)
                )
                seen = parse_addresses(_dnsaddrs(info)) if info is not None else None
                if seen is not None and seen[0] != peer_id:
                    found(*seen)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(browser.cancel)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)


def _dnsaddrs(info: ServiceInfo) -> list[bytes | None]:
    """py-libp2p numbers its entries (dnsaddr, dnsaddr2, …), since a TXT record keeps one value a key."""
    entries = [value for key, value in info.properties.items() if key is not None and key.startswith(b"dnsaddr")]
    return entries[: 2 * MAX_ADDRS]


def _service(peer_id: str, addrs: Sequence[str]) -> ServiceInfo:
    from zeroconf import ServiceInfo

    name = secrets.token_hex(16)
    entries = {("dnsaddr" if i == 0 else f"dnsaddr{i + 1}"): addr for i, addr in enumerate(addrs)}
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=int(addrs[0].split("/")[4]),
        properties=entries,
        server=f"{name}.p2p.local.",
        parsed_addresses=[addr.split("/")[2] for addr in addrs],
    )
