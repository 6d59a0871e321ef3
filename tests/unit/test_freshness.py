"""When a box that was cut off waits for news before it serves a caller."""

from __future__ import annotations

from fleet.gossip.freshness import LIMIT, Freshness

THIEF, HONEST, OTHER = "thief", "honest", "other"
BOTH = {THIEF, HONEST}


def test_a_caller_waits_until_another_box_has_been_compared_with() -> None:
    fresh = Freshness(100.0)
    fresh.link_up(THIEF, 101.0)
    fresh.compared(THIEF)
    fresh.link_up(HONEST, 102.0)
    assert fresh.wait_until(THIEF, BOTH, 102.0) == 102.0 + LIMIT
    fresh.compared(HONEST)
    assert fresh.wait_until(THIEF, BOTH, 102.0) is None
    assert fresh.wait_until(HONEST, BOTH, 102.0) is None


def test_nobody_waits_where_nobody_else_is_there_or_the_time_is_over() -> None:
    fresh = Freshness(100.0)
    fresh.link_up(THIEF, 100.0)
    assert fresh.wait_until(THIEF, {THIEF}, 100.0) is None
    assert fresh.wait_until(THIEF, BOTH, 100.0) == 100.0 + LIMIT, "the other may still be reached"
    assert fresh.wait_until(THIEF, BOTH, 100.0 + LIMIT) is None


def test_a_box_that_was_unplugged_waits_again_although_the_caller_was_there_all_the_time() -> None:
    fresh = Freshness(0.0)
    for peer in BOTH:
        fresh.link_up(peer, 1.0)
        fresh.compared(peer)
    fresh.link_down(HONEST)
    assert fresh.wait_until(THIEF, {THIEF}, 3600.0) is None
    fresh.link_up(HONEST, 3600.0)
    assert fresh.wait_until(THIEF, BOTH, 3600.0) == 3600.0 + LIMIT
    fresh.compared(HONEST)
    assert fresh.wait_until(THIEF, BOTH, 3600.0) is None


def test_what_was_heard_before_a_stop_is_old() -> None:
    fresh = Freshness(0.0)
    for peer in BOTH:
        fresh.link_up(peer, 1.0)
        fresh.compared(peer)
    fresh.stopped(500.0)
    assert fresh.wait_until(THIEF, BOTH, 500.0) == 500.0 + LIMIT
    assert set(fresh.heard) == set()


def test_a_box_that_comes_and_goes_without_a_word_makes_others_wait_once() -> None:
    fresh = Freshness(0.0)
    fresh.link_up(HONEST, 1.0)
    for moment in (10.0, 14.0, 18.0):
        fresh.link_up(OTHER, moment)
        fresh.link_down(OTHER)
    fresh.link_up(OTHER, 20.0)
    assert fresh.wait_until(HONEST, {HONEST, OTHER}, 20.0) is None, "the deadline is that of its first link"
    fresh.compared(OTHER)
    fresh.link_down(OTHER)
    fresh.link_up(OTHER, 30.0)
    assert fresh.wait_until(HONEST, {HONEST, OTHER}, 30.0) == 30.0 + LIMIT
