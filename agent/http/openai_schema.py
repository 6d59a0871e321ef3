"""Requests of the OpenAI API as this box accepts them, and their translation into jobs.

Where OpenAI's defaults suit its own models, those of `Sampling` (temperature 0.8, top_p 0.95) are used here: small
models ramble at 1.0. As with OpenAI, a completion without `max_tokens` ends after 16 tokens and a chat when the model
ends it or the context is full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from agent.errors import BadRequestError
from agent.http import openai_fields
from agent.http.openai_body import (
    StrictModel,
    choice_of,
    json_object,
    policy_of,
    prompt_too_long,
    substitution_of,
    traceparent_of,
    urgency_of,
    validated,
)
from agent.http.openai_fields import supported_only
from agent.http.openai_structure import Form, biases_of, calls_of, form_of
from agent.jobs.job import Job, OnInterrupt
from fleet.net.messages import (
    MAX_MESSAGES,
    MAX_MODEL_NAME,
    MAX_PROMPT_BYTES,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    ChatMessage,
    InferRequest,
    Sampling,
)

Kind = Literal["chat", "completion"]

#: OpenAI's own default for /v1/completions.
COMPLETION_MAX_TOKENS: Final = 16
#: The range of explicit seeds: 2**32 - 1 itself is llama.cpp's "choose one at random".
SEEDS: Final = (1 << 32) - 1
#: What the first version of jobs knew of sampling.
_SAMPLING_OF_1: Final = ("max_tokens", "temperature", "top_p", "seed", "stop")
#: top_p 0 means the most likely token alone; the sampler needs a number above 0 for that.
LEAST_TOP_P: Final = 1e-6

ON_INTERRUPT: Final[tuple[OnInterrupt, ...]] = ("error", "resume")


@dataclass(frozen=True)
class Asked:
    """A request that has been understood: the job, how the answer is to be sent, and what it may call."""

    job: Job
    kind: Kind
    stream: bool
    include_usage: bool
    functions: tuple[str, ...] = ()


class StreamOptions(StrictModel):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Request(StrictModel):
    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=MAX_STOPS)
    top_k: int = Field(default=40, ge=-1, le=1 << 20)
    min_p: float = Field(default=0.05, ge=0, le=1, allow_inf_nan=False)
    repeat_penalty: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, Any] = Field(default={})
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    prompt_cache_key: str | None = Field(default=None, max_length=4096)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class Message(StrictModel):
    """One turn of a chat. Text parts are joined by a line break."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str = Field(default="", max_length=64)
    tool_call_id: str = Field(default="", max_length=128)
    tool_calls: list[Any] = Field(default=[])

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        texts = []
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if isinstance(part, dict) else None
            if kind != "text":
                shown = repr(kind)[:40] if isinstance(kind, str) else "an unknown type"
                raise PydanticCustomError(
                    "part", "part {index} is of type {kind}; only text is supported", {"index": index, "kind": shown}
                )
            if not isinstance(text, str) or set(part) - {"type", "text"}:
                raise PydanticCustomError(
                    "part", "part {index} must have a text and nothing else beside its type", {"index": index}
                )
            texts.append(text)
        return "\n".join(texts)


class ChatRequest(_Request):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Any] = Field(default=[])
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    truncate: Literal["none", "oldest", "middle"] = "none"


class CompletionRequest(_Request):
    """Body of POST /v1/completions."""

    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _single(cls, value: object) -> object:
        if isinstance(value, list):
            if len(value) == 1 and isinstance(value[0], str):
                return value[0]
            raise PydanticCustomError("prompt", "must be one string, or a list of exactly one")
        return value


def parse_chat(body: bytes, header: Callable[[str], str | None], job_id: str) -> Asked:
    """Understand a chat request; raises BadRequestError that names the field."""
    fields = supported_only(json_object(body), ChatRequest.model_fields, openai_fields.CHAT)
    messages = fields.get("messages")
    if isinstance(messages, list) and len(messages) <= MAX_MESSAGES:
        fields["messages"] = [_message_fields(index, message) for index, message in enumerate(messages)]
    request = validated(ChatRequest, fields)
    said = [_said(index, message) for index, message in enumerate(request.messages)]
    texts = [message.content for message in said] + [call.arguments for one in said for call in one.tool_calls]
    if sum(len(text.encode()) for text in texts) > MAX_PROMPT_BYTES:
        raise prompt_too_long("messages")
    if request.top_logprobs and not request.logprobs:
        raise BadRequestError("top_logprobs: needs logprobs: true", details={"param": "top_logprobs"})
    form = form_of(
        request.response_format, request.grammar, request.tools, request.tool_choice, request.parallel_tool_calls
    )
    ask = request.max_completion_tokens
    if ask is not None and request.max_tokens not in (None, ask):
        raise BadRequestError(
            "max_tokens and max_completion_tokens differ; send one of them", details={"param": "max_tokens"}
        )
    infer = InferRequest(
        job=job_id,
        kind="chat",
        model=request.model,
        messages=tuple(said),
        sampling=_sampling(
            request,
            ask if ask is not None else request.max_tokens,
            request.top_logprobs if request.logprobs else -1,
        ),
        truncate="" if request.truncate == "none" else request.truncate,
        session=session_of(request.prompt_cache_key),
        traceparent=traceparent_of(header("traceparent")),
        **_form_fields(form),
    )
    return _asked(request, infer, header, form.names)


