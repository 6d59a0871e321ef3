"""The simulation of routing itself: the same day twice is the same table, and a small fleet holds the limits."""

from __future__ import annotations

import pytest

from tests.sim.routing_sim import CHOICES, Plan, Result, jain, missed, simulate, table


def test_a_seed_gives_the_same_day_and_shoal_waits_least() -> None:
    results = [simulate(Plan(60, 120.0, 1), choice) for choice in CHOICES]
    assert missed(results) == []
    assert simulate(Plan(60, 120.0, 1), "shoal") == results[0]
    assert all(result.jobs == len(Plan(60, 120.0, 1).arrivals) for result in results)
    assert len(table(results).splitlines()) == 4


@pytest.mark.parametrize(("shares", "index"), [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([], 1.0), ([2, 1], 0.9)])
def test_jains_index(shares: list[float], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


def result(choice: str, **changes: float) -> Result:
    figures = {"wait_mean": 1.0, "wait_p50": 1.0, "wait_p99": 1.0, "whole_p50": 1.0, "whole_p99": 1.0}
    rest = {"jobs": 1, "lost": 0, "utilisation": 0.5, "fairness": 0.95, "attempts": 1.0}
    return Result(choice, **{**figures, **rest, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"lost": 2}, "2 jobs lost"),
        ({"fairness": 0.89}, "fairness 0.890"),
        ({"wait_p99": 1.1}, "wait_p99 1.10 s is worse than 1.00 s of random"),
        ({"whole_p50": 1.1}, "whole_p50"),
    ],
)
def test_what_is_missed_is_said(changes: dict[str, float], words: str) -> None:
    found = missed([result("shoal", **changes), result("random")])
    assert found == [] if not words else words in found[0]
