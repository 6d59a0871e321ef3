"""The record a fleet starts from: read strictly, because its hash names the fleet for ever."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import RefusedOpError
from fleet.identity.genesis import MAX_GENESIS, Genesis
from tests.property import budget

A, B, C, D = (bytes([number]) * 32 for number in range(1, 5))


def raw(**change: Any) -> bytes:
    good = {"v": 1, "name": "paper", "recovery": [A, B], "admins": [C, D], "nonce": bytes(16)}
    return cbor2.dumps(good | change, canonical=True)


def refusal(data: bytes) -> str:
    with pytest.raises(RefusedOpError) as caught:
        Genesis.read(data)
    return caught.value.reason


def test_the_fleet_id_is_the_hash_of_the_bytes() -> None:
    genesis = Genesis.read(raw())
    assert genesis == Genesis("paper", (A, B), (C, D), bytes(16))
    assert genesis.raw == raw()
    assert genesis.fleet_id == hashlib.blake2b(raw(), digest_size=32).digest()


def test_two_fleets_of_one_name_differ() -> None:
    one, other = (Genesis.new("paper", [B, A, B], [D, C]) for _ in range(2))
    assert (one.recovery, one.admins) == ((A, B), (C, D))
    assert one.fleet_id != other.fleet_id
    assert Genesis.read(one.raw) == one


@pytest.mark.parametrize(
    "change",
    [
        {"recovery": []},
        {"admins": [C]},
        {"name": "x"},
        {"name": "\u00e9" * 64},
        {"admins": [bytes([number]) * 32 for number in range(10, 26)]},
    ],
)
def test_at_a_limit(change: dict[str, Any]) -> None:
    assert Genesis.read(raw(**change)).raw == raw(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"v": 1.0},
        {"extra": 1},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "two\nlines"},
        {"name": b"paper"},
        {"name": None},
        {"nonce": bytes(15)},
        {"nonce": bytes(17)},
        {"nonce": "0" * 16},
        {"admins": []},
        {"admins": [D, C]},
        {"admins": [C, C]},
        {"admins": [C[:-1]]},
        {"admins": [C.hex()]},
        {"admins": {"0": C}},
        {"admins": None},
        {"admins": [bytes([number]) * 32 for number in range(10, 27)]},
        {"recovery": [A, C]},
        {"recovery": [B, A]},
        {"recovery": None},
        {"recovery": [1]},
        {"recovery": [[A]]},
    ],
)
def test_what_is_no_genesis(change: dict[str, Any]) -> None:
    assert refusal(raw(**change)) == "form"


def test_a_field_less_is_no_genesis() -> None:
    for name in ("v", "name", "recovery", "admins", "nonce"):
        fields = cbor2.loads(raw())
        del fields[name]
        assert refusal(cbor2.dumps(fields, canonical=True)) == "form"


def test_only_the_canonical_bytes_count() -> None:
    assert refusal(cbor2.dumps(dict(reversed(cbor2.loads(raw()).items())))) == "form"
    assert refusal(raw() + b"\0") == "form"
    assert refusal(raw()[:-1]) == "form"
    assert refusal(b"\xbf" + raw()[1:] + b"\xff") == "form"
    assert refusal(cbor2.dumps([1])) == "form"


def test_size_is_looked_at_first() -> None:
    assert refusal(bytes(MAX_GENESIS + 1)) == "size"
    assert refusal(bytes(MAX_GENESIS)) == "form"


@pytest.mark.parametrize(
    ("name", "recovery", "admins"), [("", [A], [C]), ("x", [A], []), ("x", [A], [A]), ("x", [A[:5]], [C])]
)
def test_a_fleet_that_could_not_be_read_is_not_made(name: str, recovery: list[bytes], admins: list[bytes]) -> None:
    with pytest.raises(RefusedOpError):
        Genesis.new(name, recovery, admins)


@budget(200)
@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["v", "name", "recovery", "admins", "nonce"]),
        st.integers() | st.text() | st.binary() | st.lists(st.binary() | st.none()) | st.none(),
    ).map(cbor2.dumps)
)
def test_any_bytes_are_a_genesis_or_a_refusal(data: bytes) -> None:
    made = outcome(data)
    assert made in ("size", "form") if isinstance(made, str) else made.raw == data


def outcome(data: bytes) -> Genesis | str:
    try:
        return Genesis.read(data)
    except RefusedOpError as error:
        return error.reason
