"""CBOR (RFC 8949) as Shoal speaks it: plain types only, bounded depth, and one canonical form for what is signed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import cbor2

MAX_DEPTH: Final = 8
_PLAIN: Final = (str, bytes, int, float)


class CborError(ValueError):
    """Bytes that are not one item of CBOR within the limits; the message says why, and never echoes the bytes."""


def decode(data: bytes) -> object:
    """Decode one item that fills `data`.

    Gives None, bool, int of 64 bits, float, str, bytes, and lists and maps of them, the maps' keys str or bytes (whose
    hashes nobody can choose). Raises CborError for anything else: nesting beyond 8, indefinite lengths, duplicate
    keys, bytes after the end, `undefined` and unassigned simple values, and tags, because some of them (rationals,
    bignums, regular expressions) let a peer buy much CPU for few bytes. What is decoded takes at most 100 times the
    memory of its bytes: an empty list is one byte here and 64 there.
    """
    source = io.BytesIO(data)
    try:
        value: object = cbor2.load(
            source,
            tag_hook=_refuse_tag,
            semantic_decoders=_NO_TAGS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise CborError(type(error).__name__) from None
    if source.read(1):
        raise CborError("bytes after its end")
    if _MAYBE_SIMPLE.search(data) and not _is_plain(value):
        raise CborError("undefined and simple values are not accepted")
    return value


def encode(value: object) -> bytes:
    """The canonical encoding (RFC 7049, section 3.9: shortest lengths and floats, keys by length, then bytes)."""
    return cbor2.dumps(value, canonical=True)


def decode_canonical(data: bytes) -> object:
    """Decode one item; raises CborError also when `data` is not its canonical encoding."""
    value = decode(data)
    try:
        same = encode(value) == data
    except (cbor2.CBORError, ValueError, TypeError, OverflowError) as error:
        raise CborError(type(error).__name__) from None
    if not same:
        raise CborError("not in canonical form")
    return value


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, _PLAIN)


def _refuse_tag(*_: object) -> NoReturn:
    raise cbor2.CBORDecodeError("tags are not accepted")


#: First bytes of simple values and `undefined`. Most items have none of them anywhere, and then need no second look.
_MAYBE_SIMPLE: Final = re.compile(rb"[\xe0-\xf3\xf7\xf8]")
#: Tags for which cbor2 has decoders of its own; all others reach `tag_hook`.
_NO_TAGS: Final[Mapping[int, Callable[..., Any]]] = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)
