"""Upload slots: they go round, nobody starves, near ones get more, and nobody holds one without using it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fleet.blobs.slots import (
    FAR,
    FIRST_TURN,
    IDLE_SECONDS,
    LEEWAY,
    LOOK,
    MAX_SLOTS,
    OVERDUE_SECONDS,
    TURN_BLOCKS,
    Slots,
    Turn,
)


def use(slots: Slots, turn: Turn, now: float, took: float) -> float:
    """Ask for all blocks of a turn and send them one after another."""
    for _ in range(turn.blocks):
        assert slots.asked(turn.peer, now)
    for _ in range(turn.blocks):
        now += took
        slots.sent(turn.peer, now)
    return now


def test_as_many_turns_as_slots_and_of_equals_who_came_last_is_first() -> None:
    slots = Slots(2)
    for peer in "cba":
        slots.want(peer)
    assert slots.grant(0.0) == (Turn("a", FIRST_TURN), Turn("b", FIRST_TURN))
    assert (slots.holders, slots.waiting) == (("a", "b"), 1)
    assert slots.grant(0.0) == ()
    use(slots, Turn("a", FIRST_TURN), 0.0, 0.1)
    assert [turn.peer for turn in slots.grant(0.2)] == ["c"]


def test_nothing_is_sent_without_a_turn_or_beyond_it() -> None:
    slots = Slots(2, turn=2)
    assert not slots.asked("a", 0.0)
    for peer in "cba":
        slots.want(peer)
    slots.grant(0.0)
    assert [slots.asked("a", 0.0) for _ in range(3)] == [True, True, False]
    assert not slots.asked("c", 0.0)
    # What was never asked for cannot be sent, whatever a lane says.
    slots.sent("b", 0.0)
    slots.sent("stranger", 0.0)
    assert slots.holders == ("a", "b")


def test_whoever_wants_more_while_nobody_waits_gets_it_before_it_has_nothing_left() -> None:
    slots = Slots(2)
    slots.want("a")
    (turn,) = slots.grant(0.0)
    for _ in range(turn.blocks):
        slots.asked("a", 0.0)
    assert slots.grant(0.0) == ()
    slots.want("a")
    assert [one.peer for one in slots.grant(0.0)] == ["a"]
    assert slots.asked("a", 0.0)
    slots.want("c")
    slots.want("b")
    slots.want("a")
    assert [one.peer for one in slots.grant(0.0)] == ["b"]


@pytest.mark.parametrize(("took", "blocks"), [(0.001, TURN_BLOCKS), (0.07, 5), (0.3, 1), (5.0, 1)])
def test_a_turn_is_as_long_as_blocks_take_to_send(took: float, blocks: int) -> None:
    slots = Slots(2)
    now = 0.0
    for _ in range(60):
        slots.want("a")
        for turn in slots.grant(now):
            now = use(slots, turn, now, took)
    slots.want("a")
    assert [turn.blocks for turn in slots.grant(now)] == [blocks]


def test_nobody_starves_and_near_ones_get_twice_as_much() -> None:
    rng = random.Random(1)
    slots = Slots(3, turn=4)
    near = {f"near {number}" for number in range(10)}
    far = {f"far {number}" for number in range(10)}
    had: Counter[str] = Counter()
    now = 0.0
    for _ in range(6000):
        for peer in sorted(near | far):
            slots.want(peer, near=peer in near)
        slots.grant(now)
        peer = rng.choice(slots.holders)
        now += 0.02
        if slots.asked(peer, now):
            had[peer] += 1
            slots.sent(peer, now)
    for group, share in ((near, 300 * 4 / 3), (far, 300 * 2 / 3)):
        assert all(abs(had[peer] - share) <= 15 * LEEWAY for peer in group), had
    assert FAR == 2.0


def test_a_newcomer_and_one_that_was_away_start_level_with_the_others() -> None:
    slots = Slots(2, turn=1)
    now = 0.0

    def rounds(peers: str, count: int) -> Counter[str]:
        nonlocal now
        had: Counter[str] = Counter()
        for _ in range(count):
            for peer in peers:
                slots.want(peer)
            slots.grant(now)
            for peer in slots.holders:
                now += 0.1
                slots.asked(peer, now)
                slots.sent(peer, now)
                had[peer] += 1
        return had

    rounds("abc", 100)
    had = rounds("abcd", 40)
    assert max(had.values()) - min(had.values()) <= LEEWAY + 1
    slots.leave("d")
    had = rounds("abcd", 40)
    assert max(had.values()) - min(had.values()) <= LEEWAY + 1


def test_whoever_asks_for_nothing_loses_the_turn_and_does_not_come_first_again() -> None:
    slots = Slots(2)
    for peer in ("d", "c", "b", "idle"):
        slots.want(peer)
    slots.grant(0.0)
    slots.asked("b", 0.0)
    assert slots.grant(IDLE_SECONDS - 0.1) == ()
    assert [turn.peer for turn in slots.grant(IDLE_SECONDS + LOOK)] == ["c"]
    slots.want("idle")
    slots.sent("b", 3.0)
    slots.finish("b")
    assert [turn.peer for turn in slots.grant(3.0)] == ["d"]


def test_a_peer_that_takes_a_block_slowly_keeps_its_block_but_not_the_slot() -> None:
    slots = Slots(2)
    for peer in "ab":
        slots.want(peer)
    slots.grant(0.0)
    for peer in "ab":
        slots.asked(peer, 0.0)
        slots.want(peer)
    late = OVERDUE_SECONDS + 1.0
    assert slots.grant(late) == (), "nobody waits for the slots"
    slots.want("c")
    assert [turn.peer for turn in slots.grant(late + LOOK)] == ["c"]
    assert slots.holders == ("c",)
    assert not slots.asked("a", late + LOOK)
    assert slots.grant(late + 1.0) == (), "not before the end of what they are being sent"
    slots.sent("a", late + 2.0)
    assert [turn.peer for turn in slots.grant(late + 2.0)] == ["a"]
    slots.sent("b", late + 2.0)
    assert slots.waiting == 1


def test_slow_blocks_that_are_usual_end_no_turn() -> None:
    slots = Slots(2)
    for peer in "ab":
        slots.want(peer)
    now = 0.0
    for _ in range(30):
        for turn in slots.grant(now):
            now = use(slots, turn, now, 30.0)
        for peer in "abc":
            slots.want(peer)
    holder = next(iter(slots.holders), None) or slots.grant(now)[0].peer
    slots.asked(holder, now)
    slots.grant(now + 60.0)
    assert holder in slots.holders


def test_whoever_has_nothing_to_ask_for_gives_the_turn_back() -> None:
    slots = Slots(2)
    for peer in "cba":
        slots.want(peer)
    slots.grant(0.0)
    slots.finish("a")
    assert [turn.peer for turn in slots.grant(0.0)] == ["c"]
    slots.asked("b", 0.0)
    slots.finish("b")
    assert slots.holders == ("b", "c"), "its block is on its way"
    assert not slots.asked("b", 0.0)
    slots.sent("b", 0.1)
    assert slots.holders == ("c",)
    slots.want("d")
    slots.finish("d")
    assert slots.grant(0.2) == ()


def test_who_left_is_forgotten() -> None:
    slots = Slots(2)
    for peer in "dcba":
        slots.want(peer)
    slots.grant(0.0)
    slots.asked("a", 0.0)
    for peer in "abcd":
        slots.leave(peer)
    slots.sent("a", 0.1)
    slots.leave("stranger")
    assert (slots.holders, slots.waiting, slots.grant(60.0)) == ((), 0, ())


@pytest.mark.parametrize(("count", "turn"), [(1, 8), (MAX_SLOTS + 1, 8), (2, 0)])
def test_limits(count: int, turn: int) -> None:
    with pytest.raises(ValueError):
        Slots(count, turn=turn)


def test_who_waits_longest_is_not_passed_over_for_long() -> None:
    slots = Slots(2, turn=1)
    slots.want("patient")
    now = 0.0
    order: list[str] = []
    for number in range(200):
        slots.want(f"{number % 10}")
        for turn in slots.grant(now):
            order.append(turn.peer)
            now = use(slots, turn, now, 0.5)
    # Ten others, each at most a block more than the leeway ahead.
    assert order.index("patient") <= 10 * (LEEWAY + 1)
