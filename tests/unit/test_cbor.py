"""CBOR as Shoal speaks it: which bytes are a value, which value has which bytes, and what they may cost."""

from __future__ import annotations

import math
import tracemalloc

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import cbor

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def _depth(value: object) -> int:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@given(plain.filter(lambda value: _depth(value) <= cbor.MAX_DEPTH))
def test_a_plain_value_survives_in_one_form_alone(value: object) -> None:
    data = cbor.encode(value)
    assert cbor.decode(data) == value
    assert cbor.decode_canonical(data) == value
    with pytest.raises(cbor.CborError):
        cbor.decode(data + b"\x00")
    with pytest.raises(cbor.CborError):
        cbor.decode(data[:-1])


@given(st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), st.integers(0, 1 << 63), max_size=6))
def test_the_order_of_keys_does_not_change_the_form(value: dict[str | bytes, int]) -> None:
    assert cbor.encode(value) == cbor.encode(dict(reversed(value.items())))


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        ("00", 0),
        ("1bffffffffffffffff", (1 << 64) - 1),
        ("3bffffffffffffffff", -(1 << 64)),
        ("f90000", 0.0),
        ("fb3ff199999999999a", 1.1),
        ("f97c00", math.inf),
        ("a26161014000", {"a": 1, b"": 0}),
        ("62c3a9", "é"),
        ("8180", [[]]),
    ],
)
def test_what_stands_for_what(wire: str, value: object) -> None:
    decoded = cbor.decode(bytes.fromhex(wire))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "ff",
        "81",
        "8100 00",
        "9f01ff",
        "5f4101ff",
        "7f6161ff",
        "bf616101ff",
        "61ff",
        "63eda080",
        "62c3",
        "a2616101616102",
        "a10000",
        "a1f500",
        "a1f60000",
        "a18000",
        "a1a000",
        "a1f97e0000",
        "c001",
        "c24101",
        "c48201 02",
        "d81c80",
        "d81d00",
        "d82361 61",
        "d9d9f700",
        "d90102 80",
        "da7fffffff00",
        "1c",
        "fc",
        "f800",
        "f818",
        "81" * 9 + "00",
        "9affffffff",
        "9bffffffffffffffff",
        "5b7fffffffffffffff",
        "7affffffff61",
        "bbffffffffffffffff",
        # values that cbor2 has and Shoal does not
        "f7",
        "81f7",
        "a16161f7",
        "e0",
        "f3",
        "f8ff",
        "8181e5",
    ],
)
def test_what_is_no_plain_value_is_refused(wire: str) -> None:
    with pytest.raises(cbor.CborError) as caught:
        cbor.decode(bytes.fromhex(wire))
    assert len(str(caught.value)) < 80


@pytest.mark.parametrize(
    "wire",
    [
        "1800",
        "190001",
        "fb0000000000000000",
        "fa3fc00000",
        "5800",
        "7900 00",
        "9800",
        "b800",
        "a2616201616101",
        "a2616101 4000",
        "fb7ff8000000000001",
    ],
)
def test_a_second_spelling_of_a_value_is_not_canonical(wire: str) -> None:
    data = bytes.fromhex(wire)
    canonical = cbor.encode(cbor.decode(data))
    with pytest.raises(cbor.CborError, match="canonical"):
        cbor.decode_canonical(data)
    assert cbor.encode(cbor.decode_canonical(canonical)) == canonical


def test_bytes_that_look_like_simple_values_inside_text_are_harmless() -> None:
    for value in ("\u20ac\U0001f41f", b"\xe0\xf7\xf8", {"\u20ac": [b"\xf7", 0xF7, -0xE1]}):
        assert cbor.decode(cbor2.dumps(value)) == value


@pytest.mark.parametrize("item", [b"\x80", b"\xa0", b"\x81\x80", b"\x81\x81\x81\x81\x80", b"\xa1\x60\xa0", b"\x60"])
def test_a_decoded_value_is_at_most_100_times_its_bytes(item: bytes) -> None:
    count = (1 << 18) // len(item)
    data = b"\x9a" + count.to_bytes(4, "big") + item * count
    tracemalloc.start()
    value = cbor.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value
    assert peak < 100 * len(data)


@pytest.mark.parametrize("head", [b"\x9b", b"\xbb", b"\x5b", b"\x7b"])
def test_a_length_that_is_a_lie_takes_no_memory(head: bytes) -> None:
    for length in (1 << 24, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        tracemalloc.start()
        with pytest.raises(cbor.CborError):
            cbor.decode(head + length.to_bytes(8, "big") + b"\x00" * 100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 17
