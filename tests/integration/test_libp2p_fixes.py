"""Each defect of libp2p 0.8.1 that Shoal works around: seen on a stock host, gone with the workaround.

The half that shows the defect fails when a new libp2p no longer has it; then the workaround can go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import libp2p.network.swarm as swarm_module
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.utils import read_exactly
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
)
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from fleet.errors import PeerUnreachableError
from fleet.net import libp2p_fixes as fixes
from fleet.net import libp2p_inbound as inbound
from fleet.net.frames import FrameDecoder, Ping, encode
from fleet.net.gate import Gate
from fleet.net.host import LINK_PROTOCOL, Host
from fleet.net.libp2p_streams import flatten_connections
from fleet.net.link import ByteStream
from fleet.net.rpc import IncomingCall
from tests.harness import free_port, peer_id_of, seed_of
from tests.peer import peer

#: As libp2p has it: any Host of this process replaces it.
STOCK_CLEANUP = SwarmConn._cleanup
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
ANY_ERROR = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def run(scenario: Callable[[], Awaitable[None]], limit: float = 60) -> None:
    async def main() -> None:
        with trio.fail_after(limit):
            await scenario()

    trio.run(main)


def stock(name: str, **config: Any) -> Any:
    """A host as libp2p makes it, with the transport that Shoal uses and no workaround."""
    pair = create_new_key_pair(seed_of(name))
    return new_host(
        key_pair=pair,
        sec_opt={NOISE: NoiseTransport(pair, noise_privkey=create_noise_key().private_key)},
        muxer_opt={YAMUX: Yamux},
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0, **config),
    )


def address(host: Any) -> Multiaddr:
    return Multiaddr(str(host.get_addrs()[0]).split("/p2p/")[0])


def text_address(host: Any) -> str:
    return f"{address(host)}/p2p/{host.get_id()}"


async def hold(stream: ByteStream) -> None:
    while await stream.read(1000):
        pass


def fixed(name: str, listen: tuple[str, ...] = ()) -> Host:
    return Host(seed_of(name), listen=listen, gate=Gate(lambda peer_id: True), on_link=hold)


@asynccontextmanager
async def listening(host: Any) -> AsyncIterator[Any]:
    async def echo(stream: Any) -> None:
        try:
            while True:
                await stream.write(await stream.read(1000))
        except ANY_ERROR:
            return

    host.set_stream_handler(LINK_PROTOCOL, echo)
    async with host.run(listen_addrs=[LOOPBACK]):
        yield host


async def visits(server: Any, count: int) -> int:
    """How many of `count` clients, one after the other, get through."""
    through = 0
    for index in range(count):
        client = stock(f"visitor-{index}")
        async with client.run(listen_addrs=[]):
            with trio.move_on_after(1.5):
                try:
                    await client.connect(PeerInfo(server.get_id(), [address(server)]))
                    stream = await client.new_stream(server.get_id(), [LINK_PROTOCOL])
                    await stream.write(b"hello")
                    assert await stream.read(5) == b"hello"
                    through += 1
                    await client.disconnect(server.get_id())
                except ANY_ERROR:
                    return through
        await trio.sleep(0.15)
    return through


@pytest.mark.parametrize("repaired", [False, True])
def test_1_inbound_slots_are_given_back(repaired: bool) -> None:
    async def scenario() -> None:
        server = stock("server", max_connections=4, high_watermark=4)
        if repaired:
            inbound.release_inbound_slots(server.get_network())
        async with listening(server):
            through = await visits(server, 9)
        assert (through == 9) is repaired

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_2_a_server_that_says_nothing_does_not_hold_a_dialler(repaired: bool) -> None:
    async def silence(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, silence, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            if repaired:
                host = fixed("client")
                async with host.run():
                    addr = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of('server')}"
                    began = trio.current_time()
                    with pytest.raises(PeerUnreachableError):
                        await host.open_link(peer_id_of("server"), [addr], timeout=0.5)
                    assert trio.current_time() - began < 3
            else:
                client = stock("client", outbound_upgrade_timeout=0.5, dial_timeout=0.5)
                async with client.run(listen_addrs=[]):
                    with trio.move_on_after(3) as waited:
                        await client.connect(
                            PeerInfo(stock("server").get_id(), [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")])
                        )
                    assert waited.cancelled_caught
            nursery.cancel_scope.cancel()

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_3_a_failed_dial_does_not_blacklist(repaired: bool) -> None:
    async def scenario() -> None:
        server, client = stock("server"), stock("client")
        fixes.dial_once(client.get_network())
        dead = PeerInfo(server.get_id(), [Multiaddr(f"/ip4/127.0.0.1/tcp/{free_port()}")])
        async with client.run(listen_addrs=[]), listening(server):
            with pytest.raises(ANY_ERROR):
                await client.connect(dead)
            client.get_peerstore().clear_addrs(server.get_id())
            if repaired:
                fixes.forget_failures(client.get_network(), server.get_id())
                await client.connect(PeerInfo(server.get_id(), [address(server)]))
                assert server.get_id() in client.get_connected_peers()
            else:
                with pytest.raises(ANY_ERROR):
                    await client.connect(PeerInfo(server.get_id(), [address(server)]))

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_4_every_address_is_tried(repaired: bool) -> None:
    async def scenario() -> None:
        server = stock("server")
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}"
        async with listening(server):
            if repaired:
                host = fixed("client")
                async with host.run():
                    addrs = [f"{dead}/p2p/{server.get_id()}", text_address(server)]
                    stream = await host.open_link(str(server.get_id()), addrs, timeout=5)
                    await stream.close()
            else:
                client = stock("client")
                fixes.dial_once(client.get_network())
                async with client.run(listen_addrs=[]):
                    with pytest.raises(ANY_ERROR):
                        await client.connect(PeerInfo(server.get_id(), [Multiaddr(dead), address(server)]))

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_5_addresses_do_not_expire(repaired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        server = stock("server")
        async with listening(server):
            if repaired:
                host = fixed("client")
                async with host.run():
                    for _ in range(2):
                        stream = await host.open_link(str(server.get_id()), [text_address(server)], timeout=5)
                        await stream.close()
                        await host.disconnect(str(server.get_id()))
                        later(monkeypatch)
            else:
                client = stock("client")
                async with client.run(listen_addrs=[]):
                    await client.connect(PeerInfo(server.get_id(), [address(server)]))
                    await client.disconnect(server.get_id())
                    later(monkeypatch)
                    with pytest.raises(ANY_ERROR):
                        await client.new_stream(server.get_id(), [LINK_PROTOCOL])

    run(scenario)


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three minutes pass for whoever asks `time.time`."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 180)


def test_6_a_dial_does_not_sleep_out_the_happy_eyeballs_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial() -> float:
        server, client = stock("server"), stock("client")
        async with listening(server), client.run(listen_addrs=[]):
            began = trio.current_time()
            await client.connect(PeerInfo(server.get_id(), [address(server)]))
            return trio.current_time() - began

    async def scenario() -> None:
        monkeypatch.setattr(swarm_module, "_HAPPY_EYEBALLS_DELAY", 0.25)
        assert await dial() >= 0.25
        fixes.shorten_happy_eyeballs()
        assert min([await dial() for _ in range(3)]) < 0.25

    run(scenario)


def test_7_a_stock_stream_whose_reader_stalls_is_killed() -> None:
    async def scenario() -> None:
        server, client = stock("server"), stock("client")

        server.set_stream_handler(LINK_PROTOCOL, never_read)
        async with server.run(listen_addrs=[LOOPBACK]), client.run(listen_addrs=[]):
            await client.connect(PeerInfo(server.get_id(), [address(server)]))
            stream = await client.new_stream(server.get_id(), [LINK_PROTOCOL])
            with pytest.raises(ANY_ERROR), trio.fail_after(20):
                await stream.write(b"x" * 40_000_000)  # Yamux lets a window grow to 16 MiB

    run(scenario)


def test_7_a_link_whose_consumer_stalls_lives() -> None:
    async def burst(call: IncomingCall) -> Mapping[str, object]:
        for index in range(2000):
            await call.send({"i": index, "pad": "x" * 400})
        return {"sent": 2000}

    async def scenario() -> None:
        async with peer("server", infer=burst) as server:

            class Box:
                peer_id = server.node.peer_id
                p2p_addr = server.node.addrs()[0]

            async with peer("client", [Box()]) as client:  # type: ignore[list-item]
                link = await client.link_to(Box())  # type: ignore[arg-type]
                seen: list[object] = []

                async def stall_once(event: object) -> None:
                    if not seen:
                        await trio.sleep(7)
                    seen.append(event)

                assert await link.call("infer", {}, stall_once) == {"sent": 2000}
                assert len(seen) == 2000

    run(scenario)


def test_8_many_small_reads_are_no_failure() -> None:
    class Dribble:
        def __init__(self, data: bytes) -> None:
            self.data = data

        async def read(self, n: int) -> bytes:
            self.data, first = self.data[1:], self.data[:1]
            return first

    async def scenario() -> None:
        with pytest.raises(IncompleteReadError):
            await read_exactly(Dribble(b"x" * 500), 400)  # type: ignore[arg-type]
        decoder = FrameDecoder()
        wire = encode(Ping(1)) * 100
        assert [frame for byte in wire for frame in decoder.feed(bytes([byte]))] == [Ping(1)] * 100

    run(scenario)


@asynccontextmanager
async def frozen_host(script: str) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """A host in a process of its own that can be stopped; yields its address."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond, and the test waits for it anyway
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        yield (await trio.to_thread.run_sync(process.stdout.readline)).strip(), process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


