"""What hypothesis feeds the targets: damaged inputs, CBOR that is almost right, and values with one thing wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.fuzz.base import Target


def fuzz(examples: int) -> Callable[..., Any]:
    """The settings of every test here: the same inputs in every run, no deadline, no database."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


#: Numbers at which decoders change their mind.
EDGES = (
    0, 1, 2, 7, 8, 9, 16, 17, 23, 24, 31, 32, 33, 63, 64, 65, 255, 256, 257, 65_535, 65_536, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 48) - 1, (1 << 53) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip

numbers = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)
hostile_lengths = st.builds(
    lambda number, size, order: (number % (1 << 8 * size)).to_bytes(size, order),  # type: ignore[arg-type]
    numbers,
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from(("big", "little")),
)


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """An accepted input after one to six edits: bytes set, cut, put in, moved, repeated, joined with another input."""
    seeds = list(target.seeds())
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(["set", "cut", "short", "put", "token", "length", "splice", "repeat", "nest"])):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : min(to, at + 16)]
            case "short":
                del data[at:]
            case "put":
                data[at:at] = draw(st.binary(max_size=12))
            case "token":
                data[at:at] = draw(st.sampled_from(target.tokens or (b"\xff",)))
            case "length":
                length = draw(hostile_lengths)
                data[at : at + draw(st.sampled_from((0, 1, 2, 4, 8)))] = length
            case "splice":
                other = draw(st.sampled_from(seeds))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case "repeat":
                data[at:at] = data[at:to] * draw(st.integers(1, 8))
            case "nest":
                data[at:at] = draw(st.sampled_from((b"\x81", b"[", b"{", b"\xa1\x60", b"- "))) * draw(
                    st.integers(1, 40)
                )
    return bytes(data[: target.max_len * 2])


def _head(major: int, number: int, width: int) -> bytes:
    """The first bytes of an item; `width` may be wider than the number needs."""
    if width == 0 and number < 24:
        return bytes([major << 5 | number])
    size = 1 << max(0, width - 1)
    while number >> 8 * size:
        size *= 2
    return bytes([major << 5 | 24 + size.bit_length() - 1]) + number.to_bytes(size, "big")


_widths = st.sampled_from((0, 0, 0, 1, 2, 3, 4))
_tags = st.sampled_from(
    (0, 1, 2, 3, 4, 5, 24, 25, 28, 29, 30, 32, 35, 36, 37, 55, 100, 256, 258, 260, 1004, 43000, 55799)
)
_leaf = st.one_of(
    st.builds(_head, st.sampled_from((0, 1)), numbers, _widths),
    st.builds(lambda raw, width: _head(2, len(raw), width) + raw, st.binary(max_size=40), _widths),
    st.builds(lambda raw, width: _head(3, len(raw), width) + raw, st.binary(max_size=8), _widths),
    st.builds(lambda text, width: _head(3, len(text.encode()), width) + text.encode(), st.text(max_size=8), _widths),
    st.builds(lambda low, raw: bytes([0xE0 | low]) + raw, st.integers(0, 31), st.binary(max_size=8)),
    st.builds(lambda major, number: _head(major, number, 4), st.integers(2, 5), numbers),
)
#: CBOR of any sort, well-formed or nearly: wide heads, tags, indefinite lengths, counts that are off by one.
cbor_items: st.SearchStrategy[bytes] = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(
            lambda items, off, width: _head(4, max(0, len(items) + off), width) + b"".join(items),
            st.lists(inner, max_size=5),
            st.sampled_from((0, 0, 0, 0, 1, -1)),
            _widths,
        ),
        st.builds(
            lambda items, width: _head(5, len(items), width) + b"".join(key + value for key, value in items),
            st.lists(st.tuples(_leaf, inner), max_size=4),
            _widths,
        ),
        st.builds(lambda tag, item: _head(6, tag, 0) + item, _tags, inner),
        st.builds(lambda items: b"\x9f" + b"".join(items) + b"\xff", st.lists(inner, max_size=3)),
        st.builds(lambda depth, item: b"\x81" * depth + item, st.integers(1, 12), inner),
    ),
    max_leaves=12,
)

#: Values of every type that CBOR or JSON can bring to a schema.
odd_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    numbers.map(lambda number: -number),
    st.floats(),
    st.sampled_from(
        (0.0, -0.0, 1e308, 1e-320, "", "0", "true", "1e999", "\x00", "\ud7ff", "\U0001f41f" * 70, "x" * 5000)
    ),
    st.text(max_size=12),
    st.lists(st.none() | numbers | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.none() | numbers, max_size=3),
    st.sampled_from((["x"] * 40, [[]] * 300, {str(k): k for k in range(40)}, [[[[[]]]]])),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _paths(item, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, templates: Sequence[Any], odd: st.SearchStrategy[Any] = odd_values) -> Any:
    """A template with one to three of its inner values replaced, removed, copied elsewhere or joined by a stranger."""
    odd = odd.map(copy.deepcopy)  # what is sampled is shared between examples
    value = copy.deepcopy(draw(st.sampled_from(templates)))
    for _ in range(draw(st.integers(1, 3))):
        paths = _paths(value)
        if not paths:
            return draw(odd)
        *up, last = draw(st.sampled_from(paths))
        holder = value
        for key in up:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "stranger", "copy"])):
            case "replace":
                holder[last] = draw(odd)
            case "remove":
                del holder[last]
            case "stranger" if isinstance(holder, dict):
                holder[draw(st.text(max_size=70))] = draw(odd)
            case "stranger":
                holder.insert(draw(st.integers(0, len(holder))), draw(odd))
            case "copy":
                source = value
                for key in draw(st.sampled_from(paths)):
                    source = source[key] if isinstance(source, dict | list) and _has(source, key) else source
                holder[last] = copy.deepcopy(source)
    return value


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)
