"""What the HTTP face asks of the agent behind it; the composition root implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.jobs.job import Emit, Job


@dataclass(frozen=True)
class Holder:
    """A box that holds a model. `decode_rate` is in tokens per second, None until measured."""

    peer_id: str
    name: str
    local: bool
    state: str
    decode_rate: float | None


@dataclass(frozen=True)
class ModelListing:
    """One model that can be asked for, by content hash, with every box that holds it."""

    name: str
    hash: str
    context_tokens: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class Readiness:
    """Whether the box takes jobs now, and if not, every reason in words."""

    ready: bool
    reasons: tuple[str, ...]


class Services(Protocol):
    """One running agent, as seen by the HTTP API."""

    def models(self) -> Sequence[ModelListing]:
        """Models held here or by a connected peer, one entry a hash."""

    def self_facts(self) -> Mapping[str, object]:
        """This box: identity, addresses, state, models, warnings, counters."""

    def peer_facts(self) -> Sequence[Mapping[str, object]]:
        """Every box this one is linked to, dials, or has heard."""

    def readiness(self) -> Readiness:
        """Whether jobs are taken now."""

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job, calling `emit` with each event in order; returns after its Finished.

        Raises AgentError or FleetError. Cancelling ends the job wherever it runs.
        """
