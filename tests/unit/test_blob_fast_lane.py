"""The fast lane's socket: who gets in, who does not, and what a broken or hostile other end does."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from fleet.blobs import fast_listener, pins
from fleet.blobs import messages as wire
from fleet.blobs.bandwidth import Bandwidth
from fleet.blobs.fast_lane import FastLane, LaneError, open_lane
from fleet.blobs.fast_listener import FastListener
from fleet.blobs.manifest import Manifest
from fleet.blobs.pins import LaneIdentity, PinError, new_identity
from fleet.errors import FleetError, MessageError, RemoteError

MIB = 1 << 20
BLOB = "sha256:" + "b" * 64
DATA = os.urandom(2 * MIB + 99)
MANIFEST = Manifest(BLOB, len(DATA), b"r" * 32)
GIVER, GETTER, OTHER = new_identity(), new_identity(), new_identity()


class Shelf:
    """Gives any block to whoever has come."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int]] = []

    def asked(self, peer: str, index: int) -> bool:
        return index < 2

    def read(self, index: int) -> bytes | None:
        return DATA[index * MIB : (index + 1) * MIB]

    def sent(self, peer: str, index: int, size: int) -> None:
        self.log.append((index, size))


class Wants:
    """A fetch of some blocks, once."""

    def __init__(self, *indexes: int) -> None:
        self.todo = list(indexes)
        self.cancels: list[int] = []
        self.left = len(indexes)
        self.got: dict[int, bytes] = {}
        self.refusals: list[int] = []
        self.bytes = 0
        self.over = threading.Event()

    def take(self) -> tuple[list[int], list[int]]:
        todo, self.todo = self.todo, []
        cancels, self.cancels = self.cancels, []
        return todo, cancels

    def refused(self, index: int) -> None:
        self.refusals.append(index)
        self._one_less()

    def moved(self, size: int) -> None:
        self.bytes += size

    def useless(self, size: int) -> None:
        self._one_less()

    def deliver(self, index: int, data: memoryview, done: Callable[[], None]) -> None:
        self.got[index] = bytes(data)
        done()
        self._one_less()

    def _one_less(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


def run(scenario: Callable[[FastListener, Shelf], Awaitable[None]]) -> None:
    async def main() -> None:
        shelf = Shelf()
        listener = FastListener(GIVER, Bandwidth(lambda: None), lambda peer, blob: shelf)
        listener.listen("127.0.0.1", 0)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.run)
                await scenario(listener, shelf)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def come(offer: wire.LaneOffer, work: Any, identity: LaneIdentity = GETTER) -> FastLane:
    return await trio.to_thread.run_sync(open_lane, "127.0.0.1", offer, identity, MANIFEST, work)


async def fetch(offer: wire.LaneOffer, work: Wants) -> FleetError | None:
    """Open a lane and run it until `work` is over; gives what broke it."""
    lane = await come(offer, work)
    failed: list[FleetError] = []

    def lane_thread() -> None:
        try:
            lane.run()
        except FleetError as error:
            failed.append(error)
            work.over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lane_thread)
        await trio.to_thread.run_sync(work.over.wait)
        lane.close()
    lane.dispose()
    return failed[0] if failed else None


async def counted(listener: FastListener, reason: str) -> None:
    with trio.fail_after(5):
        while not listener.counts[reason]:
            await trio.sleep(0.01)


def test_blocks_come_over_it_and_what_there_is_no_turn_for_is_refused() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        work = Wants(1, 0, 2)
        assert await fetch(listener.offer("getter", BLOB, GETTER.certificate), work) is None
        assert work.got == {0: DATA[:MIB], 1: DATA[MIB : 2 * MIB]}
        assert work.refusals == [2]
        assert work.bytes == 2 * MIB
        assert shelf.log == [(1, MIB), (0, MIB)]
        assert not listener.counts

    run(scenario)


def test_an_offer_is_good_once_and_for_its_time() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        offer = listener.offer("getter", BLOB, GETTER.certificate)
        await fetch(offer, Wants(0))
        with pytest.raises(LaneError):
            await come(offer, Wants(0))
        await counted(listener, "unknown_offer")

    run(scenario)


def test_an_offer_that_was_not_taken_in_time_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_listener, "OFFER_LIMIT", -1.0)

    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        with pytest.raises(LaneError):
            await come(listener.offer("getter", BLOB, GETTER.certificate), Wants(0))
        await counted(listener, "unknown_offer")

    run(scenario)


def test_whoever_answers_with_another_certificate_is_told_nothing() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        offer = listener.offer("getter", BLOB, GETTER.certificate)
        wrong = offer.model_copy(update={"fingerprint": OTHER.fingerprint})
        with pytest.raises(PinError):
            await come(wrong, Wants(0))
        await counted(listener, "wrong_token")  # it hung up before it said any

    run(scenario)


def test_whoever_comes_with_another_certificate_is_refused() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        offer = listener.offer("getter", BLOB, GETTER.certificate)
        with pytest.raises(LaneError):
            await come(offer, Wants(0), identity=OTHER)
        await counted(listener, "wrong_pin")

    run(scenario)


