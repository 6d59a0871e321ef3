"""What choices are counted with: how many have each block, how many come a second, how many sources are of use."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.intake import LEAST, LONG, MAX_PAUSE, MOST, PAUSE, SETTLE, WINDOW, Intake
from fleet.blobs.meter import GRAIN, Meter
from fleet.blobs.meter import WINDOW as METER_WINDOW
from fleet.blobs.rarity import Rarity, indices, mask_of, pick


def mask(blocks: set[int]) -> int:
    return sum(1 << index for index in blocks)


_SETS = st.lists(st.sets(st.integers(0, 70), max_size=40), max_size=20)


@settings(max_examples=60, deadline=None)
@given(added=_SETS, asked=st.sets(st.integers(0, 70), min_size=1), order=st.randoms(use_true_random=False))
def test_rarest_and_known_are_what_counting_one_by_one_gives(
    added: list[set[int]], asked: set[int], order: random.Random
) -> None:
    rarity = Rarity()
    counts: Counter[int] = Counter()
    kept = []
    for blocks in added:
        rarity.add(mask(blocks))
        counts.update(blocks)
        if order.random() < 0.4:
            rarity.remove(mask(blocks))
            counts.subtract(blocks)
        else:
            kept.append(blocks)
    least = min(counts[index] for index in asked)
    assert set(indices(rarity.rarest(mask(asked)))) == {index for index in asked if counts[index] == least}
    assert set(indices(rarity.known)) == set().union(*kept)


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(0, 90), data=st.data())
def test_a_bitfield_as_a_set(blocks: int, data: st.DataObject) -> None:
    have = data.draw(st.sets(st.integers(0, blocks - 1))) if blocks else set()
    assert mask_of(Bitfield(blocks, have)) == mask(have)
    assert indices(mask(have)) == sorted(have)


def test_every_block_of_a_set_is_picked_as_often() -> None:
    rng = random.Random(1)
    blocks = {0, 1, 2, 63, 64, 500, 1023}
    picked = Counter(pick(mask(blocks), rng) for _ in range(7000))
    assert set(picked) == blocks
    assert all(850 < count < 1150 for count in picked.values())
    assert pick(1 << 77, rng) == 77


def test_the_rate_is_that_of_the_last_seconds() -> None:
    meter = Meter()
    assert (meter.rate(5.0), meter.last) == (0.0, 0.0)
    for number in range(101):
        meter.add(100.0 + number / 20)
    assert meter.rate(105.0) == pytest.approx(20.0)
    for number in range(1, 401):
        meter.add(105.0 + number / 10)
    assert meter.rate(145.0) == pytest.approx(10.0, rel=0.05)
    assert meter.rate(149.0) == pytest.approx(5.0, rel=0.15)
    assert meter.rate(145.0 + METER_WINDOW + GRAIN) == 0.0


def test_a_pause_is_no_slow_pace_and_memory_does_not_grow() -> None:
    meter = Meter()
    for number in range(100_000):
        meter.add(number / 1000)
    assert len(meter._counts) <= METER_WINDOW / GRAIN + 2
    for number in range(41):
        meter.add(1000.0 + number / 10)
    assert meter.rate(1004.0) == pytest.approx(10.0)


class Fetch:
    """A fetch that gets as much as its own link and those of its sources let through."""

    def __init__(self, own: float, each: float) -> None:
        self.intake = Intake()
        self.own, self.each = own, each
        self.now = 0.0
        self.left = 1 << 20
        self.limits: list[int] = []

    def run(self, seconds: float, offered: int = MOST + 5) -> None:
        until = self.now + seconds
        while self.now < until:
            sending = min(self.intake.limit, offered)
            self.now += 1 / min(self.own, self.each * sending)
            self.intake.full(offered)
            self.intake.came(self.now, self.left)
            self.limits.append(self.intake.limit)


def test_where_the_own_link_is_full_few_sources_do_and_more_are_tried_ever_more_seldom() -> None:
    fetch = Fetch(own=12.0, each=6.0)
    fetch.run(3000.0)
    assert fetch.intake.limit == LEAST
    more = [limit > LEAST for limit in fetch.limits]
    attempts = sum(1 for before, after in pairwise(more) if after and not before)
    assert 3 <= attempts <= 3 + 3000 / MAX_PAUSE + MAX_PAUSE / PAUSE
    assert not any(fetch.limits[number] > LEAST for number in range(int(12 * (SETTLE - 1))))


def test_where_the_links_of_sources_are_slow_more_and_more_are_taken() -> None:
    fetch = Fetch(own=1000.0, each=2.0)
    fetch.run(40 * WINDOW)
    # The last step, from 19 to 20, would bring too little to be told from chance.
    assert fetch.intake.limit >= MOST - 1
    fetch.run(20 * WINDOW)
    assert min(fetch.limits[-100:]) >= MOST - 1


def test_a_link_that_gets_better_by_itself_is_not_taken_for_a_gain() -> None:
    fetch = Fetch(own=4.0, each=1e6)
    for _ in range(40):
        fetch.run(WINDOW)
        fetch.own *= 1.2
    assert fetch.intake.limit == LEAST


def test_nothing_is_tried_where_nobody_else_is_there() -> None:
    fetch = Fetch(own=1000.0, each=2.0)
    while fetch.now < 300.0:
        fetch.now += 0.25
        fetch.intake.full(LEAST - 1)
        fetch.intake.came(fetch.now, fetch.left)
        assert fetch.intake.limit == LEAST


def test_nothing_is_tried_where_the_end_is_near() -> None:
    fetch = Fetch(own=1000.0, each=2.0)
    fetch.left = int(LEAST * 2.0 * LONG) - 1
    fetch.run(300.0)
    assert fetch.limits[-1] == LEAST
    fetch.left += 20
    fetch.run(30.0)
    assert fetch.limits[-1] > LEAST
