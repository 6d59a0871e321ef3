"""Jobs with a key: each runs once, whoever asks again gets the whole answer, and what is kept is bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agent.errors import DrainingError, EngineError, IdempotencyError, OverloadedError
from agent.jobs import once as module
from agent.jobs.job import Emit, Job, JobEvent, Routed
from agent.jobs.once import GRACE, KEEP, Once
from fleet.net.messages import Delta, Finished, InferRequest

ROUTED = Routed("12D3a", "jetson-1", False, "smol", "sha256:" + "a" * 64, 3, ("jetson-1=served",))
FINISHED = Finished(reason="stop", prompt_tokens=3, completion_tokens=2, prefill_ms=1, decode_ms=1)


def job(number: int = 1, once: str = "key", fingerprint: str = "same") -> Job:
    request = InferRequest(job=f"job-{number}", kind="completion", model="smol", prompt="hi")
    return Job(request, once=once, fingerprint=fingerprint)


class Engine:
    """Runs jobs in steps that a test allows one by one; counts how many began and were cancelled."""

    def __init__(self, texts: tuple[str, ...] = ("a", "b")) -> None:
        self.texts = texts
        self.began: list[str] = []
        self.cancelled = 0
        self.go = trio.Semaphore(0)
        self.error: Exception | None = None

    async def run(self, job: Job, emit: Emit) -> None:
        self.began.append(job.request.job)
        try:
            await emit(ROUTED)
            for text in self.texts:
                await self.go.acquire()
                await emit(Delta(text=text))
            if self.error is not None:
                raise self.error
            await emit(FINISHED)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self.go.release()


class Client:
    """What one request has seen, and how it ended."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.error: Exception | None = None
        self.done = False
        self.scope = trio.CancelScope()

    async def ask(self, once: Once, asked: Job) -> None:
        async def emit(event: JobEvent) -> None:
            self.events.append(event)

        with self.scope:
            try:
                await once.run(asked, emit)
                self.done = True
            except Exception as error:
                self.error = error

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def run(engine: Engine, script: Callable[[Once, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        once = Once(engine.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(once.serve)
            await script(once, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_who_comes_later_gets_all_of_it_and_it_runs_once() -> None:
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        first, second, third = Client(), Client(), Client()
        nursery.start_soon(first.ask, once, job(1))
        engine.allow(1)
        await wait_all_tasks_blocked()
        first.scope.cancel()  # its connection broke
        nursery.start_soon(second.ask, once, job(2))
        await wait_all_tasks_blocked()
        assert (first.text, second.text, second.done) == ("a", "a", False)
        engine.allow(1)
        await wait_all_tasks_blocked()
        await third.ask(once, job(3))
        for client in (second, third):
            assert client.done
            assert client.text == "ab"
            assert client.events[0] == Routed(**{**vars(ROUTED), "repeats": "job-1"})
            assert client.events[-1] == FINISHED
        assert sum(e.tokens for e in third.events if isinstance(e, Delta)) == 2
        assert engine.began == ["job-1"]

    run(engine, script)


def test_without_a_key_every_request_runs_and_ends_with_its_client() -> None:
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        clients = [Client(), Client()]
        for number, client in enumerate(clients):
            nursery.start_soon(client.ask, once, job(number, once=""))
        await wait_all_tasks_blocked()
        clients[0].scope.cancel()
        await wait_all_tasks_blocked()
        assert (len(engine.began), engine.cancelled) == (2, 1)
        assert clients[1].events == [ROUTED]

    run(engine, script)


def test_a_key_with_another_request_is_refused() -> None:
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        first, other = Client(), Client()
        nursery.start_soon(first.ask, once, job(1))
        await wait_all_tasks_blocked()
        await other.ask(once, job(2, fingerprint="other"))
        assert isinstance(other.error, IdempotencyError)
        assert other.events == []
        engine.allow(2)

    run(engine, script)


def test_a_job_that_failed_is_told_to_all_and_runs_anew_for_the_next() -> None:
    engine = Engine()
    engine.error = EngineError("the model crashed")

    async def script(once: Once, nursery: trio.Nursery) -> None:
        clients = [Client(), Client(), Client()]
        for client in clients[:2]:
            nursery.start_soon(client.ask, once, job(1))
        engine.allow(2)
        await wait_all_tasks_blocked()
        assert [client.error for client in clients[:2]] == [engine.error] * 2
        engine.error = None
        engine.allow(2)
        await clients[2].ask(once, job(2))
        assert (clients[2].text, clients[2].events[0]) == ("ab", ROUTED)
        assert engine.began == ["job-1", "job-2"]

    run(engine, script)


def test_a_job_that_nobody_follows_ends_after_a_while_and_not_before() -> None:
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        first, second, third = Client(), Client(), Client()
        nursery.start_soon(first.ask, once, job(1))
        await wait_all_tasks_blocked()
        first.scope.cancel()
        await trio.sleep(GRACE - 1)
        nursery.start_soon(second.ask, once, job(2))
        await wait_all_tasks_blocked()
        second.scope.cancel()
        await trio.sleep(GRACE - 1)
        assert engine.cancelled == 0  # the second one's departure counts
        await trio.sleep(2)
        assert engine.cancelled == 1
        engine.allow(2)
        await third.ask(once, job(3))
        assert third.done
        assert engine.began == ["job-1", "job-3"]

    run(engine, script)


def test_an_answer_is_kept_for_a_while() -> None:
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        engine.allow(4)
        await Client().ask(once, job(1))
        await trio.sleep(KEEP - 1)
        await Client().ask(once, job(2))
        assert engine.began == ["job-1"]
        await trio.sleep(2)
        await Client().ask(once, job(3))
        assert engine.began == ["job-1", "job-3"]

    run(engine, script)


def test_what_is_kept_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        engine.allow(1000)
        for number in range(10):
            await Client().ask(once, job(number, once=f"key-{number}"))
        assert list(once._answers) == ["key-7", "key-8", "key-9"]
        monkeypatch.setattr(module, "MAX_BYTES", 2 * once._answers["key-9"].bytes)
        await Client().ask(once, job(10, once="key-10"))
        assert list(once._answers) == ["key-9", "key-10"]
        monkeypatch.setattr(module, "MAX_BYTES_OF_ONE", 10)
        big = Client()
        await big.ask(once, job(11, once="key-11"))
        assert big.done
        assert "key-11" not in once._answers

    run(engine, script)


def test_so_many_jobs_with_a_key_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RUNNING", 2)
    engine = Engine()

    async def script(once: Once, nursery: trio.Nursery) -> None:
        clients = [Client() for _ in range(3)]
        for number, client in enumerate(clients):
            nursery.start_soon(client.ask, once, job(number, once=f"key-{number}"))
            await wait_all_tasks_blocked()
        assert isinstance(clients[2].error, OverloadedError)
        assert [client.error for client in clients[:2]] == [None, None]

    run(engine, script)


def test_at_the_end_of_the_agent_the_jobs_end_and_no_new_one_begins() -> None:
    engine = Engine()

    async def main() -> None:
        once = Once(engine.run)
        client, late = Client(), Client()
        async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
            await nursery.start(once.serve)
            clients.start_soon(client.ask, once, job(1))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await late.ask(once, job(2))
        assert isinstance(client.error, DrainingError)
        assert isinstance(late.error, DrainingError)
        assert engine.cancelled == 1

    trio.run(main)


def test_long_answers_are_kept_in_few_events_and_lose_nothing() -> None:
    engine = Engine(tuple(f"word{number} " for number in range(5000)))

    async def script(once: Once, nursery: trio.Nursery) -> None:
        engine.allow(5000)
        first, again = Client(), Client()
        await first.ask(once, job(1))
        await again.ask(once, job(2))
        assert again.text == first.text == "".join(engine.texts)
        assert len(again.events) < 10
        assert sum(e.tokens for e in again.events if isinstance(e, Delta)) == 5000

    run(engine, script)
