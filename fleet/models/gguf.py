"""What a GGUF file's header says of its model, and whether that can be a model that works.

Of a file that llama.cpp would abort on, or load and then answer nonsense from, a reason is given instead. The limits
are those of llama.cpp 0c1e570 (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from fleet.models.gguf_header import GgufError, Header, Scalar, read_header, whole

__all__ = ["GgufError", "GgufFacts", "Pooling", "read_facts", "size_label"]

MAX_BLOCKS: Final = 512
MAX_CONTEXT: Final = 1 << 30
MAX_EMBEDDING: Final = 1 << 20
MAX_HEADS: Final = 4096
MAX_HEAD: Final = 1 << 16
MAX_FEED_FORWARD: Final = 1 << 22
MAX_EXPERTS: Final = 1024
MAX_STATE: Final = 1 << 20

_KEPT: Final = 128
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
}  # fmt: skip
_ARCHITECTURE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

Pooling = Literal["", "none", "mean", "cls", "last", "rank"]
_POOLING: Final[tuple[Pooling, ...]] = ("none", "mean", "cls", "last", "rank")
#: Architectures that give vectors and never text, whatever else the header says.
_ENCODERS: Final = frozenset({
    "bert", "nomic-bert", "nomic-bert-moe", "modern-bert", "neo-bert", "eurobert", "jina-bert-v2", "jina-bert-v3",
    "gemma-embedding", "llama-embed", "t5encoder",
})  # fmt: skip
#: What only those have that keep a state, and may therefore do without attention: Mamba's kind, and RWKV's.
_STATES: Final = ("ssm.state_size", "wkv.head_size")
#: Every how many layers one sees the whole context, where the header does not say: llama.cpp's own values. With True
#: it is the first of them, else the last.
_WINDOW_PATTERNS: Final[Mapping[str, tuple[int, bool]]] = {
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gemma-embedding": (6, False),
    "cohere2": (4, False), "olmo2": (4, False), "exaone4": (4, False), "gpt-oss": (2, False), "llama4": (4, False),
    "afmoe": (4, False), "plamo3": (8, False), "smallthinker": (4, True), "modern-bert": (3, True),
}  # fmt: skip


@dataclass(frozen=True)
class GgufFacts:
    """What the header states. Sizes in bytes; `quantisation` is empty where the file does not name it.

    `name`, `basename`, `finetune` and `release` are the file's own words for which model it is; `stated_size` is its
    word for the size, empty where it has none, and `size_label` that word or else one made from the count.
    `parameters` is counted from the tensors, `tensor_bytes` has the bytes of each tensor type by its name, the largest
    first. `data_end` is where the last tensor ends, never past the end of the file.

    `kv_heads` has one number for each layer, 0 for one without attention; `heads` and `feed_forward` are the largest
    of all layers. `windowed` has True for each layer that sees `window` tokens back and no further. `pooling` is empty
    where the header does not say; `embedding` is whether the model gives vectors and no text.

    `tokenizer_hash` is the SHA-256, in hex, of the tokenizer's model, its pre-tokenizer, tokens, merges and scores: two
    files with the same one turn a text into the same tokens. `state_bytes` is what a sequence takes besides the cache,
    in models that keep a state.
    """

    version: int
    architecture: str
    name: str
    basename: str
    finetune: str
    release: str
    stated_size: str
    size_label: str
    parameters: int
    quantisation: str
    tensor_bytes: tuple[tuple[str, int], ...]
    context_length: int
    block_count: int
    embedding_length: int
    feed_forward: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    window: int
    windowed: tuple[bool, ...]
    experts: int
    experts_used: int
    expert_feed_forward: int
    state_bytes: int
    pooling: Pooling
    embedding: bool
    vocab_size: int
    tokenizer_hash: str
    chat_template: str | None
    header_bytes: int
    data_end: int
    file_bytes: int

    @property
    def has_chat_template(self) -> bool:
        """Whether the file brings its own way to write a chat down."""
        return self.chat_template is not None

    @property
    def weight_bytes(self) -> int:
        """All tensors."""
        return sum(size for _, size in self.tensor_bytes)


def read_facts(source: BinaryIO | bytes) -> GgufFacts:
    """Read and check the header of a GGUF file, from its bytes or a seekable binary file.

    Takes under 150 ms and 16 MiB besides what it returns, whatever the file holds. Raises GgufError for anything that
    cannot be run; OSError as the file raises it.
    """
    header = read_header(source)
    values, tensors = header.values, header.tensors
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise GgufError("general.architecture is missing or malformed")
    of = _Section(header, architecture)
    blocks = of.number("block_count", 1, MAX_BLOCKS)  # llama.cpp aborts on 0 and on more
    embedding_length = of.number("embedding_length", 1, MAX_EMBEDDING)
    vocab_size = _vocabulary(header, embedding_length)
    heads = of.per_layer("attention.head_count", blocks, MAX_HEADS, 0)
    kv_heads = of.per_layer("attention.head_count_kv", blocks, MAX_HEADS, heads)
    most = max(heads)
    # A model without attention has no heads: it keeps a state instead.
    head = embedding_length // most if most else 0
    _check_heads(of, heads, kv_heads)
    window = of.number("attention.sliding_window", 0, MAX_CONTEXT, 0)
    pooling = of.number("pooling_type", -1, len(_POOLING) - 1, -1)
    causal = values.get(f"{architecture}.attention.causal") is not False
    template = values.get("tokenizer.chat_template")
    file_type = values.get("general.file_type")
    stated_size = _short(values.get("general.size_label"))
    experts, experts_used = _experts(of, blocks)
    return GgufFacts(
        version=header.version,
        architecture=architecture,
        name=_short(values.get("general.name")),
        basename=_short(values.get("general.basename")),
        finetune=_short(values.get("general.finetune")),
        release=_short(values.get("general.version")),
        stated_size=stated_size,
        size_label=stated_size or size_label(tensors.parameters),
        parameters=tensors.parameters,
        quantisation=_FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        tensor_bytes=tuple(sorted(tensors.bytes_by_type.items(), key=lambda entry: -entry[1])),
        context_length=of.number("context_length", 1, MAX_CONTEXT),
        block_count=blocks,
        embedding_length=embedding_length,
        feed_forward=max(of.per_layer("feed_forward_length", blocks, MAX_FEED_FORWARD, 0)),
        heads=most,
        kv_heads=kv_heads,
        key_length=of.number("attention.key_length", 1, MAX_HEAD, head) if most else 0,
        value_length=of.number("attention.value_length", 1, MAX_HEAD, head) if most else 0,
        window=window,
        windowed=of.windowed(blocks) if window else (False,) * blocks,
        experts=experts,
        experts_used=experts_used,
        expert_feed_forward=of.number("expert_feed_forward_length", 0, MAX_FEED_FORWARD, 0),
        state_bytes=_state_bytes(of, kv_heads),
        pooling=_POOLING[pooling] if pooling >= 0 else "",
        embedding=architecture in _ENCODERS or pooling > 0 or not causal,
        vocab_size=vocab_size,
        tokenizer_hash=_tokenizer_hash(header),
        chat_template=template if isinstance(template, str) else None,
        header_bytes=header.header_bytes,
        data_end=header.data_end,
        file_bytes=header.file_bytes,
    )


def size_label(parameters: int) -> str:
    """A count of parameters as people say it: 135M, 1.1B."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            count = parameters / size
            return f"{count:.1f}".removesuffix(".0") + unit if count < 10 else f"{count:.0f}{unit}"
    return str(parameters)


