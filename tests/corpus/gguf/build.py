"""Writes GGUF files, right or wrong: what is not a valid value can be given as its bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fleet.models.gguf_header import TENSOR_TYPES

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
#: Bytes of data that are written; a file that claims more has none.
_MOST: Final = 1 << 30
_FORMS: Final = dict(zip(range(13), ("B", "b", "H", "h", "I", "i", "f", "?", "s", "", "Q", "q", "d"), strict=True))


@dataclass(frozen=True)
class Raw:
    """A metadata value as its type's number and its bytes."""

    kind: int
    data: bytes


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, values: Sequence[Any], *, length: int | None = None) -> Raw:
    """An array; `length` is what it claims to have."""
    head = struct.pack("<IQ", kind, len(values) if length is None else length)
    if kind == STRING:
        return Raw(ARRAY, head + b"".join(map(text, values)))
    return Raw(ARRAY, head + struct.pack(f"<{len(values)}{_FORMS[kind]}", *values))


def number(kind: int, value: float) -> Raw:
    """A number of a certain type."""
    return Raw(kind, struct.pack("<" + _FORMS[kind], value))


def raw(value: Any) -> Raw:
    """A Python value as writers of GGUF write it: whole numbers in 32 bits."""
    match value:
        case Raw():
            return value
        case bool():
            return number(BOOL, value)
        case int():
            return number(U32, value)
        case float():
            return number(F32, value)
        case str() | bytes():
            return Raw(STRING, text(value))
        case [str(), *_]:
            return array(STRING, value)
        case [float(), *_]:
            return array(F32, value)
        case list():
            return array(I32, value)
    raise TypeError(type(value))


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry; `offset` None is where the one before ends."""

    name: str | bytes
    shape: tuple[int, ...]
    kind: int = 0
    offset: int | None = None
    dimensions: int | None = None

    @property
    def size(self) -> int:
        """Bytes of its data."""
        _, block, block_bytes = TENSOR_TYPES.get(self.kind, ("", 1, 4))
        elements = 1
        for size in self.shape:
            elements *= size
        return elements // block * block_bytes


@dataclass(frozen=True)
class Gguf:
    """A file to write. Counts are those of the entries unless given; `data` is that many bytes, as stated if None."""

    entries: Mapping[str, Any]
    tensors: Sequence[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    keys: int | None = None
    count: int | None = None
    data: int | None = None
    extra: Sequence[tuple[bytes, Raw]] = field(default=())

    def with_(self, changes: Mapping[str, Any] = {}, **fields: Any) -> Gguf:
        """A copy; an entry changed to None is left out."""
        entries = {key: value for key, value in {**self.entries, **changes}.items() if value is not None}
        return replace(self, entries=entries, **fields)

    @property
    def alignment(self) -> int:
        """What the tensors are placed by; 32 where the entry says nothing of use."""
        stated = self.entries.get("general.alignment", 32)
        return stated if isinstance(stated, int) and 0 < stated <= 1 << 20 else 32

    def pieces(self) -> Iterator[bytes]:
        """The file in the smallest pieces that mean something."""
        yield self.magic
        yield struct.pack("<I", self.version)
        yield struct.pack("<Q", len(self.tensors) if self.count is None else self.count)
        entries = [*((key.encode(), raw(value)) for key, value in self.entries.items()), *self.extra]
        yield struct.pack("<Q", len(entries) if self.keys is None else self.keys)
        for key, value in entries:
            yield text(key)
            yield struct.pack("<I", value.kind)
            yield value.data
        alignment = self.alignment
        end, place = 0, []
        for tensor in self.tensors:
            start = -(-end // alignment) * alignment
            place.append(start if tensor.offset is None else tensor.offset)
            end = start + tensor.size
        for tensor, offset in zip(self.tensors, place, strict=True):
            yield text(tensor.name)
            shape = tensor.shape
            yield struct.pack("<I", len(shape) if tensor.dimensions is None else tensor.dimensions)
            yield struct.pack(f"<{len(shape)}Q", *shape)
            yield struct.pack("<I", tensor.kind)
            yield struct.pack("<Q", offset % (1 << 64))

    def build(self) -> bytes:
        """The whole file; the same bytes every time."""
        head = b"".join(self.pieces())
        alignment = self.alignment
        head += bytes(-len(head) % alignment)
        size = self.data
        if size is None:
            size = 0
            for tensor in self.tensors:
                size = -(-size // alignment) * alignment + tensor.size
        return head + _weights(size if size < _MOST else 0)

    def boundaries(self) -> list[int]:
        """The lengths at which a piece ends, shortest first."""
        at, found = 0, []
        for piece in self.pieces():
            at += len(piece)
            found.append(at)
        return found


def _weights(size: int) -> bytes:
    """Small 32-bit floats of either sign, so that no layer gives infinities."""
    chance = random.Random(size)
    words = [struct.pack("<f", chance.uniform(-0.1, 0.1)) for _ in range(251)]
    return (b"".join(words) * (size // 1004 + 1))[:size]


def llama(
    *,
    embedding: int = 32,
    blocks: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 64,
    vocabulary: int = 264,
    context: int = 512,
    kind: int = 0,
) -> Gguf:
    """A model of the llama architecture that llama.cpp loads and runs; its weights mean nothing."""
    head = embedding // heads
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = (tokens + [f"▁t{number}" for number in range(vocabulary - len(tokens))])[:vocabulary]
    types = [2, 3, 3, *[6] * 256]
    types = (types + [1] * vocabulary)[:vocabulary]
    entries: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.file_type": 0,
        "llama.block_count": blocks,
        "llama.context_length": context,
        "llama.embedding_length": embedding,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * vocabulary,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    tensors = [Tensor("token_embd.weight", (embedding, vocabulary), kind), Tensor("output_norm.weight", (embedding,))]
    for layer in range(blocks):
        shapes = {
            "attn_q": (embedding, embedding),
            "attn_k": (embedding, head * kv_heads),
            "attn_v": (embedding, head * kv_heads),
            "attn_output": (embedding, embedding),
            "ffn_gate": (embedding, feed_forward),
            "ffn_up": (embedding, feed_forward),
            "ffn_down": (feed_forward, embedding),
        }
        tensors += [Tensor(f"blk.{layer}.{name}.weight", (embedding,)) for name in ("attn_norm", "ffn_norm")]
        tensors += [Tensor(f"blk.{layer}.{name}.weight", shape, kind) for name, shape in shapes.items()]
    return Gguf(entries, tensors)
