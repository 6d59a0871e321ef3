"""The answer to what is no HTTP request: the same JSON error object as everywhere, where hypercorn sends none."""

from __future__ import annotations

from typing import Final

import h11
from hypercorn import protocol
from hypercorn.protocol.h11 import H11Protocol

from agent.errors import AgentError, BadRequestError
from agent.http.errors import HeadTooLargeError, problem_of
from agent.http.sse import encode_json

#: Bytes of the head of a request: its first line and its headers.
MAX_HEAD: Final = 32 * 1024


def head_too_large() -> HeadTooLargeError:
    """The refusal of a head past MAX_HEAD."""
    return HeadTooLargeError(
        f"the head of the request is larger than the limit of {MAX_HEAD} bytes (32 KiB)",
        details={"limit_bytes": MAX_HEAD},
    )


class TalkingProtocol(H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 as hypercorn 0.18 speaks it, but for the bodies of its own refusals, which are empty there
    (protocol/h11.py, _send_error_response)."""

    async def _send_error_response(self, status_code: int) -> None:
        error: AgentError = BadRequestError(
            "this is not a valid HTTP/1.1 request: it needs a Host, at most one Content-Length that is a number, and"
            " chunks of the length they announce"
        )
        if status_code == 431:
            error = head_too_large()
        problem = problem_of(error)
        if problem is None:
            raise AssertionError(f"{error.code} has no status")
        body = encode_json(problem.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=problem.status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


def install() -> None:
    """Make hypercorn use it. Idempotent; concerns the whole process."""
    protocol.H11Protocol = TalkingProtocol
