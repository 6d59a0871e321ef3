"""How an error looks to an HTTP client: a status, headers, and the OpenAI error object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.errors import HTTP_STATUS, AgentError, http_status
from fleet.errors import FleetError, RemoteError

#: A message can quote what a peer or a client sent; past this it is cut, in characters.
MAX_MESSAGE: Final = 4096


class NotFoundError(AgentError):
    """No such path in the API; the message lists those there are."""

    code = "not_found"


class MethodNotAllowedError(AgentError):
    """The path exists, for other methods."""

    code = "method_not_allowed"


class ForbiddenError(AgentError):
    """The request comes from where it must not: a foreign web page, or under a name that is not this box's."""

    code = "denied"


class RequestTimeoutError(AgentError):
    """The client did not send its whole request in time; nothing was run."""

    code = "request_timeout"


class HeadTooLargeError(AgentError):
    """The first line and the headers of the request are past the limit; `details` has `limit_bytes`."""

    code = "head_too_large"


@dataclass(frozen=True)
class Problem:
    """An error as it goes out. `retry_after` is in seconds."""

    status: int
    code: str
    message: str
    param: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    retry_after: int | None = None
    retryable: bool = True

    def body(self, extra_details: Mapping[str, object] | None = None) -> dict[str, object]:
        """The JSON body, as OpenAI shapes it, with `details` added where there are any."""
        error: dict[str, object] = {
            "message": self.message,
            "type": _type(self.status),
            "param": self.param,
            "code": self.code,
        }
        details = {**self.details, **(extra_details or {})}
        if details:
            error["details"] = details
        return {"error": error}

    def headers(self) -> list[tuple[str, str]]:
        """Headers that belong to this error."""
        headers = []
        if self.retry_after is not None:
            headers.append(("retry-after", str(self.retry_after)))
        if self.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        if self.status >= 500 and not self.retryable and self.retry_after is None:
            # The openai clients send again by themselves after any 5xx unless told that it is useless.
            headers.append(("x-should-retry", "false"))
        return headers


def problem_of(error: BaseException) -> Problem | None:
    """The Problem for an error that a client may see; None for one that must be logged and hidden."""
    leaf = _only_leaf(error)
    if isinstance(leaf, AgentError):
        if leaf.code not in HTTP_STATUS or leaf.code == "internal":
            return None
        details = dict(leaf.details)
        param = details.pop("param", None)
        return Problem(
            http_status(leaf.code),
            leaf.code,
            leaf.message[:MAX_MESSAGE],
            param if isinstance(param, str) else None,
            details,
            leaf.retry_after,
            leaf.retryable,
        )
    if isinstance(leaf, FleetError):
        code = leaf.remote_code if isinstance(leaf, RemoteError) else leaf.code
        if code not in HTTP_STATUS or code == "internal":
            code = "peer_unreachable"
        return Problem(http_status(code), code, leaf.message[:MAX_MESSAGE], None, leaf.details, None, leaf.retryable)
    return None


def internal(job: str | None) -> Problem:
    """What a client sees of an unexpected error: nothing of the inside, only what to look for in the log."""
    where = f"look for job {job} in this box's log" if job else "see this box's log"
    details = {"job": job} if job else {}
    return Problem(500, "internal", f"the agent failed unexpectedly; {where}", None, details, None, False)


def _only_leaf(error: BaseException) -> BaseException:
    leaves = list(_leaves(error))
    return leaves[0] if len(leaves) == 1 else error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"