STOCK_SERVER = """
import trio
from tests.integration.test_libp2p_fixes import listening, stock, text_address
async def main():
    async with listening(stock("server")) as host:
        print(text_address(host), flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
PEER_SERVER = """
import trio
from tests.peer import peer
async def main():
    async with peer("server") as server:
        print(server.node.addrs()[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("repaired", [False, True])
def test_9_a_frozen_peer_is_noticed(repaired: bool) -> None:
    async def scenario() -> None:
        async with frozen_host(PEER_SERVER if repaired else STOCK_SERVER) as (addr, process):
            if repaired:

                class Box:
                    peer_id = peer_id_of("server")
                    p2p_addr = addr

                async with peer("client", [Box()]) as client:  # type: ignore[list-item]
                    link = await client.link_to(Box())  # type: ignore[arg-type]
                    os.kill(process.pid, signal.SIGSTOP)
                    with trio.fail_after(3.5):
                        await link.closed.wait()
            else:
                client2 = stock("client")
                server_id = stock("server").get_id()
                async with client2.run(listen_addrs=[]):
                    await client2.connect(PeerInfo(server_id, [Multiaddr(addr.split("/p2p/")[0])]))
                    stream = await client2.new_stream(server_id, [LINK_PROTOCOL])
                    os.kill(process.pid, signal.SIGSTOP)
                    with trio.move_on_after(4) as waited:
                        await stream.read(10)
                    assert waited.cancelled_caught
                    process.kill()

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_10_half_open_connections_do_not_fill_the_slots(repaired: bool) -> None:
    async def scenario() -> None:
        server = stock("server", max_connections=40, high_watermark=40)
        if repaired:
            inbound.bound_half_open(server.get_network())
        async with listening(server):
            port = int(str(address(server)).split("/")[4])
            flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(60)]
            await trio.sleep(0.3)
            assert (await visits(server, 1) == 1) is repaired
            for half_open in flood:
                await half_open.aclose()

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_13_strangers_do_not_use_up_the_places_for_connections(repaired: bool) -> None:
    """The stock manager loses a place for each handshake that is cancelled and for each key that the gate refuses."""

    async def scenario() -> None:
        server = stock("server", max_connections=400, high_watermark=400)
        swarm = server.get_network()
        manager = swarm._resource_manager
        manager.limits.max_connections = 40  # of 1000, for a shorter test; else it puts back what it began with
        manager.graceful_degradation = None
        if repaired:
            inbound.forgo_resource_manager(swarm)
        half_open = inbound.bound_half_open(swarm)
        inbound.gate_connections(swarm, lambda peer_id, *_: peer_id == str(stock("visitor-0").get_id()), half_open)
        async with listening(server):
            port = int(str(address(server)).split("/")[4])
            flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(120)]
            for half in flood:
                await half.aclose()
            stranger = stock("stranger")
            async with stranger.run(listen_addrs=[]):
                knocks = 0
                while knocks < 15 or (not repaired and knocks < 60 and manager._current_connections < 40):
                    knocks += 1
                    fixes.forget_failures(stranger.get_network(), server.get_id())
                    with pytest.raises(ANY_ERROR), trio.fail_after(5):
                        await stranger.connect(PeerInfo(server.get_id(), [address(server)]))
                        await stranger.new_stream(server.get_id(), [LINK_PROTOCOL])
            await trio.sleep(0.3)
            assert len(half_open) == 0
            assert (manager._current_connections == 0) is repaired
            assert (await visits(server, 1) == 1) is repaired

    run(scenario)


