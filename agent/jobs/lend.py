"""Serving a peer: its job runs in this box's engine and is never passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

import structlog
import trio

from agent.config import LendConfig, LendTermsConfig, TimeoutsConfig
from agent.errors import AgentError, ContextLengthError, EngineError, OverloadedError
from agent.hours import read_hours
from agent.jobs.active import ActiveJobs
from agent.jobs.lending import Lending, Terms
from agent.jobs.neighbourhood import Generate, Neighbourhood
from agent.jobs.watch import EngineEvent, hurried, patient, time_for_part, watched
from agent.log import bound_job
from fleet.errors import MessageError, PeerUnreachableError, RemoteError
from fleet.net.messages import Delta, Finished, InferRequest, Started, parse
from fleet.net.rpc import IncomingCall

#: Seconds after which a peer that was refused for the state of this box may ask again: CPU and memory pass quickly.
RETRY_AFTER: Final = 10

log = structlog.get_logger("shoal.jobs")


class Lender:
    """Handles the `infer` method of peers. `refusal` says why this box takes no jobs of others now, None if it does."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        generate: Generate,
        active: ActiveJobs,
        timeouts: TimeoutsConfig,
        refusal: Callable[[], str | None] = lambda: None,
        lending: Lending | None = None,
    ) -> None:
        self._fleet = neighbourhood
        self._generate = generate
        self._active = active
        self._timeouts = timeouts
        self._refusal = refusal
        self._lending = lending or Lending()

    async def handle(self, call: IncomingCall) -> Mapping[str, object]:
        """Run one job of a peer and stream its events back.

        Raises RemoteError with a code the asking box understands, and without a path or a stack. It is cancelled
        when the peer cancels or its link breaks, and generation stops with it.
        """
        request = parse(InferRequest, call.body)
        if self._fleet.peer_id in request.route or len(request.route) > 1:
            raise RemoteError("loop_detected", "the job has been forwarded already; a job is forwarded at most once")
        if request.route != (call.peer_id,):
            raise MessageError("InferRequest: route: must name the asking box and nobody else")
        with bound_job(request.job, request.traceparent):
            return await self._lend(call, request)

    async def _lend(self, call: IncomingCall, request: InferRequest) -> Mapping[str, object]:
        began, prompt, tokens, outcome = trio.current_time(), 0, 0, "failed"

        async def relay(event: EngineEvent) -> None:
            nonlocal tokens, prompt
            if isinstance(event, Delta):
                tokens += event.tokens
            elif isinstance(event, Started):
                prompt = event.prompt_tokens
            elif isinstance(event, Finished):
                prompt = max(prompt, event.prompt_tokens)
            await call.send(event.model_dump())  # not as JSON, which has no bytes

        try:
            with self._active.track():
                held = self._fleet.local_state(request.model).model
                if held is None:
                    outcome = "model_not_held"
                    raise RemoteError("model_not_held", f"this box does not hold {request.model!r}", retryable=True)
                denial = self._lending.ask(call.peer_id, trio.current_time(), datetime.now().astimezone())
                if denial is not None:
                    raise OverloadedError(denial.reason, retry_after=denial.retry_after)
                refusal = self._refusal()
                if refusal is not None:
                    raise OverloadedError(f"this box takes no jobs of others now: {refusal}", retry_after=RETRY_AFTER)
                log.info("job.lent", peer=call.peer_id, model=held.name)
                limits, asked = hurried(self._timeouts, request), patient(self._timeouts, request)
                part = time_for_part(self._timeouts, request)
                await watched(limits, lambda send: self._generate(held.hash, asked, send), relay, part=part)
                outcome = "ok"
                return {}
        except (trio.Cancelled, PeerUnreachableError):
            # A link that is cut shows as either, whichever comes first: nobody is there any more to answer.
            outcome = "cancelled"
            raise
        except AgentError as error:
            outcome = error.code
            raise _for_peer(error, self._fleet.name) from error
        finally:
            self._lending.used(call.peer_id, prompt + tokens, trio.current_time())
            log.info(
                "job.lent_end",
                peer=call.peer_id,
                outcome=outcome,
                tokens=tokens,
                seconds=round(trio.current_time() - began, 3),
            )


def lending_of(config: LendConfig) -> Lending:
    """What a configuration lends to whom."""
    quiet = read_hours(config.quiet_hours)
    own = {peer: _terms(terms) for peer, terms in config.boxes.items()}
    return Lending(config.enabled, quiet, _terms(config), own)


def _terms(config: LendTermsConfig) -> Terms:
    return Terms(config.requests_per_minute, config.tokens_per_day)


def _for_peer(error: AgentError, box: str) -> RemoteError:
    """What a peer may know of an error here. Engine errors may quote files, so their text stays on this box."""
    if isinstance(error, EngineError):
        return RemoteError(error.code, f"the model failed to run on {box}; its log says why", retryable=True)
    details = dict(error.details)
    if error.retry_after is not None:
        details["retry_after"] = error.retry_after
    if isinstance(error, ContextLengthError):
        details = {key: details[key] for key in ("prompt_tokens", "context_tokens") if key in details}
    return RemoteError(error.code, error.message, retryable=error.retryable, details=details)
