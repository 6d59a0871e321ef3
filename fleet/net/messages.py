"""The typed messages two boxes exchange over a link, with every limit a decoder enforces.

Bodies are CBOR maps validated here before anything else looks at them. Unknown keys are ignored, so that an older
box can talk to a newer one; unknown values of a closed set are refused. Every tuple is FailFast: pydantic keeps an
error of 1-2 KB for each bad item, past max_length too, and one frame has room for a million of them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fleet.errors import MessageError

MAX_MODEL_NAME: Final = 256
MAX_PROMPT_BYTES: Final = 1024 * 1024
MAX_MESSAGES: Final = 1024
MAX_STOPS: Final = 16
MAX_BIASES: Final = 300
MAX_TOP_LOGPROBS: Final = 20
MAX_TOOL_CALLS: Final = 128
#: Characters of a schema or grammar that an answer must obey, and of the functions that a model may call.
MAX_OUTPUT_TEXT: Final = 64 * 1024
MAX_TOOLS_TEXT: Final = 128 * 1024
MAX_ROUTE: Final = 16
#: Texts of one request for vectors, numbers of a vector, and bytes of an event: sixteen of the largest vectors.
MAX_TEXTS: Final = 256
MAX_DIMENSIONS: Final = 16 * 1024
MAX_VECTOR_BYTES: Final = 16 * 4 * MAX_DIMENSIONS

#: RPC method names, spelled once.
METHOD_INFER: Final = "infer"
NOTIFY_PRESENCE: Final = "presence"

PeerIdText = Annotated[str, Field(min_length=1, max_length=128)]
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME)]
ModelHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
#: Past 64 bits a number is no longer CBOR, and past 4,300 digits no longer JSON.
Count = Annotated[int, Field(ge=0, le=1 << 53)]
JobId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]+$")]


TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Priority = Literal["interactive", "normal", "bulk"]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=MAX_PROMPT_BYTES)


class Hello(_Wire):
    """First message on a link, both ways: who I am in words, and how I am right now."""

    name: str = Field(max_length=64)
    version: str = Field(max_length=32)
    presence: Presence


class ModelPresence(_Wire):
    """One model a box holds. Rates are tokens per second, None until measured; `queued` counts waiting jobs.

    `free_cells` is how many tokens its cache has room for now, None where the box cannot tell. `reads` is a name that
    says which model it is, by its file too (`fleet.models.described`); empty where that is not known, None from a box
    that is too old to say. `named` is whether somebody chose `name`, as against a file that happens to be called so.
    """

    hash: ModelHash
    name: ModelName
    reads: str | None = Field(default=None, max_length=MAX_MODEL_NAME)
    named: bool = True
    state: Literal["idle", "loading", "loaded", "failed"]
    context_tokens: int = Field(ge=0, le=1 << 30)
    decode_rate: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    prefill_rate: float | None = Field(default=None, ge=0, le=1e7, allow_inf_nan=False)
    running: int = Field(default=0, ge=0, le=1 << 20)
    queued: int = Field(default=0, ge=0, le=1 << 20)
    slots: int = Field(default=1, ge=1, le=1 << 16)
    free_cells: int | None = Field(default=None, ge=0, le=1 << 40)


class HealthPresence(_Wire):
    """How a box is beside its work, as far as it can tell; None is what it does not know.

    `cpu_other` is the fraction of its CPU that others than its models use, `load` the load average for each core,
    `temperature` in degrees Celsius and `heat` what its sensors' own limits say of it, `battery` a fraction, `mains`
    whether it has power, `throttled` whether its clock is held down. `refuses` says why it takes no jobs of others now.
    """

    cpu_other: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    load: float | None = Field(default=None, ge=0, le=1e4, allow_inf_nan=False)
    temperature: float | None = Field(default=None, ge=-100, le=300, allow_inf_nan=False)
    heat: Literal["", "high", "critical"] = ""
    battery: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    mains: bool | None = None
    throttled: bool | None = None
    refuses: str = Field(default="", max_length=64)


class Presence(_Wire):
    """A box's ephemeral load, sent on connect, every 10 s and on change; believed only about its sender.

    `seq` grows by one with each message of a process; `cpu` and `memory` are fractions in use, 0 to 1.
    """

    v: Literal[1] = 1
    seq: int = Field(ge=0, le=1 << 53)
    name: str = Field(max_length=64)
    version: str = Field(max_length=32)
    state: Literal["serving", "draining"] = "serving"
    models: Annotated[tuple[ModelPresence, ...], FailFast()] = Field(default=(), max_length=256)
    cpu: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    memory: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    health: HealthPresence | None = None


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ToolCall(_Wire):
    """A call of a function that the model asked for earlier in a chat; `arguments` is JSON text."""

    id: str = Field(max_length=128)
    name: FunctionName
    arguments: str


class ChatMessage(_Wire):
    """One turn of a chat; `content` is plain text.

    `name` says who speaks, or whose result a tool's message is; `tool_call_id` which call it answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str = Field(default="", max_length=64)
    tool_call_id: str = Field(default="", max_length=128)
    tool_calls: Annotated[tuple[ToolCall, ...], FailFast()] = Field(default=(), max_length=MAX_TOOL_CALLS)


