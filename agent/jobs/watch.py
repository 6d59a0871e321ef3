"""The deadlines of a running job: first token, between tokens, in total, and how long a client may refuse to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from agent.config import TimeoutsConfig
from agent.errors import DeadlineError
from agent.jobs import observation
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Started

EngineEvent = Started | Delta | Embedded | Finished
EngineEmit = Callable[[EngineEvent], Awaitable[None]]
Phase = Literal["first_token", "inter_token", "total", "client_stalled"]


def hurried(timeouts: TimeoutsConfig, request: InferRequest) -> TimeoutsConfig:
    """The deadlines of a job, the client's own one among them."""
    if request.deadline_ms is None:
        return timeouts
    return timeouts.model_copy(update={"total": min(timeouts.total, request.deadline_ms / 1000)})


async def watched(timeouts: TimeoutsConfig, run: Callable[[EngineEmit], Awaitable[None]], emit: EngineEmit) -> None:
    """Run `run(relay)` and hold it to the job's deadlines; every event goes on to `emit`.

    Raises DeadlineError naming the phase after `run` has been cancelled, which frees the slot it held. Time that
    `emit` takes is not counted against the box that generates: it is the client's, and is bounded by the first-token
    limit of its own, so that a client that stopped reading does not hold a slot for ever. A run that goes on after
    its Finished is ended without an error once the time between tokens is over. Vectors come as far apart as prompts
    take, so each of their events has the first token's time. Cancel-safe.
    """
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
            gap.deadline = trio.current_time() + (
                timeouts.inter_token if phase == "inter_token" else timeouts.first_token
            )
            if isinstance(event, Finished):
                finished = True
                gap.deadline = trio.current_time() + timeouts.inter_token

        await run(relay)
    if finished:
        return
    if total.cancelled_caught:
        raise DeadlineError(f"the job took longer than {timeouts.total:g} s in total", details={"phase": "total"})
    if gap.cancelled_caught:
        raise DeadlineError(_text(phase, timeouts), details={"phase": phase})


def _text(phase: Phase, timeouts: TimeoutsConfig) -> str:
    if phase == "client_stalled":
        return f"the client read nothing for {timeouts.first_token:g} s"
    if phase == "inter_token":
        return f"no token for {timeouts.inter_token:g} s"
    return f"no first token within {timeouts.first_token:g} s"
