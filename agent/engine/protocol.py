"""The messages between the agent and a model's child process, and their frames; no sockets here.

A frame is a u32 big-endian length and a CBOR array `[version, kind, field, ...]`, the fields in the order of the
dataclass. One Step carries what one decoding step gave to every running sequence, so the frames an agent reads grow
with steps, not with steps times sequences.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import cbor2

from fleet import cbor

VERSION: Final = 3
MAX_FRAME: Final = 2 * 1024 * 1024

_LENGTH: Final = struct.Struct(">I")


class ProtocolError(Exception):
    """The other end sent bytes that are no message of this version; the child that is involved is ended."""


# --- down: the agent asks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Open the model; answered by Loaded, or by Failed without an id.

    `slots` sequences share one cache of `cells` tokens (0: `context_tokens`), and one of them may use at most
    `context_tokens` of it. `batch` is how many tokens one decoding step may take in. `embeddings` 1 opens the model to
    give vectors and no text, and `whole` 1 says that it has to read a text in one step; `pooling` is the one that it
    was made for, or empty. Conversations that have a name are kept in the folder `sessions`, in at most
    `session_bytes`; none are where it is empty.

    `parking` bytes may be taken beside the cache for sequences that are over.

    `gpu_layers` go to a GPU: a number, all (-1), or as many as fit (-2), which is found by how many `blocks` the model
    has and by the bytes of its `weights`, its `cache` and what it needs to `compute`.
    """

    path: str
    context_tokens: int
    threads: int
    gpu_layers: int
    slots: int = 1
    cells: int = 0
    batch: int = 512
    embeddings: int = 0
    whole: int = 0
    pooling: Literal["", "mean", "cls", "last"] = ""
    sessions: str = ""
    session_bytes: int = 0
    flash_attention: Literal["auto", "on", "off"] = "auto"
    blocks: int = 0
    weights: int = 0
    cache: int = 0
    compute: int = 0
    parking: int = 0


@dataclass(frozen=True)
class Submit:
    """Run one sequence; answered by Begun, Step…, Done, or by Failed with the id.

    `messages` are (role, content, more) of a chat, `more` being the other fields of the message as a JSON object or
    empty; they are empty for a completion of `prompt`. `prefix` is appended to either. `max_tokens` 0 means up to the
    end of the context; `seed` -1 means a random one; `logprobs` -1 none, 0 those of the chosen tokens, n also of the n
    likeliest. `output` says what `output_text` is that the answer must obey: nothing, any JSON object, a JSON Schema or
    a GBNF grammar. `tools` is a JSON array of functions, `tool_choice` is auto, none, required or the name of one.
    `truncate` says which messages may be left out of a chat that does not fit. `session` names a conversation whose
    state may be kept on disk. What one `owner` asked for is never used to answer another.
    """

    id: int
    kind: Literal["chat", "completion"]
    messages: tuple[tuple[str, str, str], ...]
    prompt: str
    prefix: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int = -1
    output: Literal["", "json", "schema", "grammar"] = ""
    output_text: str = ""
    tools: str = ""
    tool_choice: str = ""
    truncate: Literal["", "oldest", "middle"] = ""
    session: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Cancel:
    """End a sequence, waiting or running; always answered by Done or Failed, unless it has already ended."""

    id: int


@dataclass(frozen=True)
class Embed:
    """Turn texts into vectors of length 1; answered by Vectors…, Done, or by Failed with the id.

    `pooling` says how the vectors of a text's tokens become one: as the model was made for (empty), their mean, the
    first one's or the last one's.
    """

    id: int
    texts: tuple[str, ...]
    pooling: Literal["", "mean", "cls", "last"] = ""


@dataclass(frozen=True)
class Stats:
    """Ask how the engine is; answered by Statistics with the same id."""

    id: int


@dataclass(frozen=True)
class Probe:
    """Measure how fast the model is: read `prompt` tokens, then `tokens` one by one; answered by Probed."""

    id: int
    prompt: int
    tokens: int


@dataclass(frozen=True)
class Unload:
    """Free the model and exit."""


