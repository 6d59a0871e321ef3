"""What is said to which source of a fetch: turns, asks, cancels; without any network."""

from __future__ import annotations

import random

from fleet.blobs.asking import Asking
from fleet.blobs.bitfield import Bitfield
from fleet.blobs.picker import Picker


class World:
    """A fetch of some blocks, and all that is said in it."""

    def __init__(self, blocks: int = 16) -> None:
        self.now = 100.0
        self.blocks = blocks
        self.woken: list[str] = []
        self.said: list[tuple[str, bool]] = []
        self.asking = Asking(
            Picker(blocks, Bitfield(blocks), random.Random(1)),
            clock=lambda: self.now,
            wake=self.woken.append,
            say=lambda peer, want: self.said.append((peer, want)),
        )

    def holder(self, peer: str) -> None:
        self.asking.shows(peer, Bitfield.full(self.blocks), 0.001)

    def arrive(self, peer: str, index: int) -> bool:
        self.now += 0.01
        return self.asking.arrived(peer, index)


def test_a_turn_is_wanted_once_and_only_of_who_has_something() -> None:
    world = World()
    world.asking.shows("empty", Bitfield(16), None)
    world.holder("a")
    world.holder("a")
    world.asking.look()
    assert world.said == [("a", True)]
    world.asking.has_more("empty", [3])
    assert world.said == [("a", True), ("empty", True)]


def test_nothing_is_asked_for_without_a_turn() -> None:
    world = World()
    world.holder("a")
    assert world.asking.take("a") == ([], [])
    world.asking.turn("a", 3)
    assert world.woken[-1] == "a"
    asks, _ = world.asking.take("a")
    assert len(asks) == 1


def test_a_source_is_asked_for_one_block_until_one_was_good() -> None:
    world = World()
    world.holder("a")
    world.asking.turn("a", 8)
    (first,), _ = world.asking.take("a")
    assert world.asking.take("a") == ([], [])
    assert world.arrive("a", first)
    assert len(world.asking.take("a")[0]) > 1


def test_the_next_turn_is_wanted_with_the_last_ask_of_this_one() -> None:
    world = World()
    world.holder("a")
    world.asking.turn("a", 2)
    (first,), _ = world.asking.take("a")
    assert world.said == [("a", True)]
    world.arrive("a", first)
    assert len(world.asking.take("a")[0]) == 1
    assert world.said == [("a", True), ("a", True)]


def test_a_turn_that_cannot_be_used_is_given_back() -> None:
    world = World(blocks=1)
    world.holder("a")
    world.holder("b")
    world.asking.turn("a", 8)
    assert world.asking.take("a") == ([0], [])
    world.asking.turn("b", 8)
    assert world.asking.take("b") == ([], [])
    assert ("b", False) in world.said


def test_a_block_that_came_from_elsewhere_is_taken_back() -> None:
    world = World(blocks=2)
    for peer in ("slow", "quick"):
        world.holder(peer)
    world.asking.turn("slow", 8)
    (index,), _ = world.asking.take("slow")
    world.now += 60  # late: others are asked for it too
    world.asking.turn("quick", 8)
    asked, _ = world.asking.take("quick")
    world.arrive("quick", asked[0])
    more, _ = world.asking.take("quick")
    both = [*asked, *more]
    assert index in both
    world.arrive("quick", next(one for one in both if one != asked[0]))
    assert world.asking.take("slow")[1] == [index]
    assert not world.arrive("slow", index)
    assert world.asking.remaining == 0


def test_what_a_source_was_asked_for_goes_to_others_when_it_goes_lies_or_loses_its_lane() -> None:
    for end in (
        lambda world, index: world.asking.gone("a"),
        lambda world, index: world.asking.lies("a", index),
        lambda world, index: world.asking.lane_ended("a"),
        lambda world, index: world.asking.refused("a", index),
    ):
        world = World(blocks=1)
        world.holder("a")
        world.holder("b")
        world.asking.turn("a", 8)
        (index,), _ = world.asking.take("a")
        world.asking.turn("b", 8)
        end(world, index)
        world.asking.turn("b", 8)
        assert world.asking.take("b")[0] == [index]


def test_a_liar_is_not_asked_again_when_it_comes_back() -> None:
    world = World()
    world.holder("a")
    world.asking.turn("a", 8)
    (index,), _ = world.asking.take("a")
    world.asking.lies("a", index)
    world.asking.gone("a")
    world.said.clear()
    world.holder("a")
    world.asking.turn("a", 8)
    world.asking.look()
    assert world.said == []
    assert world.asking.take("a") == ([], [])


def test_a_turn_that_was_refused_is_wanted_again_at_the_next_look() -> None:
    world = World()
    world.holder("a")
    world.asking.unheard("a")
    assert world.said == [("a", True)]
    world.asking.look()
    assert world.said == [("a", True), ("a", True)]
    assert not world.asking.expecting


def test_one_that_refuses_what_it_shows_is_not_asked_as_fast_as_it_refuses() -> None:
    world = World()
    world.holder("a")
    world.asking.turn("a", 8)
    (index,), _ = world.asking.take("a")
    world.said.clear()
    world.woken.clear()
    world.asking.refused("a", index)
    assert (world.said, world.woken) == ([], [])
    world.asking.look()
    assert world.said == [("a", True)]
