"""Nodes on the real network: who gets in, who is refused and how, and what strangers can throw at the port."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.yamux.yamux import FLAG_RST, FLAG_SYN, TYPE_WINDOW_UPDATE, YAMUX_HEADER_FORMAT

from fleet.errors import FleetError, PeerRefusedError, PeerUnreachableError
from fleet.net.frames import HelloFrame, encode
from fleet.net.gate import Gate
from fleet.net.host import Host, LinkStream
from fleet.net.link import ByteStream
from fleet.net.messages import Hello, Presence
from fleet.net.rpc import IncomingCall
from tests.harness import free_port, peer_id_of, seed_of
from tests.peer import Peer, peer

LIMIT = 60


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT):
            await scenario()

    trio.run(main)


async def no_links(stream: ByteStream) -> None:
    await stream.close()


def dialling_host(name: str, allowed: Callable[[str], bool] = lambda peer_id: True) -> Host:
    return Host(seed_of(name), listen=[], gate=Gate(allowed), on_link=no_links)


async def linked(one: Peer, other: str) -> None:
    while one.node.link(other) is None:
        await one.node.wait_change()


def test_b25_an_allowed_key_is_admitted_and_calls_work() -> None:
    async def infer(call: IncomingCall) -> Mapping[str, object]:
        await call.send({"hello": call.peer_id})
        return {"done": True}

    async def scenario() -> None:
        async with peer("server", infer=infer) as server, peer("client") as client:
            stream = await client.node._host.open_link(server.node.peer_id, server.node.addrs(), timeout=3)
            assert stream.peer_id == peer_id_of("server")
            await stream.close()

    run(scenario)


def test_b25_an_unknown_key_is_refused_explicitly_within_200_ms() -> None:
    async def scenario() -> None:
        async with peer("server", allowed=lambda peer_id: False) as server:
            host = dialling_host("stranger")
            async with host.run():
                took = []
                for _ in range(5):
                    began = time.perf_counter()
                    with pytest.raises(PeerRefusedError) as caught:
                        await host.open_link(server.node.peer_id, server.node.addrs(), timeout=3)
                    took.append(time.perf_counter() - began)
                assert sorted(took)[2] <= 0.2
                assert peer_id_of("stranger") in caught.value.message
                assert "no member of its fleet" in caught.value.message
            assert server.ups == []
            assert server.node._gate.counts["inbound"] == 5
            (refusal,) = server.node._gate.refusals()
            assert (refusal.peer_id, refusal.count) == (peer_id_of("stranger"), 5)
            assert server.node._host.connected() == ()

    run(scenario)


def test_b26_knowing_an_id_gives_nothing_without_its_key() -> None:
    async def scenario() -> None:
        async with peer("impostor") as impostor:
            host = dialling_host("client")
            async with host.run():
                addrs = [a.replace(impostor.node.peer_id, peer_id_of("victim")) for a in impostor.node.addrs()]
                with pytest.raises(PeerUnreachableError):
                    await host.open_link(peer_id_of("victim"), addrs, timeout=3)
            assert impostor.ups == []

    run(scenario)


@pytest.mark.parametrize("behaviour", ["reads nothing", "opens streams", "never linked", "many connections"])
def test_b28_a_peer_that_is_shut_out_is_cut_off_within_two_seconds_whatever_it_does(behaviour: str) -> None:
    allowed = {peer_id_of("evil")}

    async def scenario() -> None:
        async with peer("server", allowed=allowed.__contains__) as server, AsyncExitStack() as stack:
            connections = []
            for _ in range(6 if behaviour == "many connections" else 1):
                host = dialling_host("evil")
                await stack.enter_async_context(host.run())
                stream = await host.open_link(server.node.peer_id, server.node.addrs(), timeout=5)
                assert isinstance(stream, LinkStream)
                if behaviour != "never linked":
                    hello = Hello(name="evil", version="0", presence=Presence(seq=0, name="evil", version="0"))
                    await stream.write(encode(HelloFrame(hello.model_dump(mode="json"))))
                    while server.node.link(host.peer_id) is None:
                        await server.node.wait_change()
                # Whatever its own libp2p makes of a farewell, it keeps the socket.
                connections.append(stream.connection.secured_conn)
                stream.connection.secured_conn.close = trio.lowlevel.checkpoint
            if behaviour == "reads nothing":
                connections[0]._receive = trio.sleep_forever
            async with trio.open_nursery() as nursery:
                if behaviour == "opens streams":
                    nursery.start_soon(open_streams, connections[0])
                    await trio.sleep(0.1)
                allowed.clear()
                server.node.recheck()
                with trio.fail_after(2):
                    while server.node._host.connected():
                        await trio.sleep(0.01)
                    for connection in connections:
                        await hung_up(connection._socket)
                assert server.node.links() == ()

    run(scenario)


async def open_streams(connection: Any) -> None:
    """Open streams, and close them again to be allowed more, until the other side is gone."""
    with contextlib.suppress(ConnectionClosedError):
        for number in range(1001, 2**31, 2):
            for flag in (FLAG_SYN, FLAG_RST):
                with contextlib.suppress(trio.BusyResourceError):  # `hung_up` sends on the same socket
                    await connection.write(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_WINDOW_UPDATE, flag, number, 0))
            await trio.sleep(0.005)


async def hung_up(socket: trio.SocketStream) -> None:
    """Return once the other end of a socket is closed, also while another task reads it."""
    while True:
        try:
            await socket.send_all(b"x")
        except trio.BrokenResourceError:
            return
        except trio.BusyResourceError:
            pass
        await trio.sleep(0.01)


def test_our_own_gate_also_holds_outwards() -> None:
    async def scenario() -> None:
        async with peer("server") as server:
            host = dialling_host("client", allowed=lambda peer_id: False)
            async with host.run():
                with pytest.raises(FleetError) as caught:
                    await host.open_link(server.node.peer_id, server.node.addrs(), timeout=3)
                assert caught.value.code == "denied"
            assert server.ups == []

    run(scenario)


def test_a_port_in_use_is_an_error_that_names_the_address() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            host = Host(
                seed_of("server"), listen=[f"/ip4/127.0.0.1/tcp/{port}"], gate=Gate(lambda p: True), on_link=no_links
            )
            with pytest.raises(FleetError, match=str(port)):
                async with host.run():
                    pass

    run(scenario)


GARBAGE = [
    b"\x00" * 100,
    os.urandom(5000),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 20,
    b"\x13/multistream/1.0.0\n\x07/noise\n" + os.urandom(3000),
    b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x7f" + b"z" * 100,
    b"\x13/multistream/1.0.0\n\x12/plaintext/2.0.0\n",
]


def test_garbage_on_the_port_hurts_nobody() -> None:
    async def scenario() -> None:
        async with peer("server") as server:
            port = int(server.node.addrs()[0].split("/")[4])
            for garbage in GARBAGE * 3:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(garbage)
                await stream.aclose()
            host = dialling_host("client")
            async with host.run():
                stream2 = await host.open_link(server.node.peer_id, server.node.addrs(), timeout=5)
                await stream2.close()

    run(scenario)


def test_300_half_open_connections_do_not_keep_an_allowed_peer_out() -> None:
    async def scenario() -> None:
        async with peer("server") as server:
            port = int(server.node.addrs()[0].split("/")[4])
            flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(300)]
            host = dialling_host("client")
            async with host.run():
                stream = await host.open_link(server.node.peer_id, server.node.addrs(), timeout=5)
                await stream.close()
            for half_open in flood:
                await half_open.aclose()

    run(scenario)


def test_b33_a_link_comes_back_by_itself() -> None:
    port = free_port()

    async def scenario() -> None:
        async with peer("client", listen=[f"/ip4/127.0.0.1/tcp/{port}"]) as client:
            for times in (1, 2, 3):
                async with trio.open_nursery() as nursery:

                    class Box:
                        peer_id = peer_id_of("client")
                        p2p_addr = client.node.addrs()[0]

                    async with peer("server", [Box()]) as server:  # type: ignore[list-item]
                        await linked(server, client.node.peer_id)
                        await linked(client, server.node.peer_id)
                    nursery.cancel_scope.cancel()
                with trio.fail_after(3):
                    while len(client.downs) < times:
                        await client.node.wait_change()
            assert client.ups == client.downs == [peer_id_of("server")] * 3

    run(scenario)


def test_two_boxes_that_dial_each_other_end_up_with_a_working_link() -> None:
    ports = [free_port(), free_port()]
    addrs = {name: f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of(name)}" for name, port in zip("ab", ports, strict=True)}

    class Box:
        def __init__(self, name: str) -> None:
            self.peer_id = peer_id_of(name)
            self.p2p_addr = addrs[name]

    async def echo(call: IncomingCall) -> Mapping[str, object]:
        return {"body": call.body}

    async def scenario() -> None:
        async with (
            peer("a", [Box("b")], infer=echo, listen=[addrs["a"].split("/p2p/")[0]]) as a,  # type: ignore[list-item]
            peer("b", [Box("a")], infer=echo, listen=[addrs["b"].split("/p2p/")[0]]) as b,  # type: ignore[list-item]
        ):
            await linked(a, b.node.peer_id)
            await linked(b, a.node.peer_id)
            await trio.sleep(2)
            for one, other in ((a, b), (b, a)):
                link = one.node.link(other.node.peer_id)
                assert link is not None

                async def ignore(event: object) -> None:
                    raise AssertionError

                assert await link.call("infer", {"x": 1}, ignore) == {"body": {"x": 1}}

    run(scenario)
