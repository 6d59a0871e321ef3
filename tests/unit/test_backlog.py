"""Answers that wait for a slow consumer: bounded in bytes, in order, and gone once given up."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from fleet.errors import BacklogError, PeerUnreachableError
from fleet.net.backlog import MAX_CALL, MAX_LINK, Backlog
from fleet.net.frames import MAX_FRAME, End, Event, FrameDecoder, encode


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario)


def put(backlog: Backlog, *answers: Event | End) -> list[int]:
    """Put answers as a link does, from their bytes on the wire; returns the calls that were given up."""
    return [lost for answer in answers for lost in put_bytes(backlog, encode(answer))]


def put_bytes(backlog: Backlog, *pieces: bytes) -> list[int]:
    """Put what is on the wire; returns the calls that were given up."""
    decoder, given_up = FrameDecoder(), []
    for piece in pieces:
        for frame in decoder.feed(piece):
            assert isinstance(frame, Event | End)
            lost = backlog.put(frame, decoder.payload)
            if lost is not None:
                given_up.append(lost)
    return given_up


def test_what_waits_is_read_in_order_and_as_it_was_sent_however_much_it_is() -> None:
    sent = [Event(1, {"i": i, "pad": ["x" * 50, i % 3, None, b"\x01"]}) for i in range(3000)]

    async def scenario() -> None:
        backlog = Backlog()
        call = backlog.open(1)
        assert put(backlog, *sent, End(1, {"all": True})) == []
        assert [await call.next() for _ in range(3001)] == [*sent, End(1, {"all": True})]
        assert call.size == backlog.size == 0

    run(scenario)


def test_a_call_that_holds_too_much_is_given_up_once_and_keeps_nothing() -> None:
    async def scenario() -> None:
        backlog = Backlog()
        call, other = backlog.open(1), backlog.open(2)
        event = Event(1, {"text": "y" * 60_000})
        given_up = put(backlog, Event(2, "kept"), *[event] * 1000)
        assert given_up == [1]
        assert call.failed
        assert call.size == 0
        with pytest.raises(BacklogError) as caught:
            await call.next()
        assert MAX_CALL <= caught.value.details["waiting_bytes"] <= MAX_CALL + MAX_FRAME  # type: ignore[operator]
        assert await other.next() == Event(2, "kept")
        assert put(backlog, event) == []
        backlog.close(1)
        assert 1 not in backlog
        assert backlog.size == 0

    run(scenario)


def test_one_frame_is_always_taken_however_large() -> None:
    async def scenario() -> None:
        backlog = Backlog()
        call = backlog.open(1)
        whole = End(1, "z" * (MAX_FRAME - 100))
        assert put(backlog, whole) == []
        assert await call.next() == whole

    run(scenario)


def test_when_all_calls_together_hold_too_much_the_largest_goes() -> None:
    async def scenario() -> None:
        backlog = Backlog()
        calls = {number: backlog.open(number) for number in range(1, 21)}
        given_up = put(backlog, *(Event(number, "y" * 100_000) for _ in range(9) for number in range(1, 21)))
        given_up += put(backlog, Event(7, "y"))
        assert given_up
        assert backlog.size < MAX_LINK
        assert [number for number, call in calls.items() if call.failed] == sorted(given_up)

    run(scenario)


@pytest.mark.parametrize("answer", [Event(1, [[]] * 900), Event(1, 0), Event(1, "y" * 60_000)])
def test_a_backlog_takes_about_the_memory_that_it_counts_and_gives_it_back(answer: Event) -> None:
    wire = encode(answer)

    async def scenario() -> None:
        backlog = Backlog()
        backlog.open(1)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            lost: list[int] = []
            while not lost:
                taken = tracemalloc.get_traced_memory()[0] - before
                lost = put_bytes(backlog, wire)
            assert taken < 5 * MAX_CALL
            assert tracemalloc.get_traced_memory()[0] - before < MAX_CALL // 4
        finally:
            tracemalloc.stop()

    run(scenario)


def test_a_broken_link_fails_a_call_after_what_came_was_read() -> None:
    async def scenario() -> None:
        backlog = Backlog()
        call, idle = backlog.open(1), backlog.open(2)
        errors: list[str] = []

        async def wait() -> None:
            with pytest.raises(PeerUnreachableError):
                await idle.next()
            errors.append("idle")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            put(backlog, Event(1, "last words"))
            backlog.fail_all(PeerUnreachableError("gone"))
        assert await call.next() == Event(1, "last words")
        with pytest.raises(PeerUnreachableError):
            await call.next()
        assert errors == ["idle"]

    run(scenario)
