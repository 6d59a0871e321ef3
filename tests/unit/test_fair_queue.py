"""Turns and shares of those who wait for a model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.fair_queue import LOCAL, FairQueue, refusal


def queue(*jobs: str) -> FairQueue[str]:
    """Jobs by name; the letters before the number are the asker, `me` is this box."""
    made: FairQueue[str] = FairQueue()
    for job in jobs:
        put(made, job)
    return made


def put(to: FairQueue[str], job: str) -> None:
    asker = job.rstrip("0123456789")
    to.put(LOCAL if asker == "me" else asker, job)


def order(of: FairQueue[str]) -> list[str]:
    return [of.take() for _ in range(len(of))]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (["a1", "a2", "a3"], ["a1", "a2", "a3"]),
        (["a1", "a2", "a3", "b1"], ["a1", "b1", "a2", "a3"]),
        (["a1", "a2", "b1", "b2", "c1"], ["a1", "b1", "c1", "a2", "b2"]),
        (["a1", "a2", "me1"], ["me1", "a1", "a2"]),
        (["a1", "b1", "a2", "me1", "me2", "me3"], ["me1", "a1", "me2", "b1", "me3", "a2"]),
        (["me1", "me2"], ["me1", "me2"]),
    ],
)
def test_askers_take_turns(waiting: list[str], expected: list[str]) -> None:
    assert order(queue(*waiting)) == expected


def test_who_had_a_turn_waits_for_who_had_none() -> None:
    line = queue("a1", "a2", "a3")
    assert line.take() == "a1"
    put(line, "b1")
    assert order(line) == ["b1", "a2", "a3"]


def test_one_job_at_a_time_is_no_way_to_the_front() -> None:
    line = queue(*(f"a{n}" for n in range(10)), "b0")
    served: Counter[str] = Counter()
    for number in range(1, 10):
        job = line.take()
        served[job[0]] += 1
        if job[0] == "b":
            put(line, f"b{number}")
    assert abs(served["a"] - served["b"]) <= 1


@given(st.lists(st.sampled_from(["me", "a", "b", "c"]), max_size=40))
def test_every_job_gets_its_turn_once_and_in_its_askers_order(askers: list[str]) -> None:
    jobs = [f"{asker}{index}" for index, asker in enumerate(askers)]
    taken = order(queue(*jobs))
    assert sorted(taken) == sorted(jobs)
    for asker in set(askers):
        own = [job for job in jobs if job.rstrip("0123456789") == asker]
        assert [job for job in taken if job in own] == own
    with pytest.raises(LookupError):
        queue().take()


def test_a_job_can_leave_and_all_can() -> None:
    line = queue("a1", "a2", "b1")
    assert line.remove("a", "a1")
    assert not line.remove("a", "a1")
    assert not line.remove("c", "c1")
    assert (len(line), line.count("a"), line.count("c")) == (2, 1, 0)
    assert sorted(line.clear()) == ["a2", "b1"]
    assert len(line) == 0


@pytest.mark.parametrize(
    ("asker", "capacity", "total", "of_asker", "of_peers", "taken"),
    [
        ("a", 33, 0, 0, 0, True),
        ("a", 33, 15, 15, 15, True),
        ("a", 33, 16, 16, 16, False),  # its half
        ("b", 33, 16, 0, 16, True),
        ("b", 33, 25, 9, 25, False),  # three quarters for all peers
        (LOCAL, 33, 25, 0, 25, True),
        (LOCAL, 33, 32, 32, 0, True),
        (LOCAL, 33, 33, 33, 0, False),
        ("a", 33, 33, 0, 0, False),
        ("a", 1, 0, 0, 0, True),  # max_queue 0
        ("a", 1, 1, 0, 0, False),
        ("a", 2, 1, 0, 1, True),
        ("a", 2, 1, 1, 1, False),
    ],
)
def test_shares(asker: str, capacity: int, total: int, of_asker: int, of_peers: int, taken: bool) -> None:
    reason = refusal(asker, capacity=capacity, total=total, of_asker=of_asker, of_peers=of_peers)
    assert (reason is None) == taken
