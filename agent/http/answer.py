"""The shapes of OpenAI answers: whole, chunk by chunk, and the headers that say who served. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from agent.jobs.job import Routed
from fleet.net.messages import Finished

Kind = Literal["chat", "completion"]

_MAX_ROUTE = 2000


def served_headers(job: str, routed: Routed) -> dict[str, str]:
    """Which box and model served, and why."""
    return {
        "X-Shoal-Job": job,
        "X-Shoal-Served-By": header_text(routed.name),
        "X-Shoal-Served-By-Id": routed.peer_id,
        "X-Shoal-Model": header_text(routed.model),
        "X-Shoal-Route": header_text("; ".join(routed.route))[:_MAX_ROUTE],
    }


def header_text(text: str) -> str:
    """Text as a header value: printable ASCII, everything else a question mark."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Answer:
    """Builds the objects of one answer. `created` is seconds since the epoch."""

    kind: Kind
    job: str
    created: int
    include_usage: bool

    def shoal(self, routed: Routed) -> dict[str, Any]:
        """The `shoal` object: who served and why."""
        return {
            "job": self.job,
            "served_by": routed.name,
            "peer_id": routed.peer_id,
            "local": routed.local,
            "route": list(routed.route),
        }

    def chunk(
        self, routed: Routed, text: str | None, *, first: bool = False, reason: str | None = None
    ) -> dict[str, Any]:
        """One chunk of a stream; `first` carries the role, `reason` ends the choice."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.kind == "chat":
            delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
            if text is not None:
                delta["content"] = text
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        return self._base(routed, "chunk") | {"choices": [choice]} | ({"usage": None} if self.include_usage else {})

    def usage_chunk(self, routed: Routed, finished: Finished) -> dict[str, Any]:
        """The last chunk of a stream that was asked for usage."""
        return self._base(routed, "chunk") | {"choices": [], "usage": usage(finished)}

    def whole(self, routed: Routed, text: str, finished: Finished, resumed_from: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finished.reason, "logprobs": None}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        shoal = self.shoal(routed) | {
            "timing_ms": {"prefill": round(finished.prefill_ms, 2), "decode": round(finished.decode_ms, 2)}
        }
        if resumed_from:
            shoal["resumed_from"] = resumed_from
        return self._base(routed, "whole") | {"choices": [choice], "usage": usage(finished), "shoal": shoal}

    def _base(self, routed: Routed, form: Literal["chunk", "whole"]) -> dict[str, Any]:
        if self.kind == "chat":
            prefix, kind = "chatcmpl", "chat.completion.chunk" if form == "chunk" else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {"id": f"{prefix}-{self.job}", "object": kind, "created": self.created, "model": routed.model}


def usage(finished: Finished) -> dict[str, int]:
    """Token counts as OpenAI names them."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }
