"""One job from admission to its last token: decide, attempt, try the next box, resume if asked, or say what failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import structlog
import trio

from agent.config import TimeoutsConfig
from agent.errors import (
    AgentError,
    InterruptedJobError,
    LoopDetectedError,
    ModelLoadError,
    ModelNotFoundError,
    NoCapablePeerError,
    NoLocalModelError,
    OverloadedError,
    PeerUnreachableError,
    RefusedByPeersError,
)
from agent.jobs import failure
from agent.jobs.active import ActiveJobs
from agent.jobs.answer import AnswerCheck, BadAnswerError
from agent.jobs.failure import Failure
from agent.jobs.job import Emit, Job, Resumed, Routed
from agent.jobs.neighbourhood import Generate, Neighbourhood
from agent.jobs.vectors import VectorCheck
from agent.jobs.watch import EngineEmit, EngineEvent, watched
from agent.log import bound_job
from agent.routing.chooser import Chooser
from agent.routing.decide import Decision, Verdict
from agent.routing.explain import short_route
from fleet.errors import FleetError
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, ModelPresence, Started

#: A job is tried on one box and, if that fails before its first token, on at most two others.
MAX_ATTEMPTS = 3

log = structlog.get_logger("shoal.jobs")


@dataclass
class _Progress:
    """What the client has seen so far, and what was tried."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    routed: Routed | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)


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

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job to its end, awaiting `emit` with Routed, Delta… or Embedded…, Finished (see `agent.jobs.job`).

        Raises AgentError; one raised after Routed means that the text so far stands and nothing follows. Cancelling
        it stops generation wherever it runs, within 1 s.
        """
        request = job.request
        with bound_job(request.job, request.traceparent):
            began = trio.current_time()
            progress = _Progress()
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
            decision = await self._decide(job, progress)
            if not decision.order:
                raise self._refusal(job, decision, progress)
            target = decision.order[0]
            verdict = next(v for v in decision.verdicts if v.peer_id == target)
            failed = await self._attempt(job, target, verdict, emit, progress)
            if failed is None:
                self._chooser.note_served(job.request, target)
                return
            log.warning("job.attempt_failed", box=verdict.name, reason=failed.reason, tokens=progress.tokens)
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
            if len(progress.failures) >= MAX_ATTEMPTS:
                raise self._exhausted(progress)

    async def _attempt(
        self, job: Job, target: str, verdict: Verdict, emit: Emit, progress: _Progress
    ) -> Failure | None:
        """Run (or go on with) the job on one box; returns what failed, None when the job is done."""
        request = _continued(job.request, progress)
        held = self._holding(target, request.model)
        if held is None:
            return Failure("no longer holds the model")
        if request.kind == "embedding":
            return await self._embed(request, target, held, verdict, emit, progress)
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
            if progress.routed is None or progress.routed.peer_id != target:
                await self._announce(target, verdict, started, emit, progress)
            if isinstance(event, Delta):
                progress.text += event.text
                progress.tokens += event.tokens
                await emit(event)
            elif last is not None:
                await emit(_end(progress, last))

        try:
            await self._ask(target, held.hash, request, relay)
            answer.end()
        except FleetError as error:
            # A link that breaks between the last event and the end of the call takes nothing from the answer.
            return None if answer.finished else failure.of_peer(error, request, held)
        except AgentError as error:
            return failure.of_local(error, here=target == self._fleet.peer_id)
        return None

    async def _embed(
        self,
        request: InferRequest,
        target: str,
        held: ModelPresence,
        verdict: Verdict,
        emit: Emit,
        progress: _Progress,
    ) -> Failure | None:
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
            await self._ask(target, held.hash, request, relay)
            answer.end()
        except FleetError as error:
            if not last:
                return failure.of_peer(error, request, held)
        except AgentError as error:
            return failure.of_local(error, here=target == self._fleet.peer_id)
        assert answer.started is not None  # else `end` has raised
        started = answer.started.model_copy(update={"prompt_tokens": last[0].prompt_tokens})
        await self._announce(target, verdict, started, emit, progress)
        for part in answer.parts:
            await emit(part)
        await emit(last[0])
        return None

    async def _ask(self, target: str, model_hash: str, request: InferRequest, relay: EngineEmit) -> None:
        """Run the request on a box, this one or a peer, within the job's deadlines."""
        if target == self._fleet.peer_id:
            await watched(self._timeouts, lambda send: self._generate(model_hash, request, send), relay)
        else:
            await watched(self._timeouts, lambda send: self._fleet.infer(target, request, send), relay)

    def _holding(self, target: str, model: str) -> ModelPresence | None:
        """What a box holds of a model, by its own word."""
        if target == self._fleet.peer_id:
            return self._fleet.local_state(model).model
        return next((peer.model for peer in self._fleet.peer_states(model) if peer.peer_id == target), None)

    async def _announce(self, target: str, verdict: Verdict, started: Started, emit: Emit, progress: _Progress) -> None:
        """Tell the client who serves, with the first token: until then another box could still take over."""
        before = progress.routed
        routed = Routed(
            peer_id=target,
            name=verdict.name,
            local=target == self._fleet.peer_id,
            model=started.model,
            model_hash=started.hash,
            prompt_tokens=started.prompt_tokens,
            route=short_route(progress.verdicts, target),
            cut_tokens=started.cut_tokens,
            cut_messages=started.cut_messages,
        )
        progress.routed = routed
        log.info("job.routed", served_by=routed.name, local=routed.local, route="; ".join(routed.route))
        if before is None:
            progress.prompt_tokens = started.prompt_tokens
            await emit(routed)
        else:
            await emit(Resumed(from_name=before.name, routed=routed))

    async def _decide(self, job: Job, progress: _Progress) -> Decision:
        """Decide; when nobody can serve but a neighbour that may is down, dial it and wait up to the connect limit."""
        decision = self._decide_now(job, progress)
        if decision.refusal == "no_capable_peer" and self._fleet.unheard():
            self._fleet.dial_now()
            decision = self._decide_now(job, progress)
            with trio.move_on_after(self._timeouts.connect):
                while decision.refusal and self._fleet.unheard():
                    await self._fleet.wait_change()
                    decision = self._decide_now(job, progress)
        progress.verdicts = list(decision.verdicts)
        self._chooser.note(job.request, job.policy, decision, time.time())
        return decision

    def _decide_now(self, job: Job, progress: _Progress) -> Decision:
        model, failed_here = job.request.model, self._fleet.peer_id in progress.failures
        local, peers = self._fleet.local_state(model), self._fleet.peer_states(model)
        decision = self._chooser.decide(job.request, job.policy, local, peers, failed_here=failed_here)
        if not progress.failures:
            return decision
        return _without_failed(job, decision, progress, self._fleet)

    def _refusal(self, job: Job, decision: Decision, progress: _Progress) -> AgentError:
        model = job.request.model
        if progress.failures:
            return self._exhausted(progress)
        problem = None if job.policy == "require" else self._fleet.local_problem(model)
        if problem is not None:
            problem.details["candidates"] = _candidates(decision)
            return problem
        if decision.refusal == "no_local_model":
            return NoLocalModelError(
                f"this box does not hold {model!r} and the request forbids asking another (X-Shoal-Offload: never)",
                details={"candidates": _candidates(decision)},
            )
        peers = self._fleet.peer_states(model)
        refusing = [peer.name for peer in peers if peer.refused and not peer.connected and peer.may_hold]
        others = any(peer.model is not None and peer.name not in refusing for peer in peers)
        if refusing and not others and not self._fleet.unheard():
            return RefusedByPeersError(
                f"{', '.join(refusing)} may hold {model!r} but refuses this box's key {self._fleet.peer_id}; an admin"
                " of that fleet has to let it in, with an invite or by allowing the key",
                details={"candidates": _candidates(decision)},
            )
        failed = [peer.name for peer in peers if peer.model is not None and peer.model.state == "failed"]
        if failed and not any(peer.model is not None and peer.model.state != "failed" for peer in peers):
            return ModelLoadError(
                f"{', '.join(failed)} should hold {model!r} but cannot load it; `shoal doctor` there says why",
                details={"candidates": _candidates(decision)},
            )
        known = self._fleet.known_models()
        held_somewhere = any(peer.model is not None for peer in peers)
        here = self._fleet.local_state(model).model is not None
        if known and not held_somewhere and not here and not self._fleet.unheard():
            return ModelNotFoundError(
                f"no box of this fleet holds {model!r}; it holds: {', '.join(known)}", details={"known": list(known)}
            )
        seen = "; ".join(f"{v.name}: {v.reason}" for v in decision.verdicts)
        return NoCapablePeerError(
            f"no box can serve {model!r} now ({seen}); see `shoal peers` and `shoal doctor`",
            details={"candidates": _candidates(decision)},
            retry_after=30,
        )

    def _exhausted(self, progress: _Progress) -> AgentError:
        """Nobody is left to try."""
        claim = failure.agreed(list(progress.failures.values()))
        if claim is not None and progress.routed is None:
            return claim
        tried = "; ".join(f"{self._name(peer)}: {f.reason}" for peer, f in progress.failures.items())
        details = {"tried": [{"peer_id": p, "reason": f.reason} for p, f in progress.failures.items()]}
        if progress.routed is not None:
            return InterruptedJobError(f"no box is left to go on with the text ({tried})", details=details)
        if any(f.overloaded for f in progress.failures.values()):
            after = max((f.retry_after or 1) for f in progress.failures.values())
            return OverloadedError(f"every box that could serve is busy ({tried})", details=details, retry_after=after)
        return PeerUnreachableError(
            f"the boxes that were asked failed before the first token ({tried})", details=details, retry_after=5
        )

    def _name(self, peer_id: str) -> str:
        if peer_id == self._fleet.peer_id:
            return self._fleet.name
        return next((p.name for p in self._fleet.peer_states("") if p.peer_id == peer_id), peer_id)


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


