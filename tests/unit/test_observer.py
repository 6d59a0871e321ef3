"""What is told of a job, on both sides, for every way in which it can end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from agent.config import TimeoutsConfig
from agent.errors import DeadlineError, DrainingError, EngineError, OverloadedError
from agent.jobs.job import Emit, Job, JobEvent, Routed
from agent.jobs.observation import failed_at
from agent.jobs.observer import Observer
from agent.jobs.outcome import Outcome
from agent.jobs.watch import EngineEmit, watched
from agent.trace import parse
from fleet.errors import DeniedError, MessageError, PeerUnreachableError, RemoteError
from fleet.net.messages import Delta, Finished, InferRequest, Started
from tests.harness import peer_id_of

HERE, THERE = peer_id_of("here"), peer_id_of("there")
HASH = "sha256:" + "ab" * 32
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST = InferRequest(job="job-1", kind="completion", model="smol", prompt="a secret", traceparent=TRACE)
DONE = Finished(reason="stop", prompt_tokens=7, completion_tokens=3, prefill_ms=1, decode_ms=1)


def routed(peer_id: str) -> Routed:
    return Routed(peer_id, "box", peer_id == HERE, "smol.gguf", HASH, 7, ("box=served",))


@dataclass
class Told:
    """An observer and what it told."""

    outcomes: list[Outcome] = field(default_factory=list)
    gaps: list[list[int]] = field(default_factory=list)

    def observer(self) -> Observer:
        def sink(outcome: Outcome, seen: Any) -> None:
            self.outcomes.append(outcome)
            self.gaps.append(list(seen.gaps.counts))

        return Observer(lambda peer_id: f"name of {peer_id[-3:]}", [sink], wall=lambda: 1_795_000_000.0)

    @property
    def one(self) -> Outcome:
        (outcome,) = self.outcomes
        return outcome


def at_a_mock_clock(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def nowhere(event: JobEvent) -> None:
    """A client that takes everything."""


def test_a_job_that_ran_at_a_peer_is_told_with_true_times_and_its_trace() -> None:
    told = Told()
    traces: list[str | None] = []

    async def run(job: Job, emit: Emit) -> None:
        traces.append(job.request.traceparent)

        async def at_the_peer(send: EngineEmit) -> None:
            await trio.sleep(0.5)
            await send(Started(model="smol.gguf", hash=HASH, prompt_tokens=7))
            await trio.sleep(0.25)
            for _ in range(3):
                await send(Delta(text="x"))
                await trio.sleep(0.04)

        async def relay(event: Any) -> None:
            if isinstance(event, Started):
                await emit(routed(THERE))
            else:
                await emit(event)

        failed_at(HERE, "overloaded")
        failed_at(HERE, "a poem that a peer sent as its code")
        await watched(TimeoutsConfig(), at_the_peer, relay)
        await emit(DONE)

    at_a_mock_clock(lambda: told.observer().ask(run, Job(REQUEST), nowhere))
    found = told.one
    assert (found.outcome, found.error, found.role, found.route) == ("ok", "", "asker", "peer")
    assert (found.asked, found.model, found.hash, found.peer) == ("smol", "smol.gguf", HASH, THERE)
    assert found.peer_name == f"name of {THERE[-3:]}"
    assert (found.prompt_tokens, found.tokens) == (7, 3)
    assert (found.queue_ms, found.first_token_ms, found.total_ms) == pytest.approx((500, 750, 870))
    assert found.tried == ((HERE, "overloaded"), (HERE, "other"))
    assert sum(told.gaps[0]) == 2
    here, came = parse(found.traceparent), parse(TRACE)
    assert here is not None
    assert came is not None
    assert (here.trace_id, found.parent) == (came.trace_id, came.span_id)
    assert here.span_id != came.span_id
    assert traces == [found.traceparent]
    assert b"secret" not in found.line()


@pytest.mark.parametrize(
    ("error", "tokens", "outcome", "code", "phase"),
    [
        (OverloadedError("full"), 0, "refused", "overloaded", ""),
        (EngineError("broke with: a secret"), 2, "error", "engine", ""),
        (DrainingError("going"), 0, "refused", "draining", ""),
        (DrainingError("going"), 2, "error", "draining", ""),
        (DeadlineError("slow", details={"phase": "first_token"}), 0, "error", "deadline", "first_token"),
        (DeadlineError("slow", details={"phase": "a poem"}), 0, "error", "deadline", ""),
        (RemoteError("a poem", "another"), 0, "error", "other", ""),
        (RuntimeError("a secret"), 0, "error", "internal", ""),
        (ExceptionGroup("", [EngineError("x")]), 0, "error", "engine", ""),
    ],
)
def test_an_error_is_told_by_its_code_alone(error: Exception, tokens: int, outcome: str, code: str, phase: str) -> None:
    told = Told()

    async def run(job: Job, emit: Emit) -> None:
        if tokens:
            await emit(routed(HERE))
            await emit(Delta(text="a secret", tokens=tokens))
        raise error

    async def main() -> None:
        with pytest.raises(type(error)):
            await told.observer().ask(run, Job(REQUEST), nowhere)

    at_a_mock_clock(main)
    found = told.one
    assert (found.outcome, found.error, found.phase, found.tokens) == (outcome, code, phase, tokens)
    assert found.route == ("local" if tokens else "none")
    assert b"secret" not in found.line()
    assert b"poem" not in found.line()


def test_a_client_that_goes_away_is_told_as_cancelled_with_what_it_had() -> None:
    told = Told()

    async def run(job: Job, emit: Emit) -> None:
        async with trio.open_nursery():
            await emit(routed(THERE))
            await emit(Delta(text="x"))
            await trio.sleep_forever()

    async def main() -> None:
        with trio.move_on_after(3):
            await told.observer().ask(run, Job(REQUEST.model_copy(update={"traceparent": None})), nowhere)

    at_a_mock_clock(main)
    found = told.one
    assert (found.outcome, found.error, found.tokens, found.total_ms) == ("cancelled", "", 1, 3000)
    assert (found.queue_ms, found.parent) == (None, "")
    assert parse(found.traceparent) is not None


@dataclass
class Call:
    """A peer's call."""

    body: object
    peer_id: str = THERE
    sent: list[Mapping[str, object]] = field(default_factory=list)

    async def send(self, event: Mapping[str, object]) -> None:
        self.sent.append(event)


