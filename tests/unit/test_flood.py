"""How much a peer may ask, and be wrong: what an honest one does is never held up, what a flood does always is."""

from __future__ import annotations

from fleet.net.flood import BAD_WINDOW, CALL, MAX_BAD, NOTIFY, UNITS_A_SECOND, BadMessages, Pace, Seldom


def test_a_burst_of_a_seconds_units_is_free_and_the_rest_is_paid_in_time() -> None:
    pace = Pace()
    assert pace.pause(1000.0) == 0.0
    for _ in range(UNITS_A_SECOND // NOTIFY):
        pace.charge(NOTIFY)
    assert pace.pause(1000.0) == 0.0
    pace.charge(UNITS_A_SECOND // 2)
    assert pace.pause(1000.0) == 0.5
    assert pace.pause(1000.5) == 0.0
    pace.charge(UNITS_A_SECOND)
    assert 0.99 < pace.pause(1000.5) <= 1.0


def test_idle_time_is_not_saved_up() -> None:
    pace = Pace()
    pace.pause(0.0)
    pace.pause(1e6)
    pace.charge(3 * UNITS_A_SECOND)
    assert pace.pause(1e6) == 2.0


def test_a_thousand_calls_a_second_for_ever_are_not_held_up() -> None:
    pace, now = Pace(), 50.0
    for _ in range(100_000):
        pace.charge(CALL)
        now += 0.001
        assert pace.pause(now) == 0.0


def test_bad_messages_count_within_a_window_that_slides() -> None:
    bad = BadMessages()
    assert not any(bad.note(index * BAD_WINDOW / (MAX_BAD - 2)) for index in range(1000))
    bad = BadMessages()
    assert [bad.note(5.0) for _ in range(MAX_BAD)] == [False] * (MAX_BAD - 1) + [True]


def test_the_first_of_many_and_each_doubling_are_worth_a_line() -> None:
    seldom = Seldom()
    assert [count for _ in range(1000) if (count := seldom.worth_a_line("a"))] == [
        1,
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
    ]
    assert seldom.worth_a_line("b") == 1


def test_ever_new_keys_fill_nothing_and_the_latest_stay_known() -> None:
    seldom = Seldom(keys=4)
    for index in range(1000):
        assert seldom.worth_a_line(index) == 1
    assert seldom.worth_a_line(999) == 2
    assert seldom.worth_a_line(0) == 1
    assert len(seldom._counts) == 4
