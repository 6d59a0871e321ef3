"""Counters of turned-away connections: what has grown of late, and nothing else."""

from __future__ import annotations

from collections import Counter

from agent.observe.floods import WINDOW, Floods


def test_what_came_within_the_window_is_told_and_then_forgotten() -> None:
    counts: Counter[str] = Counter()
    floods = Floods(counts)
    assert floods.recent() == {}
    counts["no_place_left"] += 2
    assert floods.recent() == {"no_place_left": 2}, "also before the first look"
    floods.look(0.0)
    assert floods.recent() == {}
    counts.update({"no_place_left": 3, "half_open_dropped": 1, "inbound": 9})
    for second in range(30, int(WINDOW) + 1, 30):
        floods.look(float(second))
        assert floods.recent() == {"half_open_dropped": 1, "no_place_left": 3}
    floods.look(WINDOW + 30)
    assert floods.recent() == {}


def test_a_flood_that_goes_on_goes_on_being_told() -> None:
    counts: Counter[str] = Counter()
    floods = Floods(counts)
    for second in range(0, 3 * int(WINDOW), 30):
        counts["handshake_timed_out"] += 1
        floods.look(float(second))
        if second > WINDOW:
            assert floods.recent() == {"handshake_timed_out": WINDOW / 30}
