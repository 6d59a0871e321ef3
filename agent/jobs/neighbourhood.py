"""What running a job needs to know of, and ask from, the rest of the fleet and this box's engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from agent.errors import ModelLoadError
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState
from fleet.net.messages import InferRequest


class Neighbourhood(Protocol):
    """The fleet as this box sees it."""

    @property
    def peer_id(self) -> str:
        """This box's PeerID."""

    @property
    def name(self) -> str:
        """This box's name."""

    def local_state(self, model: str) -> LocalState:
        """This box's own holding of a model."""

    def local_problem(self, model: str) -> ModelLoadError | None:
        """Why this box cannot load a model that it is configured to hold; None where it can, or is not."""

    def peer_states(self, model: str) -> Sequence[PeerState]:
        """Every peer this box has heard of or is configured to know."""

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
