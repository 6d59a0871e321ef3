"""What boxes say of themselves: read leniently, field by field, and never an error."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.document.facts import Box, Holding, Node, Rate, Used, read_addrs, read_box
from fleet.document.op import Op
from tests.property import budget
from tests.property.fleet import Fleet, canonical, pk

PEER = pk("m2")


def told(**said: Any) -> Box:
    """The box m1 after it said this; `__` stands for the slash in a path."""
    return told_at({path.replace("__", "/"): value for path, value in said.items()})


def told_at(said: dict[str, Any]) -> Box:
    fleet = Fleet()
    return read_box(pk("m1"), {path: fleet.fact("m1", path, value) for path, value in said.items()})


def test_a_box_that_says_nothing_is_empty() -> None:
    assert read_box(PEER, {}) == Box(PEER, Node())


def test_everything_a_box_can_say() -> None:
    node = Node("kitchen", "1.2", (("site", "north"),), "aarch64", 4, 1 << 33, 1 << 40, "none", "i-1")
    box = told_at(
        {
            "node": node.body(),
            "addr": ["/ip4/1.2.3.4/tcp/1", "/dns4/x/tcp/2"],
            "hold/bb": {"name": "b", "size": 5, "complete": 1},
            "hold/aa": {"name": "a", "size": 1 << 40, "complete": 0.25},
            "perf/aa": {"decode": 11.5, "prefill": 200, "engine": "llama-cpp-python 1"},
            "perf/bb": {"decode": 3.0},
            f"used/{PEER.hex()}": {"jobs": 3, "tokens": 400, "failures": 1},
        }
    )
    assert box == Box(
        pk("m1"),
        node,
        ("/ip4/1.2.3.4/tcp/1", "/dns4/x/tcp/2"),
        (Holding("aa", "a", 1 << 40, 0.25), Holding("bb", "b", 5, 1.0)),
        (Rate("aa", 11.5, 200.0, "llama-cpp-python 1"), Rate("bb", 3.0)),
        (Used(PEER, 3, 400, 1),),
        seq=7,
        written=1007,
    )


def test_null_takes_a_fact_back() -> None:
    box = told(hold__aa=None, perf__aa=None, node=None, addr=None)
    assert (box.holdings, box.rates, box.node, box.addrs) == ((), (), Node(), ())


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"name": "x" * 300}, Node(name="x" * 256)),
        ({"name": "two\nlines"}, Node()),
        ({"name": 7, "arch": b"x", "gpu": None}, Node()),
        ({"cpus": -1, "memory": 1.5, "disk": True}, Node()),
        ({"cpus": (1 << 62) + 1, "memory": 1 << 62}, Node(memory=1 << 62)),
        ({"labels": {"a": "b c"}, "name": "still"}, Node(name="still")),
        ({"labels": [], "name": "still"}, Node(name="still")),
        ({"more": 1, "name": "newer"}, Node(name="newer")),
        ("nonsense", Node()),
        ([], Node()),
        (1, Node()),
    ],
)
def test_a_field_that_does_not_fit_is_absent_and_the_others_stay(said: object, found: Node) -> None:
    assert told(node=said).node == found


@pytest.mark.parametrize(
    ("complete", "found"),
    [(0, 0.0), (1, 1.0), (0.5, 0.5), (7, 1.0), (-1, 0.0), (math.nan, 0.0), (math.inf, 0.0), ("1", 0.0), (True, 0.0)],
)
def test_completeness_is_between_none_and_all(complete: object, found: float) -> None:
    (holding,) = told(hold__aa={"complete": complete}).holdings
    assert holding.complete == found


@pytest.mark.parametrize(
    ("rate", "found"), [(2.5, 2.5), (3, 3.0), (-2.5, 0.0), (math.inf, 0.0), (math.nan, 0.0), (None, 0.0)]
)
def test_a_rate_is_a_number_that_can_be_compared(rate: object, found: float) -> None:
    (measured,) = told(perf__aa={"decode": rate}).rates
    assert measured.decode == found


@pytest.mark.parametrize(("said", "found"), [(1 << 40, 1 << 40), ((1 << 40) + 1, 0), (1 << 62, 0), (-1, 0), (1.5, 0)])
def test_more_than_a_box_can_have_consumed_is_not_counted(said: object, found: int) -> None:
    (used,) = told_at({f"used/{PEER.hex()}": {"jobs": 1, "tokens": said}}).used
    assert (used.jobs, used.tokens) == (1, found)


@pytest.mark.parametrize("peer", ["", "ab", PEER.hex().upper(), PEER.hex() + "0", "g" * 64])
def test_use_is_of_a_key(peer: str) -> None:
    assert told_at({f"used/{peer}" if peer else "used": {"jobs": 1}}).used == ()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (["a", "", 1, None, "x" * 257, "b"], ("a", "b")),
        ([f"a{n}" for n in range(20)], tuple(f"a{n}" for n in range(16))),
        ("a", ()),
        ({"a": 1}, ()),
    ],
)
def test_addresses_are_a_few_short_texts(said: object, found: tuple[str, ...]) -> None:
    assert read_addrs(canonical(said)) == found
    assert told(addr=said).addrs == found


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "labels", "cpus", "complete", "decode", "jobs"]), inner)
    ),
    max_leaves=8,
)


@budget(150)
@given(
    st.dictionaries(st.sampled_from(["node", "addr", "hold", "hold/x", "perf/x", f"used/{PEER.hex()}", "new/x"]), plain)
)
def test_whatever_a_box_says_it_can_be_read_and_put_in_order(said: dict[str, Any]) -> None:
    box = told_at(said)
    assert all(0 <= holding.complete <= 1 for holding in box.holdings)
    assert all(math.isfinite(rate.decode + rate.prefill) for rate in box.rates)
    assert all(isinstance(label, str) for pair in box.node.labels for label in pair)
    assert box.seq == len(said)


def test_a_body_that_is_no_cbor_is_absent() -> None:
    op = Fleet().fact("m1", "node", {"name": "x"})
    broken = Op(op.id, op.fleet, op.author, 9, 8, "node", "node", b"\xff\xff", (), op.raw)
    box = read_box(pk("m1"), {"node": broken, "addr": broken, "hold/x": broken})
    assert box == Box(pk("m1"), Node(), seq=9, written=8)
