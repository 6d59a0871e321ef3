"""The digest tree against a plain set, and walks between trees that differ."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import MessageError
from fleet.gossip import sync_messages as wire
from fleet.gossip.digest_tree import DIGEST_BYTES, HEX, LEAF, MAX_DEPTH, DigestTree
from fleet.gossip.walk import MAX_QUESTIONS, MAX_WANTED, AskIds, AskNodes, Walk


def ident(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest()


def near(number: int) -> bytes:
    """Ids that have most of their digits in common, as somebody could make them on purpose."""
    return bytes(6) + number.to_bytes(2, "big") + bytes(24)


numbers = st.integers(0, 400)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([ident, near]), numbers), max_size=300), st.randoms())
def test_a_tree_is_its_set_whatever_the_history(steps: list[tuple[bool, type, int]], rng: random.Random) -> None:
    tree, plain = DigestTree(), set()
    for add, make, number in steps:
        op_id = make(number)
        if add:
            assert tree.add(op_id) == (op_id not in plain)
            plain.add(op_id)
        else:
            assert tree.discard(op_id) == (op_id in plain)
            plain.discard(op_id)
        if rng.random() < 0.1:
            assert len(tree.root) == DIGEST_BYTES  # hashes are kept from here on, and have to go stale
    fresh = DigestTree(rng.sample(sorted(plain), len(plain)))
    assert (len(tree), tree.root) == (len(plain), fresh.root)
    assert list(tree.ids()) == sorted(plain)
    for op_id in rng.sample(sorted(plain), min(5, len(plain))):
        for depth in range(MAX_DEPTH + 1):
            prefix = op_id.hex()[:depth]
            under = sorted(one for one in plain if one.hex().startswith(prefix))
            assert list(tree.ids(prefix)) == under
            assert tree.count(prefix) == len(under)
            assert tree.digest(prefix) == fresh.digest(prefix)
            listing = tree.listing(prefix)
            assert listing == fresh.listing(prefix)
            assert listing.count == len(under)
            if listing.digests:
                assert len(under) > LEAF
                assert listing.digests == tuple(tree.digest(prefix + digit) for digit in HEX)
                assert listing.counts == tuple(tree.count(prefix + digit) for digit in HEX)
            else:
                assert list(listing.ids) == under
    assert all(op_id in tree for op_id in plain)
    assert all((op_id in tree) == (op_id in plain) for op_id in map(ident, range(20)))


def test_different_sets_differ_down_to_the_leaf() -> None:
    mine, theirs = DigestTree(map(ident, range(5000))), DigestTree(map(ident, range(5001)))
    assert mine.root != theirs.root
    prefix = ""
    while (listing := theirs.listing(prefix)).digests:
        wrong = [digit for digit in HEX if mine.digest(prefix + digit) != theirs.digest(prefix + digit)]
        assert len(wrong) == 1
        prefix += wrong[0]
    assert set(listing.ids) - set(mine.ids(prefix)) == {ident(5000)}


def test_a_sum_that_cancels_out_does_not_cancel_here() -> None:
    a, b = ident(1), ident(2)
    c = bytes(x ^ y for x, y in zip(a, b, strict=True))
    assert DigestTree([a, b, c]).root != DigestTree([a, b]).root != DigestTree().root
    assert DigestTree([a, b, c]).root != DigestTree().root


def test_an_id_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        DigestTree([b"short"])


def converse(walk: Walk, theirs: DigestTree) -> int:
    """Answer a walk's questions out of another tree over the wire format; how many there were."""
    asked = 0
    walk.start(wire.read_listing(wire.pack_listing(theirs.listing("")), ""))
    while (question := walk.question()) is not None:
        asked += 1
        match question:
            case AskNodes(prefixes):
                packed = [wire.pack_listing(theirs.listing(prefix)) for prefix in prefixes]
                walk.nodes(question, wire.read_listings(packed, prefixes))
            case AskIds(prefixes):
                packed = [wire.pack_ids(theirs.ids(prefix)) for prefix in prefixes]
                walk.ids(question, wire.read_id_lists(packed, prefixes))
    return asked


def walked(mine: Iterable[bytes], theirs: Iterable[bytes]) -> tuple[Walk, int]:
    walk = Walk(DigestTree(mine), lambda op_id: False, random.Random(0))
    return walk, converse(walk, DigestTree(theirs))


@settings(max_examples=60, deadline=None)
@given(st.sets(numbers), st.sets(numbers), st.integers(0, 3000), st.sampled_from([ident, near]))
def test_a_walk_finds_exactly_what_differs(a: set[int], b: set[int], common: int, make: type) -> None:
    both = [ident(number) for number in range(1000, 1000 + common)]
    mine, theirs = {*both, *map(make, a)}, {*both, *map(make, b)}
    walk, _ = walked(mine, theirs)
    assert sorted(walk.wanted) == sorted(theirs - mine)
    assert sorted(walk.offered) == sorted(mine - theirs)
    assert walk.differing == len(mine ^ theirs)
    assert not walk.cut_short


