"""Finding boxes by mDNS: what is believed of a record, and boxes that find each other on this machine's network."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
import zeroconf

from fleet.net import discovery
from fleet.net.discovery import MAX_ADDRS, SERVICE, discover, parse_addresses
from tests.harness import peer_id_of

ONE, TWO = peer_id_of("one"), peer_id_of("two")


def entry(ip: str = "192.168.7.4", port: object = 4001, peer: str = ONE) -> bytes:
    return f"/ip4/{ip}/tcp/{port}/p2p/{peer}".encode()


def test_addresses_of_one_peer_are_taken_as_they_stand() -> None:
    v6 = f"/ip6/fd00::2/tcp/4001/p2p/{ONE}".encode()
    assert parse_addresses([entry(), v6]) == (ONE, (entry().decode(), v6.decode()))


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        b"",
        b"\xff\xfe" * 20,
        b"/" * 250,
        entry() + b"/p2p-circuit",
        entry(ip="300.1.1.1"),
        entry(ip="example.com"),
        entry(port=0),
        entry(port=65536),
        entry(port="-1"),
        entry(port="9" * 100),
        entry(port="٣"),
        entry(peer="../../etc"),
        entry(peer=""),
        entry(peer="Q" * 300),
        b"/ip4/::1/tcp/1/p2p/" + ONE.encode(),
        b"/ip4/10.0.0.1/udp/4001/p2p/" + ONE.encode(),
        b"/unix/tmp/tcp/1/p2p/" + ONE.encode(),
        b"x" + entry(),
    ],
)
def test_an_entry_that_names_no_usable_address_is_skipped_and_spoils_no_other(hostile: bytes | None) -> None:
    assert parse_addresses([hostile]) is None
    assert parse_addresses([hostile, entry(), hostile]) == (ONE, (entry().decode(),))


def test_a_record_speaks_for_one_peer_and_for_few_addresses() -> None:
    assert parse_addresses([entry(), entry(peer=TWO)]) == (ONE, (entry().decode(),))
    many = parse_addresses([entry(port=1 + index) for index in range(100)])
    assert many is not None
    assert len(many[1]) == MAX_ADDRS


def own_address() -> str:
    """This machine's address on an interface where multicast comes back; skips the test where there is none."""
    group = ("224.0.0.251", 5353)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, 2) as sender:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        receiver.settimeout(2)
        try:
            sender.connect(("192.0.2.1", 9))
            ip: str = sender.getsockname()[0]
            receiver.bind(("", group[1]))
            membership = socket.inet_aton(group[0]) + socket.inet_aton(ip)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ip))
                probe.sendto(b"probe", group)
            while receiver.recvfrom(9000)[0] != b"probe":
                pass
        except OSError as error:
            pytest.skip(f"no multicast on this machine: {error}")
    return ip


