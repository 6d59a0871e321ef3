"""The corpus of corrupt GGUF files: cut, hostile, contradictory, mutated.

Made from one small model that loads, always the same bytes. `refused` is whether the reader has to refuse the file;
the others it may let through, and llama.cpp has to cope with them in a process of its own.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.corpus.gguf.build import (
    ARRAY,
    F64,
    I32,
    I64,
    STRING,
    U8,
    U64,
    Gguf,
    Raw,
    Tensor,
    array,
    llama,
    number,
    text,
)  # fmt: skip

_MUTANTS: Final = 60


@dataclass(frozen=True)
class Corrupt:
    """One file of the corpus."""

    name: str
    data: bytes
    refused: bool


def corpus() -> list[Corrupt]:
    """Every file, names unique."""
    return [*_cut(), *_hostile(), *_contradictory(), *_unusable(), *_mutants()]


def _cut() -> Iterator[Corrupt]:
    """The file ends where something has just been said, or a byte before."""
    model, whole = llama(), llama().build()
    for number_, end in enumerate(model.boundaries()):
        yield Corrupt(f"cut-{number_:03}-after", whole[:end], True)
        if number_ % 8 == 0:
            yield Corrupt(f"cut-{number_:03}-inside", whole[: end - 1], True)
    yield Corrupt("cut-empty", b"", True)
    yield Corrupt("cut-in-data", whole[: len(whole) // 2], True)
    yield Corrupt("cut-last-byte", whole[:-1], True)


def _entries(**changes: Any) -> Gguf:
    return llama().with_(changes)


def _extra(key: str | bytes, kind: int, data: bytes) -> Gguf:
    return llama().with_(extra=((key.encode() if isinstance(key, str) else key, Raw(kind, data)),))


def _first(**fields: Any) -> Gguf:
    """The first tensor with other fields."""
    model = llama()
    return replace(model, tensors=(replace(model.tensors[0], **fields), *model.tensors[1:]))


def _hostile() -> Iterator[Corrupt]:
    """Numbers that promise what no file has."""
    model = llama()
    huge = {"2-31": 1 << 31, "2-32": 1 << 32, "2-62": 1 << 62, "2-63": 1 << 63, "minus-1": (1 << 64) - 1}
    files: dict[str, Gguf] = {
        "magic-ggjt": model.with_(magic=b"GGJT"),
        "magic-zip": model.with_(magic=b"PK\3\4"),
        "magic-swapped": model.with_(magic=b"FUGG"),
        **{f"version-{v}": model.with_(version=v) for v in (0, 1, 4, 0xFFFFFFFF)},
        "big-endian-2": model.with_(version=0x02000000),
        "big-endian-3": model.with_(version=0x03000000),
        "keys-0": model.with_(keys=0),
        "tensors-0": model.with_(count=0),
        **{f"keys-{name}": model.with_(keys=value) for name, value in huge.items()},
        **{f"tensors-{name}": model.with_(count=value) for name, value in huge.items()},
        "keys-one-more": model.with_(keys=len(model.entries) + 1),
        "keys-one-less": model.with_(keys=len(model.entries) - 1),
        "tensors-one-more": model.with_(count=len(model.tensors) + 1),
        "key-empty-type-99": _extra(b"", 99, b""),
        "key-not-utf-8": _extra(b"\xff\xfe", U8, b"\0"),
        "key-not-ascii": _extra("schlüssel", U8, b"\0"),
        "key-long": _extra(b"k" * 100_000, U8, b"\0"),
        "key-twice": _extra("general.architecture", STRING, text("llama")),
        "type-13": _extra("x", 13, bytes(8)),
        "type-2-32": _extra("x", 0xFFFFFFFF, bytes(8)),
        **{f"text-{name}": _extra("x", STRING, struct.pack("<Q", value)) for name, value in huge.items()},
        "text-not-utf-8": _extra("x", STRING, text(b"\xc3\x28")),
        **{f"array-{name}": _extra("x", ARRAY, struct.pack("<IQ", U8, value)) for name, value in huge.items()},
        "array-texts-2-61": _extra("x", ARRAY, struct.pack("<IQ", STRING, 1 << 61)),
        "array-text-2-63": _extra("x", ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 63)),
        "array-of-arrays": _extra("x", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U8, 1) + b"\0"),
        "array-of-arrays-deep": _extra("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 10_000),
        "array-of-type-13": _extra("x", ARRAY, struct.pack("<IQ", 13, 1) + bytes(8)),
        "array-past-the-end": _extra("x", ARRAY, struct.pack("<IQ", F64, 1 << 20)),
        "tensor-name-long": _first(name="t" * 64),
        "tensor-name-not-utf-8": _first(name=b"\xff"),
        "tensor-name-twice": _first(name="output_norm.weight"),
        "tensor-dims-0": _first(shape=()),
        "tensor-dims-5": _first(shape=(32, 264, 1, 1, 1)),
        "tensor-dims-2-32": _first(dimensions=0xFFFFFFFF),
        "tensor-size-0": _first(shape=(32, 0)),
        "tensor-size-minus-1": _first(shape=((1 << 64) - 1, 1)),
        "tensor-size-overflow": _first(shape=(1 << 32, 1 << 32)),
        "tensor-size-wraps": _first(shape=(1 << 31, 1 << 31, 1 << 31, 1 << 31)),
        "tensor-type-4": _first(kind=4),
        "tensor-type-31": _first(kind=31),
        "tensor-type-255": _first(kind=255),
        "tensor-half-a-block": _first(kind=12),
        "tensor-offset-odd": _first(offset=7),
        "tensor-offset-2-63": _first(offset=1 << 63),
        "tensor-offset-past-the-end": _first(offset=1 << 30),
        "tensor-overlap": replace(model, tensors=(*model.tensors[:-1], replace(model.tensors[-1], offset=0))),
        "tensor-overlap-by-32": replace(
            model, tensors=(model.tensors[0], replace(model.tensors[1], offset=model.tensors[0].size - 32))
        ),
        "alignment-0": _entries(**{"general.alignment": 0}),
        "alignment-33": _entries(**{"general.alignment": 33}),
        "alignment-2-31": _entries(**{"general.alignment": 1 << 31}),
        "alignment-text": _entries(**{"general.alignment": "32"}),
        "alignment-negative": _entries(**{"general.alignment": number(I64, -32)}),
    }
    for name, file in files.items():
        yield Corrupt(f"hostile-{name}", file.build(), True)
    yield Corrupt("hostile-only-magic", b"GGUF", True)
    yield Corrupt("hostile-zeros", bytes(4096), True)
    yield Corrupt("hostile-text", b"<html>404 Not Found</html>" * 40, True)
    yield Corrupt("hostile-header-again", llama().build()[:4000] * 2, True)


def _contradictory() -> Iterator[Corrupt]:
    """Values of which llama.cpp could make nothing, or would end the process."""
    values: dict[str, tuple[str, Any]] = {
        "blocks-0": ("llama.block_count", 0),
        "blocks-513": ("llama.block_count", 513),
        "blocks-10-9": ("llama.block_count", 10**9),
        "blocks-negative": ("llama.block_count", number(I32, -1)),
        "blocks-float": ("llama.block_count", 2.0),
        "blocks-text": ("llama.block_count", "2"),
        "blocks-missing": ("llama.block_count", None),
        "context-0": ("llama.context_length", 0),
        "context-2-40": ("llama.context_length", number(U64, 1 << 40)),
        "context-missing": ("llama.context_length", None),
        "embedding-0": ("llama.embedding_length", 0),
        "embedding-10-9": ("llama.embedding_length", 10**9),
        "embedding-other": ("llama.embedding_length", 64),
        "embedding-missing": ("llama.embedding_length", None),
        "feed-forward-10-9": ("llama.feed_forward_length", 10**9),
        "heads-10-9": ("llama.attention.head_count", 10**9),
        "heads-negative": ("llama.attention.head_count", number(I32, -4)),
        "heads-short-list": ("llama.attention.head_count", array(I32, [4])),
        "heads-long-list": ("llama.attention.head_count", array(I32, [4] * 513)),
        "heads-list-of-texts": ("llama.attention.head_count", ["4", "4"]),
        "heads-list-of-floats": ("llama.attention.head_count", [4.0, 4.0]),
        "heads-0": ("llama.attention.head_count", 0),
        "heads-0-in-a-layer": ("llama.attention.head_count", [4, 0]),
        "heads-missing": ("llama.attention.head_count", None),
        "kv-heads-0": ("llama.attention.head_count_kv", 0),
        "kv-heads-more": ("llama.attention.head_count_kv", 8),
        "kv-heads-3-of-4": ("llama.attention.head_count_kv", 3),
        "kv-heads-list-of-3-of-4": ("llama.attention.head_count_kv", [2, 3]),
        "key-length-0": ("llama.attention.key_length", 0),
        "key-length-2-31": ("llama.attention.key_length", (1 << 31) - 1),
        "value-length-0": ("llama.attention.value_length", 0),
        "window-negative": ("llama.attention.sliding_window", number(I32, -1)),
        "pooling-9": ("llama.pooling_type", 9),
        "experts-10-6": ("llama.expert_count", 10**6),
        "experts-used-without-any": ("llama.expert_used_count", 2),
        "experts-none-used": ("llama.expert_count", 8),
        "state-2-31": ("llama.ssm.inner_size", (1 << 31) - 1),
        "architecture-missing": ("general.architecture", None),
        "architecture-number": ("general.architecture", 7),
        "architecture-path": ("general.architecture", "../../etc"),
        "architecture-empty": ("general.architecture", ""),
        "architecture-without-values": ("general.architecture", "qwen2"),
        "tokens-numbers": ("tokenizer.ggml.tokens", [1, 2, 3]),
        "tokens-none": ("tokenizer.ggml.tokens", array(STRING, [])),
        "tokens-fewer": ("tokenizer.ggml.tokens", ["a", "b"]),
        "scores-fewer": ("tokenizer.ggml.scores", [0.0]),
        "scores-texts": ("tokenizer.ggml.scores", ["a"] * 264),
        "scores-doubles": ("tokenizer.ggml.scores", array(F64, [0.0] * 264)),
        "types-fewer": ("tokenizer.ggml.token_type", [1] * 263),
        "types-bytes": ("tokenizer.ggml.token_type", array(U8, [1] * 264)),
        "merges-numbers": ("tokenizer.ggml.merges", [1, 2]),
    }
    for name, (key, value) in values.items():
        yield Corrupt(f"value-{name}", llama().with_({key: value}).build(), True)
    none = {"llama.attention.head_count": 0, "llama.attention.head_count_kv": 0}
    yield Corrupt("value-heads-0-and-kv-heads-0", llama().with_(none).build(), True)


def _unusable() -> Iterator[Corrupt]:
    """Well-formed, and not what the architecture needs: it is for llama.cpp to say so, or to fall."""
    model = llama()
    values: dict[str, dict[str, Any]] = {
        "heads-8": {"llama.attention.head_count": 8},
        "rope-0": {"llama.rope.dimension_count": 0},
        "rope-odd": {"llama.rope.dimension_count": 7},
        "rope-scaling": {"llama.rope.scaling.type": "sideways"},
        "epsilon-missing": {"llama.attention.layer_norm_rms_epsilon": None},
        "epsilon-nan": {"llama.attention.layer_norm_rms_epsilon": float("nan")},
        "architecture-unknown": {
            "general.architecture": "nonsuch",
            **{f"nonsuch.{key}": 2 for key in ("block_count", "context_length", "attention.head_count")},
            "nonsuch.embedding_length": 32,
        },
        "blocks-fewer": {"llama.block_count": 1},
        "blocks-more": {"llama.block_count": 3},
        "feed-forward-other": {"llama.feed_forward_length": 32},
        "tokenizer-unknown": {"tokenizer.ggml.model": "nonsuch"},
        "tokenizer-none": {"tokenizer.ggml.model": None},
        "tokens-missing": {"tokenizer.ggml.tokens": None},
        "tokens-all-the-same": {"tokenizer.ggml.tokens": ["a"] * 264},
        "tokens-all-empty": {"tokenizer.ggml.tokens": [""] * 264},
        "types-absurd": {"tokenizer.ggml.token_type": [2_000_000_000] * 264},
        "bos-far-out": {"tokenizer.ggml.bos_token_id": 10**9},
        "eos-far-out": {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF},
        "merges-for-nothing": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b", "", "   "]},
        "bpe-without-merges": {"tokenizer.ggml.model": "gpt2"},
        "wordpiece": {"tokenizer.ggml.model": "bert"},
        "unigram": {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": array(U8, [255] * 40)},
        "rwkv": {"tokenizer.ggml.model": "rwkv"},
        "template-number": {"tokenizer.chat_template": 7},
        "context-1": {"llama.context_length": 1},
        "vocabulary-other": {"llama.vocab_size": 7},
        "experts-without-tensors": {"llama.expert_count": 4, "llama.expert_used_count": 2},
        "next-layers": {"llama.nextn_predict_layers": 9},
    }
    for name, changes in values.items():
        yield Corrupt(f"model-{name}", model.with_(changes).build(), False)
    yield Corrupt("model-tensor-missing", replace(model, tensors=model.tensors[:-1]).build(), False)
    yield Corrupt("model-tensor-unknown", replace(model, tensors=(*model.tensors, Tensor("x", (4,)))).build(), False)
    renamed = (*model.tensors[:-1], replace(model.tensors[-1], name="blk.1.ffn_down.bias"))
    yield Corrupt("model-tensor-renamed", replace(model, tensors=renamed).build(), False)
    turned = (*model.tensors[:-1], replace(model.tensors[-1], shape=(32, 64)))
    yield Corrupt("model-tensor-turned", replace(model, tensors=turned).build(), False)
    yield Corrupt("model-only-a-norm", Gguf(model.entries, model.tensors[1:2]).build(), False)
    data = bytearray(model.build())
    start = len(data) - sum(tensor.size for tensor in model.tensors)
    yield Corrupt("model-weights-nan", bytes(data[:start]) + b"\xff" * (len(data) - start), False)
    yield Corrupt("model-shifted", bytes(data[:start]) + bytes(32) + bytes(data[start:]), False)


def _mutants() -> Iterator[Corrupt]:
    """Bytes of the header overwritten, left out or put in, by chance that is always the same."""
    whole = llama().build()
    header = llama().boundaries()[-1]
    for seed in range(_MUTANTS):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(header)
            new = chance.choice((chance.randbytes(1), b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack("<Q", 1 << 40)))
            data[at : at + chance.choice((len(new), len(new), 0))] = new
        yield Corrupt(f"mutant-{seed:02}", bytes(data), False)