class _Section:
    """The entries of one architecture."""

    def __init__(self, header: Header, architecture: str) -> None:
        self._header = header
        self.architecture = architecture

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        return whole(self._header.values, f"{self.architecture}.{key}", low, high, default)

    def per_layer(self, key: str, blocks: int, high: int, default: int | tuple[int, ...]) -> tuple[int, ...]:
        """A number for each layer; the file may say one for all."""
        whole_key = f"{self.architecture}.{key}"
        found = self._header.arrays.get(whole_key)
        if found is not None:
            # Some files have a number for layers that are not built too.
            if not blocks <= found.length <= MAX_BLOCKS or not all(0 <= n <= high for n in found.numbers):
                raise GgufError(f"{whole_key[:96]} is no list of {blocks} numbers from 0 to {high}")
            return found.numbers[:blocks]
        if whole_key not in self._header.values and isinstance(default, tuple):
            return default
        return (self.number(key, 0, high, default if isinstance(default, int) else None),) * blocks

    def windowed(self, blocks: int) -> tuple[bool, ...]:
        """Which layers have the sliding window; none where that is not known, which is the larger estimate."""
        key = f"{self.architecture}.attention.sliding_window_pattern"
        found = self._header.arrays.get(key)
        if found is not None:
            return tuple(map(bool, found.numbers[:blocks])) + (False,) * (blocks - found.length)
        every, dense_first = _WINDOW_PATTERNS.get(self.architecture, (0, False))
        every = self.number("attention.sliding_window_pattern", 0, MAX_BLOCKS, every) if every else 0
        dense = 0 if dense_first else every - 1
        return tuple(every > 0 and layer % every != dense for layer in range(blocks))


