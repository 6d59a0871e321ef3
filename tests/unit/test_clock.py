"""The hybrid clock: order along every chain of ops that saw one another, wall time where it can be had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.document.clock import MAX_AHEAD_MS, MAX_HLC, HybridClock, milliseconds
from tests.property import budget

NOW = 1_700_000_000_000


def test_a_timestamp_is_the_wall_time_and_a_counter() -> None:
    clock = HybridClock()
    assert clock.tick(NOW) == NOW << 16
    assert clock.tick(NOW) == (NOW << 16) + 1
    assert clock.tick(NOW + 1) == (NOW + 1) << 16
    assert milliseconds((NOW << 16) + 65535) == NOW


@pytest.mark.parametrize("back", [1, 1000, NOW])
def test_a_wall_clock_that_is_set_back_does_not_turn_time_back(back: int) -> None:
    clock = HybridClock()
    first = clock.tick(NOW)
    assert clock.tick(NOW - back) == first + 1


def test_after_a_restart_time_goes_on() -> None:
    last = HybridClock().tick(NOW)
    assert HybridClock(last).tick(NOW - 5000) == last + 1


@pytest.mark.parametrize(
    ("seen", "followed"),
    [
        (0, False),
        ((NOW - 1) << 16, False),
        (NOW << 16 | 9, True),
        ((NOW + MAX_AHEAD_MS) << 16 | 65535, True),
        ((NOW + MAX_AHEAD_MS + 1) << 16, False),
        (MAX_HLC, False),
    ],
)
def test_what_was_seen_is_before_what_is_written_unless_it_is_a_day_ahead(seen: int, followed: bool) -> None:
    clock = HybridClock(NOW << 16)
    clock.observe(seen, NOW)
    assert clock.tick(NOW) == (seen if followed else NOW << 16) + 1


def test_the_clock_stops_at_the_largest_timestamp() -> None:
    assert HybridClock(MAX_HLC - 1).tick(NOW) == MAX_HLC
    assert HybridClock(MAX_HLC).tick(NOW) == MAX_HLC
    assert HybridClock().tick(1 << 60) == MAX_HLC


@budget(150)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3), st.booleans()), max_size=40))
def test_order_holds_along_every_chain_whatever_the_clocks_say(events: list[tuple[int, int, bool]]) -> None:
    """Three boxes, clocks wrong by up to an hour: what a box writes comes after all that it wrote and has read."""
    clocks = [HybridClock() for _ in range(3)]
    board, read = [0], [0, 0, 0]
    for box, skew, reads in events:
        wall = NOW + skew * 1_200_000
        if reads:
            clocks[box].observe(max(board), wall)
            read[box] = max(read[box], max(board))
        written = clocks[box].tick(wall)
        assert written > read[box]
        assert written >= wall << 16
        read[box] = written
        board.append(written)
