"""Requests as they are published, and their translation into jobs. Pure.

    {"v":1,"job":"…","kind":"chat","model":{"ref":"…","substitute":"quant"},"input":{},"params":{},"deadline_ms":8000,
     "priority":"normal","stream":false}

or any text that does not begin with a brace: a question, with defaults for everything else. What a client publishes is
hostile until it has passed here: limits first, then the schema, whose errors name the field.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from agent.engine.structure import grammar as structure
from agent.errors import AgentError, BadRequestError
from agent.jobs.job import Job
from agent.mqtt.topics import is_job
from agent.trace import parse as parse_span
from fleet.models.substitution import Substitution
from fleet.net.messages import (
    MAX_MESSAGES,
    MAX_MODEL_NAME,
    MAX_OUTPUT_TEXT,
    MAX_PROMPT_BYTES,
    MAX_STOPS,
    MAX_TEXTS,
    ChatMessage,
    InferRequest,
    Priority,
    Sampling,
)

#: Bytes of a payload, and how deep its JSON may be nested.
MAX_PAYLOAD: Final = 1024 * 1024
MAX_DEPTH: Final = 32
#: A day, in milliseconds.
MAX_DEADLINE_MS: Final = 86_400_000
MAX_CORRELATION: Final = 1024
#: As for a chat without `max_tokens` on a till or a sensor box: an answer that is never longer than that.
ANSWER_TOKENS: Final = 256

Text = Annotated[str, StringConstraints(min_length=1)]


class NotUtf8Error(BadRequestError):
    """The payload is not UTF-8."""


class TooLargeError(BadRequestError):
    """The payload is larger than MAX_PAYLOAD."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelWish(_Strict):
    """Which model, and what may stand in for it; without `ref` the box's default."""

    ref: str | None = Field(default=None, min_length=1, max_length=MAX_MODEL_NAME)
    substitute: Substitution | None = None


class Turn(_Strict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Input(_Strict):
    """What the model is given: `messages` or `prompt` for a chat, `prompt` for a completion, `texts` to embed."""

    messages: list[Turn] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    prompt: Text | None = None
    system: Text | None = None
    texts: list[Text] | None = Field(default=None, min_length=1, max_length=MAX_TEXTS)


class Params(_Strict):
    """How tokens are chosen. `schema` is a JSON Schema that the answer must obey."""

    max_tokens: int = Field(default=ANSWER_TOKENS, ge=1, le=1 << 20)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=0, le=1 << 20)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=(1 << 32) - 1)
    stop: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=MAX_STOPS
    )
    answer_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class Request(_Strict):
    """A request as JSON."""

    v: int = Field(ge=1, le=1)
    job: str | None = None
    kind: Literal["chat", "completion", "embedding"] = "chat"
    model: ModelWish | Annotated[str, StringConstraints(min_length=1, max_length=MAX_MODEL_NAME)] = ModelWish()
    input: Input
    params: Params = Field(default_factory=Params)
    deadline_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS)
    priority: Priority = "normal"
    stream: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that was understood. `job` is its id as the client knows it, empty where it gave none; `model` is empty
    where the box is to choose; `fingerprint` says what is asked for, byte for byte."""

    job: str
    model: str
    kind: Literal["chat", "completion", "embedding"]
    stream: bool
    deadline_ms: int | None
    priority: Priority
    fingerprint: bytes
    _request: Request

    def to_run(self, job_id: str, model: str, deadline_ms: int, traceparent: str | None) -> Job:
        """The job under this box's id for it, asking for a model that is named, within so many milliseconds."""
        asked, given = self._request, self._request.input
        span = parse_span(traceparent)
        common: dict[str, Any] = {
            "job": job_id,
            "kind": self.kind,
            "model": model,
            "priority": self.priority,
            "deadline_ms": max(1, min(deadline_ms, MAX_DEADLINE_MS)),
            "traceparent": None if span is None else str(span),
        }
        if self.kind == "embedding":
            infer = InferRequest(v=2, texts=tuple(given.texts or ()), **common)
        else:
            schema = asked.params.answer_schema
            if schema is not None:
                common |= {"v": 2, "output": "schema", "output_text": _schema_text(schema)}
            if asked.params.top_k is not None or asked.params.min_p is not None:
                common["v"] = 2
            infer = InferRequest(
                messages=_turns(given) if self.kind == "chat" else (),
                prompt=given.prompt or "" if self.kind == "completion" else "",
                sampling=_sampling(asked.params),
                **common,
            )
        wish = asked.model
        return Job(infer, substitution=wish.substitute if isinstance(wish, ModelWish) else None)