def parse_completion(body: bytes, header: Callable[[str], str | None], job_id: str) -> Asked:
    """Understand a completion request; raises BadRequestError that names the field."""
    fields = supported_only(json_object(body), CompletionRequest.model_fields, openai_fields.COMPLETION)
    request = validated(CompletionRequest, fields)
    if len(request.prompt.encode()) > MAX_PROMPT_BYTES:
        raise prompt_too_long("prompt")
    infer = InferRequest(
        job=job_id,
        kind="completion",
        model=request.model,
        prompt=request.prompt,
        sampling=_sampling(
            request,
            request.max_tokens or COMPLETION_MAX_TOKENS,
            -1 if request.logprobs is None else request.logprobs,
        ),
        session=session_of(request.prompt_cache_key),
        traceparent=traceparent_of(header("traceparent")),
        **_form_fields(form_of(request.response_format, request.grammar)),
    )
    return _asked(request, infer, header)


def seed_of(asked: int) -> int:
    """Any integer as a seed of the sampler: itself where it fits, else one that always is the same for it."""
    if 0 <= asked < SEEDS:
        return asked
    return int.from_bytes(hashlib.sha256(str(asked).encode()).digest()[:8], "big") % SEEDS


def session_of(key: str | None) -> str:
    """A conversation's name from a client's key of any length and content."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest() if key else ""


def _said(index: int, message: Message) -> ChatMessage:
    where = f"messages.{index}"
    if message.role == "tool" and not message.tool_call_id:
        raise BadRequestError(
            f"{where}.tool_call_id is required in a message of a tool", details={"param": f"{where}.tool_call_id"}
        )
    for name, role in (("tool_call_id", "tool"), ("tool_calls", "assistant")):
        if getattr(message, name) and message.role != role:
            raise BadRequestError(
                f"{where}.{name}: only a message of the role {role} has it", details={"param": f"{where}.{name}"}
            )
    return ChatMessage(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=calls_of(message.tool_calls, f"{where}.tool_calls"),
    )


def _form_fields(form: Form) -> dict[str, Any]:
    return {
        "output": form.output,
        "output_text": form.output_text,
        "tools": form.tools,
        "tool_choice": form.tool_choice,
    }


def _of_version_2(infer: InferRequest) -> bool:
    """Whether a job uses a field that boxes of the first version would pass over."""
    plain = Sampling(**{name: getattr(infer.sampling, name) for name in _SAMPLING_OF_1})
    return bool(
        infer.output
        or infer.tools
        or infer.truncate
        or infer.sampling != plain
        or any(one.name or one.tool_call_id or one.tool_calls or one.role == "tool" for one in infer.messages)
    )


def _asked(
    request: _Request, infer: InferRequest, header: Callable[[str], str | None], functions: tuple[str, ...] = ()
) -> Asked:
    if _of_version_2(infer):
        infer = infer.model_copy(update={"v": 2})
    infer = infer.model_copy(update=urgency_of(header))
    if request.stream_options is not None and not request.stream:
        raise BadRequestError("stream_options is only allowed when stream is true", details={"param": "stream_options"})
    policy = policy_of(header)
    on_interrupt: OnInterrupt = choice_of(header, "X-Shoal-On-Interrupt", ON_INTERRUPT, "error")
    usage = request.stream_options is not None and request.stream_options.include_usage
    return Asked(
        Job(infer, policy, on_interrupt, substitution_of(header)),
        "chat" if infer.kind == "chat" else "completion",
        request.stream,
        usage,
        functions,
    )


def _message_fields(index: int, message: object) -> object:
    if not isinstance(message, dict):
        return message
    fields = supported_only(message, Message.model_fields, openai_fields.MESSAGE, f"messages.{index}.")
    if message.get("role") == "assistant" and message.get("content") is None:
        fields["content"] = ""
    return fields


def _sampling(request: _Request, max_tokens: int | None, logprobs: int) -> Sampling:
    chosen: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop": tuple(request.stop),
        "top_k": max(request.top_k, 0),
        "min_p": request.min_p,
        "repeat_penalty": request.repeat_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": biases_of(request.logit_bias),
        "logprobs": logprobs,
    }
    if request.temperature is not None:
        chosen["temperature"] = request.temperature
    if request.top_p is not None:
        chosen["top_p"] = max(request.top_p, LEAST_TOP_P)
    if request.seed is not None:
        chosen["seed"] = seed_of(request.seed)
    return Sampling(**chosen)
