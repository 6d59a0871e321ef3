"""CBOR values as JSON text, for programs that read the document: one text for one value, whoever writes it.

What JSON has no word for is an object with one key that starts with `$`:

    byte string        {"$bytes": "6869"}            hexadecimal
    NaN, infinities    {"$float": "nan"}             nan, inf, -inf
    map with keys that are not text   {"$map": [[{"$bytes": "01"}, "a"]]}, in its own order

Integers keep all their digits; JavaScript rounds those beyond 2^53.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def text_of(value: object) -> str:
    """The JSON text of a value that `fleet.cbor.decode` returned: compact, keys sorted, not escaped to ASCII."""
    return _encode(_plain(value))


def _plain(value: object) -> object:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {"$map": [[_plain(key), _plain(item)] for key, item in value.items()]}
    raise TypeError(f"not a value of CBOR as Shoal reads it: {kind.__name__}")
