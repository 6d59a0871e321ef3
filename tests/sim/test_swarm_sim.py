"""The simulation of a swarm itself: the same run twice is the same, a small fleet is quick, and the order matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.swarm_boxes import Plan
from tests.sim.swarm_sim import BLOCK, LINK, Result, SequentialPicker, limit, main, missed, simulate

SMALL = Plan(20, 64, BLOCK / LINK, 1, "1")


def test_a_small_fleet_is_near_the_bound_and_a_seed_repeats_it() -> None:
    result = simulate(SMALL)
    # What it takes to get going and to end is a quarter of so small a blob.
    assert result.ratio < 1.35
    assert result.copies < 1.35
    assert result.sent < 1.01
    assert simulate(SMALL) == result


def test_blocks_in_sequence_would_take_many_times_as_long() -> None:
    shown = replace(SMALL, seeder=None)
    rarest, sequential = simulate(shown), simulate(replace(shown, picker=SequentialPicker))
    assert rarest.ratio < 1.6
    # All lack the same block, which all ask of the only one that has it: the limit above notices at once.
    assert sequential.ratio > 4.0


def test_sites_far_apart_are_nearly_as_quick() -> None:
    assert simulate(replace(SMALL, sites=3)).ratio < 1.4


def test_a_limit_that_is_missed_is_named_and_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(SMALL, boxes=100, blocks=1024)
    bound = Result(plan, 1.0, 1.0, 1.0, 1.0).bound
    good = Result(plan, 1.049 * bound, bound, 1.0, 1.0)
    assert missed(good) == []
    assert "1.051 times the bound > 1.05" in missed(replace(good, last=1.051 * bound))[0]
    assert "1.030 blocks sent" in missed(replace(good, sent=1.03))[0]
    assert missed(replace(good, last=float("inf")))
    assert [limit(boxes) for boxes in (10, 100, 101, 1000, 5000)] == [1.05, 1.05, 1.10, 1.10, 1.10]
    assert main(["--boxes", "8", "--mebibytes", "16"]) == 1
    assert "MISSED: 8 boxes" in capsys.readouterr().out
