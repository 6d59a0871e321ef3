"""A peer that floods its link waits for itself or is cut off; the rest of the box goes on, and the log stays short."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio
from structlog.testing import capture_logs

from fleet.net import flood
from fleet.net.frames import Call, Cancel, Frame, Notify, Ping, encode
from fleet.net.outbox import MAX_QUEUED
from fleet.net.rpc import IncomingCall
from tests.sim.streams import MemoryStream, pair
from tests.sim.test_link import Box, collect, with_link


def wire(*frames: Frame) -> bytes:
    return b"".join(map(encode, frames))


class Turns:
    """Counts the turns of a task that has something to do all the time, as a client's request has."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await trio.lowlevel.checkpoint()


async def neighbour_of(box: Box, nursery: trio.Nursery) -> Box:
    """Another box with a link to `box`, which has the same router there as its first peer."""
    other, same = Box("other"), Box("b", router=box.router)
    ends = pair("other", "b")
    nursery.start_soon(other.run, ends[0], True)
    nursery.start_soon(same.run, ends[1], False)
    await other.up.wait()
    await same.up.wait()
    return other


def test_bad_messages_end_the_link_and_leave_a_few_lines_in_the_log() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        with capture_logs() as lines:
            await sa.write(wire(*[Notify("bad", {})] * 5000))
            with trio.fail_after(5):
                await b.down.wait()
        assert b.router.refused["bad_notify"] == flood.MAX_BAD
        assert b.router.refused["too_many_bad"] == 1
        refused = [line for line in lines if line["event"] == "notify.refused"]
        assert [line["count"] for line in refused] == [1, 2, 4, 8, 16, 32, 64]
        assert b.link is not None
        assert "messages of no use" in b.link.close_reason
        await a.down.wait()
        assert a.link is not None
        assert "messages of no use" in a.link.close_reason

    with_link(scenario)


def test_calls_of_methods_that_do_not_exist_end_the_link_as_well() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        with capture_logs() as lines:
            await sa.write(wire(*(Call(number, "no-such-method", {}) for number in range(1, 3000))))
            with trio.fail_after(5):
                await b.down.wait()
        assert b.router.refused["unknown_method"] == flood.MAX_BAD
        assert len(lines) < 10

    with_link(scenario)


def test_a_peer_that_is_wrong_now_and_then_keeps_its_link() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        assert a.link is not None
        for _ in range(1000):
            a.link.notify("bad", {})
            await trio.sleep(0.5)
        assert b.router.refused["bad_notify"] == 1000
        assert not b.down.is_set()

    with_link(scenario)


def test_coming_again_does_not_fill_the_log() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        with capture_logs() as lines:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    again, same = Box("a"), Box("b", router=b.router)
                    ends = pair()
                    nursery.start_soon(again.run, ends[0], True)
                    nursery.start_soon(same.run, ends[1], False)
                    await same.up.wait()
                    await ends[0].write(wire(*[Notify("bad", {})] * 1000))
                    await same.down.wait()
        assert b.router.refused["bad_notify"] == 20 * flood.MAX_BAD
        assert len(lines) <= 12

    with_link(scenario)


FLOODS = {
    "notifications": [Notify("presence", {"seq": 1})] * 5000,
    "pings": [Ping(number) for number in range(50_000)],
    "calls that are cancelled": [
        frame for number in range(1, 4001) for frame in (Call(number, "hold", {}), Cancel(number))
    ],
    "calls": [Call(number, "hold", {}) for number in range(1, 5000)],
    "cancels of nothing": [Cancel(number) for number in range(50_000)],
}


@pytest.mark.parametrize("frames", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_leaves_others_their_turns_and_their_answers(frames: list[Frame]) -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        begun = ended = 0

        async def hold(call: IncomingCall) -> Mapping[str, object]:
            nonlocal begun, ended
            begun += 1
            try:
                await trio.sleep_forever()
            finally:
                ended += 1
            return {}

        async def brief(call: IncomingCall) -> Mapping[str, object]:
            return {"ok": True}

        b.router.add("hold", "s", hold)
        b.router.add("brief", "s", brief)
        turns = Turns()
        longest = handled = last_turn = 0
        assert b.link is not None
        handle = b.link._handle

        def handle_and_count(*arguments: object) -> None:
            nonlocal longest, handled, last_turn
            if turns.count != last_turn:
                handled, last_turn = 0, turns.count
            handled += 1
            longest = max(longest, handled)
            handle(*arguments)  # type: ignore[arg-type]

        b.link._handle = handle_and_count  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            other = await neighbour_of(b, nursery)
            assert other.link is not None
            async with trio.open_nursery() as meanwhile:
                meanwhile.start_soon(turns.run)
                await sa.write(wire(*frames))
                for _ in range(100):
                    assert await collect(other.link, "brief", {}) == ([], {"ok": True})
                meanwhile.cancel_scope.cancel()
            # Tasks run in any order within a pass: two passes of the reader may follow each other.
            assert longest <= 2 * flood.FRAMES_A_TURN
            # The flood is worked off at the pace that the peer may ask for, and its link lives.
            await trio.sleep(60)
            assert not a.down.is_set()
            assert not b.down.is_set()
            assert begun - ended <= 64
            nursery.cancel_scope.cancel()

    with_link(scenario)


def test_what_a_flood_asks_for_is_given_at_a_bounded_rate() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        await sa.write(wire(*[Notify("presence", {"seq": 1})] * 20_000))
        rate = flood.UNITS_A_SECOND // flood.NOTIFY
        await trio.sleep(1)
        assert rate <= len(b.notes) <= 3 * rate
        await trio.sleep(5)
        assert 5 * rate <= len(b.notes) <= 8 * rate
        await trio.sleep(20)
        assert len(b.notes) == 20_000
        assert not a.down.is_set()

    with_link(scenario)


def test_a_peer_that_does_not_read_its_answers_is_cut_off() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def never(data: bytes) -> None:
            await trio.sleep_forever()

        sb.write = never  # type: ignore[method-assign]
        assert b.link is not None
        with trio.fail_after(30):
            while not b.link.closed.is_set():
                b.link.notify("presence", {"pad": "x" * 100_000})
                assert b.link._outbox._bytes <= MAX_QUEUED
                await trio.sleep(0.001)
        assert "does not read" in b.link.close_reason

    with_link(scenario)


def test_a_large_answer_waits_for_room_and_can_be_cancelled_there() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def large(call: IncomingCall) -> Mapping[str, object]:
            return {"pad": "x" * 1_000_000}

        async def never(data: bytes) -> None:
            await trio.sleep_forever()

        b.router.add("large", "s", large)
        assert b.link is not None
        sb.write = never  # type: ignore[method-assign]
        await sa.write(wire(*(Call(number, "large", {}) for number in range(1, 21))))
        await trio.sleep(0.5)
        assert b.link._outbox._bytes <= 4_000_000
        assert b.link.busy
        await sa.write(wire(*(Cancel(number) for number in range(1, 21))))
        await trio.sleep(0.5)
        assert not b.link.busy

    with_link(scenario)
