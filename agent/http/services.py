"""What the HTTP side needs from a running agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.jobs.job import Emit, Job


@dataclass(frozen=True)
class Holder:
    """A box that holds a model. `decode_rate` is tokens per second, None until measured."""

    peer_id: str
    name: str
    local: bool
    state: str
    decode_rate: float | None


@dataclass(frozen=True)
class ModelListing:
    """A model that can be asked for here, and every box that is known to hold it."""

    name: str
    hash: str
    context_tokens: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class Readiness:
    """Whether this box takes requests, and if not, why."""

    ready: bool
    reasons: tuple[str, ...]


class Services(Protocol):
    """The agent as seen from HTTP; all but `run` return at once."""

    def models(self) -> Sequence[ModelListing]:
        """Every model held here or by a connected peer."""

    def self_facts(self) -> Mapping[str, object]:
        """This box, as `/v1/fleet/self` shows it."""

    def peer_facts(self) -> Sequence[Mapping[str, object]]:
        """The other boxes, as `/v1/fleet/peers` shows them."""

    def readiness(self) -> Readiness:
        """What `/readyz` answers."""

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job; raises AgentError or FleetError, and stops when it is cancelled."""
