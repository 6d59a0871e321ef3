"""Which links boxes keep: a fleet that stays in one piece whoever is off, and that changes nothing without reason."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from itertools import pairwise

import pytest

from fleet.gossip.neighbours import DEGREE, DIALLED, MAX_LINKS, MAX_RETRY, Neighbours, Plan

Graph = dict[str, set[str]]


class Fleet:
    """Boxes that follow their plans; a link comes up when both ends are on and not kept apart."""

    def __init__(self, size: int, seed: int) -> None:
        rng = random.Random(seed)
        self.members = sorted(f"{rng.getrandbits(64):016x}" for _ in range(size))
        self.boxes = {name: Neighbours(name, random.Random(f"{seed} {name}")) for name in self.members}
        self.links: Graph = {name: set() for name in self.members}
        self.off: set[str] = set()
        self.side: dict[str, int] = {}
        self.now = 0.0
        self.changes = 0

    def switch_off(self, names: Collection[str]) -> None:
        self.off |= set(names)
        for name in names:
            for other in self.links[name]:
                self.links[other].discard(name)
            self.links[name].clear()

    def part(self, side: Mapping[str, int]) -> None:
        self.side = dict(side)
        for name, linked in self.links.items():
            linked -= {other for other in linked if self._apart(name, other)}

    def _apart(self, a: str, b: str) -> bool:
        return self.side.get(a, 0) != self.side.get(b, 0)

    def round(self, seconds: float = 5.0) -> None:
        self.now += seconds
        for name in self.members:
            if name in self.off:
                continue
            plan = self.boxes[name].plan(self.members, self.links[name], self.now)
            for other in plan.dial:
                self.changes += 1
                if other in self.off or self._apart(name, other):
                    self.boxes[name].failed(other, self.now)
                else:
                    self.boxes[name].reached(other)
                    self.links[name].add(other)
                    self.links[other].add(name)
            for other in plan.close:
                self.changes += 1
                self.links[name].discard(other)
                self.links[other].discard(name)
                self.boxes[other].failed(name, self.now)

    def settle(self, rounds: int = 8) -> None:
        for _ in range(rounds):
            self.round()

    def live(self) -> list[str]:
        return [name for name in self.members if name not in self.off]


def islands(links: Mapping[str, Collection[str]], live: Collection[str]) -> int:
    """How many pieces the graph of live boxes is in."""
    left = set(live)
    pieces = 0
    while left:
        pieces += 1
        queue = deque([left.pop()])
        while queue:
            reached = left.intersection(links[queue.popleft()])
            left -= reached
            queue.extend(reached)
    return pieces


@pytest.mark.parametrize("seed", range(30))
def test_no_island_with_thirty_percent_off_before_and_after_they_are_replaced(seed: int) -> None:
    fleet = Fleet(200, seed)
    fleet.settle()
    assert islands(fleet.links, fleet.members) == 1
    rng = random.Random(seed)
    fleet.switch_off(rng.sample(fleet.members, 60))
    assert islands(fleet.links, fleet.live()) == 1
    fleet.settle(12)
    assert islands(fleet.links, fleet.live()) == 1
    assert min(len(fleet.links[name]) for name in fleet.live()) >= DEGREE
    # A second blow before anybody came back.
    fleet.switch_off(rng.sample(fleet.live(), 42))
    assert islands(fleet.links, fleet.live()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_large_fleet_stays_whole_and_links_stay_few(seed: int) -> None:
    fleet = Fleet(2000, seed)
    fleet.settle(6)
    degrees = [len(fleet.links[name]) for name in fleet.members]
    assert min(degrees) >= DEGREE
    assert sum(degrees) / len(degrees) <= DEGREE + 3
    assert max(degrees) <= MAX_LINKS
    fleet.switch_off(random.Random(seed).sample(fleet.members, 600))
    assert islands(fleet.links, fleet.live()) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.5, 0.03])
def test_two_halves_that_got_along_alone_find_together(seed: int, share: float) -> None:
    fleet = Fleet(100, seed)
    fleet.settle()
    apart = random.Random(seed).sample(fleet.members, int(share * 100))
    fleet.part(dict.fromkeys(apart, 1))
    fleet.settle(60)
    assert islands(fleet.links, fleet.members) >= 2
    fleet.part({})
    fleet.settle(int(1.25 * MAX_RETRY / 5) + 2)
    assert islands(fleet.links, fleet.members) == 1


def test_a_box_whose_every_neighbour_is_gone_finds_the_only_other_one() -> None:
    fleet = Fleet(40, 1)
    fleet.settle()
    alone, other = fleet.members[3], fleet.members[20]
    fleet.switch_off([name for name in fleet.members if name != alone])
    fleet.settle(60)
    fleet.off.discard(other)
    fleet.settle(60)
    assert other in fleet.links[alone]


@pytest.mark.parametrize("size", [1, 2, 3, DEGREE, DEGREE + 1])
def test_a_small_fleet_is_linked_all_to_all(size: int) -> None:
    fleet = Fleet(size, 0)
    fleet.settle(2)
    assert all(fleet.links[name] == set(fleet.members) - {name} for name in fleet.members)


def test_nothing_changes_without_reason() -> None:
    fleet = Fleet(300, 0)
    fleet.settle(12)
    before = {name: set(linked) for name, linked in fleet.links.items()}
    fleet.changes = 0
    fleet.settle(20)
    assert fleet.changes == 0
    assert fleet.links == before


def test_a_dead_neighbour_costs_its_replacement_and_no_more() -> None:
    fleet = Fleet(300, 0)
    fleet.settle(12)
    before = {name: set(linked) for name, linked in fleet.links.items()}
    (gone,) = random.Random(5).sample(fleet.members, 1)
    bereft = fleet.links[gone].copy()
    fleet.switch_off([gone])
    fleet.settle(10)
    moved = sum(len(fleet.links[name] - before[name]) for name in fleet.live())
    assert moved <= 3 * len(bereft)
    assert all(before[name] - {gone} <= fleet.links[name] for name in fleet.live())


def test_boxes_that_join_one_by_one_do_not_overload_the_first() -> None:
    fleet = Fleet(400, 7)
    everybody = fleet.members
    for size in range(1, 401):
        fleet.members = sorted(random.Random(7).sample(everybody, 400)[:size])
        fleet.round(1.0)
    fleet.settle()
    assert max(len(linked) for linked in fleet.links.values()) <= MAX_LINKS
    assert min(len(linked) for linked in fleet.links.values()) >= DEGREE
    assert islands(fleet.links, fleet.members) == 1


def test_the_same_dice_give_the_same_choice() -> None:
    members = sorted(f"{n:04x}" for n in range(0, 60_000, 600))
    plans = [Neighbours("1234", random.Random(9)).plan(members, (), 0.0) for _ in range(2)]
    assert plans[0] == plans[1]
    assert DIALLED <= len(plans[0].dial) < DEGREE
    assert Neighbours("1234", random.Random(10)).plan(members, (), 0.0) != plans[0]


def test_who_is_no_member_any_more_is_not_dialled() -> None:
    members = sorted(f"{n:04x}" for n in range(0, 60_000, 600))
    box = Neighbours(members[0], random.Random(1))
    chosen = box.plan(members, (), 0.0).dial
    left = [name for name in members if name not in chosen]
    assert not set(box.plan(left, (), 1.0).dial) & set(chosen)
    assert not set(box.chosen) & set(chosen)


def test_a_box_that_fails_is_tried_less_and_less_often() -> None:
    members = ["a", "b"]
    box = Neighbours("a", random.Random(1))
    tries = []
    now = 0.0
    while now < 2000:
        if box.plan(members, (), now) == Plan(("b",)):
            tries.append(now)
            box.failed("b", now)
        now += 1.0
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[0] <= 7
    assert max(gaps) <= 1.25 * MAX_RETRY + 1
    assert min(gaps[6:]) >= 0.75 * MAX_RETRY
    box.reached("b")
    assert box.plan(members, ("b",), now) == Plan()
    assert box.plan(members, (), now) == Plan(("b",))
