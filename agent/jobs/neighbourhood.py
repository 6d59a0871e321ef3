"""What running a job needs to know of, and ask from, the rest of the fleet and this box's engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.errors import ModelLoadError
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState, Policy
from fleet.models.choice import Choice
from fleet.models.substitution import Match, Substitution
from fleet.net.messages import InferRequest, ModelPresence


@dataclass(frozen=True)
class Survey:
    """What there is for one request at one moment: `choice` among all models that are known of, and what of it this box
    and every peer have.
    """

    choice: Choice
    local: LocalState
    peers: Sequence[PeerState]

    def held(self, peer_id: str) -> ModelPresence | None:
        """What a box has for the request, by its own word."""
        found = self._state(peer_id)
        return found.model if found else None

    def match(self, peer_id: str) -> Match | None:
        """How that fits what was asked for."""
        found = self._state(peer_id)
        return found.match if found else None

    def _state(self, peer_id: str) -> LocalState | PeerState | None:
        if peer_id == self.local.peer_id:
            return self.local
        return next((peer for peer in self.peers if peer.peer_id == peer_id), None)


class Neighbourhood(Protocol):
    """The fleet as this box sees it."""

    @property
    def peer_id(self) -> str:
        """This box's PeerID."""

    @property
    def name(self) -> str:
        """This box's name."""

    def survey(self, asked: str, substitution: Substitution | None) -> Survey:
        """What there is for a request: here, and at every peer this box has heard of or is configured to know.

        `substitution` is what the request allows, None for what this box does. Raises ModelNameError where `asked`
        names no model.
        """

    def policy(self, asked: Policy | None) -> Policy:
        """Where a request may run that says this; None is for one that does not say."""

    def local_state(self, model: str) -> LocalState:
        """This box's own holding of the model with exactly this hash or name."""

    def local_problem(self, model: str) -> ModelLoadError | None:
        """Why this box cannot load a model that it is configured to hold; None where it can, or is not."""

    def known_models(self) -> Sequence[str]:
        """Names of all models that this box or a connected peer holds."""

    def unheard(self) -> Sequence[str]:
        """Names of neighbours that are down, may come up, and may hold more than is known."""

    def dial_now(self) -> None:
        """Dial neighbours that are down without waiting for their turn."""

    async def wait_change(self) -> None:
        """Return when a peer comes, goes or changes what it holds."""

    async def infer(self, peer_id: str, request: InferRequest, emit: EngineEmit) -> None:
        """Run a request on a peer. Raises RemoteError or PeerUnreachableError; cancelling it stops the peer."""


#: Runs a request in this box's engine; raises AgentError. `(model hash, request, emit)`.
Generate = Callable[[str, InferRequest, EngineEmit], Awaitable[None]]
