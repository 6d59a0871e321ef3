"""What an mDNS record may say, and that nothing else is taken from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.net.discovery import MAX_ADDRS, parse_addresses
from tests.harness import peer_id_of

KEY = peer_id_of("jetson-1")
GOOD = f"/ip4/10.0.0.7/tcp/4210/p2p/{KEY}"


def test_addresses_of_one_box_are_taken() -> None:
    six = f"/ip6/fd00::7/tcp/4210/p2p/{KEY}"
    assert parse_addresses([GOOD.encode(), six.encode()]) == (KEY, (GOOD, six))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        b"",
        b"\xff\xfe",
        GOOD.replace("/tcp/", "/udp/").encode(),
        GOOD.replace("10.0.0.7", "jetson.example").encode(),
        GOOD.replace("4210", "0").encode(),
        GOOD.replace("4210", "70000").encode(),
        GOOD.replace("ip4", "ip6").encode(),
        GOOD.replace(KEY, "../etc").encode(),
        (GOOD + "/p2p-circuit").encode(),
        b"/" * 5000,
    ],
)
def test_anything_else_is_skipped(entry: bytes | None) -> None:
    assert parse_addresses([entry]) is None
    assert parse_addresses([entry, GOOD.encode()]) == (KEY, (GOOD,))


def test_a_record_speaks_for_one_box_and_names_few_addresses() -> None:
    other = GOOD.replace(KEY, peer_id_of("pos-1"))
    assert parse_addresses([GOOD.encode(), other.encode()]) == (KEY, (GOOD,))
    many = [f"/ip4/10.0.0.{i}/tcp/4210/p2p/{KEY}".encode() for i in range(100)]
    found = parse_addresses(many)
    assert found is not None
    assert len(found[1]) == MAX_ADDRS


@given(st.lists(st.none() | st.binary(max_size=200), max_size=10))
def test_hostile_entries_never_raise(entries: list[bytes | None]) -> None:
    found = parse_addresses(entries)
    assert found is None or found[0].isalnum()
