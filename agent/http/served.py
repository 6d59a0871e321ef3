"""Which box served, as an answer tells it: response headers and the `shoal` object. Pure."""

from __future__ import annotations

from typing import Final

from agent.http.sse import header_text
from agent.jobs.job import Routed, Substituted

#: Characters of the header that says in what another model differs from the one that was asked for.
MAX_DIFFERS: Final = 512


def served_headers(served: Routed) -> list[tuple[str, str]]:
    """The X-Shoal- headers of an answer, fit for HTTP whatever a box calls itself."""
    cut = f"tokens={served.cut_tokens}; messages={served.cut_messages}"
    return [
        *([("x-shoal-truncated", cut)] if served.cut_tokens or served.cut_messages else []),
        *([("x-shoal-repeats", header_text(served.repeats, 64))] if served.repeats else []),
        ("x-shoal-served-by", header_text(served.name, 128)),
        ("x-shoal-served-by-id", header_text(served.peer_id, 128)),
        ("x-shoal-model", header_text(served.model, 256)),
        *([("x-shoal-substituted", _differs(served.substituted))] if served.substituted else []),
        ("x-shoal-route", header_text("; ".join(served.route))),
    ]


def served_facts(served: Routed) -> dict[str, object]:
    """What the `shoal` object of an answer says of who served."""
    cut = {"tokens": served.cut_tokens, "messages": served.cut_messages}
    return {
        **({"truncated": cut} if served.cut_tokens or served.cut_messages else {}),
        "served_by": served.name,
        "peer_id": served.peer_id,
        "local": served.local,
        "model_hash": served.model_hash,
        **({"substituted": _facts(served.substituted)} if served.substituted else {}),
        "route": list(served.route),
    }


def _differs(substituted: Substituted) -> str:
    return header_text("; ".join(substituted.differs), MAX_DIFFERS)


def _facts(substituted: Substituted) -> dict[str, object]:
    return {"asked": substituted.asked, "ran": substituted.ran, "differs": list(substituted.differs)}