class Sampling(_Wire):
    """How tokens are chosen. `max_tokens` None means up to the end of the context; temperature 0 is greedy.

    `top_k` 0 and `min_p` 0 leave nothing out; `logit_bias` are (token id, what is added to its logit), -100 and below
    meaning never. `logprobs` -1 asks for none, 0 for those of the chosen tokens, n also for the n likeliest.
    """

    max_tokens: int | None = Field(default=None, ge=1, le=1 << 30)
    temperature: float = Field(default=0.8, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=(1 << 32) - 1)
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], FailFast()] = Field(
        default=(), max_length=MAX_STOPS
    )
    top_k: int = Field(default=40, ge=0, le=1 << 20)
    min_p: float = Field(default=0.05, ge=0, le=1, allow_inf_nan=False)
    repeat_penalty: float = Field(default=1.0, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Annotated[tuple[tuple[TokenId, Bias], ...], FailFast()] = Field(default=(), max_length=MAX_BIASES)
    logprobs: int = Field(default=-1, ge=-1, le=MAX_TOP_LOGPROBS)


class InferRequest(_Wire):
    """A job as it is run: by this box's engine, or by a peer's.

    `model` is a content hash or a name, never a path or URL. Exactly one of `messages` (kind chat), `prompt` (kind
    completion) and `texts` (kind embedding) is used. `prefix` is assistant text that already exists and is continued,
    not repeated. `route` lists the PeerIDs the job has passed through, the asking box first: a box that finds itself
    there refuses, and a box that receives a job from a peer never forwards it.

    `output` says what `output_text` is that the answer must obey: nothing, any JSON object, a JSON Schema or a GBNF
    grammar. `tools` is a JSON array of functions as OpenAI has them, `tool_choice` is auto, none, required or the name
    of one. `truncate` says which turns may be left out of a chat that does not fit. `v` is 2 where one of these, or a
    field of `sampling` or of a message that is younger than 1, is used, and for every embedding: a box that does not
    know them refuses the job and does not answer something else. `session` names a conversation whose memory may be
    kept for its next turn; a box that does not know it computes it again. `pooling` says how the vectors of a text's
    tokens become one: as the model was made for (empty), their mean, the first one's or the last one's.

    `priority` is how urgent the job is among those that wait with it; `deadline_ms` how long the asking box waits for
    the end of the answer, from when it sends the job: a box that cannot make that refuses at once. `begin_ms` is how
    long the job may wait for its turn; a box that does not know it keeps to its own limit.
    """

    v: Literal[1, 2] = 1
    job: JobId
    kind: Literal["chat", "completion", "embedding"]
    model: ModelName
    messages: Annotated[tuple[ChatMessage, ...], FailFast()] = Field(default=(), max_length=MAX_MESSAGES)
    prompt: str = ""
    texts: Annotated[tuple[str, ...], FailFast()] = Field(default=(), max_length=MAX_TEXTS)
    pooling: Literal["", "mean", "cls", "last"] = ""
    prefix: str = ""
    sampling: Sampling = Sampling()
    output: Literal["", "json", "schema", "grammar"] = ""
    output_text: str = Field(default="", max_length=MAX_OUTPUT_TEXT)
    tools: str = Field(default="", max_length=MAX_TOOLS_TEXT)
    tool_choice: str = Field(default="", max_length=64)
    truncate: Literal["", "oldest", "middle"] = ""
    session: str = Field(default="", max_length=128)
    route: Annotated[tuple[PeerIdText, ...], FailFast()] = Field(default=(), max_length=MAX_ROUTE)
    priority: Priority = "normal"
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    begin_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    traceparent: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _texts_to_embed(self) -> InferRequest:
        if (self.kind == "embedding") != bool(self.texts):
            raise PydanticCustomError("texts", "texts belong to the kind embedding, which needs at least one")
        return self


class Started(_Wire):
    """The job has been admitted and its prompt tokenised; so many tokens and messages were left out to make it fit."""

    type: Literal["started"] = "started"
    model: ModelName
    hash: ModelHash
    prompt_tokens: Count
    cut_tokens: Count = 0
    cut_messages: int = Field(default=0, ge=0, le=MAX_MESSAGES)


class Likely(_Wire):
    """A token and the natural logarithm of its probability; `bytes` are those of its text."""

    token: str = Field(max_length=1024)
    logprob: float = Field(ge=-1e4, le=0.01, allow_inf_nan=False)
    bytes: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], FailFast()] = Field(default=(), max_length=1024)


