"""Token buckets: what they let through in any stretch of time, and what they remember."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet.gossip.rate_limit import Buckets, Rate

RATE = Rate(per_second=2, burst=10)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 12)), max_size=60))
def test_no_stretch_of_time_lets_more_through_than_its_rate(steps: list[tuple[float, float]]) -> None:
    buckets: Buckets[str] = Buckets(RATE)
    now = 0.0
    taken: list[tuple[float, float]] = []
    for wait, cost in steps:
        now += wait
        if buckets.take("a", now, cost):
            taken.append((now, cost))
        for index, (since, _) in enumerate(taken):
            total = sum(cost for _, cost in taken[index:])
            assert total <= RATE.burst + (now - since) * RATE.per_second + 1e-6


def test_a_bucket_fills_up_again_and_no_further() -> None:
    buckets: Buckets[str] = Buckets(RATE)
    assert buckets.take("a", 0, 10)
    assert not buckets.take("a", 0, 0.1)
    assert not buckets.take("a", 4, 8.5)
    assert buckets.take("a", 4, 8)
    assert buckets.level("a", 1e9) == 10


def test_keys_do_not_share() -> None:
    buckets: Buckets[str] = Buckets(RATE)
    assert buckets.take("a", 0, 10)
    assert buckets.take("b", 0, 10)


def test_a_refusal_costs_nothing_and_a_charge_leaves_a_bounded_debt() -> None:
    buckets: Buckets[str] = Buckets(RATE)
    assert not buckets.take("a", 0, 11)
    assert buckets.level("a", 0) == 10
    for _ in range(5):
        buckets.charge("a", 0, 9)
    assert buckets.level("a", 0) == -10
    assert not buckets.take("a", 5, 1)
    assert buckets.take("a", 5.5, 1)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    buckets: Buckets[str] = Buckets(RATE)
    assert buckets.take("a", 100, 10)
    assert not buckets.take("a", 50, 1)


def test_memory_is_bounded_and_the_longest_unused_is_forgotten() -> None:
    buckets: Buckets[int] = Buckets(RATE, max_keys=3)
    for key in (1, 2, 3):
        assert buckets.take(key, 0, 10)
    assert not buckets.take(1, 0, 1)
    buckets.charge(1, 0, 1)
    assert buckets.take(4, 0, 10)
    assert buckets.level(2, 0) == 10
    assert buckets.level(1, 0) == -1
