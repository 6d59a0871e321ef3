"""Pieces of an answer in OpenAI's shapes: calls of functions, probabilities of tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from agent.engine.structure.calls import CallArguments, CallBegin, Piece, Text
from fleet.net.messages import Likely, TokenLogprob


def call_id() -> str:
    """A new id for a call, which its result is sent back with."""
    return "call_" + secrets.token_hex(12)


def delta_of(piece: Piece) -> dict[str, Any]:
    """A piece as the `delta` of a chunk. An answer has one call, so its index is 0."""
    match piece:
        case Text(text):
            return {"content": text}
        case CallBegin(name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": 0, "id": call_id(), "type": "function", "function": function}]}
        case CallArguments(text):
            return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


def message_of(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The message of a whole answer."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    names = [piece.name for piece in pieces if isinstance(piece, CallBegin)]
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if names:
        arguments = "".join(piece.text for piece in pieces if isinstance(piece, CallArguments))
        message["content"] = text or None
        message["tool_calls"] = [
            {"id": call_id(), "type": "function", "function": {"name": names[0], "arguments": arguments}}
        ]
    return message


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a choice of a chat."""
    return {
        "content": [{**_likely(one), "top_logprobs": [_likely(top) for top in one.top_logprobs]} for one in tokens],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """`logprobs` of a choice of a completion; `offset` is where the text of the first token begins, in characters."""
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [{top.token: top.logprob for top in one.top_logprobs} for one in tokens],
        "text_offset": offsets,
    }


def _likely(one: Likely) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)}
