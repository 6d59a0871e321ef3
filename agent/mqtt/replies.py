"""What is said about a job: accepted, delta, result, error, as JSON with `v` first. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from agent.errors import HTTP_STATUS, AgentError
from agent.jobs.job import Resumed, Routed
from agent.jobs.vectors import rows_of
from fleet.errors import FleetError, RemoteError
from fleet.net.messages import Embedded, Finished

Code = Literal[
    "no_capable_peer", "denied", "deadline", "cancelled", "interrupted", "engine", "overloaded", "bad_request"
]

#: Characters of an error's message: it can quote what a peer or a client sent.
MAX_MESSAGE: Final = 1024
#: Bytes of a result; the largest that a box takes in itself, too.
MAX_RESULT: Final = 1024 * 1024

#: Codes of this project as a client of MQTT sees them; what is not here is `engine`.
CODES: Final[Mapping[str, Code]] = {
    "bad_request": "bad_request",
    "context_length_exceeded": "bad_request",
    "no_vectors": "bad_request",
    "request_too_large": "bad_request",
    "idempotency_conflict": "bad_request",
    "no_capable_peer": "no_capable_peer",
    "no_local_model": "no_capable_peer",
    "model_not_found": "no_capable_peer",
    "peer_unreachable": "no_capable_peer",
    "loop_detected": "no_capable_peer",
    "denied": "denied",
    "refused": "denied",
    "unauthorized": "denied",
    "overloaded": "overloaded",
    "draining": "overloaded",
    "backlog": "overloaded",
    "deadline": "deadline",
    "request_timeout": "deadline",
    "peer_timeout": "deadline",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
}
#: Codes after which the same request may succeed, and after how many milliseconds where nothing better is known.
_RETRYABLE: Final[Mapping[str, int]] = {
    "no_capable_peer": 30_000,
    "deadline": 0,
    "interrupted": 0,
    "engine": 1000,
    "overloaded": 1000,
}


@dataclass(frozen=True)
class Problem:
    """An error as it is published. `retry_after_ms` is 0 for at once, or where it is of no use to try again."""

    code: Code
    message: str
    retryable: bool
    retry_after_ms: int = 0


def problem_of(error: BaseException) -> Problem | None:
    """The problem in an error that a client may see; None for one that is to be logged and hidden."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, RemoteError):
        code, retryable, after = error.remote_code, error.retryable, None
    elif isinstance(error, AgentError):
        code, retryable, after = error.code, error.retryable, error.retry_after
    elif isinstance(error, FleetError):
        code, retryable, after = "peer_unreachable", error.retryable, None
    else:
        return None
    if code == "internal" or (code not in HTTP_STATUS and code not in CODES):
        return None if isinstance(error, AgentError) else problem("engine", error.message)
    known = CODES.get(code, "engine")
    wait = after * 1000 if after is not None else _RETRYABLE.get(known, 0)
    retryable = retryable or known in ("no_capable_peer", "overloaded", "deadline")
    return Problem(known, error.message[:MAX_MESSAGE], retryable, wait if retryable else 0)


def problem(code: Code, message: str, retry_after_ms: int | None = None) -> Problem:
    """A problem that this side finds by itself."""
    wait = _RETRYABLE.get(code, 0) if retry_after_ms is None else retry_after_ms
    return Problem(code, message[:MAX_MESSAGE], code in _RETRYABLE, wait)


def accepted(job: str, by: str, model: str, queue: int, eta_ms: int) -> bytes:
    """The box `by` has the job, and `queue` jobs wait before it."""
    return _json({"v": 1, "job": job, "by": by, "model": model, "queue": queue, "eta_ms": eta_ms})


def delta(job: str, seq: int, text: str) -> bytes:
    """Some text of the answer; `seq` grows by one with each, so that one that is lost is missed."""
    return _json({"v": 1, "job": job, "seq": seq, "text": text})


def failed(job: str, found: Problem, last_seq: int | None = None) -> bytes:
    """The job has ended without a result; text up to the delta `last_seq` stands."""
    body: dict[str, Any] = {
        "v": 1,
        "job": job,
        "code": found.code,
        "message": found.message,
        "retryable": found.retryable,
        "retry_after_ms": found.retry_after_ms,
    }
    if last_seq is not None:
        body["last_seq"] = last_seq
    return _json(body)


@dataclass
class Answer:
    """A job's events, put together. Times are of the monotonic clock, in seconds."""

    began: float
    texts: list[str] = field(default_factory=list)
    vectors: list[Embedded] = field(default_factory=list)
    routed: Routed | None = None
    resumed_from: list[str] = field(default_factory=list)
    finished: Finished | None = None
    first_at: float | None = None
    #: Deltas that were published.
    deltas: int = 0

    def route(self, event: Routed | Resumed) -> None:
        """Where it runs."""
        if isinstance(event, Resumed):
            self.resumed_from.append(event.from_name)
            self.routed = event.routed
        else:
            self.routed = event

    def text(self) -> str:
        """What has been said."""
        return "".join(self.texts)

    def result(self, job: str, kind: str, now: float) -> bytes | None:
        """The result; None where it is larger than MAX_RESULT."""
        served, finished = self.routed, self.finished
        assert served is not None
        assert finished is not None
        if kind == "embedding":
            # Nine digits tell any two 32-bit floats apart.
            output: dict[str, Any] = {
                "vectors": [[float(f"{x:.9g}") for x in row] for part in self.vectors for row in rows_of(part)]
            }
        else:
            output = {"text": self.text(), "finish": finished.reason}
        first = self.first_at
        body = {
            "v": 1,
            "job": job,
            "status": "ok",
            "served_by": served.name,
            "model": served.model,
            "substituted": served.substituted is not None,
            "route": [_verdict(line) for line in served.route],
            "output": output,
            "usage": {"prompt_tokens": finished.prompt_tokens, "completion_tokens": finished.completion_tokens},
            "timing_ms": {
                "first_token": None if first is None else round((first - self.began) * 1000, 1),
                "prefill": round(finished.prefill_ms, 1),
                "decode": round(finished.decode_ms, 1),
                "total": round((now - self.began) * 1000, 1),
            },
        }
        if self.resumed_from:
            body["resumed_from"] = self.resumed_from
        found = _json(body)
        return found if len(found) <= MAX_RESULT else None

    @property
    def bulky(self) -> bool:
        """Whether vectors are so many that their JSON would be past MAX_RESULT; it is not made then."""
        return sum(len(part.data) for part in self.vectors) * 3 > MAX_RESULT


def _verdict(line: str) -> dict[str, str]:
    peer, _, verdict = line.partition("=")
    return {"peer": peer, "verdict": verdict}


def _json(value: Mapping[str, object]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def codes() -> Sequence[Code]:
    """Every code of an error."""
    return cast("Sequence[Code]", Code.__args__)  # type: ignore[attr-defined]  # a Literal has its values there
