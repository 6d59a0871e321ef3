"""What a server's refusal means for a job. Pure.

The server's own words go to this box's clients alone: they may quote paths, and peers are told no more than the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from agent.engine.external.listing import number
from agent.engine.external.trouble import quoted
from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    EngineError,
    ModelLoadError,
    OverloadedError,
)

#: A server that asks for more patience than this (seconds) is not believed; see `agent.jobs.failure`.
_MAX_RETRY_AFTER: Final = 86_400
_USUAL_RETRY_AFTER: Final = 5

_CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT_WORDS: Final = re.compile(
    r"maximum context length|available context size|context (?:length|window|size) (?:exceeded|of only)"
    r"|context overflows|exceeds? (?:the )?(?:model's )?(?:maximum )?context|longer than the (?:maximum )?(?:model's )?"
    r"(?:context|model) length",
    re.IGNORECASE,
)
_PROMPT_TOKENS: Final = re.compile(
    r"([0-9]{1,9}) (?:in the (?:messages|prompt)|(?:input|prompt) tokens)"
    r"|\(([0-9]{1,9}) tokens\) exceeds|(?:contains at least|resulted in|prompt \(length) ([0-9]{1,9})"
)


def of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, name: str, local: bool, context_tokens: int
) -> AgentError:
    """The error for an answer with a status other than 200; `local` says that it is for a client of this box."""
    try:
        decoded: object = json.loads(body)
    except (ValueError, RecursionError):
        decoded = None
    said = _said(decoded) if local else ""
    because = f": {said}" if said else ""
    if status in (429, 503):
        text = f"the server that runs {name} is busy"
        return OverloadedError(text, retry_after=_retry_after(headers.get("retry-after", "")))
    if status in (401, 403):
        return EngineError(f"the server that runs {name} does not take this box's API key ({status})")
    if status == 404:
        return ModelLoadError(f"the server no longer has {name}{because}", retry_after=_USUAL_RETRY_AFTER)
    if 300 <= status < 400:
        return EngineError(f"the server that runs {name} answers with a redirect, which is not followed")
    if 400 <= status < 500:
        return _of_request(decoded, name=name, because=because, context_tokens=context_tokens)
    return EngineError(f"the server that runs {name} failed ({status}){because}")


def of_event(decoded: object, *, name: str, local: bool, context_tokens: int) -> AgentError:
    """The error for one that the server reported in its stream."""
    said = _said(decoded) if local else ""
    because = f": {said}" if said else ""
    inner = decoded.get("error") if isinstance(decoded, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    about_context = _is_about_context(decoded)
    if about_context or (type(code) is int and 400 <= code < 500):
        return _of_request(decoded, name=name, because=because, context_tokens=context_tokens)
    return EngineError(f"the server that runs {name} failed{because}")


def _of_request(decoded: object, *, name: str, because: str, context_tokens: int) -> AgentError:
    if not _is_about_context(decoded):
        return BadRequestError(f"the server that runs {name} refuses the request{because}")
    tokens = _prompt_tokens(decoded)
    details: dict[str, object] = {"context_tokens": context_tokens}
    has = "does not fit"
    if tokens:
        details["prompt_tokens"] = tokens
        has = f"has {tokens} tokens, which do not fit"
    return ContextLengthError(
        f"the prompt {has} the context of {name} (this box gives it {context_tokens} tokens); shorten the prompt",
        details=details,
    )


def _error_in(decoded: object) -> Mapping[str, Any]:
    """The object that says what is wrong, in the shapes that servers give it."""
    if not isinstance(decoded, dict):
        return {}
    for key in ("error", "detail", "message"):
        value = decoded.get(key)
        if isinstance(value, dict):
            return value
        if isinstance(value, str) and value:
            return {**decoded, "message": value}
    return decoded


def _said(decoded: object) -> str:
    return quoted(_error_in(decoded).get("message"))


def _is_about_context(decoded: object) -> bool:
    error = _error_in(decoded)
    message = error.get("message")
    return any(error.get(key) in _CONTEXT_CODES for key in ("code", "type") if isinstance(error.get(key), str)) or (
        isinstance(message, str) and _CONTEXT_WORDS.search(message[:2000]) is not None
    )


def _prompt_tokens(decoded: object) -> int:
    error = _error_in(decoded)
    if told := number(error.get("n_prompt_tokens"), 1 << 30):
        return told
    message = error.get("message")
    found = _PROMPT_TOKENS.search(message[:2000]) if isinstance(message, str) else None
    return int(next(group for group in found.groups() if group)) if found else 0


def _retry_after(value: str) -> int:
    """Seconds; a date, which servers beside a box do not send, counts as not said."""
    if value.isascii() and value.isdigit() and len(value) <= 9 and int(value) <= _MAX_RETRY_AFTER:
        return max(1, int(value))
    return _USUAL_RETRY_AFTER
