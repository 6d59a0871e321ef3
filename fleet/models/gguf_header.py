"""The header of a GGUF file as it stands there, read front to back within hard limits; what it means is `gguf`'s.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. The file is read in pieces; of arrays (a
vocabulary has 10^5 entries) the length and, where asked for, a digest are kept. Every limit is well past what a real
model needs and low enough for the worst header to be refused in 150 ms and 16 MiB.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

from fleet.errors import FleetError

MAX_HEADER: Final = 32 * 1024 * 1024
MAX_KEYS: Final = 4096
MAX_TENSORS: Final = 16_384
MAX_STRING: Final = 1024 * 1024
#: Entries of one array, and texts in all arrays together.
MAX_ARRAY: Final = 1024 * 1024
MAX_TEXTS: Final = 1024 * 1024
MAX_KEY: Final = 256
MAX_TENSOR_NAME: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 20

_CHUNK: Final = 1024 * 1024
#: Characters kept of a text that is not kept whole, and bytes of all lists of one number a layer.
_KEPT: Final = 128
_KEPT_LISTS: Final = 64 * 1024
_TEMPLATE: Final = "tokenizer.chat_template"
#: Arrays that decide how a text becomes tokens.
DIGESTED: Final = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores")
#: Endings of keys whose value may be one number, or one for each layer.
PER_LAYER: Final = (
    ".attention.head_count", ".attention.head_count_kv", ".attention.sliding_window_pattern", ".feed_forward_length",
    ".expert_used_count",
)  # fmt: skip
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_SHAPES: Final = {count: struct.Struct(f"<{count}QIQ") for count in range(1, MAX_DIMENSIONS + 1)}
_STRING, _ARRAY = 8, 9
_FORMS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_SCALARS: Final = {code: struct.Struct("<" + form) for code, form in _FORMS.items()}

#: ggml's tensor types by number: name, elements of a block, bytes of a block.
TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

Scalar = int | float | bool | str


class GgufError(FleetError):
    """The file is no GGUF that can be run; the message says where it is wrong and, for a short file, by how much."""

    code: ClassVar[str] = "model_load"


@dataclass(frozen=True)
class ArrayFacts:
    """What is kept of an array. `form` is struct's letter for an entry, `s` for texts.

    `digest` is the SHA-256 of its bytes for those in DIGESTED, else empty; `numbers` are the entries for a key that
    ends as one in PER_LAYER, else empty.
    """

    form: str
    length: int
    digest: bytes = b""
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tensors:
    """All tensors taken together. `bytes_by_type` is by the type's name; `extent` the length of the data section.

    `embedding_shape` is that of `token_embd.weight`, empty where there is none.
    """

    count: int
    parameters: int
    bytes_by_type: Mapping[str, int]
    extent: int
    embedding_shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A header that is well-formed and whose tensors lie within the file. Sizes in bytes."""

    version: int
    values: Mapping[str, Scalar]
    arrays: Mapping[str, ArrayFacts]
    tensors: Tensors
    header_bytes: int
    data_end: int
    file_bytes: int


