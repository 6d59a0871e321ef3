"""Finding boxes on the LAN by libp2p's mDNS: service `_p2p._udp.local`, one `dnsaddr=` TXT entry an address.

Spec: libp2p specs, discovery/mdns.md. What is found is a hint, not a truth: who answers at an address is settled by
the handshake.
"""

from __future__ import annotations

import contextlib
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
#: Records of the whole LAN that one session keeps; past it the session starts anew, since zeroconf itself has no limit.
MAX_RECORDS: Final = 10_000
_MAX_ADDR_LENGTH: Final = 256
_RETRY: Final = 60.0
_CHECK: Final = 10.0
_QUEUE: Final = 256
_LOOKUPS: Final = 4
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


async def discover(peer_id: str, addrs: Callable[[], Sequence[str]], found: Found) -> None:
    """Advertise this box and report others until cancelled; `found` is called on the trio thread.

    `addrs` is asked again every 10 s: when an address comes or goes (a lease arrives after boot), what is advertised
    follows, on the interfaces there are then. A network without multicast gets one warning and a new try each minute;
    it never ends the agent. Records that name no usable box are skipped, and counted in the log. Loopback addresses
    are not advertised: they would lead every other box to itself.
    """
    from zeroconf import Error

    warned = False
    tally = _Tally()
    while True:
        try:
            await _session(peer_id, addrs, found, tally)
            warned = False
            continue
        except (OSError, Error) as error:
            if not warned:
                reason = str(error) or type(error).__name__
                log.warning("mdns.unavailable", reason=reason, remedy="configure net.peers, or set net.mdns: false")
                warned = True
        await trio.sleep(_RETRY)


class _Tally:
    """Counts what was skipped, and says so at the first and then at each doubling: a flood must not fill the log."""

    def __init__(self) -> None:
        self.skipped = 0

    def skip(self, name: str) -> None:
        self.skipped += 1
        if self.skipped & (self.skipped - 1) == 0:
            log.info("mdns.skipped", count=self.skipped, last=name[:80])


def _shareable(addrs: Sequence[str]) -> list[str]:
    return [addr for addr in addrs if not ipaddress.ip_address(addr.split("/")[2]).is_loopback][:MAX_ADDRS]


async def _session(peer_id: str, addrs: Callable[[], Sequence[str]], found: Found, tally: _Tally) -> None:
    """One zeroconf instance, with its own thread; returns when this box's addresses changed or its cache is full.

    Most announcements bring their TXT record along and are read where they arrive. The other names come over a
    bounded channel and are looked up, a few at a time: each name that nobody answers for costs a second.
    """
    from zeroconf import Error, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

    advertised = _shareable(addrs())
    send, receive = trio.open_memory_channel[str](_QUEUE)
    token = trio.lowlevel.current_trio_token()

    def take(name: str, info: ServiceInfo | None) -> None:
        if info is None or not info.properties:
            tally.skip(name)
            return
        seen = parse_addresses(_dnsaddrs(info))
        if seen is None:
            tally.skip(name)
        elif seen[0] != peer_id:
            found(*seen)

    def look_up(name: str) -> None:
        try:
            send.send_nowait(name)
        except trio.WouldBlock:
            tally.skip(name)  # a flood of names: what is real is announced again

    def on_change(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """Called by zeroconf's thread."""
        if state_change is ServiceStateChange.Removed or len(name) > _MAX_ADDR_LENGTH:
            return
        with contextlib.suppress(trio.RunFinishedError):
            try:
                info = ServiceInfo(SERVICE, name)
                info.load_from_cache(zeroconf)
            except Error:
                token.run_sync_soon(tally.skip, name)
                return
            if info.properties:
                token.run_sync_soon(take, name, info)
            else:
                token.run_sync_soon(look_up, name)

    def ask(name: str) -> ServiceInfo | None:
        try:
            info: ServiceInfo | None = zeroconf.get_service_info(SERVICE, name, _LOOKUP_LIMIT_MS)
        except (OSError, Error):
            return None
        return info

    async def answer() -> None:
        async for name in receive:
            take(name, await trio.to_thread.run_sync(ask, name))

    zeroconf = await trio.to_thread.run_sync(Zeroconf)
    try:
        if advertised:
            await trio.to_thread.run_sync(zeroconf.register_service, _service(peer_id, advertised))
        browser = await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, handlers=[on_change]))
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(_LOOKUPS):
                    nursery.start_soon(answer)
                while True:
                    await trio.sleep(_CHECK)
                    if _shareable(addrs()) != advertised or len(zeroconf.cache.cache) > MAX_RECORDS:
                        break
                nursery.cancel_scope.cancel()
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