def test_12_a_stopped_host_leaves_its_listener_or_not_but_processes_never_do() -> None:
    """Why hosts that restart on one port are processes of their own in these tests."""

    async def scenario() -> None:
        async with frozen_host(PEER_SERVER) as (addr, process):
            port = int(addr.split("/")[4])
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            process.kill()
            process.wait()
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", port)

    run(scenario)


def test_plaintext_is_not_accepted() -> None:
    async def scenario() -> None:
        host = fixed("server", listen=("/ip4/127.0.0.1/tcp/0",))
        async with host.run():
            port = int(host.addrs()[0].split("/")[4])
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n")
            heard = b""
            with trio.move_on_after(3):
                while b"na\n" not in heard:
                    data = await stream.receive_some(1000)
                    if not data:
                        break
                    heard += data
            assert b"/plaintext" not in heard

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_a_failed_dial_is_not_repeated_behind_the_diallers_back(repaired: bool) -> None:
    accepted = 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1

    async def scenario() -> None:
        client = stock("client")
        if repaired:
            fixes.dial_once(client.get_network())
        async with trio.open_nursery() as nursery, client.run(listen_addrs=[]):
            (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            with pytest.raises(ANY_ERROR):
                await client.connect(PeerInfo(stock("server").get_id(), [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]))
            nursery.cancel_scope.cancel()
        assert (accepted == 1) is repaired

    run(scenario)


def test_stock_libp2p_forgets_why_a_peer_went_away_and_this_one_tells() -> None:
    codes: list[tuple[str, int]] = []

    async def scenario() -> None:
        server, client = stock("server"), stock("client")
        inbound.gate_connections(server.get_network(), lambda *_: False)
        flatten_connections(client.get_network(), lambda peer_id, code: codes.append((peer_id, code)))
        async with listening(server), client.run(listen_addrs=[]):
            try:
                await client.connect(PeerInfo(server.get_id(), [address(server)]))
                with trio.move_on_after(2):
                    while not codes:
                        await trio.sleep(0.02)
            except ANY_ERROR:
                pass
        assert codes == [(str(server.get_id()), inbound.GATED)]

    run(scenario)


async def never_read(stream: Any) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def attack(repaired: bool) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A server that reads nothing by itself, and an admitted client's muxer and stream to write frames by hand."""
    server, client = stock("server"), stock("client")
    if repaired:
        flatten_connections(server.get_network(), lambda *_: None)
    server.set_stream_handler(LINK_PROTOCOL, never_read)
    async with server.run(listen_addrs=[LOOPBACK]), client.run(listen_addrs=[]):
        await client.connect(PeerInfo(server.get_id(), [address(server)]))
        stream = await client.new_stream(server.get_id(), [LINK_PROTOCOL])
        (conn,) = server.get_network().get_connections(client.get_id())
        yield conn.muxed_conn, stream.muxed_stream.conn, stream.muxed_stream


async def send_by_hand(muxer: Any, frames: Iterable[bytes]) -> None:
    with contextlib.suppress(*ANY_ERROR):
        for frame in frames:
            await muxer._write_frame(frame)


@pytest.mark.parametrize("repaired", [False, True])
def test_a_peer_cannot_send_more_than_its_window(repaired: bool) -> None:
    # A stock window may have grown to 16 MiB while the protocol was negotiated.
    body, count = bytes(60_000), 400

    async def scenario() -> None:
        async with attack(repaired) as (victim, muxer, stream):
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream.stream_id, len(body))
            await send_by_hand(muxer, [header + body] * count)
            kept = 0
            with trio.fail_after(20):
                while not victim.is_closed and kept < count * len(body):
                    kept = max(kept, len(victim.stream_buffers.get(stream.stream_id, b"")))
                    await trio.sleep(0.01)
            assert victim.is_closed is repaired

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_a_peer_cannot_open_streams_without_number(repaired: bool) -> None:
    async def scenario() -> None:
        async with attack(repaired) as (victim, muxer, _):
            opening = [
                struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_WINDOW_UPDATE, FLAG_SYN, number, 0)
                for number in range(1001, 1601, 2)
            ]
            await send_by_hand(muxer, opening)
            with trio.fail_after(20):
                while not victim.is_closed and len(victim.streams) < len(opening):
                    await trio.sleep(0.01)
            assert victim.is_closed is repaired

    run(scenario)


