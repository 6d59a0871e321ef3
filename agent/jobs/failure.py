"""What the failure of one attempt means for its job: whose fault, whether another box may be asked. Pure.

This box has checked a request before it asks anybody, so what a peer says against it may be that peer's mistake, or a
lie. No peer's word ends a job as long as another box may be asked:

| the peer says                     | it counts as         | and if every box that was asked says the same        |
|-----------------------------------|----------------------|------------------------------------------------------|
| overloaded, at once               | busy                 | 429 `overloaded`                                     |
| overloaded, after LATE_REFUSAL    | that peer's failure  | 429 `overloaded`                                     |
| bad_request                       | that peer's failure  | 400 `bad_request`: a model's template may refuse     |
| context_length_exceeded, credible | its context is small | 400 `context_length_exceeded`, with both numbers         |
| context_length_exceeded, else     | that peer's failure  | 502 `peer_unreachable`                               |
| loop_detected                     | that peer's failure  | 508 `loop_detected`                                  |
| model_load                        | that peer's failure  | 500 `model_load`                                     |
| denied                            | that peer's failure  | 403 `denied`                                         |
| no_vectors                        | that peer's failure  | 400 `no_vectors`                                     |
| any other code, known or not      | that peer's failure  | 502 `peer_unreachable`                               |

It is credible that a prompt does not fit if the context is the one that the peer advertises and if the text that was
sent can have that many tokens; boxes with no larger context are then not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    DeadlineError,
    DrainingError,
    EngineError,
    LoopDetectedError,
    ModelLoadError,
    NoVectorsError,
    OverloadedError,
    PeerDeniedError,
)
from fleet.errors import FleetError, FrameError, PeerUnreachableError, RemoteError
from fleet.net.messages import InferRequest, ModelPresence

#: A busy box that asks for more patience than a day (seconds), or would take longer, is not believed.
MAX_RETRY_AFTER: Final = 86_400
#: A box knows at once whether it is busy. One that says so only after these seconds has taken them from the job, and
#: a few like it would take all the time that the job has.
LATE_REFUSAL: Final = 5.0
#: Claims that say something of the box, and not of the request.
_OF_THE_BOX: Final = ("model_load", "denied")
#: Characters of a field's name, and of a reason that goes into a header.
_MAX_PARAM: Final = 64
_MAX_REASON: Final = 200
#: No tokenizer makes more tokens of a byte; a normaliser may make several characters of one first.
_TOKENS_PER_BYTE: Final = 4
#: What a chat template may add to each message, and to the whole.
_TOKENS_PER_MESSAGE: Final = 64
_TOKENS_BESIDE: Final = 1024

#: Codes of peers that become the job's own error where all agree on them.
_CLAIMS: Final[Mapping[str, type[AgentError]]] = {
    "bad_request": BadRequestError,
    "loop_detected": LoopDetectedError,
    "model_load": ModelLoadError,
    "denied": PeerDeniedError,
    "no_vectors": NoVectorsError,
}


@dataclass(frozen=True)
class Failure:
    """One attempt's end.

    `reason` fits a header. `eta_s` is in how many seconds a box that is `overloaded` would have been done, by its word,
    where it says so and that can be. `final` is the error to raise at once, None if others may be asked. `claim` is the
    error to raise if all that were asked claim the same. `needs_context`: the prompt has so many tokens, so boxes whose
    context has no more are not asked. `code` is the error's; a peer may send any text of up to 64 characters as one.
    `gone`: the box did not do anything wrong, it was not there any more. `late`: it said only after a while that it is
    busy. `known`: it said so to another job just now, and was not asked.
    """

    reason: str
    overloaded: bool = False
    late: bool = False
    known: bool = False
    retry_after: int | None = None
    eta_s: float | None = None
    final: AgentError | None = None
    claim: AgentError | None = None
    needs_context: int | None = None
    code: str = ""
    gone: bool = False

    @property
    def of_the_box(self) -> bool:
        """Whether the box itself is to blame, and may be left alone if it goes on like that."""
        blamed = self.claim is None or self.claim.code in _OF_THE_BOX
        return blamed and (self.late or not self.overloaded) and self.final is None


def of_peer(error: FleetError, request: InferRequest, held: ModelPresence | None, *, after: float = 0.0) -> Failure:
    """Classify what asking a peer for `request` raised `after` so many seconds.

    `held` is its holding of the model as it advertised it.
    """
    code = error.remote_code if isinstance(error, RemoteError) else error.code
    gone = isinstance(error, PeerUnreachableError) or code == DrainingError.code
    found = _of_peer(error, request, held)
    return replace(found, code=code, gone=gone, late=found.overloaded and after > LATE_REFUSAL)


def _of_peer(error: FleetError, request: InferRequest, held: ModelPresence | None) -> Failure:
    if isinstance(error, FrameError):
        # Our own encoder refused it: no other box would get it either.
        return Failure("too large to send", final=BadRequestError(error.message, details=error.details))
    if not isinstance(error, RemoteError):
        return Failure(error.message[:_MAX_REASON])
    code, reason = error.remote_code, f"{error.remote_code}: {error.message}"[:_MAX_REASON]
    if code == "overloaded":
        after = error.details.get("retry_after")
        # It becomes a header of this box's own answer, so it is held to what one may say.
        known = after if type(after) is int and 0 <= after <= MAX_RETRY_AFTER else None
        return Failure(reason, overloaded=True, retry_after=known, eta_s=_seconds(error.details.get("eta_s")))
    if code == "context_length_exceeded":
        credible = _credible_prompt(error.details, request, held)
        if credible is None:
            return Failure(reason)
        tokens, context = credible
        words = f"the prompt has {tokens} tokens and the model's context {context}; shorten the prompt"
        if request.kind == "embedding":
            words = f"an input has {tokens} tokens, and vectors are of at most {context}; split it"
        claim = ContextLengthError(words, details={"prompt_tokens": tokens, "context_tokens": context})
        return Failure("context exceeded", claim=claim, needs_context=tokens)
    kind = _CLAIMS.get(code)
    if kind is None:
        return Failure(reason)
    return Failure(reason, claim=kind(error.message, details=_details(code, error.details)))


def of_local(error: AgentError, *, here: bool) -> Failure:
    """Classify what this box raised while the job ran `here`, in its own engine, or waited for a peer.

    Only its engine's own trouble or lack, or a peer that is silent, is worth asking another box.
    """
    return replace(_of_local(error, here=here), code=error.code)


def _of_local(error: AgentError, *, here: bool) -> Failure:
    if isinstance(error, OverloadedError):
        reason, eta = f"{error.code}: {error.message}"[:_MAX_REASON], _seconds(error.details.get("eta_s"))
        return Failure(reason, overloaded=True, retry_after=error.retry_after, eta_s=eta)
    if isinstance(error, DeadlineError) and error.details.get("phase") in ("total", "client_stalled"):
        return Failure(error.message, final=error)
    if isinstance(error, EngineError | DeadlineError | NoVectorsError):
        return Failure(f"{error.code}: {error.message}"[:_MAX_REASON], claim=error if here else None)
    return Failure(error.code, final=error)


def agreed(failures: Sequence[Failure]) -> AgentError | None:
    """The error that every attempt claims; None where one says something else. The last one's words are taken."""
    claims = [failure.claim for failure in failures]
    if not claims or len({claim.code if claim else "" for claim in claims}) > 1:
        return None
    return claims[-1]


