"""The deadlines of a running job: first token, between tokens, in total, and how long a client may refuse to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal

import trio

from agent.config import TimeoutsConfig
from agent.errors import DeadlineError
from agent.jobs import observation
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Started

EngineEvent = Started | Delta | Embedded | Finished
EngineEmit = Callable[[EngineEvent], Awaitable[None]]
Phase = Literal["first_token", "inter_token", "total", "client_stalled"]


#: Of the time to the first token, what a job may wait for its turn: the box that has it waiting has to say so before
#: those who asked take it for dead.
TURN: Final = 5 / 6
#: Bytes of text that have a first token's time to become vectors: with 30 s, a box that reads 34 tokens per second.
PART_BYTES: Final = 4096


def patient(timeouts: TimeoutsConfig, request: InferRequest) -> InferRequest:
    """The request with the time that it may wait for its turn, which is never more than whoever asked allows."""
    own = max(1, round(timeouts.first_token * TURN * 1000))
    return request.model_copy(update={"begin_ms": own if request.begin_ms is None else min(own, request.begin_ms)})


def time_for_part(timeouts: TimeoutsConfig, request: InferRequest) -> float:
    """Seconds from one event to the next of a box that has begun and makes vectors: it may read all texts at once."""
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in request.texts)
    return timeouts.first_token * (1 + size / PART_BYTES)


def hurried(timeouts: TimeoutsConfig, request: InferRequest) -> TimeoutsConfig:
    """The deadlines of a job, the client's own one among them."""
    if request.deadline_ms is None:
        return timeouts
    return timeouts.model_copy(update={"total": min(timeouts.total, request.deadline_ms / 1000)})


async def watched(
    timeouts: TimeoutsConfig,
    run: Callable[[EngineEmit], Awaitable[None]],
    emit: EngineEmit,
    *,
    part: float | None = None,
) -> None:
    """Run `run(relay)` and hold it to the job's deadlines; every event goes on to `emit`.

    Raises DeadlineError naming the phase after `run` has been cancelled, which frees the slot it held. Time that
    `emit` takes is not counted against the box that generates: it is the client's, and is bounded by the first-token
    limit of its own, so that a client that stopped reading does not hold a slot for ever. A run that goes on after
    its Finished is ended without an error once the time between tokens is over. The first token's time counts anew from
    Started. Vectors come as far apart as texts take: once the box has begun, each of their events has `part` seconds,
    the first token's time where that is None. Cancel-safe.
    """
    part = timeouts.first_token if part is None else part
    phase: Phase = "first_token"
    finished = False
    with trio.move_on_after(timeouts.total) as total, trio.move_on_after(timeouts.first_token) as gap:

        async def relay(event: EngineEvent) -> None:
            nonlocal phase, finished
            observation.note(event, trio.current_time())
            waiting, phase = phase, "client_stalled"
            gap.deadline = trio.current_time() + timeouts.first_token
            await emit(event)
            phase = "inter_token" if isinstance(event, Delta) else waiting
            gap.deadline = trio.current_time() + (timeouts.inter_token if phase == "inter_token" else part)
            if isinstance(event, Finished):
                finished = True
                gap.deadline = trio.current_time() + timeouts.inter_token

        await run(relay)
    if finished:
        return
    if total.cancelled_caught:
        raise DeadlineError(f"the job took longer than {timeouts.total:g} s in total", details={"phase": "total"})
    if gap.cancelled_caught:
        raise DeadlineError(_text(phase, timeouts, part), details={"phase": phase})


def _text(phase: Phase, timeouts: TimeoutsConfig, part: float) -> str:
    if phase == "client_stalled":
        return f"the client read nothing for {timeouts.first_token:g} s"
    if phase == "inter_token":
        return f"no token for {timeouts.inter_token:g} s"
    if part != timeouts.first_token:
        return f"no vectors within {part:g} s; send fewer texts at a time, or raise timeouts.first_token"
    return f"no first token within {timeouts.first_token:g} s"