def _continued(request: InferRequest, progress: _Progress) -> InferRequest:
    """The request as it stands after the text so far: what exists is a prefix, and counts against max_tokens."""
    if not progress.tokens:
        return request
    sampling = request.sampling
    if sampling.max_tokens is not None:
        sampling = sampling.model_copy(update={"max_tokens": sampling.max_tokens - progress.tokens})
    return request.model_copy(update={"prefix": request.prefix + progress.text, "sampling": sampling})


def _without_failed(job: Job, decision: Decision, progress: _Progress, fleet: Neighbourhood) -> Decision:
    """The decision with boxes that failed this job taken out."""
    needed = max((f.needs_context or 0 for f in progress.failures.values()), default=0)
    held = {peer.peer_id: peer.model for peer in fleet.peer_states(job.request.model)}

    def too_small(peer_id: str) -> bool:
        model = held.get(peer_id)
        return model is not None and model.context_tokens <= needed

    def now(verdict: Verdict) -> Verdict:
        if verdict.peer_id in progress.failures:
            return replace(verdict, accepted=False, reason=progress.failures[verdict.peer_id].reason)
        if verdict.accepted and too_small(verdict.peer_id):
            return replace(verdict, accepted=False, reason="the prompt is longer than its context")
        return verdict

    order = tuple(peer for peer in decision.order if peer not in progress.failures and not too_small(peer))
    verdicts = tuple(now(verdict) for verdict in decision.verdicts)
    return Decision(order, verdicts, decision.refusal if order else decision.refusal or "no_capable_peer")


def _candidates(decision: Decision) -> list[dict[str, object]]:
    return [
        {"peer_id": v.peer_id, "name": v.name, "reason": v.reason, "decode_rate": v.decode_rate}
        for v in decision.verdicts
    ]