def understand(payload: bytes) -> Asked:
    """Understand a payload; raises BadRequestError that names the field or the limit. Takes milliseconds for 1 MiB."""
    if len(payload) > MAX_PAYLOAD:
        raise TooLargeError(
            f"the request is larger than the limit of {MAX_PAYLOAD} bytes (1 MiB)", details={"limit_bytes": MAX_PAYLOAD}
        )
    try:
        text = payload.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"the request is not UTF-8 (at byte {error.start}); send text, or JSON, in UTF-8") from None
    fingerprint = hashlib.sha256(payload).digest()
    stripped = text.strip()
    if not stripped:
        raise BadRequestError("the request is empty; publish a question, or the JSON of docs/mqtt.md")
    if stripped[0] != "{":
        request = Request(v=1, input=Input(prompt=_printable(text)))
    else:
        request = _validated(_json_object(stripped))
    wish = request.model
    model = wish if isinstance(wish, str) else wish.ref or ""
    asked = Asked(
        request.job or "",
        model,
        request.kind,
        request.stream,
        request.deadline_ms,
        request.priority,
        fingerprint,
        request,
    )
    _check(request)
    return asked


def job_of(payload: bytes) -> str:
    """The id in a payload that is refused, as far as there is one, so that its sender is told; else empty."""
    try:
        value = from_json(payload, allow_inf_nan=False) if len(payload) <= MAX_PAYLOAD else None
    except ValueError:
        return ""
    job = value.get("job") if isinstance(value, dict) else None
    return job if isinstance(job, str) and is_job(job) else ""


def too_deep(value: object, most: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested deeper than `most`; what is more than 200 deep was refused by the parser."""
    level = [value]
    for _ in range(most + 1):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return False
        level = inner
    return True


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequestError(
            f"the request begins with a brace and is not valid JSON: {error}; a plain question must begin otherwise"
        ) from None
    if not isinstance(value, dict):
        raise BadRequestError("the request must be a JSON object, or a plain question")
    if too_deep(value):
        raise BadRequestError(f"the request is nested more than {MAX_DEPTH} deep")
    return value


def _validated(value: dict[str, Any]) -> Request:
    try:
        return Request.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    where = [str(part) for part in first["loc"] if part not in ("ModelWish", "constrained-str")]
    param = ".".join(where)[:80] or "request"
    said = "is required" if first["type"] == "missing" else "there is no such field"
    if first["type"] not in ("missing", "extra_forbidden"):
        said = first["msg"][:1].lower() + first["msg"][1:]
    raise BadRequestError(f"{param}: {said}", details={"param": param})


def _check(request: Request) -> None:
    """What the schema alone does not say; raises BadRequestError."""
    given, kind = request.input, request.kind
    if request.job is not None and not is_job(request.job):
        raise _problem("job", "must be 1 to 48 letters, digits, '.', '_', ':' or '-': it is a level of topics")
    wanted = {"chat": ("messages", "prompt"), "completion": ("prompt",), "embedding": ("texts",)}[kind]
    found = [name for name in ("messages", "prompt", "texts") if getattr(given, name) is not None]
    if len(found) != 1 or found[0] not in wanted:
        raise _problem("input", f"a request of kind {kind} has {' or '.join(wanted)} in it, and no other")
    if given.system is not None and (kind != "chat" or given.prompt is None):
        raise _problem("input.system", "goes with the prompt of a chat; among messages it is one with the role system")
    texts = [given.prompt or "", given.system or "", *(given.texts or ()), *(t.content for t in given.messages or ())]
    if any(not text.isascii() and _has_surrogate(text) for text in texts):
        raise _problem("input", "has half of a character")
    if sum(len(text.encode()) for text in texts) > MAX_PROMPT_BYTES:
        raise _problem("input", f"is larger than the limit of {MAX_PROMPT_BYTES} bytes (1 MiB)")
    if kind == "embedding" and request.stream:
        raise _problem("stream", "vectors come in one piece")
    schema = request.params.answer_schema
    if schema is not None:
        if kind == "embedding":
            raise _problem("params.schema", "belongs to an answer in words")
        check_schema(schema, "params.schema")


@dataclass(frozen=True)
class _Form:
    output: str
    output_text: str
    tools: str = ""
    tool_choice: str = ""


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Whether an answer can be held to a JSON Schema; raises BadRequestError that says where not."""
    text = _schema_text(schema)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_OUTPUT_TEXT:
        raise _problem(where, f"is larger than the limit of {MAX_OUTPUT_TEXT} bytes (64 KiB)")
    try:
        structure.check(_Form("schema", text))
    except AgentError as error:
        # It is named as over HTTP there.
        raise _problem(where, error.message.removeprefix("response_format: ")) from None


def _schema_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _turns(given: Input) -> tuple[ChatMessage, ...]:
    if given.messages is not None:
        return tuple(ChatMessage(role=turn.role, content=turn.content) for turn in given.messages)
    system = (ChatMessage(role="system", content=given.system),) if given.system is not None else ()
    return (*system, ChatMessage(role="user", content=given.prompt or ""))


def _sampling(params: Params) -> Sampling:
    chosen = {
        name: getattr(params, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "seed")
        if getattr(params, name) is not None
    }
    return Sampling(max_tokens=params.max_tokens, stop=tuple(params.stop), **chosen)


def _printable(text: str) -> str:
    return text.replace("\0", " ")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _problem(param: str, message: str) -> BadRequestError:
    return BadRequestError(f"{param}: {message}", details={"param": param})
