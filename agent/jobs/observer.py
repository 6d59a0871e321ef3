"""Around every job, on both sides: its trace, its times, and what became of it, told to whoever keeps account.

What is told is told once a job, however it ends: well, with an error, refused, or cut by its client or peer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from agent.errors import AgentError, IdempotencyError
from agent.jobs.job import Emit, Job, JobEvent
from agent.jobs.observation import Observation, watching
from agent.jobs.outcome import Outcome, ending_of
from fleet.errors import FleetError, PeerUnreachableError, RemoteError
from fleet.net.messages import METHOD_INFER
from fleet.net.rpc import Handler, IncomingCall

#: Told of every job's end, with the seconds between its tokens. It must neither block nor raise.
Sink = Callable[[Outcome, Observation], None]
Run = Callable[[Job, Emit], Awaitable[None]]


class Observer:
    """Watches jobs and tells the sinks. `name_of(peer_id)` is what people call a box."""

    def __init__(
        self,
        name_of: Callable[[str], str],
        sinks: Sequence[Sink],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name_of = name_of
        self._sinks = tuple(sinks)
        self._wall = wall

    def asking(self, run: Run) -> Run:
        """A way to run a client's job that is watched; see `ask`."""

        async def ask(job: Job, emit: Emit) -> None:
            await self.ask(run, job, emit)

        return ask

    async def follow(self, run: Run, job: Job, emit: Emit) -> None:
        """Run a client's job by way of `run`, which hands out what is known of one that was sent before.

        The run itself is told by `ask`, once; this tells of those who only repeat it, or are refused for their key.
        """
        if not job.once:
            await run(job, emit)
            return
        seen = Observation.asked_here(job.request, trio.current_time())

        async def relay(event: JobEvent) -> None:
            seen.take(event, trio.current_time())
            await emit(event)

        try:
            await run(job, relay)
        except BaseException as error:
            if seen.repeats or isinstance(error, IdempotencyError):
                self._broke(seen, error)
            raise
        if seen.repeats:
            self._ended(seen, seen.end("ok", trio.current_time(), self._wall(), name=self._name(seen)))

    async def ask(self, run: Run, job: Job, emit: Emit) -> None:
        """Run a client's job, with a span of this box's own in the trace it came with. Raises what `run` raises."""
        seen = Observation.asked_here(job.request, trio.current_time())
        request = job.request.model_copy(update={"traceparent": str(seen.span)})

        async def relay(event: JobEvent) -> None:
            seen.take(event, trio.current_time())
            await emit(event)

        before = watching(seen)
        try:
            await run(replace(job, request=request), relay)
        except BaseException as error:
            self._broke(seen, error)
            raise
        else:
            self._ended(seen, seen.end("ok", trio.current_time(), self._wall(), name=self._name(seen)))
        finally:
            watching(before)

    def lend(self, handler: Handler) -> Handler:
        """A handler of a peer's jobs that is watched; a span of this box's own takes the place of the peer's."""

        async def serve(call: IncomingCall) -> Mapping[str, object]:
            seen = Observation.asked_by(call.peer_id, call.body, trio.current_time())
            before = watching(seen)
            try:
                answer = await handler(_traced(call, seen))
            except BaseException as error:
                self._broke(seen, error)
                raise
            else:
                self._ended(seen, seen.end("ok", trio.current_time(), self._wall(), name=self._name(seen)))
                return answer
            finally:
                watching(before)

        return serve

    def turned_away(self, peer_id: str, method: str, body: object, error: FleetError) -> None:
        """A peer's call that was refused before its handler was asked."""
        if method == METHOD_INFER:
            self._broke(Observation.asked_by(peer_id, body, trio.current_time()), error)

    def not_understood(self, job: str, error: AgentError) -> None:
        """A client's request that became no job."""
        now = trio.current_time()
        self._broke(Observation("asker", now, job=job, kind="", asked="", peer="", parent=None), error)

    def _broke(self, seen: Observation, error: BaseException) -> None:
        code, phase = _code_of(error), None
        if isinstance(error, AgentError):
            phase = error.details.get("phase")
        gone = seen.role == "lender" and isinstance(error, PeerUnreachableError)
        ended = "cancelled" if gone or not code else ending_of(code, seen.tokens)
        code = "" if ended == "cancelled" else code
        now, at = trio.current_time(), self._wall()
        self._ended(seen, seen.end(ended, now, at, code=code, phase=phase, name=self._name(seen)))

    def _ended(self, seen: Observation, outcome: Outcome) -> None:
        for sink in self._sinks:
            sink(outcome, seen)

    def _name(self, seen: Observation) -> str:
        return self._name_of(seen.peer) if seen.peer else ""


@dataclass(frozen=True)
class _Traced:
    """A peer's call with the trace as it goes on here."""

    peer_id: str
    body: object
    _call: IncomingCall

    async def send(self, event: Mapping[str, object]) -> None:
        await self._call.send(event)


def _traced(call: IncomingCall, seen: Observation) -> IncomingCall:
    body = call.body
    if isinstance(body, dict):
        body = {**body, "traceparent": str(seen.span)}
    return _Traced(call.peer_id, body, call)


def _code_of(error: BaseException) -> str:
    """The error's code; empty where the job was cancelled, and nothing else happened."""
    if isinstance(error, RemoteError):
        return error.remote_code
    if isinstance(error, AgentError | FleetError):
        return error.code
    if isinstance(error, BaseExceptionGroup):
        codes = [code for code in map(_code_of, error.exceptions) if code]
        return codes[0] if codes else ""
    return "internal" if isinstance(error, Exception) else ""
