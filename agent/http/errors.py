"""Errors as OpenAI clients expect them: one JSON shape, one status a code, nothing internal."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from agent.errors import AgentError, http_status
from fleet.errors import FleetError

Failure = AgentError | FleetError


def error_body(failure: Failure, **more: object) -> dict[str, object]:
    """`{"error": {...}}`; `more` joins the details."""
    status = http_status(failure.code)
    details = {**failure.details, **more}
    return {
        "error": {
            "message": failure.message,
            "type": _type_of(status),
            "param": details.pop("param", None),
            "code": failure.code,
            "details": details,
        }
    }


def error_response(failure: Failure, headers: Mapping[str, str] | None = None, **more: object) -> JSONResponse:
    """The response for an error that happened before anything was sent; Retry-After where the error has one."""
    all_headers = dict(headers or {})
    retry_after = getattr(failure, "retry_after", None)
    if retry_after is not None:
        all_headers["Retry-After"] = str(retry_after)
    if failure.code == "unauthorized":
        all_headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(failure, **more), status_code=http_status(failure.code), headers=all_headers)


def _type_of(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"
