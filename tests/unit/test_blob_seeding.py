"""Super-seeding: every block is shown to one before any to two, and nothing that one follower was given is lost."""

from __future__ import annotations

import random

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.seeding import SuperSeeder, alone


def seeder(blocks: int, followers: str) -> SuperSeeder:
    made = SuperSeeder(blocks, random.Random(1))
    for peer in followers:
        made.peer_up(peer)
    return made


def test_no_block_is_sent_twice_before_all_are() -> None:
    rng = random.Random(2)
    first = seeder(100, "abcde")
    sent: list[int] = []
    while not first.done:
        peer = rng.choice("abcde")
        for index in first.reveal(peer, rng.randint(1, 4)):
            first.sent(peer, index)
            sent.append(index)
        first.turn_over(peer)
    assert sorted(sent) == list(range(100))


def test_blocks_are_shown_in_no_order() -> None:
    shown = [seeder(1000, "a").reveal("a", 8), SuperSeeder(1000, random.Random(7))]
    assert shown[0] != tuple(range(8))
    assert len(set(shown[0])) == 8  # type: ignore[arg-type]


def test_what_is_on_its_way_to_one_is_shown_to_no_other_until_the_turn_is_over() -> None:
    first = seeder(4, "ab")
    assert len(first.reveal("a", 4)) == 4
    assert first.reveal("b", 4) == ()
    first.sent("a", 2)
    first.turn_over("a")
    assert first.reveal("a", 4) == (), "it knows of them already"
    assert first.reveal("b", 9) == (0, 1, 3)
    assert not first.done
    for index in (0, 1, 3):
        first.sent("b", index)
    assert first.done


def test_what_only_one_follower_was_given_is_to_be_sent_again_when_it_goes() -> None:
    first = seeder(3, "ab")
    for index in first.reveal("a", 3):
        first.sent("a", index)
    assert first.done
    first.peer_down("a")
    assert not first.done
    assert sorted(first.reveal("b", 3)) == [0, 1, 2]
    first.peer_down("b")
    first.peer_up("c")
    assert sorted(first.reveal("c", 3)) == [0, 1, 2]


def test_what_followers_have_from_elsewhere_need_not_be_sent() -> None:
    first = SuperSeeder(4, random.Random(1))
    first.peer_up("a", Bitfield(4, [0]))
    first.peer_up("b")
    first.peer_have("b", 1)
    first.peer_have("b", 1)
    assert sorted(first.reveal("a", 4)) == [2, 3]
    first.peer_have("a", 2)
    first.peer_have("a", 3)
    assert first.done


def test_what_strangers_say_and_blocks_that_there_are_not_change_nothing() -> None:
    first = seeder(2, "a")
    first.peer_have("stranger", 0)
    first.sent("stranger", 0)
    first.turn_over("stranger")
    first.peer_down("stranger")
    assert first.reveal("stranger", 2) == ()
    for index in (-1, 2, 1 << 30):
        first.sent("a", index)
        first.peer_have("a", index)
    assert not first.done
    assert sorted(first.reveal("a", 5)) == [0, 1]


def test_only_who_cannot_be_replaced_super_seeds() -> None:
    assert alone(3, [])
    assert alone(3, [Bitfield(3, [0]), Bitfield(3, [1])])
    assert not alone(3, [Bitfield(3, [0]), Bitfield(3, [1, 2])])
    assert not alone(3, [Bitfield.full(3)])