def read_header(source: BinaryIO | bytes) -> Header:
    """Read the header of a GGUF file, from its bytes or a seekable binary file.

    Takes under 150 ms and 16 MiB besides what it returns, whatever the file holds. Raises GgufError for what is no
    GGUF, damaged or cut short; OSError as the file raises it.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    reader = _Reader(file, file_bytes)
    version, tensor_count, key_count = _preamble(reader)
    values, arrays = _metadata(reader, key_count)
    alignment = whole(values, "general.alignment", 1, MAX_ALIGNMENT, default=32)
    if alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {alignment}, which is no power of two")
    tensors = _tensors(reader, tensor_count, alignment)
    data_start = -(-reader.at // alignment) * alignment
    if data_start + tensors.extent > file_bytes:
        raise GgufError(
            f"the file is cut short: it ends at {file_bytes} bytes, the header promises {data_start + tensors.extent};"
            " copy or download it again",
            details={"file_bytes": file_bytes, "promised_bytes": data_start + tensors.extent},
        )
    return Header(version, values, arrays, tensors, reader.at, data_start + tensors.extent, file_bytes)


def whole(values: Mapping[str, Scalar], key: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number of the metadata; raises GgufError where it is missing without a default, or out of bounds."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise GgufError(f"{key[:96]} is missing or is no whole number")
    if not low <= value <= high:
        raise GgufError(f"{key[:96]} is {value}; {low} to {high} are possible")
    return value


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    magic = reader.take(4)
    if magic != b"GGUF":
        raise GgufError(f"this is not a GGUF file: it begins with {magic!r}")
    version = reader.u32()
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise GgufError(
            "this is a big-endian GGUF file, which this engine does not run"
            if swapped in (2, 3)
            else f"GGUF version {version} is not supported, 2 and 3 are"
        )
    tensors, keys = reader.u64(), reader.u64()
    if not 1 <= tensors <= MAX_TENSORS:
        raise GgufError(f"the header states {tensors} tensors; 1 to {MAX_TENSORS} are possible")
    if not 1 <= keys <= MAX_KEYS:
        raise GgufError(f"the header states {keys} metadata entries; 1 to {MAX_KEYS} are possible")
    return version, tensors, keys


def _metadata(reader: _Reader, count: int) -> tuple[dict[str, Scalar], dict[str, ArrayFacts]]:
    """The scalar values by key, and what is kept of the arrays by key."""
    values: dict[str, Scalar] = {}
    arrays: dict[str, ArrayFacts] = {}
    lists = 0
    for _ in range(count):
        key = reader.string(MAX_KEY, "a metadata key")
        if not key.isascii():
            raise GgufError("a metadata key is not ASCII")
        if key in values or key in arrays:
            raise GgufError(f"the metadata entry {key[:64]!r} is there twice")
        kind = reader.u32()
        if kind in _SCALARS:
            values[key] = _SCALARS[kind].unpack(reader.take(_SCALARS[kind].size))[0]
        elif kind == _STRING:
            # The beginning is all that is looked at but of the template; whole, the texts could fill the memory.
            text = reader.string(MAX_STRING, key)
            values[key] = text if key == _TEMPLATE else text[:_KEPT]
        elif kind == _ARRAY:
            arrays[key] = _array(reader, key, _KEPT_LISTS - lists)
            lists += 8 * len(arrays[key].numbers)
        else:
            raise GgufError(f"the metadata entry {key[:64]!r} has the unknown type {kind}")
    return values, arrays


def _array(reader: _Reader, key: str, room: int) -> ArrayFacts:
    kind, length = reader.u32(), reader.u64()
    if length > MAX_ARRAY:
        raise GgufError(f"the array {key[:64]!r} has {length} entries; the limit is {MAX_ARRAY}")
    form = "s" if kind == _STRING else _FORMS.get(kind, "")
    if not form:
        raise GgufError(f"the array {key[:64]!r} has entries of type {kind}, which is not supported")
    if key.endswith(PER_LAYER):
        if form in "sfd" or 8 * length > room:
            raise GgufError(f"{key[:96]} is no list of whole numbers, one for each layer")
        entries = struct.unpack(f"<{length}{form}", reader.take(length * _SCALARS[kind].size))
        return ArrayFacts(form, length, numbers=tuple(map(int, entries)))
    digest = hashlib.sha256() if key in DIGESTED else None
    reader.tap = digest
    if kind == _STRING:
        reader.skip_strings(length, key)
    else:
        reader.skip(length * _SCALARS[kind].size)
    reader.tap = None
    return ArrayFacts(form, length, digest.digest() if digest else b"")


def _tensors(reader: _Reader, count: int, alignment: int) -> Tensors:
    parameters = 0
    by_type: dict[str, int] = {}
    names: set[int] = set()
    spans: list[tuple[int, int]] = []
    embedding: tuple[int, ...] = ()
    for _ in range(count):
        name = reader.string(MAX_TENSOR_NAME, "a tensor's name")
        names.add(hash(name))  # the names themselves would take three times the memory
        dimensions = reader.u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise GgufError(f"the tensor {name!r} has {dimensions} dimensions")
        layout = _SHAPES[dimensions]
        *shape, kind, offset = layout.unpack(reader.take(layout.size))
        elements = 1
        for size in shape:
            elements *= size
            if not 0 < elements < 1 << 62:
                raise GgufError(f"the tensor {name!r} has an impossible size")
        if offset % alignment:
            raise GgufError(f"the tensor {name!r} is not aligned to {alignment} bytes")
        if kind not in TENSOR_TYPES:
            raise GgufError(f"the tensor {name!r} is of type {kind}, which this engine does not know")
        label, block, block_bytes = TENSOR_TYPES[kind]
        if shape[0] % block:
            raise GgufError(f"the tensor {name!r} has rows of {shape[0]} values, its type needs multiples of {block}")
        if name == "token_embd.weight":
            embedding = tuple(shape)
        size = elements // block * block_bytes
        parameters += elements
        by_type[label] = by_type.get(label, 0) + size
        spans.append((offset, offset + size))
    if len(names) < count:
        raise GgufError("two tensors have the same name")
    return Tensors(count, parameters, by_type, _extent(spans), embedding)


def _extent(spans: list[tuple[int, int]]) -> int:
    """Where the last of the tensors ends; raises GgufError where two share bytes."""
    end = 0
    for start, stop in sorted(spans):
        if start < end:
            raise GgufError(f"two tensors share the bytes at {start} of the data")
        end = stop
    return end


class _Reader:
    """Reads a header from front to back, a chunk at a time. What is skipped goes to `tap`, where there is one."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self.tap: hashlib._Hash | None = None
        self._file = file
        self._file_bytes = file_bytes
        self._chunk = b""
        self._pos = 0
        self._base = 0
        self._texts = 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._base + self._pos

    def take(self, count: int) -> bytes:
        if len(self._chunk) - self._pos < count:
            self._refill(count)
        self._pos += count
        return self._chunk[self._pos - count : self._pos]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def string(self, limit: int, what: str) -> str:
        length = self.u64()
        if length > limit:
            raise GgufError(f"{what[:96]} is a string of {length} bytes; the limit is {limit}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise GgufError(f"{what[:96]} is a string that is not UTF-8") from None

    def skip(self, count: int) -> None:
        self._check(count)
        if self.tap is not None:
            while count:
                piece = self.take(min(count, _CHUNK))
                self.tap.update(piece)
                count -= len(piece)
            return
        if count <= len(self._chunk) - self._pos:
            self._pos += count
            return
        self._base, self._chunk, self._pos = self.at + count, b"", 0
        self._file.seek(self._base)

    def skip_strings(self, count: int, what: str) -> None:
        self._texts += count
        if self._texts > MAX_TEXTS:
            raise GgufError(f"the header's arrays have {self._texts} texts; the limit is {MAX_TEXTS}")
        unpack, size = _U64.unpack_from, _U64.size
        while count:
            if len(self._chunk) - self._pos < size:
                self._refill(size)
            # The loop over a vocabulary: nothing in it but the step to the next length.
            chunk, pos, last = self._chunk, self._pos, len(self._chunk) - size
            stepped = 0
            for stepped in range(1, count + 1):  # noqa: B007 - how far it came is used below
                pos += size + unpack(chunk, pos)[0]
                if pos > last:
                    break
            count -= stepped
            stop = min(pos, len(chunk))
            if pos - stop > MAX_STRING:
                raise GgufError(f"{what[:96]} has a string of more than {MAX_STRING} bytes, which is the limit")
            if self.tap is not None:
                self.tap.update(memoryview(chunk)[self._pos : stop])
            self._pos = stop
            if pos > stop:
                self.skip(pos - stop)

    def _refill(self, count: int) -> None:
        """Make `count` bytes available from where the reader stands."""
        self._check(count)
        rest = self._chunk[self._pos :]
        self._base, self._pos = self.at, 0
        self._chunk = rest + self._file.read(max(_CHUNK, count - len(rest)))
        if len(self._chunk) < count:
            raise GgufError(f"the file ended at {self._base + len(self._chunk)} bytes while it was read")

    def _check(self, count: int) -> None:
        if self.at + count > self._file_bytes:
            raise GgufError(
                f"the file is cut short: it ends at {self._file_bytes} bytes, inside its header, which goes on to"
                f" {self.at + count} at least; copy or download it again",
                details={"file_bytes": self._file_bytes, "promised_bytes": self.at + count},
            )
        if self.at + count > MAX_HEADER:
            raise GgufError(f"the header is longer than {MAX_HEADER} bytes")
