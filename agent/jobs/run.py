"""One job from admission to its last token: decide, attempt, try the next box, resume if asked, or say what failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from agent.config import TimeoutsConfig
from agent.errors import (
    AgentError,
    BadRequestError,
    DeadlineError,
    InterruptedJobError,
    LoopDetectedError,
)
from agent.jobs import failure, observation, refusal
from agent.jobs.active import ActiveJobs
from agent.jobs.answer import AnswerCheck, BadAnswerError
from agent.jobs.breaker import Breaker
from agent.jobs.busy import BusyBoxes
from agent.jobs.failure import Failure
from agent.jobs.job import Emit, Job, Resumed, Routed, Substituted
from agent.jobs.neighbourhood import Generate, Neighbourhood, Survey
from agent.jobs.vectors import VectorCheck
from agent.jobs.watch import EngineEmit, EngineEvent, hurried, patient, time_for_part, watched
from agent.log import bound_job
from agent.routing.chooser import Chooser
from agent.routing.decide import Decision, Verdict
from agent.routing.explain import short_route
from fleet.errors import FleetError
from fleet.models.name import ModelNameError
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, ModelPresence, Started

#: A job is tried on one box and, if that fails before its first token, on at most two others.
MAX_ATTEMPTS = 3

log = structlog.get_logger("shoal.jobs")


@dataclass
class _Progress:
    """What the client has seen so far, and what was tried since the job `began`."""

    began: float
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    routed: Routed | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        """How many boxes have been asked and have failed."""
        return sum(not failed.known for failed in self.failures.values())


@dataclass(frozen=True)
class _Target:
    """The box that is to run a job next, with what it holds for it."""

    survey: Survey
    peer_id: str
    verdict: Verdict

    @property
    def name(self) -> str:
        return self.verdict.name

    @property
    def held(self) -> ModelPresence:
        held = self.survey.held(self.peer_id)
        assert held is not None  # nobody else is decided for
        return held

    def substituted(self, ran: str) -> Substituted | None:
        """What its client is told where another model has run than was asked for."""
        match = self.survey.match(self.peer_id)
        if match is None or not match.substituted:
            return None
        return Substituted(self.survey.choice.reference.asked, ran, tuple(map(str, match.differs)))


class JobRunner:
    """Runs the jobs of local clients."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        generate: Generate,
        active: ActiveJobs,
        timeouts: TimeoutsConfig,
        chooser: Chooser | None = None,
    ) -> None:
        self._fleet = neighbourhood
        self._generate = generate
        self._active = active
        self._timeouts = timeouts
        self._chooser = chooser or Chooser()
        #: Peers that keep failing at a model; to be told of links that come up.
        self.breaker: Final = Breaker()
        self._busy = BusyBoxes()

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job to its end, awaiting `emit` with Routed, Delta… or Embedded…, Finished (see `agent.jobs.job`).

        Raises AgentError; one raised after Routed means that the text so far stands and nothing follows. Cancelling
        it stops generation wherever it runs, within 1 s.
        """
        request = job.request
        with bound_job(request.job, request.traceparent):
            began = trio.current_time()
            progress = _Progress(began)
            outcome = "failed"
            try:
                with self._active.track():
                    await self._run(job, emit, progress)
                outcome = "ok"
            except trio.Cancelled:
                outcome = "cancelled"
                raise
            except AgentError as error:
                outcome = error.code
                raise
            finally:
                log.info(
                    "job.end",
                    outcome=outcome,
                    model=request.model,
                    served_by=progress.routed.name if progress.routed else None,
                    tokens=progress.tokens,
                    seconds=round(trio.current_time() - began, 3),
                )

    async def _run(self, job: Job, emit: Emit, progress: _Progress) -> None:
        if self._fleet.peer_id in job.request.route:
            raise LoopDetectedError("the job has been on this box before; a job is forwarded at most once")
        while True:
            decision, survey = await self._decide(job, progress)
            if not decision.order:
                if progress.failures:
                    raise self._exhausted(progress, survey)
                raise refusal.of(self._fleet, job, decision, survey)
            target = self._next(decision, progress)
            verdict = next(v for v in decision.verdicts if v.peer_id == target)
            failed = await self._tried(job, _Target(survey, target, verdict), emit, progress)
            if failed is None:
                self._chooser.note_served(job.request, target)
                return
            if not failed.known:
                log.warning("job.attempt_failed", box=verdict.name, reason=failed.reason, tokens=progress.tokens)
            observation.failed_at(target, failed.code)
            progress.failures[target] = failed
            if progress.routed is not None and failed.final is None and _used_up(job, progress):
                # It failed between the last token that may be and its end: nothing is missing.
                await emit(_end(progress))
                return
            if progress.routed is not None and job.on_interrupt != "resume":
                raise failed.final or InterruptedJobError(
                    f"{progress.routed.name} failed after {progress.tokens} tokens: {failed.reason}; the text so far"
                    " stands, send the request again or set X-Shoal-On-Interrupt: resume"
                )
            if failed.final is not None:
                raise failed.final
            if progress.attempts >= MAX_ATTEMPTS:
                raise self._exhausted(progress, survey)

    def _next(self, decision: Decision, progress: _Progress) -> str:
        """The box to try now. The last attempt is this box's own, where it can run the job: that fails least."""
        own, last = self._fleet.peer_id, progress.attempts == MAX_ATTEMPTS - 1
        return own if last and own in decision.order else decision.order[0]

    async def _tried(self, job: Job, target: _Target, emit: Emit, progress: _Progress) -> Failure | None:
        """Attempt it, and remember of a peer how that went."""
        peer, held = target.peer_id, target.held
        if peer == self._fleet.peer_id:
            return await self._attempt(job, target, emit, progress)
        request = job.request.model_copy(update={"model": held.hash})
        if (known := self._busy.said(peer, request, trio.current_time())) is not None:
            return known
        self.breaker.asked(peer, held.hash, trio.current_time())
        failed: Failure | None = Failure("cancelled", overloaded=True)  # as long as nothing else is known
        try:
            failed = await self._attempt(job, target, emit, progress)
        finally:
            if failed is None:
                self.breaker.done(peer, held.hash)
            elif not failed.of_the_box:
                self.breaker.let_go(peer, held.hash)
            elif self.breaker.failed(peer, held.hash, trio.current_time(), gone=failed.gone):
                log.warning("job.box_left_alone", box=target.name, model=held.name, reason=failed.reason)
        if failed is not None:
            self._busy.note(peer, request, failed, trio.current_time())
        return failed

    async def _attempt(self, job: Job, target: _Target, emit: Emit, progress: _Progress) -> Failure | None:
        """Run (or go on with) the job on one box; returns what failed, None when the job is done."""
        held = target.held
        request = _continued(_in_time(job.request, progress.began), progress)
        # By content, so that no box runs anything but what was chosen here.
        request = request.model_copy(update={"model": held.hash})
        if request.kind == "embedding":
            return await self._embed(request, target, emit, progress)
        answer = AnswerCheck(request, held.context_tokens)
        began = trio.current_time()

        async def relay(event: EngineEvent) -> None:
            if answer.finished:
                return  # it is complete; what a box sends after that is nobody's
            if isinstance(event, Started):
                answer.start(event)
                return
            last: Finished | None = None
            if isinstance(event, Embedded):
                raise BadAnswerError("it sent vectors for a request for text")
            if isinstance(event, Delta):
                started = answer.delta(event)
            else:
                started, last = answer.finish(event, (trio.current_time() - began) * 1000)
            if progress.routed is None or progress.routed.peer_id != target.peer_id:
                await self._announce(target, started, emit, progress)
            if isinstance(event, Delta):
                progress.text += event.text
                progress.tokens += event.tokens
                await emit(event)
            elif last is not None:
                await emit(_end(progress, last))

        try:
            await self._ask(target, request, relay)
            answer.end()
        except FleetError as error:
            # A link that breaks between the last event and the end of the call takes nothing from the answer.
            if answer.finished:
                return None
            return failure.of_peer(error, request, held, after=trio.current_time() - began)
        except AgentError as error:
            return failure.of_local(error, here=target.peer_id == self._fleet.peer_id)
        return None

    async def _embed(self, request: InferRequest, target: _Target, emit: Emit, progress: _Progress) -> Failure | None:
        """Have one box turn the texts into vectors; the client gets them when they are complete, or none of them."""
        answer = VectorCheck(request)
        last: list[Finished] = []
        began = trio.current_time()

        async def relay(event: EngineEvent) -> None:
            match event:
                case _ if last:
                    return
                case Started():
                    answer.start(event)
                case Embedded():
                    answer.take(event)
                case Finished():
                    last.append(answer.finish(event, (trio.current_time() - began) * 1000))
                case Delta():
                    raise BadAnswerError("it sent text for a request for vectors")

        try:
            await self._ask(target, request, relay)
            answer.end()
        except FleetError as error:
            if not last:
                return failure.of_peer(error, request, target.held, after=trio.current_time() - began)
        except AgentError as error:
            return failure.of_local(error, here=target.peer_id == self._fleet.peer_id)
        assert answer.started is not None  # else `end` has raised
        started = answer.started.model_copy(update={"prompt_tokens": last[0].prompt_tokens})
        await self._announce(target, started, emit, progress)
        for part in answer.parts:
            await emit(part)
        await emit(last[0])
        return None

    async def _ask(self, target: _Target, request: InferRequest, relay: EngineEmit) -> None:
        """Run the request on a box, this one or a peer, within the job's deadlines."""
        limits, peer = hurried(self._timeouts, request), target.peer_id
        asked, part = patient(self._timeouts, request), time_for_part(self._timeouts, request)
        if peer == self._fleet.peer_id:
            await watched(limits, lambda send: self._generate(asked.model, asked, send), relay, part=part)
        else:
            await watched(limits, lambda send: self._fleet.infer(peer, asked, send), relay, part=part)

    async def _announce(self, target: _Target, started: Started, emit: Emit, progress: _Progress) -> None:
        """Tell the client who serves, with the first token: until then another box could still take over."""
        before = progress.routed
        routed = Routed(
            peer_id=target.peer_id,
            name=target.name,
            local=target.peer_id == self._fleet.peer_id,
            model=started.model,
            model_hash=started.hash,
            prompt_tokens=started.prompt_tokens,
            route=short_route(progress.verdicts, target.peer_id),
            cut_tokens=started.cut_tokens,
            cut_messages=started.cut_messages,
            substituted=target.substituted(started.model),
        )
        progress.routed = routed
        log.info("job.routed", served_by=routed.name, local=routed.local, route="; ".join(routed.route))
        if before is None:
            progress.prompt_tokens = started.prompt_tokens
            await emit(routed)
        else:
            await emit(Resumed(from_name=before.name, routed=routed))

    async def _decide(self, job: Job, progress: _Progress) -> tuple[Decision, Survey]:
        """Decide; when nobody can serve but a neighbour that may is down, dial it and wait up to the connect limit."""
        decision, survey = self._decide_now(job, progress)
        if decision.refusal == "no_capable_peer" and self._fleet.unheard():
            self._fleet.dial_now()
            decision, survey = self._decide_now(job, progress)
            with trio.move_on_after(self._timeouts.connect):
                while decision.refusal and self._fleet.unheard():
                    await self._fleet.wait_change()
                    decision, survey = self._decide_now(job, progress)
        progress.verdicts = list(decision.verdicts)
        self._chooser.note(job.request, self._fleet.policy(job.policy), decision, time.time())
        return decision, survey

    def _decide_now(self, job: Job, progress: _Progress) -> tuple[Decision, Survey]:
        failed_here = self._fleet.peer_id in progress.failures
        try:
            survey = self._fleet.survey(job.request.model, job.substitution)
        except ModelNameError as error:
            raise BadRequestError(error.message, details={"param": "model"}) from None
        policy = self._fleet.policy(job.policy)
        decision = self._chooser.decide(job.request, policy, survey.local, survey.peers, failed_here=failed_here)
        if progress.failures:
            decision = _without_failed(decision, progress, survey)
        return self._without_broken(decision, survey), survey

    def _without_broken(self, decision: Decision, survey: Survey) -> Decision:
        """The decision with those boxes taken out that keep failing at the model."""
        now, order = trio.current_time(), set(decision.order)
        refusals: dict[str, str] = {}
        for peer in survey.peers:
            if peer.peer_id not in order or peer.model is None:
                continue
            if (reason := self.breaker.refusal(peer.peer_id, peer.model.hash, now)) is not None:
                refusals[peer.peer_id] = reason
        return decision.without(refusals)

    def _exhausted(self, progress: _Progress, survey: Survey) -> AgentError:
        names = {survey.local.peer_id: survey.local.name, **{peer.peer_id: peer.name for peer in survey.peers}}
        return refusal.exhausted(names, progress.failures, interrupted=progress.routed is not None)


