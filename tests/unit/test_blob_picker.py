"""Which block is asked of whom: rarest first, once, again where a source is late or banned, and never for nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.picker import FIRST_PATIENCE, LATE, LEAST_PATIENCE, LOOK, Picker
from fleet.blobs.source import MAX_DEPTH, MIN_DEPTH


def bits(blocks: int, have: Iterable[int] = ()) -> Bitfield:
    return Bitfield(blocks, have)


def picker(blocks: int, have: Iterable[int] = (), seed: int = 1) -> Picker:
    return Picker(blocks, bits(blocks, have), random.Random(seed))


def drain(found: Picker, peer: str, now: float = 0.0) -> list[int]:
    asked = []
    while (index := found.next(peer, now)) is not None:
        asked.append(index)
    return asked


def test_the_rarest_come_first() -> None:
    found = picker(6)
    found.peer_up("all", Bitfield.full(6))
    found.peer_up("some", bits(6, [0, 1, 2, 3]))
    found.peer_up("few", bits(6, [0, 1]))
    order = drain(found, "all")
    assert [set(order[:2]), set(order[2:4]), set(order[4:])] == [{4, 5}, {2, 3}, {0, 1}]


def test_ties_are_at_random_and_a_seed_repeats_them() -> None:
    def first(seed: int) -> int | None:
        found = picker(64, seed=seed)
        found.peer_up("a", Bitfield.full(64))
        return found.next("a", 0.0)

    firsts = [first(seed) for seed in range(200)]
    assert firsts == [first(seed) for seed in range(200)]
    # 200 throws of 64 sides show about 61 of them.
    assert len(set(firsts)) > 45


def test_what_is_here_or_was_asked_elsewhere_is_not_asked_for() -> None:
    found = picker(4, have=[0])
    found.peer_up("a", Bitfield.full(4))
    found.peer_up("b", bits(4, [0, 1]))
    assert found.next("b", 0.0) == 1
    assert not found.wants("b", 0.0)
    assert found.next("b", 0.0) is None
    assert sorted(drain(found, "a")) == [2, 3]
    assert (found.remaining, found.asked("b"), found.depth("stranger")) == (3, (1,), 0)


def test_a_block_counts_once_whoever_sends_it_and_however_often() -> None:
    found = picker(2)
    found.peer_up("a", Bitfield.full(2))
    index = found.next("a", 0.0)
    assert index is not None
    assert found.received("a", index, 1.0)
    assert not found.received("a", index, 1.0)
    # Checked and written, so it counts though nobody asked this peer for it.
    assert found.received("stranger", 1 - index, 1.0)
    assert not found.received("a", 2, 1.0)
    assert found.remaining == 0
    assert found.eta(1.0) == 0.0
    assert drain(found, "a", 1.0) == []


@pytest.mark.parametrize("end", ["down", "failed", "lacks", "bad", "fewer"])
def test_what_a_source_will_not_send_is_free_again(end: str) -> None:
    found = picker(1)
    found.peer_up("a", Bitfield.full(1))
    found.peer_up("b", Bitfield.full(1))
    assert found.next("a", 0.0) == 0
    assert found.next("b", 0.0) is None
    match end:
        case "down":
            found.peer_down("a")
        case "failed":
            found.failed("a", 0)
        case "lacks":
            found.peer_lacks("a", 0)
        case "bad":
            found.bad("a", 0)
        case "fewer":
            found.peer_up("a", bits(1))
    assert found.wants("b", 0.0)
    assert found.next("b", 0.0) == 0
    assert found.next("a", 0.0) is None


def test_whoever_sent_a_bad_block_is_never_asked_again() -> None:
    found = picker(4)
    found.peer_up("liar", Bitfield.full(4))
    index = found.next("liar", 0.0)
    assert index is not None
    found.bad("liar", index)
    found.peer_down("liar")
    found.peer_up("liar", Bitfield.full(4))
    found.peer_have("liar", 1)
    assert found.next("liar", 0.0) is None
    assert found.banned == {"liar"}
    assert found.unavailable == 4


def test_what_peers_say_of_blocks_that_there_are_not_changes_nothing() -> None:
    found = picker(3)
    found.peer_up("a", Bitfield.full(9))
    for index in (-1, 3, 8, 1 << 40):
        assert not found.peer_have("a", index)
        found.peer_lacks("a", index)
        assert not found.received("a", index, 0.0)
        assert found.to_cancel(index) == ()
        found.failed("a", index)
    assert not found.peer_have("stranger", 0)
    assert sorted(drain(found, "a")) == [0, 1, 2]


def test_a_block_that_a_source_has_got_meanwhile() -> None:
    found = picker(2, have=[1])
    found.peer_up("a", bits(2))
    assert not found.wants("a", 0.0)
    assert found.peer_have("a", 0)
    assert not found.peer_have("a", 0)
    assert not found.peer_have("a", 1)
    assert found.next("a", 0.0) == 0


def paced(found: Picker, peer: str, pace: float, start: float) -> float:
    """Let a source answer one block in so many seconds; when it has."""
    index = found.next(peer, start)
    assert index is not None
    assert found.received(peer, index, start + pace)
    return start + pace


def test_a_source_that_crawls_loses_its_blocks_to_others_and_gets_one_at_a_time() -> None:
    found = picker(8)
    found.peer_up("quick", Bitfield.full(8))
    found.peer_up("crawls", Bitfield.full(8))
    held = found.next("crawls", 0.0)
    assert held is not None
    paced(found, "quick", 0.1, 0.0)
    assert held not in drain(found, "quick", 0.2)
    assert found.crawling(LEAST_PATIENCE - 0.1) == set()
    late = LEAST_PATIENCE + LOOK + 0.2
    assert held in drain(found, "quick", late)
    assert "crawls" in found.crawling(late)
    assert found.depth("crawls") == 1
    # The other was first: the crawler is told, once.
    assert found.received("quick", held, late + 0.1)
    assert found.to_cancel(held) == ("crawls",)
    assert found.to_cancel(held) == ()
    assert found.asked("crawls") == ()


def test_a_late_block_that_comes_after_all_is_kept_and_the_other_one_cancelled() -> None:
    found = picker(3)
    found.peer_up("quick", Bitfield.full(3))
    found.peer_up("late", Bitfield.full(3))
    held = found.next("late", 0.0)
    assert held is not None
    paced(found, "quick", 0.1, 0.0)
    assert held in drain(found, "quick", 10.0)
    assert found.received("late", held, 10.1)
    assert found.to_cancel(held) == ("quick",)
    assert "late" in found.crawling(10.1)
    paced_again = found.next("late", 10.1)
    assert paced_again is None  # the last one was asked of the quick source, which has it as soon


def test_patience_follows_the_pace_that_is_usual() -> None:
    found = picker(9)
    for peer in ("a", "b"):
        found.peer_up(peer, Bitfield.full(9))
    assert found.next("a", 0.0) is not None
    assert found.crawling(FIRST_PATIENCE - 0.1) == set()
    assert found.crawling(FIRST_PATIENCE + 0.1) == {"a"}
    slow = picker(9)
    for peer in ("a", "b"):
        slow.peer_up(peer, Bitfield.full(9))
    now = paced(slow, "b", 10.0, 0.0)
    slow.crawling(now)
    assert slow.next("a", now) is not None
    assert slow.crawling(now + LATE * 10.0 - 0.1) == set()
    assert slow.crawling(now + LATE * 10.0 + 0.1) == {"a"}


def test_in_the_end_game_only_who_would_have_it_sooner_is_asked_too() -> None:
    found = picker(12)
    for peer in ("quick", "slow", "slow too"):
        found.peer_up(peer, Bitfield.full(12))
    paced(found, "quick", 0.1, 0.0)
    paced(found, "slow", 1.0, 0.0)
    paced(found, "slow too", 1.0, 0.0)
    held = [found.next("slow", 1.0), found.next("slow", 1.0)]
    rest = drain(found, "quick", 1.0)
    assert held[0] not in rest
    # While anything was asked of nobody there is no end-game; now the last of the slow source profits most.
    assert rest[-1] == held[1]
    assert found.next("slow too", 1.0) is None
    assert found.received("quick", rest[-1], 1.1)
    assert found.to_cancel(rest[-1]) == ("slow",)


def test_no_more_than_two_are_asked_for_one_block() -> None:
    found = picker(4)
    for number in range(4):
        found.peer_up(f"{number}", Bitfield.full(4))
    now = paced(found, "0", 8.0, 0.0)
    for number in (1, 2):
        now = paced(found, f"{number}", 0.01, now)
    found.crawling(now)
    last = found.next("0", now)
    assert last is not None
    assert found.next("1", now) == last
    assert found.next("2", now) is None
    assert found.next("3", now) is None


def test_more_is_asked_of_who_answers_faster() -> None:
    found = picker(1000)
    found.peer_up("a", Bitfield.full(1000))
    assert found.depth("a") == MIN_DEPTH
    now = 0.0
    for _ in range(40):
        now = paced(found, "a", 0.003, now)
    assert found.depth("a") == MAX_DEPTH
    for _ in range(40):
        now = paced(found, "a", 0.9, now)
    assert found.depth("a") == MIN_DEPTH


def test_rate_and_eta() -> None:
    found = picker(100)
    found.peer_up("a", Bitfield.full(100))
    assert found.rate == 0.0
    assert found.eta(0.0) is None
    now = 0.0
    for _ in range(50):
        now = paced(found, "a", 0.1, now)
    assert found.rate == pytest.approx(10.0)
    assert found.eta(now) == pytest.approx(5.0)
    assert found.eta(now + 60.0) is None


def test_four_at_a_time_but_a_turn_that_was_not_wanted_is_used() -> None:
    found = picker(64)
    for number in range(6):
        found.peer_up(f"{number}", Bitfield.full(64))
    assert all(found.wants(f"{number}", 0.0) for number in range(5))
    assert not found.enough
    for number in range(4):
        assert found.next(f"{number}", 0.0) is not None
    assert found.enough
    assert not found.wants("4", 0.0)
    assert found.next("4", 0.0) is None, "wanted when there was room, but there is none now"
    assert found.next("5", 0.0) is not None, "what a super-seeder shows goes to nobody else meanwhile"
    assert found.next("0", 0.0) is not None
    for number in (0, 1):
        for index in found.asked(f"{number}"):
            found.received(f"{number}", index, 0.1)
    assert found.wants("4", 0.1)
    assert found.next("4", 0.1) is not None


DEEDS = ("up", "have", "lacks", "down", "next", "next", "next", "received", "received", "failed", "bad")


def test_those_that_crawl_keep_nobody_out() -> None:
    found = picker(64)
    for number in range(6):
        found.peer_up(f"{number}", Bitfield.full(64))
        assert found.wants(f"{number}", 0.0)
    for number in range(4):
        found.next(f"{number}", 0.0)
    assert found.enough
    later = FIRST_PATIENCE + 0.1
    assert found.crawling(later) == {"0", "1", "2", "3"}
    assert not found.enough
    assert found.next("4", later) is not None
    for number in range(4):
        (index,) = found.asked(f"{number}")
        found.received(f"{number}", index, later)
        found.next(f"{number}", later)
    assert found.next("5", later) is not None


class Model:
    """What must hold of a picker whatever is done to it, kept in sets."""

    def __init__(self, blocks: int, have: set[int]) -> None:
        self.picker = picker(blocks, have)
        self.blocks = blocks
        self.missing = set(range(blocks)) - have
        self.peers: dict[str, set[int]] = {}
        self.asked: dict[str, set[int]] = {}
        self.banned: set[str] = set()
        self.now = 0.0

    def check(self) -> None:
        assert self.picker.remaining == len(self.missing)
        assert self.picker.banned == self.banned
        known = {index for peer in self.peers for index in self.peers[peer]} & self.missing
        assert self.picker.unavailable == len(self.missing - known)
        for peer, asked in self.asked.items():
            assert set(self.picker.asked(peer)) == asked
        crawling = self.picker.crawling(self.now)
        assert self.picker._sending == sum(1 for peer, asked in self.asked.items() if asked and peer not in crawling)

    def next(self, peer: str) -> None:
        index = self.picker.next(peer, self.now)
        if index is None:
            return
        assert index in self.missing
        assert index in self.peers[peer]
        assert index not in self.asked[peer]
        others = [one for one, asked in self.asked.items() if index in asked]
        # More than one other only where all but one crawl.
        assert len([one for one in others if one not in self.picker.crawling(self.now)]) <= 1
        self.asked[peer].add(index)

    def received(self, peer: str, index: int) -> None:
        assert self.picker.received(peer, index, self.now) == (index in self.missing)
        self.missing.discard(index)
        if peer in self.asked:
            self.asked[peer].discard(index)
        others = {one for one, asked in self.asked.items() if index in asked}
        cancelled = self.picker.to_cancel(index)
        assert set(cancelled) == others
        assert len(cancelled) == len(others)
        for one in others:
            self.asked[one].discard(index)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_happens_each_block_comes_once_and_nothing_is_lost(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 20))
    some = st.sets(st.integers(0, blocks - 1))
    model = Model(blocks, data.draw(some))
    peers = st.sampled_from("abcdefg")
    for _ in range(data.draw(st.integers(0, 60))):
        peer = data.draw(peers)
        model.now += data.draw(st.sampled_from([0.0, 0.01, 0.3, 3.0, 20.0]))
        match data.draw(st.sampled_from(DEEDS)):
            case "up" if peer not in model.banned:
                held = data.draw(some)
                model.picker.peer_up(peer, bits(blocks, held))
                model.peers[peer] = held
                model.asked[peer] = {
                    one for one in model.asked.get(peer, ()) if one in held or one not in model.missing
                }
            case "have" if peer in model.peers:
                index = data.draw(st.integers(0, blocks - 1))
                model.picker.peer_have(peer, index)
                model.peers[peer].add(index)
            case "lacks" if peer in model.peers:
                index = data.draw(st.integers(0, blocks - 1))
                model.picker.peer_lacks(peer, index)
                model.peers[peer].discard(index)
                model.asked[peer].discard(index)
            case "down":
                model.picker.peer_down(peer)
                model.peers.pop(peer, None)
                model.asked.pop(peer, None)
            case "next" if peer in model.peers:
                model.next(peer)
            case "received" if model.asked.get(peer):
                model.received(peer, data.draw(st.sampled_from(sorted(model.asked[peer]))))
            case "failed" if model.asked.get(peer):
                index = data.draw(st.sampled_from(sorted(model.asked[peer])))
                model.picker.failed(peer, index)
                model.asked[peer].discard(index)
            case "bad":
                model.picker.bad(peer, 0)
                model.banned.add(peer)
                model.peers.pop(peer, None)
                model.asked.pop(peer, None)
        model.check()
    # Whatever state that left: one source that has everything brings the rest.
    model.picker.peer_up("last", Bitfield.full(blocks))
    model.peers["last"], model.asked["last"] = set(range(blocks)), set()
    for peer in [one for one in model.peers if one != "last"]:
        model.picker.peer_down(peer)
        del model.peers[peer], model.asked[peer]
    while model.missing:
        model.next("last")
        assert model.asked["last"]
        model.received("last", min(model.asked["last"]))
    assert model.picker.remaining == 0
