"""The error tree of `agent`, and the one table that maps every error code to an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


class AgentError(Exception):
    """Base of every error raised by `agent`.

    `code` is stable (the API, the peer protocol and logs all show it), `message` names the remedy, `details` holds
    plain values for programs. `retry_after` is in seconds and is sent as Retry-After where it is not None.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, details: Mapping[str, object] | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})
        self.retry_after = retry_after


class ConfigError(AgentError):
    """The configuration cannot be used; the message gives file, line, key and the nearest valid key."""

    code = "config"


class BadRequestError(AgentError):
    """The request does not match the API; `details["param"]` names the field."""

    code = "bad_request"


class UnauthorizedError(AgentError):
    """The HTTP API key is missing or wrong."""

    code = "unauthorized"


class RequestTooLargeError(AgentError):
    """The HTTP body is past the limit; `details` has `limit_bytes`."""

    code = "request_too_large"


class ModelNotFoundError(AgentError):
    """No box that can be reached knows the model; the message lists those that are known."""

    code = "model_not_found"


class NoLocalModelError(AgentError):
    """Offloading was forbidden and this box does not hold the model."""

    code = "no_local_model"


class NoCapablePeerError(AgentError):
    """No box can serve the job now; `details["candidates"]` has every box that was considered and why not."""

    code = "no_capable_peer"


class PeerUnreachableError(AgentError):
    """Every peer that was tried died or went silent before its first token."""

    code = "peer_unreachable"
    retryable = True


class InterruptedJobError(AgentError):
    """The box that served the job failed after its first token; text already sent stands."""

    code = "interrupted"
    retryable = True


class LoopDetectedError(AgentError):
    """A job came back to a box that it had already passed through."""

    code = "loop_detected"


class PeerDeniedError(AgentError):
    """Every box that was asked says that this box's key may not have jobs run there; an admin of the fleet can."""

    code = "denied"


class RefusedByPeersError(AgentError):
    """Every box that could serve refuses this box's key at the handshake; `details["candidates"]` names them."""

    code = "refused"


class OverloadedError(AgentError):
    """The queue for the model is full; come back after `retry_after` seconds."""

    code = "overloaded"
    retryable = True


class DrainingError(AgentError):
    """This box is shutting down and takes no new jobs."""

    code = "draining"
    retryable = True


class DeadlineError(AgentError):
    """The job did not make it within one of its time-outs; `details["phase"]` is first_token, inter_token or total."""

    code = "deadline"
    retryable = True


class EngineError(AgentError):
    """The model's child process failed or reported an error it could not attribute to the request."""

    code = "engine"
    retryable = True


class ModelLoadError(EngineError):
    """The model file cannot be loaded; the message says why (truncated, not GGUF, too little memory...)."""

    code = "model_load"
    retryable = False


class ModelBusyError(AgentError):
    """The model has requests, running or waiting, and is not unloaded under them; ask again when they have ended."""

    code = "model_busy"
    retryable = True


class LastCopyError(AgentError):
    """No other box that is there holds the whole model: deleting it here would lose it, and has to be asked for by
    name. `details["models"]` has what is affected."""

    code = "last_copy"


class ModelPlacedError(AgentError):
    """A placement wants the model on this box, which would fetch it again; `details["placements"]` names them."""

    code = "model_placed"


class OtherFleetError(AgentError):
    """What was handed over belongs to another fleet than this box; `details` names both."""

    code = "other_fleet"


class IdempotencyError(AgentError):
    """An Idempotency-Key was sent before with another request."""

    code = "idempotency_conflict"


class ContextLengthError(AgentError):
    """The prompt does not fit: `details` has `prompt_tokens` and `context_tokens`."""

    code = "context_length_exceeded"


class NoVectorsError(AgentError):
    """The model runs on a server beside its box, which is not asked for vectors; another box may give them."""

    code = "no_vectors"


class ModelSourceError(AgentError):
    """A model cannot be brought in from where it was said to be: no such file, no model, too large, a server that does
    not give it. `keep` is whether what came of it is of use to the next try."""

    code = "model_source"

    def __init__(self, message: str, *, keep: bool = True) -> None:
        super().__init__(message)
        self.keep = keep


#: HTTP status of every code that can reach a client. Codes of `fleet` errors stand here too.
HTTP_STATUS: Final[Mapping[str, int]] = {
    "bad_request": 400,
    "refused_op": 400,
    "context_length_exceeded": 400,
    "no_vectors": 400,
    "unauthorized": 401,
    "denied": 403,
    "refused": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "other_fleet": 409,
    "model_busy": 409,
    "last_copy": 409,
    "model_placed": 409,
    "blob_busy": 409,
    "already_held": 409,
    "request_too_large": 413,
    "idempotency_conflict": 422,
    "model_source": 422,
    "blob_file": 422,
    "bad_manifest": 422,
    "missing_algorithm": 422,
    "overloaded": 429,
    "head_too_large": 431,
    "internal": 500,
    "engine": 500,
    "model_load": 500,
    "peer_unreachable": 502,
    "interrupted": 502,
    "no_capable_peer": 503,
    "no_local_model": 503,
    "draining": 503,
    "backlog": 503,
    "deadline": 504,
    "store": 507,
    "store_paused": 507,
    "no_space": 507,
    "peer_timeout": 504,
    "loop_detected": 508,
}


def http_status(code: str) -> int:
    """HTTP status for an error code; 500 for one that is not in the table."""
    return HTTP_STATUS.get(code, 500)
