"""A job as OpenAI's API spells it, with what each kind of server adds. Pure.

What a kind of server is known not to do is refused with EngineError, so that another box may be asked; fields that only
shape chance (`top_k` and the like) are left out where a server has no word for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agent.engine.external.survey import Kind
from agent.errors import BadRequestError, EngineError, NoVectorsError
from fleet.net.messages import ChatMessage, InferRequest, Sampling

#: Kinds that go on with an assistant's message where it is the last one, instead of answering it.
_CONTINUES: Final = frozenset({"ollama", "llama-server", "vllm"})

#: What kinds call the fields of `Sampling` that OpenAI's API does not have.
_EXTENSIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "llama-server": {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty"},
    "lmstudio": {"top_k": "top_k", "repeat_penalty": "repeat_penalty"},
    "vllm": {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"},
}


def path_of(request: InferRequest) -> str:
    """Where a job is posted."""
    return "/v1/chat/completions" if request.kind == "chat" else "/v1/completions"


def body_of(request: InferRequest, *, kind: Kind, model: str, context_tokens: int) -> bytes:
    """The JSON to post for a job; `model` is the server's own name for it.

    Raises EngineError for what this kind of server cannot do, and BadRequestError for text that is no Unicode, or a
    schema or functions that are no JSON, NoVectorsError for an embedding.
    """
    if request.kind == "embedding":
        raise NoVectorsError(
            f"{model} is run by a server ({kind}) that is asked for text alone; only a box that runs a model itself"
            " gives vectors"
        )
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= _sampled(request.sampling, kind, context_tokens)
    if kind == "vllm":
        body["stream_options"]["continuous_usage_stats"] = True
    elif kind == "llama-server":
        body["timings_per_token"] = True
    if request.kind == "completion":
        body["prompt"] = request.prompt + request.prefix
    else:
        body["messages"] = [_message(message) for message in request.messages]
        if request.prefix:
            _continue(body, request.prefix, kind)
        if request.tools:
            _offer(body, request)
    if request.output:
        body |= _form(request, kind)
    if request.sampling.logprobs >= 0:
        body |= _logprobs(request, kind)
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadRequestError("the request holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise BadRequestError("the request holds a number that JSON cannot carry") from None


def _sampled(sampling: Sampling, kind: Kind, context_tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.max_tokens is not None:
        body["max_tokens"] = min(sampling.max_tokens, context_tokens)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    for field, theirs in _EXTENSIONS.get(kind, {}).items():
        body[theirs] = getattr(sampling, field)
    if kind == "vllm" and not sampling.top_k:
        body["top_k"] = -1  # all tokens; 0 is refused by versions before 0.9
    return body


def _message(message: ChatMessage) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        body["name"] = message.name
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return body


def _continue(body: dict[str, Any], prefix: str, kind: Kind) -> None:
    """Have the server go on with `prefix` as the assistant's own words."""
    if kind not in _CONTINUES:
        raise EngineError(f"a server of kind {kind} cannot go on with an answer that another box began")
    messages = body["messages"]
    if messages and messages[-1]["role"] == "assistant":
        prefix = messages.pop()["content"] + prefix
    messages.append({"role": "assistant", "content": prefix})
    if kind in ("vllm", "llama-server"):
        # llama-server goes on by itself where it is not told, but then (0c1e570) begins with what is there already.
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False


def _offer(body: dict[str, Any], request: InferRequest) -> None:
    """Tell the model of functions that it may call."""
    tools = _decoded(request.tools, "tools")
    if not isinstance(tools, list):
        raise BadRequestError("tools: must be an array", details={"param": "tools"})
    choice = request.tool_choice or "auto"
    body["tools"] = tools
    if choice in ("auto", "none", "required"):
        body["tool_choice"] = choice
    else:
        body["tool_choice"] = {"type": "function", "function": {"name": choice}}


def _form(request: InferRequest, kind: Kind) -> dict[str, Any]:
    """What the answer must look like, in this kind's words."""
    if request.output == "grammar":
        if kind != "llama-server":
            raise EngineError(f"a server of kind {kind} cannot hold an answer to a grammar")
        return {"grammar": request.output_text}
    schema = {"type": "object"} if request.output == "json" else _decoded(request.output_text, "response_format")
    if request.kind == "completion" and kind != "vllm":
        if kind != "llama-server":
            raise EngineError(f"a server of kind {kind} cannot hold a completion to a schema")
        return {"json_schema": schema}
    if request.output == "json" and kind != "lmstudio":
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _logprobs(request: InferRequest, kind: Kind) -> dict[str, Any]:
    if request.kind == "completion":
        raise EngineError(f"a server of kind {kind} does not give the logprobs of a completion as they are wanted here")
    return {"logprobs": True, "top_logprobs": request.sampling.logprobs}


def _decoded(text: str, param: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequestError(f"{param}: this is no JSON", details={"param": param}) from None
    return found
