"""Hours, rates and budgets of what a box lends."""

from __future__ import annotations

from datetime import UTC, datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.jobs.lending import DAY, Hours, Lending, Terms

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return NOON.replace(hour=hour, minute=minute)


def test_without_terms_everything_is_lent() -> None:
    lending = Lending()
    assert all(lending.ask("a", float(n) / 1000, NOON) is None for n in range(1000))


def test_a_box_that_does_not_lend_says_so_and_names_the_setting() -> None:
    denial = Lending(enabled=False).ask("a", 0.0, NOON)
    assert denial is not None
    assert "lend.enabled" in denial.reason
    assert denial.retry_after is None


@pytest.mark.parametrize(
    ("start", "end", "clock", "left"),
    [
        (time(9), time(17), at(8, 59), None),
        (time(9), time(17), at(9), 8 * 3600),
        (time(9), time(17), at(16, 59), 60),
        (time(9), time(17), at(17), None),
        (time(22), time(6), at(23), 7 * 3600),
        (time(22), time(6), at(5), 3600),
        (time(22), time(6), at(6), None),
        (time(0), time(0), at(13), 11 * 3600),
    ],
)
def test_quiet_hours(start: time, end: time, clock: datetime, left: int | None) -> None:
    denial = Lending(quiet=[Hours(start, end)]).ask("a", 0.0, clock)
    assert (denial.retry_after if denial else None) == left
    assert denial is None or f"until {end:%H:%M}" in denial.reason


def test_requests_a_minute_come_back_steadily_and_are_each_boxs_own() -> None:
    lending = Lending(terms=Terms(requests_per_minute=6))
    assert [lending.ask("a", 0.0, NOON) for _ in range(6)] == [None] * 6
    denial = lending.ask("a", 0.0, NOON)
    assert denial is not None
    assert denial.retry_after == 10
    assert lending.ask("b", 0.0, NOON) is None
    assert lending.ask("a", 9.9, NOON) is not None
    assert lending.ask("a", 10.1, NOON) is None
    assert lending.ask("a", 10.1, NOON) is not None


def test_a_refused_request_costs_nothing() -> None:
    lending = Lending(terms=Terms(requests_per_minute=1))
    assert lending.ask("a", 0.0, NOON) is None
    assert all(lending.ask("a", n / 10, NOON) is not None for n in range(1, 599))
    assert lending.ask("a", 60.1, NOON) is None


def test_tokens_a_day_may_be_overdrawn_by_one_job_and_are_paid_back() -> None:
    lending = Lending(terms=Terms(tokens_per_day=1000))
    assert lending.ask("a", 0.0, NOON) is None
    lending.used("a", 1500, 1.0)
    denial = lending.ask("a", 1.0, NOON)
    assert denial is not None
    assert denial.retry_after == pytest.approx(501 * DAY / 1000, abs=2)
    assert lending.ask("a", 1.0 + denial.retry_after, NOON) is None
    assert lending.ask("b", 1.0, NOON) is None


def test_no_debt_is_longer_than_a_day() -> None:
    lending = Lending(terms=Terms(tokens_per_day=10))
    assert lending.ask("a", 0.0, NOON) is None
    lending.used("a", 1 << 40, 0.0)
    denial = lending.ask("a", 0.0, NOON)
    assert denial is not None
    assert denial.retry_after is not None
    assert denial.retry_after <= 1.2 * DAY


def test_a_box_may_have_terms_of_its_own() -> None:
    lending = Lending(terms=Terms(requests_per_minute=1), own={"b": Terms()})
    assert [lending.ask(box, 0.0, NOON) is None for box in "aabbbb"] == [True, False, True, True, True, True]


def test_what_strangers_leave_behind_is_bounded() -> None:
    lending = Lending(terms=Terms(requests_per_minute=1))
    for number in range(5000):
        assert lending.ask(f"peer-{number}", 0.0, NOON) is None
    assert len(lending._accounts) == 4096


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=80), st.integers(1, 20))
def test_nobody_ever_gets_more_than_the_rate_allows(asks: list[tuple[float, int]], rate: int) -> None:
    lending, now, taken = Lending(terms=Terms(requests_per_minute=rate)), 0.0, 0
    for pause, many in asks:
        now += pause
        taken += sum(lending.ask("a", now, NOON) is None for _ in range(many))
    assert taken <= rate + rate * now / 60 + 1e-6