class TokenLogprob(Likely):
    """A token of an answer, and the likeliest in its place."""

    top_logprobs: Annotated[tuple[Likely, ...], FailFast()] = Field(default=(), max_length=MAX_TOP_LOGPROBS)


class Delta(_Wire):
    """Text that became final with one token; `tokens` counts those generated since the last delta (0 < tokens).

    `logprobs` has an entry for each of these tokens where the request asked for them.
    """

    type: Literal["delta"] = "delta"
    text: str = Field(max_length=64 * 1024)
    tokens: Count = 1
    logprobs: Annotated[tuple[TokenLogprob, ...], FailFast()] = Field(default=(), max_length=64)


class Embedded(_Wire):
    """The vectors of some texts of a request, from the `first` on, in order.

    `data` has `dimensions` little-endian 32-bit floats for each of them; a vector has length 1.
    """

    type: Literal["embedded"] = "embedded"
    first: int = Field(ge=0, lt=MAX_TEXTS)
    dimensions: int = Field(ge=1, le=MAX_DIMENSIONS)
    data: bytes = Field(strict=True, min_length=4, max_length=MAX_VECTOR_BYTES)


class Finished(_Wire):
    """The job's end. Times in milliseconds as the engine measured them: prefill, then decode of all tokens."""

    type: Literal["finished"] = "finished"
    reason: Literal["stop", "length"]
    prompt_tokens: Count
    completion_tokens: Count
    prefill_ms: float = Field(ge=0, allow_inf_nan=False)
    decode_ms: float = Field(ge=0, allow_inf_nan=False)


InferEvent = Annotated[Started | Delta | Embedded | Finished, Field(discriminator="type")]
_LOGPROBS: Final = TypeAdapter(tuple[TokenLogprob, ...])
_INFER_EVENT: Final[TypeAdapter[Started | Delta | Embedded | Finished]] = TypeAdapter(InferEvent)

Hello.model_rebuild()

M = TypeVar("M", bound=BaseModel)


def parse(kind: type[M], body: object) -> M:
    """Validate a decoded body as `kind`.

    Raises MessageError naming the first offending field; the offending value itself is never echoed.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise MessageError(_first_problem(kind.__name__, error)) from None


def parse_infer_event(body: object) -> Started | Delta | Embedded | Finished:
    """Validate a decoded body as one event of an infer call; raises MessageError as `parse` does."""
    try:
        return _INFER_EVENT.validate_python(body)
    except ValidationError as error:
        raise MessageError(_first_problem("event", error)) from None


def parse_logprobs(text: str) -> tuple[TokenLogprob, ...]:
    """Validate a JSON array of entries as OpenAI's `logprobs.content` has them; raises MessageError as `parse` does."""
    try:
        return _LOGPROBS.validate_json(text)
    except ValidationError as error:
        raise MessageError(_first_problem("logprobs", error)) from None


def _first_problem(kind: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or kind
    # pydantic's own words for an unknown tag repeat the tag, which may be a megabyte long.
    what = "not one of the known types" if first["type"] == "union_tag_invalid" else first["msg"]
    return f"{kind}: {where}: {what}"