def most_prompt_tokens(request: InferRequest) -> int:
    """How many tokens the prompt of a request can have at the very most, whatever the model."""
    texts = [*request.texts, request.prompt, request.prefix, request.tools]
    texts += [message.content for message in request.messages]
    texts += [call.arguments for message in request.messages for call in message.tool_calls]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    many = len(request.messages) + len(request.texts)
    return size * _TOKENS_PER_BYTE + many * _TOKENS_PER_MESSAGE + _TOKENS_BESIDE


def _credible_prompt(
    details: Mapping[str, object], request: InferRequest, held: ModelPresence | None
) -> tuple[int, int] | None:
    """The tokens of the prompt and of the context, where a peer's refusal agrees with what it advertises and was sent.

    Vectors may be of fewer tokens than the context has: a text is pooled within one step.
    """
    tokens, context = details.get("prompt_tokens"), details.get("context_tokens")
    if type(tokens) is not int or type(context) is not int or held is None:
        return None
    least = 1 if request.kind == "embedding" else held.context_tokens
    if not least <= context <= held.context_tokens:
        return None
    return (tokens, context) if context <= tokens <= most_prompt_tokens(request) else None


def _seconds(value: object) -> float | None:
    """What a box says of how long a job would take there; None where that is no number of seconds up to a day."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_RETRY_AFTER
    return round(float(value), 1) if known else None  # type: ignore[arg-type]  # narrowed by the line above


def _details(code: str, details: Mapping[str, object]) -> dict[str, object]:
    """Of what a peer adds to its refusal, the one thing that a client of this box may be told: the field's name."""
    param = details.get("param")
    return {"param": param[:_MAX_PARAM]} if code == "bad_request" and isinstance(param, str) else {}
