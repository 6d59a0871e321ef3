"""The life of a job on a mock clock: retries, interruptions, deadlines, resume, draining. Peers are scripted."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from agent.config import TimeoutsConfig
from agent.errors import (
    AgentError,
    DeadlineError,
    DrainingError,
    EngineError,
    InterruptedJobError,
    LoopDetectedError,
    ModelLoadError,
    ModelNotFoundError,
    NoCapablePeerError,
    OverloadedError,
    PeerUnreachableError,
    RefusedByPeersError,
)
from agent.jobs.active import ActiveJobs
from agent.jobs.answer import BadAnswerError
from agent.jobs.busy import HOLDS
from agent.jobs.job import Job, JobEvent, Resumed, Routed
from agent.jobs.neighbourhood import Survey
from agent.jobs.run import JobRunner
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState, Policy
from agent.routing.offers import Names, Offers
from fleet.errors import CallTimeoutError, RemoteError
from fleet.errors import PeerUnreachableError as LinkBrokenError
from fleet.models.substitution import Substitution
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
    held: dict[str, ModelPresence] = field(default_factory=dict)
    #: Peers that refuse this box's key: whether they were heard before, and what they held then.
    refusing: dict[str, tuple[bool, ModelPresence | None]] = field(default_factory=dict)
    problem: ModelLoadError | None = None
    asked: list[tuple[str, InferRequest]] = field(default_factory=list)
    dialled: int = 0
    on_dial: Callable[[], None] = lambda: None
    changed: trio.Event = field(default_factory=trio.Event)
    peer_id: str = "me"
    name: str = "here"

    def local_state(self, model: str) -> LocalState:
        return LocalState("me", "here", holding() if self.local and model == "m" else None)

    def survey(self, asked: str, substitution: Substitution | None) -> Survey:
        everything = [holding()] if self.local else []
        everything += [self._held(name, rank) for rank, name in enumerate(self.peers)]
        choice = Offers().select(asked, substitution or "none", everything, Names()).choice
        return Survey(choice, self.local_state(asked), self.peer_states(asked))

    def policy(self, asked: Policy | None) -> Policy:
        return asked or "prefer"

    def local_problem(self, model: str) -> ModelLoadError | None:
        return self.problem

    def peer_states(self, model: str) -> Sequence[PeerState]:
        up = [
            PeerState(name, name, True, 1.0, False, self._held(name, i) if model in ("m", HASH) else None, 0.001)
            for i, name in enumerate(self.peers)
        ]
        down = [PeerState(name, name, False, 0.0, False, None, heard=False) for name in self.down]
        refusing = [
            PeerState(name, name, False, 5.0, False, held, heard=heard, refused=True)
            for name, (heard, held) in self.refusing.items()
        ]
        return [*up, *down, *refusing]

    def _held(self, name: str, rank: int) -> ModelPresence:
        return self.held.get(name, holding()).model_copy(update={"decode_rate": 100.0 / 2**rank})

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


#: What a peer says whose model failed.
ENGINE_FAILED = RemoteError("engine", "the model failed to run", retryable=True)


def fail(error: BaseException, after: float = 0.01) -> Script:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        await trio.sleep(after)
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


@pytest.mark.parametrize("knows", [(False, None), (True, holding())])
def test_b25_holders_that_refuse_this_boxs_key_are_named_at_once(knows: tuple[bool, ModelPresence | None]) -> None:
    result = run(Fleet({}, refusing={"p": knows}))
    assert isinstance(result.error, RefusedByPeersError)
    assert "p may hold 'm' but refuses this box's key me" in result.error.message
    assert {"peer_id": "p", "name": "p", "reason": "refuses this box's key"}.items() <= candidate(result, "p").items()
    assert result.seconds == 0


def test_a_refusal_that_is_not_the_reason_is_not_given_as_one() -> None:
    heard_without = {"p": (True, None)}
    assert isinstance(run(Fleet({}, refusing=heard_without)).error, NoCapablePeerError)
    assert isinstance(run(Fleet({}, down=["q"], refusing={"p": (False, None)})).error, NoCapablePeerError)
    served = run(Fleet({"q": serve(["ok"])}, refusing={"p": (True, holding())}))
    assert (served.error, served.text) == (None, "ok")


def candidate(result: Result, name: str) -> dict[str, object]:
    assert result.error is not None
    candidates = result.error.details["candidates"]
    assert isinstance(candidates, list)
    found: dict[str, object] = next(one for one in candidates if one["name"] == name)
    return found


@pytest.mark.parametrize("policy", ["prefer", "never"])
def test_a_model_that_this_box_cannot_load_is_the_reason_given(policy: str) -> None:
    trouble = ModelLoadError("m cannot be loaded: not a GGUF file; replace /srv/m.gguf")
    result = run(Fleet({}, problem=trouble), job(policy=policy))
    assert result.error is trouble
    required = run(Fleet({}, problem=trouble), job(policy="require"))
    assert isinstance(required.error, NoCapablePeerError)
    assert run(Fleet({"p": serve(["ok"])}, problem=trouble)).text == "ok"


def test_a_model_that_no_holder_can_load_is_the_reason_given() -> None:
    broken = holding().model_copy(update={"state": "failed"})
    result = run(Fleet({"p": serve(["x"])}, held={"p": broken}))
    assert isinstance(result.error, ModelLoadError)
    assert "p should hold 'm' but cannot load it" in result.error.message
    assert run(Fleet({"p": serve(["x"]), "q": serve(["ok"])}, held={"p": broken})).text == "ok"


def test_b16_a_job_that_was_here_before_is_a_loop() -> None:
    result = run(Fleet({"p": serve(["x"])}), job(route=("other", "me")))
    assert isinstance(result.error, LoopDetectedError)


def test_b16_a_loop_that_every_peer_sees_is_one() -> None:
    fleet = Fleet({"p": fail(RemoteError("loop_detected", "again")), "q": fail(RemoteError("loop_detected", "again"))})
    assert isinstance(run(fleet).error, LoopDetectedError)
    assert len(fleet.asked) == 2


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

    result = run(Fleet({}, local=watching), job(policy="never", sampling=Sampling(max_tokens=1000)))
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


def test_b17_b20_peers_that_are_all_silent_are_unreachable_and_a_silent_engine_is_late() -> None:
    silent = serve(["a"], first=100)
    assert isinstance(run(Fleet({"p": silent, "q": silent})).error, PeerUnreachableError)
    assert isinstance(run(Fleet({}, local=silent)).error, DeadlineError)


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


def too_long(prompt: object, context: object) -> RemoteError:
    return RemoteError(
        "context_length_exceeded", "no", details={"prompt_tokens": prompt, "context_tokens": context, "path": "/etc"}
    )


LONG = (ChatMessage(role="user", content="word " * 1000),)
REFUSALS = [
    # what a peer says; the error where it is the only one that can be asked; what that error's details hold
    (RemoteError("bad_request", "no", details={"param": "messages", "x": 1}), "bad_request", {"param": "messages"}),
    (RemoteError("bad_request", "no", details={"param": {"x": 1}}), "bad_request", {}),
    (RemoteError("loop_detected", "no"), "loop_detected", {}),
    (RemoteError("model_load", "no"), "model_load", {}),
    (RemoteError("denied", "no"), "denied", {}),
    (too_long(2048, 2048), "context_length_exceeded", {"prompt_tokens": 2048, "context_tokens": 2048}),
    (too_long(2047, 2048), "peer_unreachable", None),  # it would fit
    (too_long(9, 4), "peer_unreachable", None),  # not the context it advertises
    (too_long(30_000, 2048), "peer_unreachable", None),  # not of this prompt
    (too_long(True, 2048), "peer_unreachable", None),
    (RemoteError("context_length_exceeded", "no"), "peer_unreachable", None),
    (RemoteError("overloaded", "no", details={"retry_after": 4}), "overloaded", None),
    (RemoteError("unauthorized", "no"), "peer_unreachable", None),
    (RemoteError("model_not_held", "no"), "peer_unreachable", None),
    (RemoteError("internal", "no"), "peer_unreachable", None),
    (RemoteError("draining", "no"), "peer_unreachable", None),
    (RemoteError("made up", "no"), "peer_unreachable", None),
]


@pytest.mark.parametrize(("said", "alone", "details"), REFUSALS)
def test_no_peers_word_ends_a_job_that_another_box_can_run(
    said: RemoteError, alone: str, details: dict[str, object] | None
) -> None:
    big = holding().model_copy(update={"context_tokens": 4096})
    asked_next = run(Fleet({"p": fail(said), "q": serve(["ok"])}, held={"q": big}), job(messages=LONG))
    assert (asked_next.error, asked_next.text) == (None, "ok")
    for peers in ({"p": fail(said)}, {"p": fail(said), "q": fail(said)}):
        error = run(Fleet(dict(peers)), job(messages=LONG)).error
        assert error is not None
        assert error.code == alone
        assert details is None or error.details == details
    error = run(
        Fleet({"p": fail(said), "q": fail(LinkBrokenError("broke"))}, held={"q": big}), job(messages=LONG)
    ).error
    assert isinstance(error, OverloadedError if alone == "overloaded" else PeerUnreachableError)
    interrupted = run(Fleet({"p": serve(["a"], then=said), "q": serve(["x"])}))
    assert isinstance(interrupted.error, InterruptedJobError)


def test_a_prompt_that_does_not_fit_is_sent_to_boxes_with_a_larger_context_alone() -> None:
    sizes = {"p": 2048, "q": 2048, "r": 3000, "s": 4096}
    held = {name: holding().model_copy(update={"context_tokens": size}) for name, size in sizes.items()}
    peers = {"p": fail(too_long(3000, 2048)), "q": serve(["q"]), "r": serve(["r"]), "s": serve(["s"])}
    fleet = Fleet(peers, held=held)
    result = run(fleet, job(messages=LONG))
    assert result.text == "s"
    assert [who for who, _ in fleet.asked] == ["p", "s"]
    routed = result.events[0]
    assert isinstance(routed, Routed)
    assert "q=the prompt is longer than its context" in routed.route


def answer(*events: object) -> Script:
    """A peer that answers with just these events, and ends the call without an error."""

    async def script(request: InferRequest, emit: EngineEmit) -> None:
        for event in events:
            assert isinstance(event, Started | Delta | Finished)
            await emit(event)

    return script


def finish(**changes: object) -> Finished:
    fields = {"reason": "stop", "prompt_tokens": 5, "completion_tokens": 1, "prefill_ms": 1.0, "decode_ms": 1.0}
    return Finished.model_validate({**fields, **changes})


STARTED = Started(model="m", hash=HASH, prompt_tokens=5)
WORD = Delta(text="a")


@pytest.mark.parametrize(
    "events",
    [
        (),
        (STARTED,),
        (WORD, finish()),
        (finish(),),
        (STARTED, STARTED, WORD, finish()),
        (Started(model="m", hash=HASH, prompt_tokens=1 << 50), WORD, finish()),
        (STARTED, Delta(text="a", tokens=11), finish()),
        (STARTED, Delta(text="a" * 60_000), finish()),
    ],
)
def test_b17_an_answer_that_is_none_is_the_peers_failure(events: Sequence[object]) -> None:
    fleet = Fleet({"p": answer(*events), "q": serve(["ok"])})
    result = run(fleet)
    assert (result.error, result.text) == (None, "ok")
    assert [who for who, _ in fleet.asked] == ["p", "q"]
    alone = run(Fleet({"p": answer(*events)}))
    assert isinstance(alone.error, PeerUnreachableError)


@pytest.mark.parametrize(
    "rest",
    [
        (),  # no end
        (STARTED, finish()),
        (Delta(text="a", tokens=1 << 53), finish()),
        (Delta(text="a" * 20_000), finish()),
        (*[Delta(text="", tokens=0)] * 17, finish()),
        (*[Delta(text="a" * 9_000, tokens=0)] * 2, finish()),
    ],
)
def test_b18_an_answer_that_goes_wrong_after_its_first_token_is_an_interruption(rest: Sequence[object]) -> None:
    result = run(Fleet({"p": answer(STARTED, WORD, *rest), "q": serve(["x"])}))
    assert isinstance(result.error, InterruptedJobError)
    assert len(result.text) < 20_000
    assert not any(isinstance(event, Finished) for event in result.events)


def test_an_answer_of_more_than_max_tokens_is_cut_there() -> None:
    result = run(Fleet({"p": answer(STARTED, *[WORD] * 50, finish(completion_tokens=50)), "q": serve(["x"])}))
    assert result.error is None
    assert result.text == "a" * 10
    last = result.events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.completion_tokens) == ("length", 10)


def test_without_max_tokens_an_answer_ends_with_the_context_that_its_box_advertises() -> None:
    free = job(sampling=Sampling())
    result = run(Fleet({"p": answer(STARTED, *[WORD] * 2049, finish())}), free)
    assert isinstance(result.error, InterruptedJobError)
    assert len(result.text) == 2048


def test_a_hash_that_was_asked_for_is_the_one_that_serves() -> None:
    other = Started(model="m", hash="sha256:" + "2" * 64, prompt_tokens=5)
    asked = job(model=HASH)
    fleet = Fleet({"p": answer(other, WORD, finish()), "q": serve(["ok"])})
    assert run(fleet, asked).text == "ok"
    assert len(fleet.asked) == 2


def test_usage_is_what_came_and_no_time_is_longer_than_the_job() -> None:
    lies = finish(prompt_tokens=1 << 50, completion_tokens=1 << 50, prefill_ms=1e308, decode_ms=1e308)

    async def slow(request: InferRequest, emit: EngineEmit) -> None:
        await trio.sleep(2)
        await answer(STARTED, WORD, WORD, lies)(request, emit)

    last = run(Fleet({"p": slow})).events[-1]
    assert isinstance(last, Finished)
    assert (last.prompt_tokens, last.completion_tokens) == (5, 2)
    assert (last.prefill_ms, last.decode_ms) == (pytest.approx(2000), pytest.approx(2000))


def test_what_comes_after_the_end_of_an_answer_changes_nothing() -> None:
    async def never_ends(request: InferRequest, emit: EngineEmit) -> None:
        await answer(STARTED, WORD, finish(), finish(), WORD, STARTED)(request, emit)
        await trio.sleep_forever()

    async def breaks(request: InferRequest, emit: EngineEmit) -> None:
        await answer(STARTED, WORD, finish())(request, emit)
        raise LinkBrokenError("broke")

    for script, seconds in ((never_ends, 10.0), (breaks, 0.0)):
        fleet = Fleet({"p": script, "q": serve(["x"])})
        result = run(fleet, job(on_interrupt="resume"))
        assert (result.error, result.text, len(fleet.asked)) == (None, "a", 1)
        assert sum(isinstance(event, Finished) for event in result.events) == 1
        assert result.seconds == pytest.approx(seconds)


def test_b40_overloaded_everywhere_is_429_with_the_wait_for_the_first_that_has_room() -> None:
    fleet = Fleet(
        {
            "p": fail(RemoteError("overloaded", "full", details={"retry_after": 4})),
            "q": fail(RemoteError("overloaded", "full", details={"retry_after": 9})),
        }
    )
    result = run(fleet)
    assert isinstance(result.error, OverloadedError)
    assert result.error.retry_after == 4


def test_b40_a_box_is_told_how_long_a_job_may_wait_and_one_that_is_only_busy_gives_way_to_the_next() -> None:
    async def busy(request: InferRequest, emit: EngineEmit) -> None:
        assert request.begin_ms == 25_000, "before who asked gives up on the box, after 30 s"
        await trio.sleep(request.begin_ms / 1000)
        raise RemoteError("overloaded", "its turn did not come", details={"retry_after": 9})

    result = run(Fleet({"p": busy, "q": serve(["x"])}))
    assert (result.text, result.seconds) == ("x", pytest.approx(25.1, abs=0.1))
    alone = run(Fleet({"p": busy}))
    assert isinstance(alone.error, OverloadedError)
    assert (alone.error.retry_after, alone.error.retryable) == (9, True)


LATE = "too little time for m: it would be done in about 4.2 s and has 0.3 s left (2 jobs wait before it, 1 run)"


@pytest.mark.parametrize("here", [True, False])
def test_b40_a_job_that_comes_too_late_is_told_how_long_it_would_take(here: bool) -> None:
    details = {"eta_s": 4.2, "queued": 2}
    if here:
        fleet = Fleet({}, local=fail(OverloadedError(LATE, details=details, retry_after=2)))
    else:
        fleet = Fleet({"p": fail(RemoteError("overloaded", LATE, details={**details, "retry_after": 2}))})
    error = run(fleet).error
    assert isinstance(error, OverloadedError)
    assert LATE in error.message
    assert (error.details["eta_s"], error.retry_after) == (4.2, 2)


@pytest.mark.parametrize("eta", [True, "4", -1, 1e9, float("nan"), float("inf"), 10**400, None, [4]])
def test_what_a_peer_says_of_how_long_it_would_take_is_bounded_and_no_nonsense(eta: object) -> None:
    said = RemoteError("overloaded", "w" * 5000, details={"eta_s": eta, "x": "y"})
    honest = RemoteError("overloaded", "full", details={"eta_s": 7})
    error = run(Fleet({"p": fail(said)})).error
    assert isinstance(error, OverloadedError)
    assert set(error.details) == {"tried"}
    assert len(error.message) < 300
    both = run(Fleet({"p": fail(said), "q": fail(honest)})).error
    assert both is not None
    assert both.details["eta_s"] == 7.0


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


def test_jobs_that_run_when_the_time_to_drain_is_over_end_with_an_error_of_their_own() -> None:
    active = ActiveJobs()

    async def stop_now(event: JobEvent) -> None:
        if isinstance(event, Delta):
            active.drain()
            active.end_now()

    result = run(Fleet({}, local=serve(["a", "b"], gap=5)), active=active, on_event=stop_now)
    assert isinstance(result.error, DrainingError)
    assert (result.text, result.error.retry_after) == ("a", 5)
    assert active.running == 0


@pytest.mark.parametrize(
    ("error", "at_once"),
    [
        (LinkBrokenError("it was killed"), True),
        (RemoteError("draining", "the box restarts", retryable=True), True),
        (ENGINE_FAILED, False),
        (BadAnswerError("it started another model"), False),
        (CallTimeoutError("it sent nothing"), False),
    ],
)
def test_b24_a_peer_that_keeps_failing_is_left_alone_and_tried_when_it_is_back_if_it_was_only_gone(
    error: Exception, at_once: bool
) -> None:
    fleet = Fleet({"p": fail(error), "q": serve(["x"])})

    async def main() -> None:
        runner = JobRunner(fleet, fleet.generate, ActiveJobs(), TimeoutsConfig())
        routes = []

        async def emit(event: JobEvent) -> None:
            if isinstance(event, Routed):
                routes.append(event.route)

        async def asked_p() -> bool:
            before = len(fleet.asked)
            await runner.run(job(), emit)
            return "p" in [who for who, _ in fleet.asked[before:]]

        assert [await asked_p() for _ in range(5)] == [True, True, True, False, False]
        assert routes[-1][1:] == ("p=failed 3 times, left alone for 10 s", "q=served")
        await trio.sleep(10)
        assert [await asked_p() for _ in range(2)] == [True, False]
        fleet.peers["p"] = serve(["y"])
        runner.breaker.link_up("p")
        assert [await asked_p() for _ in range(3)] == [at_once] * 3
        await trio.sleep(20)
        assert [await asked_p() for _ in range(3)] == [True] * 3

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("error", "after", "asked"),
    [
        (RemoteError("overloaded", "full"), 0.01, ["p", "q"] * 5),
        (RemoteError("bad_request", "no such role"), 6.0, ["p", "q"] * 5),
        (RemoteError("overloaded", "full"), 6.0, ["p", "q"] * 3 + ["q"] * 2),
    ],
    ids=["busy", "against the request", "busy, after taking six seconds from the job"],
)
def test_a_peer_that_is_busy_or_refuses_a_request_is_not_left_alone_unless_it_says_so_late(
    error: RemoteError, after: float, asked: list[str]
) -> None:
    fleet = Fleet({"p": fail(error, after), "q": serve(["x"])})

    async def main() -> None:
        runner = JobRunner(fleet, fleet.generate, ActiveJobs(), TimeoutsConfig())

        async def emit(event: JobEvent) -> None:
            await trio.lowlevel.checkpoint()

        for _ in range(5):
            await runner.run(job(), emit)
            await trio.sleep(HOLDS)
        assert [who for who, _ in fleet.asked] == asked

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_box_that_has_just_said_that_it_is_busy_is_not_asked_the_same_again() -> None:
    full = RemoteError("overloaded", "full", details={"retry_after": 7})
    busy = {name: fail(full) for name in "pqrs"}
    fleet = Fleet({**busy, "t": serve(["x"])})

    async def main() -> None:
        runner = JobRunner(fleet, fleet.generate, ActiveJobs(), TimeoutsConfig())

        async def emit(event: JobEvent) -> None:
            await trio.lowlevel.checkpoint()

        async def asked(a_job: Job) -> str:
            before = len(fleet.asked)
            with contextlib.suppress(OverloadedError):
                await runner.run(a_job, emit)
            return "".join(who for who, _ in fleet.asked[before:])

        assert await asked(job()) == "pqr", "at most three"
        assert await asked(job()) == "st", "those that are known to be busy are no attempts"
        assert await asked(job(priority="interactive")) == "pqr", "there may be places for others"
        assert await asked(job(deadline_ms=9_000)) == "t"
        await trio.sleep(HOLDS)
        assert await asked(job(deadline_ms=9_000)) == "pqr"
        assert await asked(job()) == "pqr", "a deadline may be all that was too short"
        fleet.peers.pop("t")
        assert await asked(job()) == "s"
        with pytest.raises(OverloadedError) as caught:
            await runner.run(job(), emit)
        assert (await asked(job()), caught.value.retry_after) == ("", 7)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_deadline_ends_the_job_and_what_is_left_of_it_goes_along() -> None:
    fleet = Fleet({"p": serve(["x"] * 100, gap=1.0), "q": serve(["y"])})
    result = run(fleet, job(deadline_ms=5_000, sampling=Sampling(max_tokens=200)))
    assert isinstance(result.error, DeadlineError)
    assert result.error.details == {"phase": "total"}
    assert result.seconds == pytest.approx(5.0, abs=0.1)
    late = Fleet({"p": fail(ENGINE_FAILED, after=2.0), "q": serve(["y"])})
    assert run(late, job(deadline_ms=5_000)).text == "y"
    left = [request.deadline_ms for _, request in late.asked]
    assert left[0] == 5_000
    assert left[1] == pytest.approx(3_000, abs=50)


def test_a_deadline_that_has_passed_is_no_reason_to_ask_anybody_else() -> None:
    fleet = Fleet({"p": fail(ENGINE_FAILED, after=1.0), "q": serve(["y"])})
    result = run(fleet, job(deadline_ms=1_000))
    assert isinstance(result.error, DeadlineError)
    assert [who for who, _ in fleet.asked] == ["p"]
