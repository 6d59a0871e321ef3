"""Whom to follow: mostly near ones, some from anywhere, those that are followed, and one that has all where needed."""

from __future__ import annotations

import random

import pytest

from fleet.blobs.nearness import ANYWHERE, NEAR_RTT, NEIGHBOURS, Candidate, choose_sources, is_near


def fleet(site: str, count: int, *, rtt: float | None = 0.001, **more: bool) -> list[Candidate]:
    return [Candidate(f"{site}-{number}", rtt, site, **more) for number in range(count)]


@pytest.mark.parametrize(
    ("candidate", "own", "near"),
    [
        (Candidate("a", 0.5, "berlin"), "berlin", True),
        (Candidate("a", 0.0001, "paris"), "berlin", False),
        (Candidate("a", NEAR_RTT, ""), "berlin", True),
        (Candidate("a", NEAR_RTT, "berlin"), "", True),
        (Candidate("a", NEAR_RTT * 2, ""), "berlin", False),
        (Candidate("a", None, ""), "", False),
        (Candidate("a", NEAR_RTT, "", relayed=True), "", False),
    ],
)
def test_near_is_the_same_site_or_a_short_way(candidate: Candidate, own: str, near: bool) -> None:
    assert is_near(candidate, own) is near


def test_a_small_fleet_is_followed_whole() -> None:
    candidates = fleet("berlin", 3) + fleet("paris", NEIGHBOURS - 3)
    assert set(choose_sources(candidates, "rome", (), random.Random(1))) == {one.peer for one in candidates}


def test_most_are_near_and_some_from_anywhere() -> None:
    candidates = fleet("berlin", 100) + fleet("paris", 400, rtt=0.03)
    sites = [0, 0]
    for seed in range(100):
        chosen = choose_sources(candidates, "berlin", (), random.Random(seed))
        assert len(set(chosen)) == NEIGHBOURS
        near = sum(1 for peer in chosen if peer.startswith("berlin"))
        assert near >= NEIGHBOURS - ANYWHERE
        sites[0] += near
        sites[1] += NEIGHBOURS - near
    # Of those from anywhere, as many are of each site as it is large.
    assert sites[1] / (100 * ANYWHERE) == pytest.approx(400 / 488, abs=0.05)


def test_the_near_ones_are_not_the_same_for_everybody() -> None:
    candidates = [Candidate(f"{number}", number / 1e6, "berlin") for number in range(200)]
    followed = [choose_sources(candidates, "berlin", (), random.Random(seed)) for seed in range(200)]
    times = [sum(1 for chosen in followed if one.peer in chosen) for one in candidates]
    assert max(times) < 3 * NEIGHBOURS


def test_without_sites_a_shorter_way_comes_first_and_a_relay_last() -> None:
    candidates = [Candidate(f"{number:02}", 0.01 + number / 100) for number in range(40)]
    candidates += [Candidate(f"relayed {number}", 0.006, relayed=True) for number in range(20)]
    chosen = choose_sources(candidates, "", (), random.Random(1))
    assert {f"{number:02}" for number in range(NEIGHBOURS - ANYWHERE)} <= set(chosen)


def test_those_that_are_followed_stay_as_long_as_they_are_there() -> None:
    candidates = fleet("berlin", 100) + fleet("paris", 100)
    followed = [f"paris-{number}" for number in range(NEIGHBOURS)]
    assert set(choose_sources(candidates, "berlin", followed, random.Random(1))) == set(followed)
    left = [one for one in candidates if one.peer not in followed[:5]]
    chosen = choose_sources(left, "berlin", followed, random.Random(1))
    assert set(followed[5:]) < set(chosen)
    assert len(chosen) == NEIGHBOURS


def test_one_that_has_all_is_followed_where_blocks_are_missing_everywhere_else() -> None:
    candidates = [*fleet("berlin", 100), Candidate("first", 0.2, "tokyo", complete=True)]
    followed = [f"berlin-{number}" for number in range(NEIGHBOURS)]
    assert "first" not in choose_sources(candidates, "berlin", followed, random.Random(1))
    chosen = choose_sources(candidates, "berlin", followed, random.Random(1), lacking=True)
    assert "first" in chosen
    assert len(chosen) == NEIGHBOURS
    nobody = fleet("berlin", 100)
    assert len(choose_sources(nobody, "berlin", followed, random.Random(1), lacking=True)) == NEIGHBOURS
