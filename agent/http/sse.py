"""JSON and server-sent events as bytes: one event a chunk, nothing but `data:` lines."""

from __future__ import annotations

import json
from typing import Final

DONE: Final = b"data: [DONE]\n\n"


def encode_json(value: object) -> bytes:
    """Compact UTF-8 JSON. A lone surrogate, which UTF-8 cannot carry, becomes `?`; an odd object its text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")


def event(value: object) -> bytes:
    """One event with `value` as its JSON data. JSON escapes every line break, so the event cannot be split."""
    return b"data: " + encode_json(value) + b"\n\n"


def header_text(text: str, limit: int = 1024) -> str:
    """`text` as it may stand in a header: printable ASCII, at most `limit` characters."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