class Boxes:
    """Boxes of this test that discover one another, and what each has found."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.found: dict[str, dict[str, tuple[str, ...]]] = {}
        self._nursery = nursery
        self._news = trio.Event()

    def start(self, peer_id: str, addrs: Callable[[], Sequence[str]]) -> None:
        seen = self.found[peer_id] = {}

        def found(other: str, others: tuple[str, ...]) -> None:
            seen[other] = others
            self._news.set()
            self._news = trio.Event()

        self._nursery.start_soon(discover, peer_id, addrs, found)

    async def until_found(self, by: str, peer_id: str, limit: float = 30) -> tuple[str, ...]:
        with trio.fail_after(limit):
            while peer_id not in self.found[by]:
                await self._news.wait()
        return self.found[by][peer_id]


def run(scenario: Callable[[Boxes], Awaitable[None]], limit: float = 60) -> None:
    async def main() -> None:
        with trio.fail_after(limit):
            async with trio.open_nursery() as nursery:
                await scenario(Boxes(nursery))
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_b32_boxes_on_one_network_find_each_other_and_share_no_loopback_address() -> None:
    ip = own_address()

    def addrs(peer_id: str, port: int) -> list[str]:
        return [f"/ip4/{host}/tcp/{port}/p2p/{peer_id}" for host in ("127.0.0.1", ip)]

    async def scenario(boxes: Boxes) -> None:
        boxes.start(ONE, lambda: addrs(ONE, 4001))
        boxes.start(TWO, lambda: addrs(TWO, 4002))
        assert await boxes.until_found(ONE, TWO) == (f"/ip4/{ip}/tcp/4002/p2p/{TWO}",)
        assert await boxes.until_found(TWO, ONE) == (f"/ip4/{ip}/tcp/4001/p2p/{ONE}",)
        assert ONE not in boxes.found[ONE]

    run(scenario)


def test_b32_an_address_that_comes_after_the_start_is_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    ip = own_address()
    monkeypatch.setattr(discovery, "_CHECK", 0.2)
    addrs: list[str] = []

    async def scenario(boxes: Boxes) -> None:
        boxes.start(ONE, lambda: addrs)
        boxes.start(TWO, lambda: [f"/ip4/{ip}/tcp/4002/p2p/{TWO}"])
        await boxes.until_found(ONE, TWO)
        assert ONE not in boxes.found[TWO]
        addrs.append(f"/ip4/{ip}/tcp/4001/p2p/{ONE}")
        assert await boxes.until_found(TWO, ONE) == tuple(addrs)

    run(scenario)


def test_py_libp2ps_own_mdns_and_ours_understand_each_other() -> None:
    from libp2p.discovery.mdns.broadcaster import PeerBroadcaster
    from libp2p.discovery.mdns.listener import PeerListener

    ip = own_address()

    class Peerstore:
        def __init__(self) -> None:
            self.addrs: dict[str, list[str]] = {}

        def add_addrs(self, peer_id: Any, addrs: Any, ttl: int) -> None:
            self.addrs[str(peer_id)] = [str(addr) for addr in addrs]

        def clear_addrs(self, peer_id: Any) -> None:
            self.addrs.pop(str(peer_id), None)

    async def scenario(boxes: Boxes) -> None:
        theirs = await trio.to_thread.run_sync(zeroconf.Zeroconf)
        try:
            name = f"{os.urandom(16).hex()}.{SERVICE}"
            advertised = [f"/ip4/{ip}/tcp/4002/p2p/{TWO}"]
            broadcaster = PeerBroadcaster(theirs, SERVICE, name, TWO, 4002, listen_addrs=advertised)
            await trio.to_thread.run_sync(broadcaster.register)
            peerstore = Peerstore()
            listener = PeerListener(peerstore, theirs, SERVICE, name)  # type: ignore[arg-type]
            boxes.start(ONE, lambda: [f"/ip4/{ip}/tcp/4001/p2p/{ONE}"])
            assert f"/ip4/{ip}/tcp/4002/p2p/{TWO}" in await boxes.until_found(ONE, TWO)
            with trio.fail_after(30):
                while ONE not in peerstore.addrs:
                    await trio.sleep(0.05)
            assert peerstore.addrs[ONE] == [f"/ip4/{ip}/tcp/4001"]
            await trio.to_thread.run_sync(listener.stop)
        finally:
            await trio.to_thread.run_sync(theirs.close)

    run(scenario)


def test_hostile_records_keep_nobody_from_being_found() -> None:
    ip = own_address()

    async def scenario(boxes: Boxes) -> None:
        attacker = await trio.to_thread.run_sync(zeroconf.Zeroconf)
        try:
            boxes.start(ONE, lambda: [])
            # 300 names for which nobody has a record, each of which would cost a look-up of a second.
            for index in range(300):
                out = zeroconf.DNSOutgoing(0x8400)
                name = f"nobody-{index}.{SERVICE}"
                out.add_answer_at_time(zeroconf.DNSPointer(SERVICE, 12, 1, 120, name), 0)
                attacker.send(out)
            for properties in (
                {"dnsaddr": b"\xff" * 200},
                {"dnsaddr": "/ip4/10.0.0.1/udp/1/quic-v1/p2p/" + TWO},
                {"hello": "world"},
                {f"dnsaddr{index}": "/" * 200 for index in range(30)},
            ):
                info = zeroconf.ServiceInfo(
                    SERVICE,
                    f"{os.urandom(8).hex()}.{SERVICE}",
                    port=1,
                    properties=properties,
                    server="evil.local.",
                    parsed_addresses=[ip],
                )
                await trio.to_thread.run_sync(attacker.register_service, info)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as garbage:
                garbage.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ip))
                for _ in range(50):
                    garbage.sendto(os.urandom(500), ("224.0.0.251", 5353))
            boxes.start(TWO, lambda: [f"/ip4/{ip}/tcp/4002/p2p/{TWO}"])
            await boxes.until_found(ONE, TWO)
            assert set(boxes.found[ONE]) == {TWO}
        finally:
            await trio.to_thread.run_sync(attacker.close)

    run(scenario)


@pytest.mark.parametrize("error", [OSError("no such device"), zeroconf.NotRunningException()])
def test_without_multicast_there_is_one_warning_and_slow_retries(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    warnings: list[str] = []
    tries = 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        raise error

    monkeypatch.setattr(zeroconf, "Zeroconf", refuse)
    monkeypatch.setattr(discovery, "_RETRY", 0.01)
    monkeypatch.setattr(discovery.log, "warning", lambda event, **fields: warnings.append(event))

    async def scenario(boxes: Boxes) -> None:
        boxes.start(ONE, lambda: [])
        while tries < 5:
            await trio.sleep(0.01)

    run(scenario)
    assert warnings == ["mdns.unavailable"]