def _vocabulary(header: Header, embedding_length: int) -> int:
    """How many tokens there are; raises GgufError where what is said of them does not fit together."""
    tokens = header.arrays.get("tokenizer.ggml.tokens")
    size = tokens.length if tokens else 0
    if tokens is not None and (tokens.form != "s" or not size):
        raise GgufError("tokenizer.ggml.tokens is no list of texts")
    for key, forms in (("scores", "fi"), ("token_type", "i")):
        found = header.arrays.get(f"tokenizer.ggml.{key}")
        if found is not None and (found.form not in forms or found.length < size):
            raise GgufError(f"tokenizer.ggml.{key} does not have one number for each of {size} tokens")
    merges = header.arrays.get("tokenizer.ggml.merges")
    if merges is not None and merges.form != "s":
        raise GgufError("tokenizer.ggml.merges is no list of texts")
    shape = header.tensors.embedding_shape
    if shape and (shape[0] != embedding_length or (size and shape[1:2] != (size,))):
        raise GgufError(
            f"token_embd.weight is {' x '.join(map(str, shape))}, which does not fit an embedding length of"
            f" {embedding_length} and {size} tokens"
        )
    return size or (shape[1] if len(shape) > 1 else 0)


def _check_heads(of: _Section, heads: tuple[int, ...], kv_heads: tuple[int, ...]) -> None:
    stated = f"{of.architecture}.attention.head_count"
    for layer, (queries, keys) in enumerate(zip(heads, kv_heads, strict=True)):
        if keys and not queries:
            raise GgufError(f"{stated} is 0 or missing in layer {layer}, which has {keys} heads of keys and values")
        if keys > queries or (keys and queries % keys):
            raise GgufError(f"{stated}_kv is {keys} in layer {layer}, which does not divide {queries} heads")
    if not any(kv_heads) and not any(of.number(key, 0, MAX_STATE, 0) for key in _STATES):
        zero = stated if not any(heads) else f"{stated}_kv"
        raise GgufError(f"{zero} is 0 or missing: no layer has attention, and none keeps a state in its place")


def _experts(of: _Section, blocks: int) -> tuple[int, int]:
    experts = of.number("expert_count", 0, MAX_EXPERTS, 0)
    used = max(of.per_layer("expert_used_count", blocks, MAX_EXPERTS, 0))
    # llama.cpp aborts on these; one architecture (hunyuan) has 1 expert that it does not count.
    if used > experts or (experts > 1 and not used):
        raise GgufError(f"{of.architecture}.expert_used_count is {used} of {experts} experts")
    return experts, used


def _state_bytes(of: _Section, kv_heads: tuple[int, ...]) -> int:
    """What the layers without attention keep of a sequence, in 32 bits a value."""
    inner = of.number("ssm.inner_size", 0, MAX_STATE, 0)
    state = of.number("ssm.state_size", 0, MAX_STATE, 0)
    groups = of.number("ssm.group_count", 0, MAX_STATE, 0)
    convolution = of.number("ssm.conv_kernel", 0, MAX_STATE, 0)
    values = max(convolution - 1, 0) * (inner + 2 * groups * state) + state * inner
    layers = kv_heads.count(0) or len(kv_heads)
    return 4 * layers * values


def _tokenizer_hash(header: Header) -> str:
    parts = [str(header.values.get(f"tokenizer.ggml.{key}", "")).encode() for key in ("model", "pre")]
    for key in ("tokens", "merges", "scores"):
        found = header.arrays.get(f"tokenizer.ggml.{key}")
        parts.append(found.digest if found else b"")
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()


def _short(value: Scalar | None) -> str:
    return "".join(c for c in value[:_KEPT] if c.isprintable()) if isinstance(value, str) else ""
