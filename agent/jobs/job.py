"""What a job is, and what happens to it as its client sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from agent.routing.decide import Policy
from fleet.models.substitution import Substitution
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Priority

OnInterrupt = Literal["error", "resume"]

POLICIES: tuple[Policy, ...] = ("never", "prefer", "require")
PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "bulk")


@dataclass(frozen=True)
class Job:
    """One request of a local client; `request.job` is the id in every log.

    `policy` is where it may run and `substitution` what may stand in for the model that it asks for; None for what is
    usual here (see agent.routing.habits).
    Jobs with the same `once` run once (see `agent.jobs.once`), as long as `fingerprint`, which says what is asked for,
    is the same too. Both are empty for a job that has no such key.
    """

    request: InferRequest
    policy: Policy | None = None
    on_interrupt: OnInterrupt = "error"
    substitution: Substitution | None = None
    once: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Substituted:
    """Another model ran than was asked for: `asked` is the request's own word, `differs` each difference in words."""

    asked: str
    ran: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Routed:
    """Where the job runs, known before its first token.

    `peer_id` and `name` are the box that serves; `route` is one line a candidate: `NAME=verdict`, in the order they
    were considered, the served one last. Of the chat `cut_messages` with `cut_tokens` were left out to make it fit.
    `repeats` is the id of the job whose answer this is, where an earlier request with the same key has run it.
    `substituted` says that `model` is another than was asked for.
    """

    peer_id: str
    name: str
    local: bool
    model: str
    model_hash: str
    prompt_tokens: int
    route: tuple[str, ...]
    cut_tokens: int = 0
    cut_messages: int = 0
    repeats: str = ""
    substituted: Substituted | None = None


@dataclass(frozen=True)
class Resumed:
    """The serving box failed in mid-stream and another continues the text, because the client opted in."""

    from_name: str
    routed: Routed


#: What a job's client sees, in order: Routed, then any number of Delta (and Resumed), or Embedded for every text, then
#: one Finished.
JobEvent = Routed | Resumed | Delta | Embedded | Finished

#: Called with each event; awaiting it is the backpressure. Raising or being cancelled ends the job everywhere.
Emit = Callable[[JobEvent], Awaitable[None]]