def test_whoever_comes_with_another_token_is_refused() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        offer = listener.offer("getter", BLOB, GETTER.certificate)
        with pytest.raises(LaneError):
            await come(offer.model_copy(update={"token": bytes(32)}), Wants(0))
        await counted(listener, "wrong_token")
        with pytest.raises(LaneError):  # and the right one does not help any more
            await come(offer, Wants(0))

    run(scenario)


def test_nothing_older_than_tls_1_3_is_spoken() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        offer = listener.offer("getter", BLOB, GETTER.certificate)

        def old() -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with socket.create_connection(("127.0.0.1", offer.port)) as plain:
                plain.sendall(offer.offer)
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(plain)

        await trio.to_thread.run_sync(old)
        await counted(listener, "handshake")

    run(scenario)


def test_strangers_neither_cost_a_thread_nor_keep_anybody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_listener, "MAX_NAMELESS", 8)

    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        assert listener.port is not None
        silent = [await trio.open_tcp_stream("127.0.0.1", listener.port) for _ in range(30)]
        loud = await trio.open_tcp_stream("127.0.0.1", listener.port)
        await loud.send_all(os.urandom(5000))
        await counted(listener, "unknown_offer")
        await fetch(listener.offer("getter", BLOB, GETTER.certificate), work := Wants(0))
        assert work.got
        assert listener.counts["nameless"] >= 30 - 8
        for stream in (*silent, loud):
            await stream.aclose()

    run(scenario)


def test_one_peer_gets_so_many_offers_and_lanes_and_no_more() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        # One that never asks for anything would keep all threads to itself.
        idle = await come(listener.offer("getter", BLOB, GETTER.certificate), Wants())
        for _ in range(fast_listener.MAX_OF_ONE - 1):
            listener.offer("getter", BLOB, GETTER.certificate)
        with pytest.raises(RemoteError) as caught:
            listener.offer("getter", BLOB, GETTER.certificate)
        assert caught.value.remote_code == "no_fast_lane"
        listener.offer("another", BLOB, GETTER.certificate)
        with pytest.raises(MessageError):
            listener.offer("another", BLOB, b"no certificate" * 9)
        idle.close()
        idle.dispose()

    run(scenario)


def test_lanes_and_offers_of_a_peer_that_is_shut_out_end_at_once() -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        work = Wants()
        lane = await come(listener.offer("getter", BLOB, GETTER.certificate), work)
        open_offer = listener.offer("getter", BLOB, GETTER.certificate)
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(broken, lane)
                assert listener.end(lambda peer, blob: peer == "getter") == 1
        lane.dispose()
        with pytest.raises(LaneError):
            await come(open_offer, Wants())

    async def broken(lane: FastLane) -> None:
        with pytest.raises(LaneError):
            await trio.to_thread.run_sync(lane.run)

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        wire.ANSWER.pack(wire.BLOCK_FOLLOWS, 5, MIB),  # a block that nobody asked for
        wire.ANSWER.pack(wire.BLOCK_FOLLOWS, 0, MIB + 1),  # more than the block has
        wire.ANSWER.pack(wire.REFUSED, 0, 7),
        wire.ANSWER.pack(9, 0, 0),
        b"\x01\x00",  # and the end
    ],
)
def test_a_giver_that_breaks_the_protocol_is_left(answer: bytes) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    context = pins.giving_context(GIVER, GETTER.certificate)
    offer = wire.LaneOffer(
        port=listening.getsockname()[1], offer=b"o" * 16, fingerprint=GIVER.fingerprint, token=b"t" * 32
    )

    def give() -> None:
        plain, _ = listening.accept()
        assert plain.recv(16) == offer.offer
        with context.wrap_socket(plain, server_side=True) as connection:
            assert connection.recv(32) == offer.token
            connection.sendall(wire.WELCOME)
            assert len(connection.recv(100)) == wire.ASKED.size
            connection.sendall(answer)

    thread = threading.Thread(target=give)
    thread.start()
    work = Wants(0)
    lane = open_lane("127.0.0.1", offer, GETTER, MANIFEST, work)
    with pytest.raises(LaneError):
        lane.run()
    lane.dispose()
    thread.join()
    listening.close()
    assert work.got == {}


@pytest.mark.parametrize("asked", [b"\x07\x00\x00\x00\x00", wire.ASKED.pack(wire.ASK, 0)[:3]])
def test_a_getter_that_breaks_the_protocol_is_left(asked: bytes) -> None:
    async def scenario(listener: FastListener, shelf: Shelf) -> None:
        lane = await come(listener.offer("getter", BLOB, GETTER.certificate), Wants())
        await trio.to_thread.run_sync(lane._connection.sendall, asked)
        if len(asked) == wire.ASKED.size:
            await counted(listener, "protocol")
        lane._connection.close()
        lane.dispose()
        with trio.fail_after(5):
            while listener._lanes:
                await trio.sleep(0.01)
        assert shelf.log == []

    run(scenario)