def test_a_body_that_looks_like_a_header_is_only_a_body() -> None:
    """Twelve bytes are read in one go whether they are a header or not."""
    gone: list[int] = []

    async def scenario() -> None:
        server, client = stock("server"), stock("client")
        flatten_connections(server.get_network(), lambda peer_id, code: gone.append(code))
        async with listening(server), client.run(listen_addrs=[]):
            await client.connect(PeerInfo(server.get_id(), [address(server)]))
            stream = await client.new_stream(server.get_id(), [LINK_PROTOCOL])
            for body in (
                struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, inbound.GATED),
                struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, 1, 0xFFFFFFFF),
                struct.pack(YAMUX_HEADER_FORMAT, 9, 9, 9, 9, 9),
            ):
                # Header and body in messages of their own, so that the body is not there yet when it is asked for.
                muxer, number = stream.muxed_stream.conn, stream.muxed_stream.stream_id
                async with muxer._write_lock:
                    await muxer.secured_conn.write(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, number, len(body)))
                    await trio.sleep(0.05)
                    await muxer.secured_conn.write(body)
                assert await stream.read(len(body)) == body
        assert gone == []

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_closing_a_connection_does_not_pause(repaired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwarmConn, "_cleanup", SwarmConn._cleanup)

    async def close() -> float:
        server, client = stock("server"), stock("client")
        if repaired:
            fixes.close_promptly(client.get_network())
        async with listening(server), client.run(listen_addrs=[]):
            await client.connect(PeerInfo(server.get_id(), [address(server)]))
            began = trio.current_time()
            await client.disconnect(server.get_id())
            assert client.get_connected_peers() == []
            return trio.current_time() - began

    async def scenario() -> None:
        if repaired:
            assert min([await close() for _ in range(3)]) < 0.2
        else:
            monkeypatch.setattr(SwarmConn, "_cleanup", STOCK_CLEANUP)
            assert await close() >= 0.2

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_hanging_up_on_a_frozen_peer_ends(repaired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwarmConn, "_cleanup", SwarmConn._cleanup)

    async def fill(muxer: Any) -> None:
        with contextlib.suppress(*ANY_ERROR):
            while True:
                await muxer._write_frame(bytes(1_000_000))

    async def scenario() -> None:
        client, server_id = stock("client"), stock("server").get_id()
        if repaired:
            fixes.close_promptly(client.get_network())
        async with frozen_host(STOCK_SERVER) as (addr, process), client.run(listen_addrs=[]):
            await client.connect(PeerInfo(server_id, [Multiaddr(addr.split("/p2p/")[0])]))
            (conn,) = client.get_network().get_connections(server_id)
            os.kill(process.pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, conn.muxed_conn)
                await trio.sleep(0.5)
                with trio.move_on_after(3) as waited:
                    await conn.close()
                assert waited.cancelled_caught is not repaired
                process.kill()
                nursery.cancel_scope.cancel()

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_11_nobody_is_dialled_unasked(repaired: bool) -> None:
    async def scenario() -> None:
        server, client = stock("server"), stock("client")
        if repaired:
            fixes.never_dial_unasked(client.get_network())
        async with listening(server), client.run(listen_addrs=[]):
            client.get_peerstore().add_addrs(server.get_id(), [address(server)], 600)
            with trio.move_on_after(5):
                await client.get_network().auto_connector.maybe_connect()
            assert (server.get_id() not in client.get_connected_peers()) is repaired

    run(scenario)


