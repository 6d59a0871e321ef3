"""What became of one job, as a box writes it down: one record, one line of JSON. Pure.

No text of a prompt or an answer is in it, and no message of an error either: a box that has seen the prompt could put
it into one. Errors are told by their codes, and codes that this version does not know become `other`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from agent.errors import HTTP_STATUS

Role = Literal["asker", "lender", "box"]
Ending = Literal["ok", "error", "cancelled", "refused", "lost"]
Route = Literal["local", "peer", "none"]

#: Codes that boxes use between them, besides those of the API.
_BETWEEN_BOXES: Final = frozenset({"bad_answer", "bad_frame", "config", "fleet", "identity", "model_not_held"})
_CODES: Final = frozenset(HTTP_STATUS) | _BETWEEN_BOXES
#: Codes that say that a job was not taken on. Where none of its tokens came, that is a refusal, and not a failure.
_REFUSALS: Final = frozenset(
    {
        "bad_request",
        "context_length_exceeded",
        "denied",
        "draining",
        "idempotency_conflict",
        "loop_detected",
        "model_not_found",
        "model_not_held",
        "no_capable_peer",
        "no_local_model",
        "no_vectors",
        "overloaded",
        "refused",
        "request_timeout",
        "request_too_large",
    }
)
_PHASES: Final = frozenset({"connect", "first_token", "inter_token", "total", "client_stalled", "queue"})
MAX_TRIED: Final = 8


@dataclass(frozen=True)
class Outcome:
    """What became of a job on this box.

    `role` is the part that this box had in it: it asked for its own client, or lent to a peer. `peer` is the other box:
    the one that served where it is another, or the one that asked; empty where there is none. `asked` is the model as
    it was asked for, `model` and `hash` what ran. `tried` has boxes that failed the job before, as (PeerID, code);
    `repeats` is the job that ran, where this one was only given its answer again. Times are milliseconds of a monotonic
    clock from when this box took the job: until a box began with it, until the first token, until the end; None for
    what was not reached. `at` is the end, in seconds since the epoch.

    `count` above 1 is that of so many like refusals, the first of them at `since`; the other fields are the last one's.
    The role `box` with the outcome `lost` says that so many outcomes could not be written.
    """

    at: float
    job: str
    role: Role
    outcome: Ending
    error: str = ""
    phase: str = ""
    kind: str = ""
    asked: str = ""
    model: str = ""
    hash: str = ""
    peer: str = ""
    peer_name: str = ""
    route: Route = "none"
    tried: tuple[tuple[str, str], ...] = ()
    repeats: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float = 0.0
    traceparent: str = ""
    parent: str = ""
    count: int = 1
    since: float | None = None

    def line(self) -> bytes:
        """One line of JSON with its line break; what is empty is left out."""
        facts: dict[str, Any] = {"at": iso_time(self.at)}
        facts |= {key: value for key, value in vars(self).items() if key not in ("at", "since") and _says(key, value)}
        if self.since is not None:
            facts["since"] = iso_time(self.since)
        return json.dumps(facts, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _says(key: str, value: object) -> bool:
    if key == "count":
        return value != 1
    return key in ("prompt_tokens", "tokens", "total_ms") or value not in ("", None, ())


def iso_time(at: float) -> str:
    """Seconds since the epoch as RFC 3339, in UTC, with milliseconds; what no calendar has is its nearest end."""
    at = min(max(at, 0.0), 253402300799.0)
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def known_code(code: str) -> str:
    """A code as it may be written: one that this version knows, or `other`, since a peer may send any text as one."""
    return code if code in _CODES else "other"


def known_phase(phase: object) -> str:
    """Which deadline it was, empty where that is not known."""
    return phase if isinstance(phase, str) and phase in _PHASES else ""


def ending_of(code: str, tokens: int) -> Ending:
    """What an error code means for its job: it was not taken on, or it broke."""
    return "refused" if code in _REFUSALS and not tokens else "error"


def read_line(line: bytes) -> Mapping[str, Any] | None:
    """The facts of one line; None for one that is torn or none."""
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("at"), str):
        return None
    return facts
