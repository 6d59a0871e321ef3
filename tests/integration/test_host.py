"""The host alone: what `open_link` promises of time, errors and what it leaves behind, and what a peer may not do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from fleet.errors import DeniedError, PeerRefusedError, PeerUnreachableError
from fleet.identity.keys import Identity
from fleet.net import half_open, libp2p_inbound, libp2p_streams
from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream
from tests.harness import free_port, peer_id_of, seed_of
from tests.integration._libp2p_server import hold

SERVER = peer_id_of("server")


def run(scenario: Callable[[], Awaitable[None]], limit: float = 60) -> None:
    async def main() -> None:
        with trio.fail_after(limit):
            await scenario()

    trio.run(main)


def host_of(
    name: str,
    *,
    listen: tuple[str, ...] = (),
    allowed: Callable[[str], bool] = lambda peer_id: True,
    on_link: Callable[[ByteStream], Awaitable[None]] = hold,
) -> Host:
    return Host(seed_of(name), listen=listen, gate=Gate(allowed), on_link=on_link)


@asynccontextmanager
async def server(mode: str = "holds") -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a host that is not this process."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond, and the test waits for it anyway
        [sys.executable, "-m", "tests.integration._libp2p_server", *mode.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        yield (await trio.to_thread.run_sync(process.stdout.readline)).strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def until(condition: Callable[[], bool], limit: float = 10) -> None:
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.01)


def sockets() -> int:
    return len(psutil.Process().net_connections(kind="tcp"))


def test_the_host_has_the_peer_id_of_its_seed() -> None:
    async def scenario() -> None:
        host = host_of("server", listen=("/ip4/127.0.0.1/tcp/0",))
        assert host.peer_id == Identity.from_seed(seed_of("server")).peer_id == SERVER
        async with host.run():
            (addr,) = host.addrs()
            start, port = addr.removesuffix(f"/p2p/{SERVER}").rsplit("/", 1)
            assert start == "/ip4/127.0.0.1/tcp"
            assert int(port) > 0

    run(scenario)


def test_listening_everywhere_is_told_as_addresses_that_can_be_dialled() -> None:
    async def scenario() -> None:
        host = host_of("server", listen=("/ip4/0.0.0.0/tcp/0",))
        client = host_of("client")
        async with host.run(), client.run():
            addrs = host.addrs()
            assert addrs
            assert not any("0.0.0.0" in addr for addr in addrs)
            assert all(addr.endswith(f"/p2p/{SERVER}") for addr in addrs)
            assert "/ip4/127.0.0.1/" in addrs[-1]
            link = await client.open_link(SERVER, addrs[-1:], timeout=10)
            await link.close()

    run(scenario)


def test_container_bridges_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = next(iter(psutil.net_if_addrs().values()))[0]

    def at(ip: str) -> list[Any]:
        return [real._replace(family=2, address=ip)]

    interfaces = {
        "docker0": at("172.17.0.1"),
        "veth12": at("172.18.0.1"),
        "br-9f": at("172.19.0.1"),
        "lo": at("127.0.0.1"),
        "eth0": at("192.168.7.4") + at("169.254.3.3"),
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)

    async def scenario() -> None:
        host = host_of("server", listen=("/ip4/0.0.0.0/tcp/0",))
        async with host.run():
            assert [addr.split("/")[2] for addr in host.addrs()] == ["192.168.7.4", "127.0.0.1"]

    run(scenario)


def test_what_is_announced_stands_in_the_place_of_its_own_addresses() -> None:
    told = ("/ip4/10.0.0.7/tcp/4210", "/dns4/box.example/tcp/443")

    async def scenario() -> None:
        gate = Gate(lambda peer_id: True)
        host = Host(seed_of("box"), listen=("/ip4/127.0.0.1/tcp/0",), announce=told, gate=gate, on_link=hold)
        async with host.run():
            assert host.addrs() == tuple(f"{addr}/p2p/{host.peer_id}" for addr in told)

    run(scenario)


def test_a_link_carries_bytes_both_ways_and_ends_on_both_sides() -> None:
    ended = trio.Event()

    async def echo(stream: ByteStream) -> None:
        assert stream.peer_id == peer_id_of("client")
        assert stream.remote_addr.startswith("127.0.0.1:")
        while data := await stream.read(100_000):
            await stream.write(data)
        await stream.close()
        ended.set()

    async def scenario() -> None:
        host, client = host_of("server", listen=("/ip4/127.0.0.1/tcp/0",), on_link=echo), host_of("client")
        async with host.run(), client.run():
            link = await client.open_link(SERVER, host.addrs(), timeout=10)
            for size in (1, 12, 65_524, 65_536, 300_000):
                sent = os.urandom(size)
                got = bytearray()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.write, sent)
                    while len(got) < size:
                        got += await link.read(size)
                assert bytes(got) == sent
            assert client.connected() == (SERVER,)
            await link.close()
            await link.close()
            await ended.wait()
            await until(lambda: not client.connected() and not host.connected())

    run(scenario)


@pytest.mark.parametrize(
    "addrs",
    [
        [],
        ["garbage"],
        [""],
        ["/ip4/300.1.2.3/tcp/1"],
        ["/ip4/127.0.0.1"],
        ["/ip4/127.0.0.1/udp/9/quic-v1"],
        ["/unix/%2Ftmp%2Fx"],
        [f"/ip4/127.0.0.1/tcp/1/p2p/{SERVER}/p2p-circuit"],
    ],
)
def test_an_address_that_leads_nowhere_is_a_peer_that_cannot_be_reached(addrs: list[str]) -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with client.run():
            with pytest.raises(PeerUnreachableError):
                await client.open_link(SERVER, addrs, timeout=2)

    run(scenario)


def test_why_a_box_cannot_be_reached_is_told_with_the_address() -> None:
    async def web_server(stream: trio.SocketStream) -> None:
        await stream.send_all(
            b"HTTP/1.1 400 Bad Request\r\nServer: something\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
        )
        await stream.receive_some(1000)

    async def scenario() -> None:
        client, dead = host_of("client"), free_port()
        async with client.run(), trio.open_nursery() as nursery, server() as (addr, _):
            (listener,) = await nursery.start(partial(trio.serve_tcp, web_server, 0, host="127.0.0.1"))
            web = listener.socket.getsockname()[1]
            other = addr.split("/p2p/")[0]
            for at, words in (
                (f"/ip4/127.0.0.1/tcp/{dead}", "connection refused"),
                (f"/ip4/127.0.0.1/tcp/{web}", "does not speak the protocol"),
                (other, f"its key is not {peer_id_of('nobody')}"),
            ):
                with pytest.raises(PeerUnreachableError) as caught:
                    await client.open_link(peer_id_of("nobody"), [at], timeout=5)
                assert caught.value.message.startswith(f"{at}: ")
                assert words in caught.value.message
            nursery.cancel_scope.cancel()

    run(scenario)


def test_a_peer_id_that_is_none_is_a_peer_that_cannot_be_reached() -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with client.run():
            with pytest.raises(PeerUnreachableError):
                await client.open_link("not a key!", [f"/ip4/127.0.0.1/tcp/{free_port()}"], timeout=2)
            await client.disconnect("not a key!")
            await client.disconnect(SERVER)

    run(scenario)


def test_a_dial_ends_in_time_and_leaves_nothing_behind_when_the_other_side_says_nothing() -> None:
    async def silence(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def scenario() -> None:
        client = host_of("client")
        async with client.run(), trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, silence, 0, host="127.0.0.1"))
            addr = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
            before = psutil.Process().num_fds()
            began = trio.current_time()
            with pytest.raises(PeerUnreachableError, match="no answer"):
                await client.open_link(SERVER, [addr, addr, addr], timeout=0.9)
            assert trio.current_time() - began < 2 * 0.9
            # Three sockets are still held by the silent server in this process; none by the client.
            await until(lambda: psutil.Process().num_fds() <= before + 3)
            nursery.cancel_scope.cancel()

    run(scenario)


def test_a_peer_that_freezes_between_connecting_and_answering_costs_the_timeout_and_no_more() -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with server() as (addr, process), client.run():
            first = await client.open_link(SERVER, [addr], timeout=10)
            os.kill(process.pid, signal.SIGSTOP)
            for _ in range(2):
                began = trio.current_time()
                with pytest.raises(PeerUnreachableError, match="no answer"):
                    await client.open_link(SERVER, [addr], timeout=0.5)
                assert trio.current_time() - began < 2 * 0.5
            assert client.connected() == (SERVER,)  # the first link may yet recover
            await first.close()
            await until(lambda: client.connected() == ())
            os.kill(process.pid, signal.SIGCONT)
            again = await client.open_link(SERVER, [addr], timeout=10)
            await again.close()

    run(scenario)


def test_b24_a_stale_connection_that_the_peer_had_made_does_not_stand_in_the_way_of_a_new_one() -> None:
    """A box that lost power leaves a connection that looks alive; once the box is back it must be reached."""
    linked, given_up = trio.Event(), trio.Event()

    async def on_link(stream: ByteStream) -> None:
        linked.set()
        await given_up.wait()  # as the link's keep-alive does

    async def scenario() -> None:
        box = host_of("box", listen=("/ip4/127.0.0.1/tcp/0",), on_link=on_link)
        async with box.run(), server(f"dials {box.addrs()[0]}") as (_, lost):
            await linked.wait()
            os.kill(lost.pid, signal.SIGSTOP)
            given_up.set()
            async with server() as (addr, _):
                with trio.fail_after(5):
                    while True:
                        try:
                            link = await box.open_link(SERVER, [addr], timeout=1)
                            break
                        except PeerUnreachableError:
                            continue
                await link.close()
            await until(lambda: box.connected() == ())

    run(scenario)


def test_b25_every_one_of_many_refusals_is_told_as_such() -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with server("refuses") as (addr, process), client.run():
            held = psutil.Process(process.pid).num_fds()
            for _ in range(60):
                with pytest.raises(PeerRefusedError, match=client.peer_id):
                    await client.open_link(SERVER, [addr], timeout=10)
            assert client.connected() == ()
            crowd = [host_of(f"client-{index}") for index in range(8)]

            async def knock(host: Host) -> None:
                async with host.run():
                    for _ in range(8):
                        with pytest.raises(PeerRefusedError, match=host.peer_id):
                            await host.open_link(SERVER, [addr], timeout=10)

            async with trio.open_nursery() as nursery:
                for one in crowd:
                    nursery.start_soon(knock, one)
            await until(lambda: psutil.Process(process.pid).num_fds() <= held)

    run(scenario)


def test_places_come_back_whatever_strangers_do_and_members_get_in_meanwhile() -> None:
    """Half-open connections, refused keys, garbage, failed and refused dials: nothing of them stays."""
    member = peer_id_of("member")

    async def scenario() -> None:
        gate = Gate(member.__eq__)
        box = Host(seed_of("box"), listen=("/ip4/127.0.0.1/tcp/0",), gate=gate, on_link=hold)
        client, stranger = host_of("member"), host_of("stranger")
        async with box.run(), client.run(), stranger.run():
            swarm = box._host.get_network()
            port = int(box.addrs()[0].split("/")[4])
            idle = psutil.Process().num_fds()

            async def visit() -> None:
                with trio.fail_after(5):
                    link = await client.open_link(box.peer_id, box.addrs(), timeout=5)
                await link.close()

            flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(200)]
            await visit()
            for half_open_stream in flood:
                await half_open_stream.aclose()
            for _ in range(200):
                with pytest.raises(PeerRefusedError):
                    await stranger.open_link(box.peer_id, box.addrs(), timeout=5)
            for _ in range(200):
                async with await trio.open_tcp_stream("127.0.0.1", port) as garbage:
                    await garbage.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n" + os.urandom(300))
            for _ in range(20):
                with pytest.raises(PeerUnreachableError):
                    await client.open_link(SERVER, [f"/ip4/127.0.0.1/tcp/{free_port()}"], timeout=1)
                with pytest.raises(PeerUnreachableError):  # another key than the dialled one answers
                    await client.open_link(SERVER, [f"/ip4/127.0.0.1/tcp/{port}"], timeout=1)
            await visit()
            await until(lambda: not box.connected() and psutil.Process().num_fds() <= idle)
            await until(lambda: swarm._inbound_limiter.borrowed_tokens == 0)
            assert swarm._resource_manager is None
            assert client._host.get_network()._resource_manager is None
            assert gate.counts["inbound"] == 200
            assert gate.counts["half_open_dropped"] >= 200 - half_open.MAX_HALF_OPEN_PER_ADDRESS - 1
            assert gate.counts["no_place_left"] == 0

    run(scenario)


@pytest.mark.parametrize("opening", [b"", b"\x13/multistream/1.0.0\n\x07/noise\n"])
def test_a_member_gets_in_during_a_flood_of_1500_half_open_connections(opening: bytes) -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with server() as (addr, process), client.run():
            port, opened = int(addr.split("/")[4]), 0

            async def flood() -> None:
                nonlocal opened
                streams = []
                while opened < 1500:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    await stream.send_all(opening)
                    streams.append(stream)
                    opened += 1
                    await trio.sleep(1 / 150)
                for stream in streams:
                    await stream.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                while opened < 1500:
                    await until_linked(client, addr)
                    await trio.sleep(1)
            await until(
                lambda: not any(c.status == "ESTABLISHED" for c in psutil.Process(process.pid).net_connections())
            )

    run(scenario)


async def until_linked(client: Host, addr: str, limit: float = 5) -> None:
    """Dial as the dialler does until a link is open."""
    with trio.fail_after(limit):
        while True:
            try:
                link = await client.open_link(SERVER, [addr], timeout=1)
            except PeerUnreachableError:
                await trio.sleep(0.2)
            else:
                await link.close()
                return


def test_one_key_does_not_take_all_connections() -> None:
    async def scenario() -> None:
        gate = Gate(lambda peer_id: True)
        box = Host(seed_of("box"), listen=("/ip4/127.0.0.1/tcp/0",), gate=gate, on_link=hold)
        greedy = [host_of("greedy") for _ in range(10)]
        async with box.run(), AsyncExitStack() as stack:
            refused = 0
            for host in greedy:
                await stack.enter_async_context(host.run())
                try:
                    await host.open_link(box.peer_id, box.addrs(), timeout=3)
                except PeerUnreachableError:
                    refused += 1
            assert refused == gate.counts["too_many_of_one_key"] == 2  # and none dialled twice
            other = await stack.enter_async_context(running(host_of("other")))
            await (await other.open_link(box.peer_id, box.addrs(), timeout=3)).close()

    run(scenario)


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    async with host.run():
        yield host


def test_b28_a_key_that_is_no_longer_allowed_gets_no_new_link_on_an_old_connection_and_hears_why() -> None:
    allowed = {peer_id_of("client")}

    async def scenario() -> None:
        host = host_of("server", listen=("/ip4/127.0.0.1/tcp/0",), allowed=allowed.__contains__)
        client = host_of("client")
        async with host.run(), client.run():
            first = await client.open_link(SERVER, host.addrs(), timeout=10)
            allowed.clear()
            with pytest.raises(PeerRefusedError):
                await client.open_link(SERVER, host.addrs(), timeout=10)
            with pytest.raises(PeerUnreachableError):
                while True:
                    await first.write(b"x")
                    await trio.sleep(0.01)
            await until(lambda: not host.connected())

    run(scenario)


@pytest.mark.parametrize("kind", ["rsa", "secp256k1"])
def test_a_key_of_a_kind_that_no_box_has_is_turned_away_and_others_get_in(kind: str) -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with server() as (address, process), client.run():
            stranger = await trio.run_process(
                [sys.executable, str(Path(__file__).with_name("_libp2p_stranger.py")), kind, address],
                capture_stdout=True,
                capture_stderr=True,
            )
            assert stranger.stdout.decode().startswith("refused ")
            link = await client.open_link(SERVER, [address], timeout=10)
            await link.close()
            assert process.poll() is None

    run(scenario)


def test_our_own_gate_is_asked_before_a_socket_is_opened() -> None:
    async def scenario() -> None:
        client = host_of("client", allowed=lambda peer_id: False)
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with client.run():
            port = listener.socket.getsockname()[1]
            with pytest.raises(DeniedError, match=SERVER):
                await client.open_link(SERVER, [f"/ip4/127.0.0.1/tcp/{port}"], timeout=10)
            with trio.move_on_after(0.2) as waited:
                await listener.accept()
            assert waited.cancelled_caught
        await listener.aclose()

    run(scenario)


def test_a_dial_can_be_cancelled_at_any_moment() -> None:
    async def scenario() -> None:
        client = host_of("client")
        async with server() as (addr, process), client.run():
            held = psutil.Process(process.pid).num_fds()
            for milliseconds in range(0, 40, 2):
                link = None
                with trio.move_on_after(milliseconds / 1000):
                    link = await client.open_link(SERVER, [addr], timeout=10)
                if link is not None:
                    await link.close()
                await until(lambda: client.connected() == ())
            await until(lambda: psutil.Process(process.pid).num_fds() <= held)
            link = await client.open_link(SERVER, [addr], timeout=10)
            await link.close()

    run(scenario)


def test_a_host_alone_leaves_room_in_the_memory_of_a_small_box() -> None:
    async def scenario() -> None:
        async with server("idle") as (_, process):
            assert process.stdout is not None
            used = int(await trio.to_thread.run_sync(process.stdout.readline))
            assert used < 10e6

    run(scenario)


def test_the_limits_are_those_that_the_documents_name() -> None:
    assert (half_open.MAX_HALF_OPEN, half_open.MAX_HALF_OPEN_PER_ADDRESS) == (128, 32)
    assert (libp2p_streams.MAX_STREAMS, libp2p_inbound.MAX_CONNECTIONS_PER_KEY) == (64, 8)
    assert libp2p_inbound.GATED == 0x1007