@pytest.mark.parametrize("repaired", [False, True])
def test_nothing_but_links_is_spoken(repaired: bool) -> None:
    asked: list[str] = []

    async def scenario() -> None:
        server, client = stock("server"), stock("client")
        if repaired:
            for host in (server, client):
                fixes.speak_links_only(host)
        server.multiselect.negotiate = noting(server.multiselect.negotiate, asked)
        async with listening(server), client.run(listen_addrs=[]):
            await client.connect(PeerInfo(server.get_id(), [address(server)]))
            stream = await client.new_stream(server.get_id(), [LINK_PROTOCOL])
            await stream.write(b"hello")
            assert await stream.read(5) == b"hello"
            for protocol in ("/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"):
                try:
                    await client.new_stream(server.get_id(), [protocol])
                except ANY_ERROR:
                    assert repaired
                else:
                    assert not repaired
            await trio.sleep(0.2)
        assert (asked == [LINK_PROTOCOL]) is repaired

    run(scenario)


def noting(negotiate: Callable[..., Awaitable[Any]], seen: list[str]) -> Callable[..., Awaitable[Any]]:
    """`negotiate`, which also writes down what was agreed on."""

    async def negotiate_and_note(*arguments: Any) -> Any:
        protocol, handler = await negotiate(*arguments)
        seen.append(str(protocol))
        return protocol, handler

    return negotiate_and_note
