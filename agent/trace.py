"""W3C trace context (https://www.w3.org/TR/trace-context/): one trace through every box of a job, a span on each. Pure.

A box takes over the trace it is handed and makes a span of its own in it; what it hands on names that span as the
parent. What is malformed counts as absent, and begins a new trace.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?", re.ASCII)
#: Characters of a traceparent; a later version may append fields, which are not passed on.
MAX_TEXT: Final = 256
#: Of the flags, the ones that version 00 knows: sampled, and a trace id that is random.
_KNOWN_FLAGS: Final = 0x03
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02


@dataclass(frozen=True)
class Span:
    """A place in a trace: 16 and 8 bytes in lower-case hex, neither all zero, and the flags, 0 to 255."""

    trace_id: str
    span_id: str
    flags: int = _SAMPLED | _RANDOM

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse(text: str | None) -> Span | None:
    """The span that a traceparent names, None where there is none or it breaks the standard's form in any way."""
    if text is None or len(text) > MAX_TEXT:
        return None
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Span(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


def begin() -> Span:
    """The first span of a new trace."""
    return Span(_random(16), _random(8))


def child(parent: Span | None) -> Span:
    """A new span in the trace of `parent`, or in a new one where there is none."""
    return begin() if parent is None else Span(parent.trace_id, _random(8), parent.flags)


def _random(size: int) -> str:
    while not any(found := secrets.token_bytes(size)):
        pass
    return found.hex()
