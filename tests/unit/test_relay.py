"""What whoever asked for a job hears of it: its turn, its events in order, and that it is let go of in any case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from agent.engine.job import Event, QueuedJob
from agent.engine.relay import relay
from agent.errors import EngineError, OverloadedError
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Sampling, Started

HASH = "sha256:" + "ab" * 32
STARTED = Started(model="smol", hash=HASH, prompt_tokens=7)
FINISHED = Finished(reason="stop", prompt_tokens=7, completion_tokens=1, prefill_ms=1.0, decode_ms=1.0)
VECTOR = Embedded(first=0, dimensions=1, data=b"\0\0\x80?")


class Model:
    """A busy model."""

    name = "smol" * 40
    running, queued, retry_after = 4, 3, 18

    class identity:  # noqa: N801 - a property of the protocol
        hash = HASH


def completion(begin_ms: int | None = None) -> QueuedJob:
    sampling = Sampling(max_tokens=4)
    request = InferRequest(job="j", kind="completion", model="m", prompt="x", sampling=sampling, begin_ms=begin_ms)
    return QueuedJob(1, request, 64)


def embedding() -> QueuedJob:
    return QueuedJob(1, InferRequest(job="j", kind="embedding", model="m", texts=("x",)), 64)


class Heard:
    """Takes what is handed on, and counts how often the job was let go of."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.released = 0

    async def emit(self, event: Event) -> None:
        self.events.append(event)

    def release(self) -> None:
        self.released += 1


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_events_are_handed_on_in_order_until_the_last() -> None:
    async def main() -> None:
        heard, job = Heard(), completion()
        job.began = 1.0
        events = (STARTED, Delta(text="a"))
        for event in events:
            assert job.put(event)
        job.end(FINISHED)
        await relay(Model(), job, heard.release, heard.emit)
        assert heard.events == [*events, FINISHED]
        assert heard.released == 1

    run(main)


def test_a_turn_that_does_not_come_in_time_is_a_busy_box_and_says_when_to_come_back() -> None:
    async def main() -> None:
        heard, job = Heard(), completion(begin_ms=2500)
        began = trio.current_time()
        with pytest.raises(OverloadedError) as caught:
            await relay(Model(), job, heard.release, heard.emit)
        assert trio.current_time() - began == pytest.approx(2.5)
        assert (caught.value.retry_after, caught.value.retryable) == (18, True)
        assert caught.value.details["queued"] == 3
        for word in ("within 2.5 s", "4 jobs run", "3 wait", "in 18 s", "timeouts.first_token"):
            assert word in caught.value.message
        assert Model.name not in caught.value.message, "a long name is cut, so that what comes after it is not"
        assert (heard.events, heard.released) == ([], 1)

    run(main)


def test_a_job_that_may_wait_waits_however_long_it_takes() -> None:
    async def main() -> None:
        heard, job = Heard(), completion()

        async def turn() -> None:
            await trio.sleep(3600)
            job.began = trio.current_time()
            job.end(FINISHED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn)
            await relay(Model(), job, heard.release, heard.emit)
        assert heard.events == [FINISHED]

    run(main)


def test_that_vectors_are_being_made_is_told_before_the_first_of_them_and_once() -> None:
    async def main() -> None:
        heard, job = Heard(), embedding()
        job.began = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, Model(), job, heard.release, heard.emit)
            await trio.testing.wait_all_tasks_blocked()
            early = [event for event in heard.events if isinstance(event, Started)]
            assert len(heard.events) == len(early) == 1
            for event in (STARTED, VECTOR):
                assert job.put(event)
            job.end(FINISHED)
        assert heard.events == [*early, VECTOR, FINISHED]

    run(main)


def test_a_job_that_ends_in_its_queue_says_so_and_claims_no_start() -> None:
    async def main() -> None:
        heard, job = Heard(), embedding()
        job.end(EngineError("it has ended"))
        with pytest.raises(EngineError, match="it has ended"):
            await relay(Model(), job, heard.release, heard.emit)
        assert (heard.events, heard.released) == ([], 1)

    run(main)


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancel_lets_go_of_the_job_wherever_it_is(begun: bool) -> None:
    async def main() -> None:
        heard, job = Heard(), completion()
        if begun:
            job.began = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, Model(), job, heard.release, heard.emit)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert (heard.events, heard.released) == ([], 1)

    run(main)
