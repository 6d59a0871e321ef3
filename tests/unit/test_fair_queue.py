"""Turns and shares of those who wait for a model."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.fair_queue import AGEING, LEAD, LOCAL, FairQueue, refusal
from fleet.net.messages import Priority


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


def test_b42_a_higher_class_goes_first_and_keeps_its_order_on_both_sides() -> None:
    for asker in (LOCAL, "a"):
        line: FairQueue[str] = FairQueue()
        jobs: list[tuple[Priority, str]] = [("bulk", "b1"), ("normal", "n1"), ("interactive", "i1"), ("normal", "n2")]
        jobs += [("interactive", "i2"), ("bulk", "b2")]
        for priority, job in jobs:
            line.put(asker, job, priority=priority)
        assert order(line) == ["i1", "i2", "n1", "n2", "b1", "b2"]


@pytest.mark.parametrize("capacity", [4, 6, 10, 20, 33, 36, 68])
@pytest.mark.parametrize("greedy", [1, 2, 3])
@pytest.mark.parametrize("at_once", [True, False])
def test_b40_a_peer_with_nothing_here_finds_a_place_as_long_as_others_hold_more_than_one(
    capacity: int, greedy: int, at_once: bool
) -> None:
    held = [0] * greedy

    def take(who: int) -> bool:
        total = sum(held)
        if refusal(str(who), capacity=capacity, total=total, of_asker=held[who], of_peers=total) is not None:
            return False
        held[who] += 1
        return True

    if at_once:
        while sum(take(who) for who in range(greedy)):
            pass
    else:
        for who in range(greedy):
            while take(who):
                pass
    assert max(held) <= capacity // 2
    if greedy > 1 and at_once:
        assert max(held) <= sum(held) / greedy + 1
    if max(held) > 1:
        held.append(0)
        if not take(greedy):
            assert not at_once, held
            assert capacity <= 10, held
            held[0] -= 1
            assert not any(take(who) for who in range(greedy) if held[who]), (
                "the next place that comes free is not for them"
            )
            assert take(greedy), held


def test_b42_the_class_of_one_peer_comes_before_the_turn_of_another() -> None:
    line: FairQueue[str] = FairQueue()
    line.put("a", "a1", priority="bulk")
    line.put("b", "b1", priority="interactive")
    line.put("b", "b2", priority="interactive")
    assert order(line) == ["b1", "b2", "a1"]


def test_b42_a_flood_that_calls_itself_urgent_gets_a_little_ahead_of_another_peers_jobs_and_no_further() -> None:
    line: FairQueue[str] = FairQueue()
    for number in range(60):
        line.put("flood", f"f{number}", priority="interactive", cost=40)
        line.put("honest", f"h{number}", cost=40)
    taken = [line.take()[0] for _ in range(100)]
    assert taken[:4] == ["f"] * 4, "an urgent job of a peer that has had no more than others goes first"
    assert max(taken[:n].count("f") - taken[:n].count("h") for n in range(100)) * 40 <= LEAD + 40
    assert taken[4:].count("h") >= 46


@pytest.mark.parametrize("local", [True, False])
def test_b42_one_job_at_a_time_of_no_class_waits_for_no_more_than_the_lead_of_a_flood(local: bool) -> None:
    line: FairQueue[str] = FairQueue()
    number, waits = itertools.count(), []
    for _ in range(20):
        line.put("honest", "h", cost=10)
        waited = 0
        for turn in itertools.count():
            line.put("flood", f"f{next(number)}", priority="interactive", cost=50)
            if local:
                line.put(LOCAL, f"me{turn}", cost=500)
            job = line.take()
            line.settle(LOCAL if job[0] == "m" else job.rstrip("0123456789"), 0.0)
            if job == "h":
                break
            waited += 50 * (job[0] == "f")
        waits.append(waited)
    assert max(waits) <= LEAD + 50


def test_what_this_boxs_own_clients_have_had_costs_no_peer_its_turn() -> None:
    line = queue("a1", "a2", "a3")
    line.put(LOCAL, "me1", cost=1000)
    line.put(LOCAL, "me2", cost=1000)
    assert [line.take(), line.take(), line.take()] == ["me1", "a1", "me2"]
    put(line, "b1")
    assert order(line) == ["b1", "a2", "a3"]


def test_b42_who_waits_long_enough_is_overtaken_no_more() -> None:
    line: FairQueue[str] = FairQueue()
    line.put("a", "bulk", priority="bulk", now=0.0)
    for second in range(100):
        line.put("b", f"b{second}", priority="interactive", now=float(second))
        if line.take(float(second)) == "bulk":
            break
    assert second == 2 * AGEING


def test_twice_the_weight_is_twice_the_turns() -> None:
    line: FairQueue[str] = FairQueue()
    for number in range(30):
        line.put("a", f"a{number}", weight=1.0)
        line.put("b", f"b{number}", weight=2.0)
    served = Counter(line.take()[0] for _ in range(30))
    assert served["b"] == 2 * served["a"]


def test_larger_jobs_count_for_more() -> None:
    line: FairQueue[str] = FairQueue()
    for number in range(30):
        line.put("a", f"a{number}", cost=300)
        line.put("b", f"b{number}", cost=100)
    served = Counter(line.take()[0] for _ in range(24))
    assert abs(served["b"] - 3 * served["a"]) <= 3


@pytest.mark.parametrize("waits", [True, False])
def test_what_was_not_used_is_given_back_and_no_more(waits: bool) -> None:
    line: FairQueue[str] = FairQueue()
    for job in ("a1", "a2") if waits else ("a1",):
        line.put("a", job, cost=1000)
    line.put("b", "b1", cost=10)
    line.put("b", "b2", cost=10)
    assert line.take() == "a1"
    line.settle("a", -995)
    if not waits:
        line.put("a", "a2", cost=1000)
    assert order(line) == ["b1", "a2", "b2"]
    line.settle("a", -1e9)
    line.settle("nobody", -1e9)
    line.put("c", "c1")
    line.put("a", "a3")
    line.put("c", "c2")
    assert order(line)[0] == "c1"


def test_who_was_away_has_saved_nothing_up() -> None:
    line: FairQueue[str] = FairQueue()
    for number in range(20):
        line.put("a", f"a{number}")
        assert line.take() == f"a{number}"
    for number in range(20):
        line.put("a", f"x{number}")
        line.put("b", f"b{number}")
    served = Counter(line.take()[0] for _ in range(20))
    assert abs(served["x"] - served["b"]) <= 1


def test_what_strangers_leave_behind_is_bounded() -> None:
    line: FairQueue[int] = FairQueue()
    for number in range(400):
        line.put(f"peer-{number}", number)
    taken = [line.take() for _ in range(400)]
    assert sorted(taken) == list(range(400))
    assert len(line._left) <= 256


@pytest.mark.parametrize(("cost", "weight"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
def test_work_and_weight_are_positive(cost: float, weight: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        FairQueue[str]().put("a", "a1", cost=cost, weight=weight)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=30), st.sampled_from(["", "a", "d"]))
def test_the_estimate_of_who_is_ahead_holds_for_equal_jobs(askers: list[str], asker: str) -> None:
    line: FairQueue[int] = FairQueue()
    for number, one in enumerate(askers):
        line.put(one, number)
    ahead = line.ahead(asker, "normal")
    line.put(asker, -1)
    at = [line.take() for _ in range(len(line))].index(-1)
    assert at <= ahead <= 2 * at + 1 + len(set(askers))


def test_without_peers_only_this_boxs_own_clients_are_served() -> None:
    line = queue("a1", "me1", "b1", "me2")
    assert [line.take(peers=False), line.take(peers=False)] == ["me1", "me2"]
    assert (line.waits(), line.waits(peers=False)) == (True, False)
    with pytest.raises(LookupError):
        line.take(peers=False)
    assert order(line) == ["a1", "b1"]
    assert not line.waits()