# --- up: the child tells -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """The model is ready for `slots` sequences at a time. Rates are tokens per second of warming up, 0 if unknown.

    `load_ms` and `warm_ms` are milliseconds; `context_tokens` is what one sequence may use. `gpu_layers` are on a GPU.
    """

    context_tokens: int
    slots: int
    load_ms: float
    warm_ms: float
    prefill_rate: float
    decode_rate: float
    gpu_layers: int = 0


@dataclass(frozen=True)
class Begun:
    """The prompt of a sequence is tokenised and fits.

    `cut` of its tokens, in `cut_messages` messages, were left out because of `truncate`.
    """

    id: int
    prompt_tokens: int
    cut: int = 0
    cut_messages: int = 0


@dataclass(frozen=True)
class Step:
    """What one step gave: (id, text that became final, tokens it took, logprobs) of every sequence that moved.

    `logprobs` is empty or a JSON array with one entry a token, as OpenAI's `logprobs.content` has them.
    """

    items: tuple[tuple[int, str, int, str], ...]


@dataclass(frozen=True)
class Vectors:
    """The vectors of some texts of an Embed, from the `first` on: little-endian 32-bit floats, `dimensions` of each."""

    id: int
    first: int
    dimensions: int
    data: bytes


@dataclass(frozen=True)
class Done:
    """A sequence ended; times in milliseconds, prefill and then decode of all tokens.

    `reused` of the prompt's tokens were not computed: their state was there from another sequence.
    """

    id: int
    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    prefill_ms: float
    decode_ms: float
    reused: int = 0


@dataclass(frozen=True)
class Failed:
    """A sequence (or with id -1 the load) failed. `code` is that of the AgentError to raise."""

    id: int
    code: Literal["bad_request", "context_length_exceeded", "engine", "model_load"]
    message: str
    details: Mapping[str, int]


@dataclass(frozen=True)
class Statistics:
    """How the engine is between two steps: sequences and cells now, and sums since it was loaded.

    `reused` are tokens of prompts that were not decoded, `yielded` sequences that had to make room, `aborted` steps
    that a cancel ended. `cells_used` counts those of sequences that run and of those that are over and kept,
    `cells_kept` the latter. Times are microseconds: `admit_us` of letting requests in and parking what is over,
    `build_us` of choosing and building steps, `decode_us` in llama.cpp, `sample_us` of choosing tokens and telling
    them.
    """

    id: int
    running: int
    waiting: int
    kept: int
    cells: int
    cells_used: int
    cells_kept: int
    steps: int
    tokens: int
    reused: int
    yielded: int
    aborted: int
    admit_us: int
    build_us: int
    decode_us: int
    sample_us: int


@dataclass(frozen=True)
class Probed:
    """How long so many tokens took, in milliseconds. All are 0 where there were requests, which come first."""

    id: int
    prompt: int
    prompt_ms: float
    tokens: int
    tokens_ms: float


Down = Load | Submit | Embed | Cancel | Stats | Probe | Unload
Up = Loaded | Begun | Step | Vectors | Done | Failed | Statistics | Probed
Message = Down | Up

_KINDS: Final[Mapping[str, type[Any]]] = {
    "load": Load,
    "submit": Submit,
    "embed": Embed,
    "vectors": Vectors,
    "cancel": Cancel,
    "stats": Stats,
    "statistics": Statistics,
    "probe": Probe,
    "probed": Probed,
    "unload": Unload,
    "loaded": Loaded,
    "begun": Begun,
    "step": Step,
    "done": Done,
    "failed": Failed,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """One message as a frame. Raises ProtocolError when it is past MAX_FRAME."""
    values = [getattr(message, field.name) for field in dataclasses.fields(message)]
    body = cbor2.dumps([VERSION, _NAMES[type(message)], *values])
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(body)} bytes is past the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """One frame's body as a message. Raises ProtocolError for anything that is not one of this version."""
    # As strict as with a peer: a model file may have taken the child over. Without tags there are no bignums, whose
    # conversion to a float or to text raises OverflowError or ValueError.
    try:
        loaded = cbor.decode(body)
    except cbor.CborError as error:
        raise ProtocolError(f"a frame is not CBOR: {error}") from None
    match loaded:
        case [int(version), str(name), *values] if version == VERSION and name in _KINDS:
            kind = _KINDS[name]
        case [int(version), str(), *_] if version != VERSION:
            raise ProtocolError(f"protocol version {version}, this end speaks {VERSION}: restart the agent")
        case _:
            raise ProtocolError("a frame is not a message of this protocol")
    fields = dataclasses.fields(kind)
    if len(values) != len(fields):
        raise ProtocolError(f"{name}: {len(values)} fields, expected {len(fields)}")
    message: Message = kind(
        **{
            field.name: _checked(name, field.name, str(field.type), value)
            for field, value in zip(fields, values, strict=True)
        }
    )
    return message


class FrameBuffer:
    """Cuts a byte stream into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completed, in order. Raises ProtocolError; the stream is then unusable."""
        self._bytes += data
        at = 0
        try:
            while len(self._bytes) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._bytes, at)
                if length > MAX_FRAME:
                    raise ProtocolError(f"a frame of {length} bytes is past the limit of {MAX_FRAME}")
                if len(self._bytes) - at - _LENGTH.size < length:
                    return
                body = bytes(self._bytes[at + _LENGTH.size : at + _LENGTH.size + length])
                at += _LENGTH.size + length
                yield decode(body)
        finally:
            del self._bytes[:at]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -2 <= value < 1 << 53


def _is_items(value: object, *kinds: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == len(kinds) and all(ok(cell) for ok, cell in zip(kinds, row, strict=True))
        for row in value
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _checked(message: str, name: str, kind: str, value: Any) -> Any:
    """`value` as the annotation `kind` says, its lists as tuples."""
    match kind:
        case "int" if _is_int(value):
            return value
        case "str" if isinstance(value, str):
            return value
        case "bytes" if isinstance(value, bytes):
            return value
        case "float" if _is_number(value):
            return float(value)
        case "tuple[str, ...]" if isinstance(value, list) and all(map(_is_str, value)):
            return tuple(value)
        case "tuple[tuple[str, str, str], ...]" if _is_items(value, _is_str, _is_str, _is_str):
            return tuple(map(tuple, value))
        case "tuple[tuple[int, float], ...]" if _is_items(value, _is_int, _is_number):
            return tuple((one, float(other)) for one, other in value)
        case "tuple[tuple[int, str, int, str], ...]" if _is_items(value, _is_int, _is_str, _is_int, _is_str):
            return tuple(map(tuple, value))
        case "Mapping[str, int]" if isinstance(value, dict) and all(
            _is_str(k) and _is_int(v) for k, v in value.items()
        ):
            return value
        case _ if kind.startswith("Literal[") and isinstance(value, str) and repr(value) in kind:
            return value
    raise ProtocolError(f"{message}: {name} is not of type {kind}")
