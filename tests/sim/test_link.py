"""Links over an in-memory network on a mock clock: calls, cancels, refusals, silence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fleet.errors import BacklogError, FleetError, MessageError, PeerUnreachableError, RemoteError
from fleet.net.frames import Call, HelloFrame, encode
from fleet.net.link import Link, run_link
from fleet.net.messages import Hello, Presence
from fleet.net.rpc import Handler, IncomingCall, Router
from tests.sim.streams import MemoryStream, pair


def hello(name: str) -> Hello:
    return Hello(name=name, version="0", presence=Presence(seq=0, name=name, version="0"))


@dataclass
class Box:
    name: str
    router: Router = field(default_factory=lambda: Router(authorise=lambda peer, scope: True))
    link: Link | None = None
    up: trio.Event = field(default_factory=trio.Event)
    down: trio.Event = field(default_factory=trio.Event)
    notes: list[tuple[str, object]] = field(default_factory=list)
    error: FleetError | None = None

    async def run(self, stream: MemoryStream, outbound: bool) -> None:
        def on_up(link: Link) -> None:
            self.link = link
            self.up.set()

        def on_notify(link: Link, topic: str, body: object) -> None:
            if topic == "bad":
                raise MessageError("bad")
            self.notes.append((topic, body))

        try:
            await run_link(
                stream,
                outbound=outbound,
                hello=hello(self.name),
                router=self.router,
                on_up=on_up,
                on_down=lambda link: self.down.set(),
                on_notify=on_notify,
            )
        except FleetError as error:
            self.error = error


def with_link(scenario: Callable[[Box, Box, MemoryStream, MemoryStream], Awaitable[None]]) -> None:
    """Run a scenario on two boxes with a link up between them."""

    async def main() -> None:
        a, b = Box("a"), Box("b")
        sa, sb = pair()
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.run, sa, True)
                nursery.start_soon(b.run, sb, False)
                await a.up.wait()
                await b.up.wait()
                await scenario(a, b, sa, sb)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def handler(function: Callable[[IncomingCall], Awaitable[Mapping[str, object]]]) -> Handler:
    return function


async def collect(link: Link, method: str, body: Mapping[str, object]) -> tuple[list[Any], Any]:
    events: list[Any] = []

    async def on_event(event: object) -> None:
        events.append(event)

    return events, await link.call(method, body, on_event)


def test_calls_run_side_by_side_both_ways() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def count(call: IncomingCall) -> Mapping[str, object]:
            assert isinstance(call.body, dict)
            for i in range(call.body["n"]):
                await call.send({"i": i})
                await trio.sleep(0.01)
            return {"by": call.peer_id}

        for box in (a, b):
            box.router.add("count", "s", count)
        assert a.link is not None
        assert b.link is not None
        results: list[Any] = []

        async def one(link: Link, n: int) -> None:
            results.append((n, await collect(link, "count", {"n": n})))

        async with trio.open_nursery() as nursery:
            for n in (1, 5, 3):
                nursery.start_soon(one, a.link, n)
                nursery.start_soon(one, b.link, n)
        assert len(results) == 6
        for n, (events, answer) in results:
            assert events == [{"i": i} for i in range(n)]
            assert answer["by"] in ("peer-a", "peer-b")

    with_link(scenario)


def test_b19_cancelling_a_call_stops_its_handler_at_once() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        started, stopped = trio.Event(), trio.Event()

        async def forever(call: IncomingCall) -> Mapping[str, object]:
            try:
                started.set()
                while True:
                    await call.send({})
                    await trio.sleep(0.05)
            finally:
                stopped.set()

        b.router.add("forever", "s", forever)
        assert a.link is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, a.link, "forever", {})
            await started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            await stopped.wait()
        assert not a.link.busy
        await trio.sleep(1)
        assert not a.link.closed.is_set()

    with_link(scenario)


@pytest.mark.parametrize(
    ("method", "code"),
    [("missing", "bad_request"), ("guarded", "denied"), ("broken", "internal"), ("remote", "loop_detected")],
)
def test_b27_a_failed_call_has_a_code_and_no_inside_text(method: str, code: str) -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def broken(call: IncomingCall) -> Mapping[str, object]:
            raise ValueError("/etc/secret line 3")

        async def remote(call: IncomingCall) -> Mapping[str, object]:
            raise RemoteError("loop_detected", "again")

        b.router.authorise = lambda peer, scope: scope != "admin"
        b.router.add("guarded", "admin", broken)
        b.router.add("broken", "s", broken)
        b.router.add("remote", "s", remote)
        assert a.link is not None
        with pytest.raises(RemoteError) as caught:
            await collect(a.link, method, {})
        assert caught.value.remote_code == code
        assert "secret" not in caught.value.message
        assert not a.link.closed.is_set()

    with_link(scenario)


def test_b33_a_frozen_peer_ends_calls_within_three_seconds() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def hang(call: IncomingCall) -> Mapping[str, object]:
            await trio.sleep_forever()
            return {}

        b.router.add("hang", "s", hang)
        assert a.link is not None
        await trio.sleep(5)
        assert a.link.rtt is not None
        sb.frozen = True
        began = trio.current_time()
        with pytest.raises(PeerUnreachableError):
            await collect(a.link, "hang", {})
        assert trio.current_time() - began <= 3.0
        await a.down.wait()

    with_link(scenario)


def test_b33_an_idle_link_stays_up() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        await trio.sleep(600)
        assert not a.down.is_set()
        assert not b.down.is_set()

    with_link(scenario)


def test_on_an_idle_link_one_side_asks_for_both() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        await trio.sleep(20)
        before = sa.writes + sb.writes
        await trio.sleep(100)
        assert a.link is not None
        assert b.link is not None
        assert a.link.rtt is not None
        assert b.link.rtt is not None
        # A ping a second and its answer; every tenth the other side asks, for its own measure of the round trip.
        assert 180 <= sa.writes + sb.writes - before <= 240

    with_link(scenario)


def test_b31_a_replayed_call_id_is_refused_and_counted() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        ran = []

        async def note(call: IncomingCall) -> Mapping[str, object]:
            ran.append(call.body)
            return {}

        b.router.add("note", "s", note)
        assert a.link is not None
        await collect(a.link, "note", {"n": 1})
        await sa.write(encode(Call(1, "note", {"n": 2})))
        await b.down.wait()
        assert b.router.refused["replayed"] == 1
        assert ran == [{"n": 1}]

    with_link(scenario)


def test_b31_garbage_on_a_link_is_counted_and_ends_only_that_link() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        await sa.write(b"\x00\x00\x00\x02\xff\xff")
        await b.down.wait()
        assert b.router.refused["bad_frame"] == 1
        assert b.link is not None
        assert "broke the protocol" in b.link.close_reason
        await a.down.wait()
        assert a.link is not None
        assert "broke the protocol" in a.link.close_reason

    with_link(scenario)


def test_b31_a_partial_frame_at_the_end_is_counted() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        await sa.write(b"\x00\x00\x10\x00half")
        await sa.end()
        await b.down.wait()
        assert b.router.refused["partial_frame"] == 1

    with_link(scenario)


def test_a_bad_notification_is_counted_and_the_link_stays() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        assert a.link is not None
        a.link.notify("bad", {})
        a.link.notify("presence", {"seq": 1})
        await trio.sleep(0.1)
        assert b.notes == [("presence", {"seq": 1})]
        assert b.router.refused["bad_notify"] == 1

    with_link(scenario)


def test_a_slow_consumer_does_not_stall_the_link() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def burst(call: IncomingCall) -> Mapping[str, object]:
            for i in range(2000):
                await call.send({"i": i, "pad": "x" * 300})
            return {}

        b.router.add("burst", "s", burst)
        assert a.link is not None
        got: list[object] = []

        async def slowly(event: object) -> None:
            if not got:
                await trio.sleep(30)
            got.append(event)

        await a.link.call("burst", {}, slowly)
        assert len(got) == 2000
        assert not a.link.closed.is_set()

    with_link(scenario)


def test_an_answer_that_nobody_reads_is_given_up_and_the_link_stays() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        cancelled = trio.Event()

        async def endless(call: IncomingCall) -> Mapping[str, object]:
            try:
                while True:
                    await call.send({"type": "delta", "text": "y" * 60_000})
                    await trio.sleep(0.001)
            finally:
                cancelled.set()

        async def brief(call: IncomingCall) -> Mapping[str, object]:
            return {"ok": True}

        b.router.add("endless", "s", endless)
        b.router.add("brief", "s", brief)
        assert a.link is not None
        goes_on, failed = trio.Event(), trio.Event()

        async def never_done(event: object) -> None:
            await goes_on.wait()

        async def ask(link: Link) -> None:
            with pytest.raises(BacklogError, match="read answers as they come"):
                await link.call("endless", {}, never_done)
            failed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, a.link)
            with trio.fail_after(5):
                await cancelled.wait()  # the peer is told at once, though the consumer still hangs
            assert a.link._calls.size == 0
            assert await collect(a.link, "brief", {}) == ([], {"ok": True})
            assert not failed.is_set()
            goes_on.set()
        assert failed.is_set()
        assert a.router.refused["backlog"] == 1
        assert not a.link.busy
        await trio.sleep(5)
        assert not a.link.closed.is_set()

    with_link(scenario)


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", encode(Call(1, "infer", {})), encode(HelloFrame({"name": 3})), b""],
)
def test_a_peer_that_does_not_greet_properly_never_gets_a_link(first: bytes) -> None:
    async def main() -> None:
        b = Box("b")
        sa, sb = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.run, sb, False)
            if first:
                await sa.write(first)
            with trio.fail_after(5):
                while await sa.read(1000):
                    pass
        assert b.error is not None
        assert not b.up.is_set()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_too_many_calls_at_once_are_refused_not_queued() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        release = trio.Event()

        async def hold(call: IncomingCall) -> Mapping[str, object]:
            await release.wait()
            return {}

        b.router.add("hold", "s", hold)
        assert a.link is not None
        refused, served = [], []

        async def one(link: Link) -> None:
            try:
                served.append(await collect(link, "hold", {}))
            except RemoteError as error:
                refused.append(error.remote_code)

        async with trio.open_nursery() as nursery:
            for _ in range(70):
                nursery.start_soon(one, a.link)
            await trio.sleep(1)
            release.set()
        assert refused == ["overloaded"] * 6
        assert len(served) == 64

    with_link(scenario)


def test_many_large_calls_at_once_stay_in_order_and_the_link_stays() -> None:
    async def scenario(a: Box, b: Box, sa: MemoryStream, sb: MemoryStream) -> None:
        async def size(call: IncomingCall) -> Mapping[str, object]:
            assert isinstance(call.body, dict)
            return {"n": call.body["n"], "size": len(call.body["text"])}

        b.router.add("size", "s", size)
        assert a.link is not None
        answers: list[Any] = []

        async def one(link: Link, n: int) -> None:
            answers.append((await collect(link, "size", {"n": n, "text": "x" * 400_000}))[1])

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(one, a.link, n)
        assert sorted(answer["n"] for answer in answers) == list(range(40))
        assert {answer["size"] for answer in answers} == {400_000}
        assert b.router.refused["replayed"] == 0
        assert not a.down.is_set()

    with_link(scenario)
