"""The life of a request for vectors on a mock clock: all of them or none, from one box or the next."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from agent.config import TimeoutsConfig
from agent.errors import ContextLengthError, DeadlineError, EngineError, NoVectorsError, PeerUnreachableError
from agent.jobs.active import ActiveJobs
from agent.jobs.job import Job, Routed
from agent.jobs.run import JobRunner
from agent.jobs.watch import EngineEmit
from fleet.errors import PeerUnreachableError as LinkBrokenError
from fleet.errors import RemoteError
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Started
from tests.sim.test_jobs import HASH, Fleet, Result, Script, fail, run, serve

TEXTS = ("one", "two", "three")


def vectors_job(**changes: object) -> Job:
    request = InferRequest(v=2, job="job-1", kind="embedding", model="m", texts=TEXTS, pooling="mean")
    return Job(request, **changes)  # type: ignore[arg-type]


def part(first: int, *axes: int, dimensions: int = 4) -> Embedded:
    numbers = [float(index == axis) for axis in axes for index in range(dimensions)]
    return Embedded(first=first, dimensions=dimensions, data=struct.pack(f"<{len(numbers)}f", *numbers))


WHOLE = (part(0, 0, 1), part(2, 2))


def embed(
    parts: Sequence[Embedded] = WHOLE, *, then: BaseException | None = None, gap: float = 0.01, tokens: int = 6
) -> Script:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        assert (request.kind, request.texts, request.pooling) == ("embedding", TEXTS, "mean")
        await trio.sleep(gap)
        await emit(Started(model="m", hash=HASH, prompt_tokens=0))
        for one in parts:
            await emit(one)
            await trio.sleep(gap)
        if then is not None:
            raise then
        await emit(Finished(reason="stop", prompt_tokens=tokens, completion_tokens=0, prefill_ms=3.0, decode_ms=0.0))

    return script


def data_of(result: Result) -> bytes:
    return b"".join(event.data for event in result.events if isinstance(event, Embedded))


EVERY = b"".join(one.data for one in WHOLE)


@pytest.mark.parametrize("here", [True, False])
def test_a_client_gets_where_it_ran_every_vector_and_the_tokens(here: bool) -> None:
    fleet = Fleet({} if here else {"p": embed()}, local=embed() if here else None)
    result = run(fleet, vectors_job())
    assert result.error is None
    routed, *parts, last = result.events
    assert isinstance(routed, Routed)
    assert (routed.local, routed.prompt_tokens, routed.route[-1].endswith("=served")) == (here, 6, True)
    assert tuple(parts) == WHOLE
    assert isinstance(last, Finished)
    assert (last.prompt_tokens, last.completion_tokens) == (6, 0)


@pytest.mark.parametrize(
    "broken",
    [
        embed(then=RemoteError("engine", "it died")),
        embed(then=LinkBrokenError("the link broke")),
        embed(WHOLE[:1], then=RemoteError("draining", "bye")),
        embed(WHOLE[:1]),
        embed((WHOLE[0], WHOLE[0])),
        embed((WHOLE[1], WHOLE[0])),
        embed((WHOLE[0], part(2, 2, dimensions=5))),
        embed(tokens=1 << 30),
        embed((*WHOLE, part(3, 3))),
        serve(["text"]),
    ],
)
def test_another_box_is_asked_and_nothing_of_the_first_is_seen(broken: Script) -> None:
    fleet = Fleet({"p": broken, "q": embed()})
    result = run(fleet, vectors_job())
    assert result.error is None
    assert [who for who, _ in fleet.asked] == ["p", "q"]
    assert data_of(result) == EVERY
    assert [event.name for event in result.events if isinstance(event, Routed)] == ["q"]


def test_when_every_box_fails_in_the_middle_the_client_gets_an_error_and_no_vector() -> None:
    result = run(Fleet({"p": embed(WHOLE[:1]), "q": embed(WHOLE[:1])}), vectors_job(on_interrupt="resume"))
    assert isinstance(result.error, PeerUnreachableError)
    assert result.events == []


def test_a_link_that_breaks_after_the_end_takes_nothing() -> None:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await embed()(request, emit)
        raise LinkBrokenError("the link broke")

    fleet = Fleet({"p": script})
    assert data_of(run(fleet, vectors_job())) == EVERY


def test_what_comes_after_the_end_is_nobodys() -> None:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await embed()(request, emit)
        await emit(Delta(text="more"))
        await emit(part(0, 0))

    result = run(Fleet({"p": script}), vectors_job())
    assert result.error is None
    assert data_of(result) == EVERY


def test_vectors_for_a_request_for_text_are_no_answer() -> None:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await emit(Started(model="m", hash=HASH, prompt_tokens=1))
        await emit(part(0, 0))

    result = run(Fleet({"p": script, "q": serve(["a"])}))
    assert result.text == "a"


def test_the_engines_trouble_here_is_answered_elsewhere() -> None:
    fleet = Fleet({"p": embed()}, local=fail(EngineError("it died")))
    result = run(fleet, vectors_job())
    assert data_of(result) == EVERY
    assert [who for who, _ in fleet.asked] == ["me", "p"]


def test_servers_that_give_no_vectors_are_told_of_as_such_and_boxes_that_do_are_asked() -> None:
    refusing = fail(RemoteError("no_vectors", "m is run by a server"))
    result = run(Fleet({"p": refusing, "q": embed()}, local=fail(NoVectorsError("a server"))), vectors_job())
    assert data_of(result) == EVERY
    result = run(Fleet({"p": refusing}, local=fail(NoVectorsError("a server"))), vectors_job())
    assert isinstance(result.error, NoVectorsError)


@pytest.mark.parametrize(
    ("tokens", "context", "believed"),
    [(99, 64, True), (1000, 1000, True), (2048, 2048, False), (99, 4096, False), (1 << 40, 64, False)],
)
def test_a_text_that_is_too_long_is_believed_as_far_as_it_can_be(tokens: int, context: int, believed: bool) -> None:
    details = {"prompt_tokens": tokens, "context_tokens": context}
    result = run(Fleet({"p": fail(RemoteError("context_length_exceeded", "!", details=details))}), vectors_job())
    assert isinstance(result.error, ContextLengthError if believed else PeerUnreachableError)
    if believed:
        assert result.error.details == details


def test_each_part_has_the_time_of_a_first_token_and_no_more() -> None:
    timeouts = TimeoutsConfig(first_token=5, inter_token=1)
    assert data_of(run(Fleet({}, local=embed(gap=4.0)), vectors_job(), timeouts)) == EVERY
    result = run(Fleet({}, local=embed(gap=6.0)), vectors_job(), timeouts)
    assert isinstance(result.error, DeadlineError)
    assert result.events == []


def test_long_texts_have_more_time_once_the_box_has_begun_and_not_before() -> None:
    def at(began: float) -> Script:
        async def script(request: InferRequest, emit: EngineEmit) -> None:
            await trio.sleep(began)
            await emit(Started(model="m", hash=HASH, prompt_tokens=0))
            await trio.sleep(19.0)  # four times the first token's time, less a little
            await emit(part(0, 0))
            last = Finished(reason="stop", prompt_tokens=1, completion_tokens=0, prefill_ms=3.0, decode_ms=0.0)
            await emit(last)

        return script

    timeouts = TimeoutsConfig(first_token=5)

    def story(script: Script, size: int) -> Result:
        request = vectors_job().request.model_copy(update={"texts": ("x" * size,)})
        return run(Fleet({}, local=script), Job(request), timeouts)

    assert data_of(story(at(4.0), 3 * 4096)) == part(0, 0).data
    short = story(at(4.0), 1024)
    assert isinstance(short.error, DeadlineError)
    assert "send fewer texts" in short.error.message
    assert isinstance(story(at(6.0), 3 * 4096).error, DeadlineError)


def test_a_client_that_leaves_cancels_the_box_that_works() -> None:
    ended = []

    async def never_ends(request: InferRequest, emit: EngineEmit) -> None:
        await emit(Started(model="m", hash=HASH, prompt_tokens=0))
        await emit(WHOLE[0])
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    fleet = Fleet({"p": never_ends})

    async def main() -> None:
        events: list[object] = []

        async def emit(event: object) -> None:
            events.append(event)

        with trio.move_on_after(1):
            await JobRunner(fleet, fleet.generate, ActiveJobs(), TimeoutsConfig()).run(vectors_job(), emit)
        assert events == []

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(ended) == 1
