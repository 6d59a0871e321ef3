"""The OpenAI request bodies this box understands, and their translation into jobs.

A field that asks for something Shoal does not do is refused by name rather than ignored; one that asks for nothing
(a penalty of 0, an empty logit_bias) is accepted.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import BadRequestError, RequestTooLargeError
from fleet.net.messages import MAX_MODEL_NAME, MAX_PROMPT_BYTES, MAX_STOPS, ChatMessage, InferRequest, Sampling

MAX_JSON_DEPTH: Final = 64

#: Fields of the OpenAI API that are known and not supported, with the values that ask for nothing.
_ASKS_FOR_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}
#: Fields that are about the caller's account or bookkeeping and change nothing about the answer.
_IGNORED: Final = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user", "prompt_cache_retention"}
)


class StreamOptions(BaseModel):
    """`stream_options`; `include_usage` adds a last chunk with token counts."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: bool = False


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TextPart(BaseModel):
    """One text part of a message's content."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatRequest(_Common):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 30)


class CompletionRequest(_Common):
    """Body of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]


OpenAIRequest = ChatRequest | CompletionRequest
_Body = TypeVar("_Body", ChatRequest, CompletionRequest)


def parse_json(data: bytes) -> dict[str, Any]:
    """A request body as a JSON object; raises BadRequestError that says where it is wrong."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the body is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise BadRequestError("the body is empty; send a JSON object")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequestError(
            f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (RecursionError, ValueError):
        raise BadRequestError(
            f"the body nests deeper than {MAX_JSON_DEPTH} levels or holds a number too large"
        ) from None
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


def parse_chat(data: bytes) -> ChatRequest:
    """Validate the body of a chat completion; raises BadRequestError naming the field."""
    return _validate(ChatRequest, parse_json(data))


def parse_completion(data: bytes) -> CompletionRequest:
    """Validate the body of a completion; raises BadRequestError naming the field."""
    return _validate(CompletionRequest, parse_json(data))


def _validate(kind: type[_Body], body: dict[str, Any]) -> _Body:
    fields = {}
    for name, value in body.items():
        if name in kind.model_fields:
            fields[name] = value
        elif name in _ASKS_FOR_NOTHING:
            if value not in _ASKS_FOR_NOTHING[name]:
                raise BadRequestError(f"{name!r} is not supported here; leave it out", details={"param": name})
        elif name not in _IGNORED:
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadRequestError(f"unknown field {name[:64]!r}{hint}", details={"param": name[:64]})
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequestError(f"{where}: {first['msg']}", details={"param": where}) from None


def to_infer_request(body: OpenAIRequest, job: str, traceparent: str | None) -> InferRequest:
    """The job a body asks for. Raises BadRequestError or RequestTooLargeError for what does not fit its limits."""
    sampling = _sampling(body)
    if isinstance(body, CompletionRequest):
        prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
        _check_size(len(prompt.encode("utf-8", "surrogatepass")))
        return InferRequest(
            job=job,
            kind="completion",
            model=body.model,
            prompt=_clean(prompt),
            sampling=sampling,
            traceparent=traceparent,
        )
    messages = tuple(ChatMessage(role=m.role, content=_clean(_text_of(m))) for m in body.messages)
    _check_size(sum(len(message.content.encode()) for message in messages))
    return InferRequest(
        job=job, kind="chat", model=body.model, messages=messages, sampling=sampling, traceparent=traceparent
    )


def _sampling(body: OpenAIRequest) -> Sampling:
    limit = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        limit = body.max_completion_tokens
    stop = [body.stop] if isinstance(body.stop, str) else (body.stop or [])
    stop = [text for text in stop if text]
    if len(stop) > MAX_STOPS or any(len(text) > 256 for text in stop):
        raise BadRequestError(f"stop: at most {MAX_STOPS} strings of 256 characters", details={"param": "stop"})
    chosen: dict[str, Any] = {"max_tokens": limit, "stop": tuple(_clean(text) for text in stop)}
    if body.temperature is not None:
        chosen["temperature"] = body.temperature
    if body.top_p is not None:
        chosen["top_p"] = body.top_p
    if body.seed is not None:
        chosen["seed"] = body.seed % (1 << 32)
    return Sampling(**chosen)


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


def _clean(text: str) -> str:
    """JSON can carry lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check_size(size: int) -> None:
    if size > MAX_PROMPT_BYTES - 64 * 1024:
        limit = MAX_PROMPT_BYTES - 64 * 1024
        raise RequestTooLargeError(
            f"the prompt has {size} bytes, the limit is {limit}", details={"bytes": size, "limit_bytes": limit}
        )
