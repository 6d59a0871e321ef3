"""The life of a job on a mock clock: retries, interruptions, deadlines, resume, draining. Peers are scripted."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from agent.config import TimeoutsConfig
from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    DeadlineError,
    DrainingError,
    EngineError,
    InterruptedJobError,
    LoopDetectedError,
    ModelNotFoundError,
    NoCapablePeerError,
    OverloadedError,
    PeerUnreachableError,
)
from agent.jobs.active import ActiveJobs
from agent.jobs.job import Job, JobEvent, Resumed, Routed
from agent.jobs.run import JobRunner
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState
from fleet.errors import PeerUnreachableError as LinkBrokenError
from fleet.errors import RemoteError
from fleet.net.messages import ChatMessage, Delta, Finished, InferRequest, ModelPresence, Sampling, Started

HASH = "sha256:" + "1" * 64
Script = Callable[[InferRequest, EngineEmit], Awaitable[None]]


def holding(name: str = "m", rate: float = 50.0) -> ModelPresence:
    return ModelPresence(hash=HASH, name=name, state="loaded", context_tokens=2048, decode_rate=rate)


@dataclass
class Fleet:
    """A scripted neighbourhood: each peer is a function that plays the provider."""

    peers: dict[str, Script]
    local: Script | None = None
    down: list[str] = field(default_factory=list)
    asked: list[tuple[str, InferRequest]] = field(default_factory=list)
    dialled: int = 0
    on_dial: Callable[[], None] = lambda: None
    changed: trio.Event = field(default_factory=trio.Event)
    peer_id: str = "me"
    name: str = "here"

    def local_state(self, model: str) -> LocalState:
        return LocalState("me", "here", holding() if self.local and model == "m" else None)

    def peer_states(self, model: str) -> Sequence[PeerState]:
        up = [
            PeerState(name, name, True, 1.0, False, holding(rate=100 - i) if model == "m" else None, 0.001)
            for i, name in enumerate(self.peers)
        ]
        return [*up, *(PeerState(name, name, False, 0.0, False, None) for name in self.down)]

    def known_models(self) -> Sequence[str]:
        return ["m"] if self.peers or self.local else []

    def unheard(self) -> Sequence[str]:
        return self.down

    def dial_now(self) -> None:
        self.dialled += 1
        self.on_dial()

    async def wait_change(self) -> None:
        await self.changed.wait()
        self.changed = trio.Event()

    async def infer(self, peer_id: str, request: InferRequest, emit: EngineEmit) -> None:
        self.asked.append((peer_id, request))
        await self.peers[peer_id](request, emit)

    async def generate(self, model_hash: str, request: InferRequest, emit: EngineEmit) -> None:
        assert model_hash == HASH
        assert self.local is not None
        self.asked.append(("me", request))
        await self.local(request, emit)


def serve(words: Sequence[str], *, gap: float = 0.01, then: BaseException | None = None, first: float = 0.1) -> Script:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await trio.sleep(first)
        await emit(Started(model="m", hash=HASH, prompt_tokens=5))
        for word in words:
            await trio.sleep(gap)
            await emit(Delta(text=word))
        if then is not None:
            raise then
        await emit(
            Finished(reason="stop", prompt_tokens=5, completion_tokens=len(words), prefill_ms=1.0, decode_ms=1.0)
        )

    return script


def fail(error: BaseException) -> Script:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await trio.sleep(0.01)
        raise error

    return script


def job(**changes: object) -> Job:
    request = InferRequest(
        job="job-1",
        kind="chat",
        model="m",
        messages=(ChatMessage(role="user", content="hi"),),
        sampling=Sampling(max_tokens=10),
    )
    fields = {k: v for k, v in changes.items() if k in ("policy", "on_interrupt")}
    rest = {k: v for k, v in changes.items() if k not in fields}
    return Job(request.model_copy(update=rest), **fields)  # type: ignore[arg-type]


@dataclass
class Result:
    events: list[JobEvent]
    error: AgentError | None
    seconds: float

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Delta))


def run(
    fleet: Fleet,
    a_job: Job | None = None,
    timeouts: TimeoutsConfig | None = None,
    active: ActiveJobs | None = None,
    on_event: Callable[[JobEvent], Awaitable[None]] | None = None,
) -> Result:
    async def main() -> Result:
        events: list[JobEvent] = []

        async def emit(event: JobEvent) -> None:
            events.append(event)
            if on_event is not None:
                await on_event(event)

        runner = JobRunner(fleet, fleet.generate, active or ActiveJobs(), timeouts or TimeoutsConfig())
        began, error = trio.current_time(), None
        try:
            await runner.run(a_job or job(), emit)
        except AgentError as caught:
            error = caught
        return Result(events, error, trio.current_time() - began)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_b2_local_first_and_no_peer_is_asked() -> None:
    fleet = Fleet({"p": serve(["x"])}, local=serve(["a", "b"]))
    result = run(fleet)
    assert result.error is None
    assert result.text == "ab"
    assert [who for who, _ in fleet.asked] == ["me"]
    routed = result.events[0]
    assert isinstance(routed, Routed)
    assert routed.local


def test_b5_no_model_and_no_peer_is_503_with_every_box() -> None:
    result = run(Fleet({}))
    assert isinstance(result.error, NoCapablePeerError)
    assert result.error.retry_after == 30
    assert result.error.details["candidates"] == [
        {"peer_id": "me", "name": "here", "reason": "does not hold the model", "decode_rate": None}
    ]


def test_an_unknown_model_is_404_only_when_everybody_has_been_heard() -> None:
    assert isinstance(run(Fleet({"p": serve([])}), job(model="other")).error, ModelNotFoundError)
    waited = run(Fleet({"p": serve([])}, down=["q"]), job(model="other"))
    assert isinstance(waited.error, NoCapablePeerError)
    assert waited.seconds == pytest.approx(3.0)


def test_a_neighbour_that_is_down_is_dialled_and_waited_for() -> None:
    fleet = Fleet({}, down=["p"])

    def come_up() -> None:
        fleet.peers["p"] = serve(["late"])
        fleet.down = []
        fleet.changed.set()

    fleet.on_dial = come_up
    result = run(fleet)
    assert result.text == "late"
    assert fleet.dialled == 1


def test_b16_a_job_that_was_here_before_is_a_loop() -> None:
    result = run(Fleet({"p": serve(["x"])}), job(route=("other", "me")))
    assert isinstance(result.error, LoopDetectedError)


def test_b16_a_loop_seen_by_the_peer_is_final() -> None:
    fleet = Fleet({"p": fail(RemoteError("loop_detected", "again")), "q": serve(["x"])})
    assert isinstance(run(fleet).error, LoopDetectedError)
    assert len(fleet.asked) == 1


def test_b17_a_peer_dead_before_its_first_token_is_replaced() -> None:
    async def dies_after_started(request: InferRequest, emit: EngineEmit) -> None:
        await emit(Started(model="m", hash=HASH, prompt_tokens=5))
        raise LinkBrokenError("broke")

    fleet = Fleet({"p": fail(LinkBrokenError("broke")), "q": dies_after_started, "r": serve(["ok"])})
    result = run(fleet)
    assert result.error is None
    assert result.text == "ok"
    assert [who for who, _ in fleet.asked] == ["p", "q", "r"]
    routed = result.events[0]
    assert isinstance(routed, Routed)
    assert routed.name == "r"
    assert routed.route == ("here=does not hold the model", "p=broke", "q=broke", "r=served")


def test_b17_at_most_two_others_then_502() -> None:
    fleet = Fleet({name: fail(LinkBrokenError("broke")) for name in "pqrst"})
    result = run(fleet)
    assert isinstance(result.error, PeerUnreachableError)
    assert len(fleet.asked) == 3
    assert result.events == []


def test_b18_dead_in_mid_stream_is_an_error_and_no_retry() -> None:
    fleet = Fleet({"p": serve(["a", "b"], then=LinkBrokenError("broke")), "q": serve(["x"])})
    result = run(fleet)
    assert isinstance(result.error, InterruptedJobError)
    assert result.text == "ab"
    assert len(fleet.asked) == 1
    assert not any(isinstance(event, Finished) for event in result.events)


def test_b18_resume_goes_on_elsewhere_and_says_so() -> None:
    fleet = Fleet({"p": serve(["a", "b"], then=LinkBrokenError("broke")), "q": serve(["c"])})
    result = run(fleet, job(on_interrupt="resume"))
    assert result.error is None
    assert result.text == "abc"
    second = fleet.asked[1][1]
    assert second.prefix == "ab"
    assert second.sampling.max_tokens == 8
    resumed = next(event for event in result.events if isinstance(event, Resumed))
    assert (resumed.from_name, resumed.routed.name) == ("p", "q")
    finished = result.events[-1]
    assert isinstance(finished, Finished)
    assert (finished.prompt_tokens, finished.completion_tokens) == (5, 3)


def test_b18_resume_with_nobody_left_is_an_interruption() -> None:
    fleet = Fleet({"p": serve(["a"], then=LinkBrokenError("broke"))})
    result = run(fleet, job(on_interrupt="resume"))
    assert isinstance(result.error, InterruptedJobError)
    assert result.text == "a"


@pytest.mark.parametrize(
    ("script", "phase", "seconds"),
    [
        (serve(["a"], first=100), "first_token", 30.0),
        (serve(["a", "b"], gap=11), "inter_token", 10.0),
        (serve(["a"] * 1000, gap=9), "total", 600.0),
    ],
)
def test_b20_time_outs_free_the_slot(script: Script, phase: str, seconds: float) -> None:
    freed = []

    async def watching(request: InferRequest, emit: EngineEmit) -> None:
        try:
            await script(request, emit)
        except trio.Cancelled:
            freed.append(trio.current_time())
            raise

    result = run(Fleet({}, local=watching), job(policy="never"))
    assert isinstance(result.error, AgentError)
    assert len(freed) == 1
    if phase == "total":
        assert result.seconds == pytest.approx(600.0)
        assert isinstance(result.error, DeadlineError)
    elif phase == "first_token":
        assert result.seconds == pytest.approx(30.0)
    else:
        assert isinstance(result.error, InterruptedJobError)
        assert result.seconds == pytest.approx(0.1 + 11 + 10, abs=0.2)


def test_b20_a_silent_peer_is_given_up_and_the_next_one_serves() -> None:
    fleet = Fleet({"p": serve(["a"], first=100), "q": serve(["b"])})
    result = run(fleet)
    assert result.text == "b"
    assert result.seconds == pytest.approx(30.1, abs=0.2)


def test_b20_a_client_that_stops_reading_loses_its_job_and_not_the_box() -> None:
    async def stuck(event: JobEvent) -> None:
        if isinstance(event, Delta):
            await trio.sleep_forever()

    result = run(Fleet({}, local=serve(["a", "b"])), on_event=stuck)
    assert isinstance(result.error, AgentError)
    assert result.seconds == pytest.approx(30.1, abs=0.2)


def test_b21_tokens_are_relayed_as_they_come() -> None:
    times: list[float] = []

    async def note(event: JobEvent) -> None:
        if isinstance(event, Delta):
            times.append(trio.current_time())

    run(Fleet({"p": serve(list("abcd"), gap=0.5)}), on_event=note)
    assert [round(b - a, 3) for a, b in itertools.pairwise(times)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        (RemoteError("bad_request", "no"), BadRequestError),
        (
            RemoteError("context_length_exceeded", "n", details={"prompt_tokens": 9, "context_tokens": 4}),
            ContextLengthError,
        ),
    ],
)
def test_the_clients_own_mistake_is_not_tried_elsewhere(remote: RemoteError, expected: type[AgentError]) -> None:
    fleet = Fleet({"p": fail(remote), "q": serve(["x"])})
    result = run(fleet)
    assert isinstance(result.error, expected)
    assert len(fleet.asked) == 1


def test_b40_overloaded_everywhere_is_429_with_the_longest_wait() -> None:
    fleet = Fleet(
        {
            "p": fail(RemoteError("overloaded", "full", details={"retry_after": 4})),
            "q": fail(RemoteError("overloaded", "full", details={"retry_after": 9})),
        }
    )
    result = run(fleet)
    assert isinstance(result.error, OverloadedError)
    assert result.error.retry_after == 9


def test_a_local_engine_that_fails_before_its_first_token_gives_way_to_a_peer() -> None:
    fleet = Fleet({"p": serve(["x"])}, local=fail(EngineError("child died")))
    result = run(fleet)
    assert result.text == "x"
    assert [who for who, _ in fleet.asked] == ["me", "p"]


def test_draining_takes_no_new_jobs() -> None:
    active = ActiveJobs()
    active.drain()
    result = run(Fleet({}, local=serve(["x"])), active=active)
    assert isinstance(result.error, DrainingError)
    assert result.events == []