BODY = {**REQUEST.model_dump(), "route": [THERE]}


def test_a_lent_job_is_told_with_the_span_that_its_own_box_gave_it() -> None:
    told, call, traces = Told(), Call(BODY), []

    async def serve(call: Any) -> Mapping[str, object]:
        traces.append(call.body["traceparent"])

        async def engine(send: EngineEmit) -> None:
            await send(Started(model="smol.gguf", hash=HASH, prompt_tokens=7))
            await trio.sleep(0.1)
            await send(Delta(text="a secret", tokens=2))
            await send(DONE)

        async def relay(event: Any) -> None:
            await call.send(event.model_dump())

        await watched(TimeoutsConfig(), engine, relay)
        return {"fine": True}

    async def main() -> None:
        assert await told.observer().lend(serve)(call) == {"fine": True}

    at_a_mock_clock(main)
    found = told.one
    assert (found.role, found.outcome, found.route, found.peer, found.job) == ("lender", "ok", "local", THERE, "job-1")
    assert (found.asked, found.model, found.prompt_tokens, found.tokens) == ("smol", "smol.gguf", 7, 2)
    assert (found.queue_ms, found.first_token_ms) == (0, 100)
    assert traces == [found.traceparent] != [TRACE]
    assert found.parent == "b7ad6b7169203331"
    assert len(call.sent) == 3


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (RemoteError("model_not_held", "no"), "refused", "model_not_held"),
        (DeniedError("no"), "refused", "denied"),
        (MessageError("what?"), "refused", "bad_request"),
        (PeerUnreachableError("gone"), "cancelled", ""),
    ],
)
def test_what_is_not_lent_is_told_too(error: Exception, outcome: str, code: str) -> None:
    told = Told()

    async def serve(call: Any) -> Mapping[str, object]:
        raise error

    async def main() -> None:
        with pytest.raises(type(error)):
            await told.observer().lend(serve)(Call(BODY))

    at_a_mock_clock(main)
    assert (told.one.outcome, told.one.error, told.one.job) == (outcome, code, "job-1")


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"job": 3, "model": None, "traceparent": b"x", "kind": []},
        {"job": "a secret", "model": "m" * 1000, "traceparent": "a secret", "kind": "poem"},
    ],
)
def test_a_refused_call_is_told_without_what_is_not_as_it_should_be(body: object) -> None:
    told = Told()

    async def main() -> None:
        told.observer().turned_away(THERE, "infer", body, DeniedError("no"))
        told.observer().turned_away(THERE, "presence", body, DeniedError("no"))

    at_a_mock_clock(main)
    found = told.one
    assert (found.outcome, found.error, found.peer) == ("refused", "denied", THERE)
    assert (found.job, found.asked, found.kind, found.parent) == ("", "", "", "")
