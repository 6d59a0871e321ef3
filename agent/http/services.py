"""What the HTTP face asks of the agent behind it; the composition root implements it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.errors import AgentError
from agent.jobs.job import Emit, Job
from fleet.document.op import Op
from fleet.document.replica import Outcome
from fleet.identity.genesis import Genesis


@dataclass(frozen=True)
class Holder:
    """A box that holds a model. `decode_rate` is in tokens per second, None until measured.

    `engine` and `url` are the kind and the address of the server that runs it there, empty where the box does so
    itself, and for other boxes. `memory_bytes` is what it was planned to take and `rss_bytes` what its process takes,
    on this box while it is loaded, else 0.
    """

    peer_id: str
    name: str
    local: bool
    state: str
    decode_rate: float | None
    engine: str = ""
    url: str = ""
    memory_bytes: int = 0
    rss_bytes: int = 0


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


class DocumentServices(Protocol):
    """The fleet document of one running agent."""

    def fleet_facts(self) -> Mapping[str, object] | None:
        """The fleet's name and id, admins, conflicts; None where this box belongs to no fleet."""

    def box_facts(self) -> Sequence[Mapping[str, object]]:
        """Every box of the fleet: what the document says of it, and what this box knows of its state."""

    def document(self, *, facts: bool) -> tuple[Genesis | None, Sequence[Op]]:
        """The genesis and the ops held; without `facts`, only what governs."""

    async def offer(self, genesis: Genesis | None, ops: Sequence[bytes]) -> Sequence[Outcome]:
        """Take ops in; with a genesis, make a box that has no fleet part of it. Raises FleetError."""

    async def join(self, token_text: str) -> Mapping[str, object]:
        """Join a fleet with a token; says whether it has worked, or is being tried again. Raises FleetError."""


class ModelServices(Protocol):
    """The models that one running agent runs itself. Both raise ModelNotFoundError for any other."""

    def unload(self, model: str) -> Mapping[str, object]:
        """Free a model's memory until it is asked for again. Raises ModelBusyError while it has requests."""

    def retry(self, model: str) -> Mapping[str, object]:
        """Let a model that failed be loaded again, at once or when it is asked for."""


class OrderServices(Protocol):
    """The store of models of one running agent. Orders raise AgentError or FleetError."""

    def catalogue(self) -> Mapping[str, object]:
        """Every model of the fleet, and what else is in the store."""

    def placements(self) -> Mapping[str, object]:
        """Every placement, where it falls and why, and what this box does about it."""

    def transfers(self) -> Mapping[str, object]:
        """What moves or is checked here."""

    async def add(self, source: str, algorithm: str) -> Mapping[str, object]:
        """Take a model in; gives the transfer that does it."""

    async def pull(self, name: str) -> Mapping[str, object]:
        """Keep a model here; gives how it stands."""

    async def verify(self, name: str) -> Mapping[str, object]:
        """Hash a model again; gives the transfer that does it."""

    async def remove(self, name: str, *, last: bool) -> Mapping[str, object]:
        """Delete this box's copy of a model."""

    async def collect(self, *, dry_run: bool, last: bool) -> Mapping[str, object]:
        """Delete what nothing wants here."""


class Services(DocumentServices, ModelServices, Protocol):
    """One running agent, as seen by the HTTP API."""

    @property
    def orders(self) -> OrderServices:
        """What an operator asks of its store of models."""

    def models(self) -> Sequence[ModelListing]:
        """Models held here or by a connected peer, one entry a hash."""

    def meant(self, asked: str) -> str:
        """The hash of what a request for this name would get, the name where that is nothing; raises FleetError."""

    def self_facts(self) -> Mapping[str, object]:
        """This box: identity, addresses, state, models, warnings, counters."""

    def peer_facts(self) -> Sequence[Mapping[str, object]]:
        """Every box this one is linked to, dials, or has heard."""

    def route_facts(self, job: str) -> Mapping[str, object] | None:
        """Why a job ran where it ran; None where nothing is remembered of it."""

    def readiness(self) -> Readiness:
        """Whether jobs are taken now."""

    def not_understood(self, job: str, error: AgentError) -> None:
        """Keep account of a request that became no job, under the id that its client was told."""

    def metrics(self) -> tuple[str, bytes]:
        """The page of metrics, with its content type."""

    def audit(self, asked: Mapping[str, str], *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Lines of the audit trail that match, some at a time; with `follow`, also those to come, without an end.

        Raises BadRequestError as the first lines are asked for.
        """

    async def leaderboard(self) -> Sequence[Mapping[str, object]]:
        """Who did how much for others, the most points first."""

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job, calling `emit` with each event in order; returns after its Finished.

        Raises AgentError or FleetError. Cancelling ends the job wherever it runs.
        """
