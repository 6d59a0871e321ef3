"""A job as OpenAI's API spells it, with what each kind of server adds. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from agent.engine.external.survey import Kind
from agent.errors import BadRequestError, EngineError
from fleet.net.messages import InferRequest

#: Kinds that go on with an assistant's message where it is the last one, instead of answering it.
_CONTINUES: Final = frozenset({"ollama", "llama-server", "vllm"})


def path_of(request: InferRequest) -> str:
    """Where a job is posted."""
    return "/v1/chat/completions" if request.kind == "chat" else "/v1/completions"


def body_of(request: InferRequest, *, kind: Kind, model: str, context_tokens: int) -> bytes:
    """The JSON to post for a job; `model` is the server's own name for it.

    Raises EngineError for text that this kind of server would answer instead of going on with, and BadRequestError for
    what is no Unicode.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.max_tokens is not None:
        body["max_tokens"] = min(sampling.max_tokens, context_tokens)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if kind == "vllm":
        body["stream_options"]["continuous_usage_stats"] = True
    elif kind == "llama-server":
        body["timings_per_token"] = True
    if request.kind == "completion":
        body["prompt"] = request.prompt + request.prefix
    else:
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
        if request.prefix:
            _continue(body, request.prefix, kind)
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadRequestError("the request holds half of a surrogate pair, which is no text") from None


def _continue(body: dict[str, Any], prefix: str, kind: Kind) -> None:
    """Have the server go on with `prefix` as the assistant's own words."""
    if kind not in _CONTINUES:
        raise EngineError(f"a server of kind {kind} cannot go on with an answer that another box began")
    messages = body["messages"]
    if messages and messages[-1]["role"] == "assistant":
        prefix = messages.pop()["content"] + prefix
    messages.append({"role": "assistant", "content": prefix})
    if kind == "vllm":
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
