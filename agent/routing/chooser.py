"""Decides for one box, with what it remembers of its jobs: who had which conversation, why each went where. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from agent.config import RoutingConfig
from agent.routing.conversations import Conversations
from agent.routing.decide import Ask, Decision, LocalState, PeerState, Policy, Rules, decide
from agent.routing.explain import RouteLog
from fleet.net.messages import InferRequest

#: Bytes of a prompt that make a token, and tokens that a message's turn takes, for estimates.
_BYTES_PER_TOKEN: Final = 4
_TOKENS_PER_MESSAGE: Final = 8
#: Tokens that an answer is taken to have at most, where it may have more or says nothing.
_ANSWER: Final = 256


def rules_of(config: RoutingConfig) -> Rules:
    """The rules that a configuration sets."""
    return Rules(config.threshold, config.borrow_only_below, config.silent_after)


class Chooser:
    """Where jobs of this box's clients run. `routes` says why they went there."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules: Final = rules or Rules()
        self.routes: Final = RouteLog()
        self._conversations = Conversations()

    def decide(
        self,
        request: InferRequest,
        policy: Policy,
        local: LocalState,
        peers: Sequence[PeerState],
        *,
        failed_here: bool = False,
        owner: str = "",
    ) -> Decision:
        """Decide about a job; nothing is remembered of it. With `failed_here`, this box has tried and cannot."""
        remembered_by = self._conversations.last(owner, request.session, request.model)
        ask = Ask(policy, expected_tokens(request), remembered_by, spread=local.peer_id)
        return decide(ask, replace(local, model=None) if failed_here else local, peers, self.rules)

    def note(self, request: InferRequest, policy: Policy, decision: Decision, now: float) -> None:
        """This is what will be done about a job. `now` is seconds since the epoch."""
        self.routes.note(request.job, request.model, policy, decision, now)

    def note_served(self, request: InferRequest, peer_id: str, owner: str = "") -> None:
        """A box has served a job to its end: it has the conversation's cells."""
        self.routes.note_served(request.job, peer_id)
        self._conversations.note(owner, request.session, request.model, peer_id)


def expected_tokens(request: InferRequest) -> int:
    """About how many tokens the prompt and the answer of a request have; of texts for vectors, the longest counts."""
    if request.kind == "embedding":
        return max(len(text) for text in request.texts) // _BYTES_PER_TOKEN
    size = len(request.prompt) + len(request.prefix) + len(request.tools)
    size += sum(len(message.content) for message in request.messages)
    answer = min(_ANSWER, request.sampling.max_tokens or _ANSWER)
    return size // _BYTES_PER_TOKEN + len(request.messages) * _TOKENS_PER_MESSAGE + answer