@pytest.mark.parametrize(("held", "missing", "most"), [(20_000, 1, 4), (20_000, 5000, 60), (0, 4000, 4)])
def test_few_questions_are_enough(held: int, missing: int, most: int) -> None:
    ids = [ident(number) for number in range(held + missing)]
    walk, asked = walked(ids[:held], ids)
    assert sorted(walk.wanted) == sorted(ids[held:])
    assert asked <= most


def test_a_walk_asks_for_no_more_while_enough_is_wanted() -> None:
    walk, _ = walked([], [ident(number) for number in range(30_000)])
    found = set()
    while walk.wanted:
        assert len(walk.wanted) <= MAX_WANTED + wire.MAX_IDS
        found |= set(walk.wanted)
        walk.wanted.clear()
        walk_on(walk, 30_000)
    assert len(found) == 30_000


def walk_on(walk: Walk, count: int) -> None:
    theirs = DigestTree(ident(number) for number in range(count))
    while (question := walk.question()) is not None:
        if isinstance(question, AskNodes):
            walk.nodes(question, [theirs.listing(prefix) for prefix in question.prefixes])
        else:
            walk.ids(question, [list(theirs.ids(prefix)) for prefix in question.prefixes])


@pytest.mark.parametrize("count", [17, 5000, (1 << 32) - 16])
def test_a_peer_that_makes_up_digests_is_asked_a_bounded_number_of_times(count: int) -> None:
    rng = random.Random(3)

    def made_up() -> object:
        share = count // 16
        counts = [share] * 15 + [count - 15 * share]
        return [count, rng.randbytes(16 * DIGEST_BYTES), counts]

    walk = Walk(DigestTree(map(ident, range(1000))), lambda op_id: False, rng)
    walk.start(wire.read_listing(made_up(), ""))
    asked = 0
    while (question := walk.question()) is not None:
        asked += 1
        assert len(walk._stack) <= 16 * 16 * wire.MAX_PREFIXES
        if isinstance(question, AskNodes):
            answers = [made_up() for _ in question.prefixes]
            walk.nodes(question, wire.read_listings(answers, question.prefixes))
        else:
            walk.ids(question, [None] * len(question.prefixes))
    assert asked <= MAX_QUESTIONS


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1],
        [-1, b""],
        [1, b""],
        [1, "x" * 32],
        [1, bytes(31)],
        [2, bytes(64)],  # the same id twice
        [1, b"\xff" * 32],  # not under the prefix
        [17, b"".join(bytes([1, n]) + bytes(30) for n in range(17))],  # more than a leaf holds
        [17, bytes(320), [1] * 16],
        [16, bytes(320), [1] * 16],
        [17, bytes(320), [1] * 15 + [2.0]],
        [17, bytes(320), [18, -1] + [0] * 14],
        [17, bytes(319), [17] + [0] * 15],
        [17, bytes(320), [17] + [0] * 14],
        [True, bytes(32)],
    ],
)
def test_a_malformed_listing_is_refused(value: object) -> None:
    with pytest.raises(MessageError):
        wire.read_listing(value, "0")


def test_limits_are_checked_before_anything_else() -> None:
    for read, value in (
        (wire.read_prefixes, ["0"] * (wire.MAX_PREFIXES + 1)),
        (wire.read_prefixes, ["0" * (MAX_DEPTH + 1)]),
        (wire.read_prefixes, ["A"]),
        (wire.read_prefixes, []),
        (wire.read_prefixes, [3]),
        (wire.read_ids, bytes(32 * (wire.MAX_IDS + 1))),
        (wire.read_ids, bytes(33)),
        (wire.read_ops, [b""] * (wire.MAX_BATCH_OPS + 1)),
        (wire.read_ops, [bytes(16 * 1024 + 1)]),
        (wire.read_ops, [bytes(16 * 1024)] * 17),
        (wire.read_ops, ["text"]),
        (wire.read_size, 1),
        (wire.read_size, wire.MAX_BATCH + 1),
        (wire.read_size, True),
        (wire.read_key, bytes(31)),
        (wire.read_tree, "x"),
        (wire.read_digest, bytes(32)),
        (wire.read_map, []),
    ):
        with pytest.raises(MessageError):
            read(value)
    with pytest.raises(MessageError):
        wire.read_id_lists([wire.pack_ids(sorted(map(ident, range(wire.MAX_IDS + 1))))], [""])
    with pytest.raises(MessageError):
        half = wire.pack_ids(sorted(map(ident, range(wire.MAX_IDS // 2 + 1))))
        wire.read_id_lists([half, half], ["", ""])