def _end(progress: _Progress, last: Finished | None = None) -> Finished:
    """The last event as the client sees it, over all boxes that had a part in the answer."""
    return Finished(
        reason=last.reason if last else "length",
        prompt_tokens=progress.prompt_tokens,
        completion_tokens=progress.tokens,
        prefill_ms=last.prefill_ms if last else 0.0,
        decode_ms=last.decode_ms if last else 0.0,
    )


def _used_up(job: Job, progress: _Progress) -> bool:
    """Whether the client has every token it asked for."""
    most = job.request.sampling.max_tokens
    return most is not None and progress.tokens >= most


def _in_time(request: InferRequest, began: float) -> InferRequest:
    """The request with what is left of the client's deadline; raises DeadlineError where nothing is."""
    if request.deadline_ms is None:
        return request
    left = request.deadline_ms - round((trio.current_time() - began) * 1000)
    if left <= 0:
        text = f"the answer was not complete within the {request.deadline_ms / 1000:g} s that the request has"
        raise DeadlineError(text, details={"phase": "total"})
    return request.model_copy(update={"deadline_ms": left})


def _continued(request: InferRequest, progress: _Progress) -> InferRequest:
    """The request as it stands after the text so far: what exists is a prefix, and counts against max_tokens."""
    if not progress.tokens:
        return request
    sampling = request.sampling
    if sampling.max_tokens is not None:
        sampling = sampling.model_copy(update={"max_tokens": sampling.max_tokens - progress.tokens})
    return request.model_copy(update={"prefix": request.prefix + progress.text, "sampling": sampling})


def _without_failed(decision: Decision, progress: _Progress, survey: Survey) -> Decision:
    """The decision with boxes that failed this job taken out."""
    needed = max((f.needs_context or 0 for f in progress.failures.values()), default=0)
    held = {peer.peer_id: peer.model for peer in survey.peers}

    refused = {
        peer: "the prompt is longer than its context"
        for peer in decision.order
        if (model := held.get(peer)) is not None and model.context_tokens <= needed
    }
    return decision.without(refused | {peer: failed.reason for peer, failed in progress.failures.items()})
