"""What the failure of one attempt means for its job: whose fault, whether another box may be asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    LoopDetectedError,
    OverloadedError,
)
from fleet.errors import FleetError, FrameError, RemoteError

#: A busy box that asks for more patience than a day (seconds) is not believed.
MAX_RETRY_AFTER: Final = 86_400


@dataclass(frozen=True)
class Failure:
    """One attempt's end. `reason` fits a header; `final` is the error to raise at once, None if others may be asked."""

    reason: str
    overloaded: bool = False
    retry_after: int | None = None
    final: AgentError | None = None


def of_peer(error: FleetError) -> Failure:
    """Classify what calling a peer raised."""
    if isinstance(error, FrameError):
        # Our own encoder refused it: no other box would get it either.
        return Failure("too large to send", final=BadRequestError(error.message, details=error.details))
    if not isinstance(error, RemoteError):
        return Failure(error.message)
    match error.remote_code:
        case "bad_request":
            return Failure("bad request", final=BadRequestError(error.message, details=error.details))
        case "context_length_exceeded":
            return Failure("context exceeded", final=ContextLengthError(error.message, details=error.details))
        case "loop_detected":
            return Failure("loop", final=LoopDetectedError(error.message, details=error.details))
        case "overloaded":
            after = error.details.get("retry_after")
            # It becomes a header of this box's own answer, so it is held to what one may say.
            known = after if type(after) is int and 0 <= after <= MAX_RETRY_AFTER else None
            return Failure("overloaded", overloaded=True, retry_after=known)
        case code:
            return Failure(f"{code}: {error.message}")


def of_local(error: AgentError) -> Failure:
    """Classify what this box's own engine raised; only its own trouble is worth asking another box."""
    if isinstance(error, OverloadedError):
        return Failure("overloaded", overloaded=True, retry_after=error.retry_after)
    if isinstance(error, DeadlineError) and error.details.get("phase") in ("total", "client_stalled"):
        return Failure(error.message, final=error)
    if isinstance(error, EngineError | DeadlineError):
        return Failure(f"{error.code}: {error.message}")
    return Failure(error.code, final=error)
