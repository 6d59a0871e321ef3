"""What routing remembers and how it is told: hysteresis, conversations, scores, routes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.http.served import served_headers
from agent.jobs.job import Routed
from agent.routing.chooser import Chooser, expected_tokens
from agent.routing.conversations import Conversations
from agent.routing.decide import LocalState, PeerState, Verdict
from agent.routing.explain import MAX_ROUTE, REMEMBERED, RouteLog, short_route
from agent.routing.pace import STALE_AFTER, Pace, best_of, borrow_only
from agent.routing.score import Numbers, score, starts_at_once, wait, wellness
from fleet.errors import MessageError
from fleet.net.messages import (
    ChatMessage,
    HealthPresence,
    InferRequest,
    ModelPresence,
    Presence,
    Sampling,
    parse,
)

HASH = "sha256:" + "0" * 64
HELD = ModelPresence(hash=HASH, name="m", state="loaded", context_tokens=2048, decode_rate=50.0)
ASKERS = [f"till-{number}" for number in range(20)]
FREE = Numbers(loaded=True, rate=50.0, jobs=0, slots=1)
FULL = replace(FREE, jobs=5)


def request(job: str = "j1", **changes: object) -> InferRequest:
    chat = InferRequest(job=job, kind="chat", model="m", messages=(ChatMessage(role="user", content="hi"),))
    return chat.model_copy(update=changes)


def peers(*names: str) -> list[PeerState]:
    return [PeerState(f"id-{name}", name, True, 1.0, False, HELD, 0.001) for name in names]


# --- pace -----------------------------------------------------------------------------------------------------------


def test_b10_a_rate_that_swings_about_the_threshold_does_not_flap() -> None:
    pace = Pace(10.0)
    rates = [11.0, 10.0, 9.0, 11.0, 9.0, 11.9, 10.0, 12.0, 11.0, 10.0, 9.9]
    slow = [pace.look("m", rate, float(at)) for at, rate in enumerate(rates)]
    assert slow == [False, False, True, True, True, True, True, False, False, False, True]


def test_b10_each_model_has_a_pace_of_its_own_and_looking_changes_nothing() -> None:
    pace = Pace(10.0)
    assert pace.look("slow", 9.0, 0.0)
    assert not pace.look("quick", 11.0, 0.0)
    assert [pace.look("slow", 11.0, 1.0) for _ in range(3)] == [True] * 3
    assert not pace.look("slow", None, 2.0)
    assert not pace.look("slow", 11.0, 3.0), "another engine or file: measured anew"


def test_b10_a_decision_follows_the_pace_and_not_the_threshold_alone() -> None:
    here = LocalState("pos-1", "here", HELD.model_copy(update={"decode_rate": 11.0}), slow=True)
    assert Chooser().decide(request(), "prefer", here, peers("a")).order == ("id-a", "pos-1")
    assert Chooser().decide(request(), "prefer", replace(here, slow=False), peers("a")).order == ("pos-1",)


def test_a_slow_rate_that_nothing_measures_again_is_tried_again() -> None:
    pace = Pace(10.0, floor=3.0)
    assert pace.look("m", 5.0, 0.0)
    assert pace.look("m", 5.0, STALE_AFTER - 1)
    assert not pace.look("m", 5.0, STALE_AFTER)
    assert pace.look("m", 6.0, STALE_AFTER + 1), "measured: still slow"
    assert pace.look("weak", 2.0, 0.0)
    assert pace.look("weak", 2.0, 10 * STALE_AFTER), "an answer at 2 tok/s is no try"


def test_b12_a_box_is_as_good_as_its_best_model() -> None:
    assert borrow_only(best_of([None, 2.9, 1.0]), 3.0)
    assert not borrow_only(best_of([2.0, 3.0]), 3.0)
    assert not borrow_only(best_of([None]), 3.0)


# --- score ----------------------------------------------------------------------------------------------------------


def test_b41_the_score_is_60_percent_queue_30_health_10_record() -> None:
    assert score(replace(FREE, health=1.0, record=1.0)) == pytest.approx(1.0)
    assert score(replace(FREE, health=0.0, record=0.0)) == pytest.approx(0.6)
    assert score(replace(FREE, health=1.0, record=0.0)) == pytest.approx(0.9)
    endless = replace(FREE, jobs=1 << 20, health=1.0, record=1.0)
    assert score(endless) == pytest.approx(0.4, abs=1e-4)
    assert wait(FULL) == pytest.approx(5 * 128 / 50)
    assert score(replace(FULL, health=0.5, record=0.0)) == pytest.approx(0.6 * 10 / (10 + 12.8) + 0.15)


def test_b41_health_and_record_decide_between_equal_queues() -> None:
    chooser = Chooser()
    full = HELD.model_copy(update={"queued": 5})

    def order(*states: PeerState) -> tuple[str, ...]:
        return chooser.decide(request(), "prefer", LocalState("pos-1", "here", None), states).order

    a, b = (replace(state, model=full) for state in peers("a", "b"))
    assert order(a, b) == ("id-a", "id-b")
    assert order(replace(a, health=0.5), b) == ("id-b", "id-a")
    assert order(a, replace(b, record=1.0)) == ("id-b", "id-a")
    assert order(replace(a, health=0.5), replace(b, record=0.0, model=full.model_copy(update={"queued": 20}))) == (
        "id-a",
        "id-b",
    ), "60 % outweigh half of 30 %"


@pytest.mark.parametrize(
    "changes", [{"loaded": False}, {"jobs": 1}, {"room": False}, {"refusing": True}, {"health": 0.19}]
)
def test_a_queue_is_empty_only_where_the_job_starts(changes: dict[str, object]) -> None:
    assert starts_at_once(FREE)
    assert not starts_at_once(replace(FREE, **changes))  # type: ignore[arg-type]


def said(**changes: object) -> Presence:
    fields = {k: v for k, v in changes.items() if k in ("cpu", "memory")}
    health = HealthPresence(**{k: v for k, v in changes.items() if k not in fields})
    return Presence(seq=1, name="n", version="1", health=health, **fields)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        (Presence(seq=1, name="n", version="1"), 1.0),
        (Presence(seq=1, name="n", version="1", cpu=1.0), 0.0),
        (said(cpu=1.0, cpu_other=0.1), 1.0),
        (said(cpu_other=0.9), 0.2),
        (said(memory=0.75), 0.5),
        (said(load=0.9), 1.0),
        (said(load=9000.0), 0.0),
        (said(heat="high", temperature=91.0), 0.5),
        (said(heat="critical"), 0.1),
        (said(throttled=True), 0.5),
        (said(battery=0.1, mains=True), 1.0),
        (said(battery=0.1, mains=False), 0.2),
        (said(battery=0.1), 1.0),
    ],
)
def test_how_well_a_box_is_by_its_worst_figure(presence: Presence, expected: float) -> None:
    assert wellness(presence) == pytest.approx(expected)


@pytest.mark.parametrize(
    "field", [{"load": float("nan")}, {"cpu_other": 1.1}, {"battery": -0.1}, {"heat": "warm"}, {"refuses": "x" * 65}]
)
def test_health_past_its_limits_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="health"):
        parse(Presence, {"seq": 1, "name": "n", "version": "1", "health": field})


def test_boxes_that_ask_at_the_same_time_do_not_all_ask_the_same_one() -> None:
    chooser, three = Chooser(), peers("a", "b", "c")
    first = {
        asker: chooser.decide(request(), "prefer", LocalState(asker, "x", None), three).order[0] for asker in ASKERS
    }
    again = {
        asker: chooser.decide(request("j2"), "prefer", LocalState(asker, "x", None), three).order[0] for asker in first
    }
    assert first == again, "the same box asks the same one, which may have its last prompt"
    assert set(first.values()) == {"id-a", "id-b", "id-c"}
    faster = replace(three[0], model=HELD.model_copy(update={"decode_rate": 100.0}))
    assert {
        chooser.decide(request(), "prefer", LocalState(asker, "x", None), [faster, *three[1:]]).order[0]
        for asker in ASKERS
    } == {"id-a"}


# --- conversations ----------------------------------------------------------------------------------------------------


def test_the_next_turn_of_a_conversation_goes_where_the_last_one_was() -> None:
    chooser = Chooser()
    nobody, turn = LocalState("pos-1", "here", None), request(session="shop-7")
    assert chooser.decide(turn, "prefer", nobody, peers("a", "b")).order[0] == "id-a"
    chooser.note_served(turn, "id-b", "app")
    assert chooser.decide(turn, "prefer", nobody, peers("a", "b"), owner="app").order[0] == "id-b"
    assert chooser.decide(turn, "prefer", nobody, peers("a", "b"), owner="other").order[0] == "id-a"
    assert chooser.decide(request(), "prefer", nobody, peers("a", "b"), owner="app").order[0] == "id-a"


def test_conversations_are_bounded_and_those_used_last_stay() -> None:
    known = Conversations(most=2)
    for session in ("one", "two", "one", "three"):
        known.note("", session, "m", "id-a")
    assert [known.last("", session, "m") for session in ("one", "two", "three")] == ["id-a", None, "id-a"]


def test_the_size_of_a_job_is_estimated_from_its_prompt_and_its_answer() -> None:
    assert expected_tokens(request(messages=(), kind="completion", prompt="x" * 4000)) == 1256
    assert expected_tokens(request(sampling=Sampling(max_tokens=10))) == 18
    vectors = InferRequest(job="j", kind="embedding", model="m", texts=("x" * 400, "y"))
    assert expected_tokens(vectors) == 100


# --- routes -----------------------------------------------------------------------------------------------------------


def decided(chooser: Chooser, job: str) -> None:
    decision = chooser.decide(request(job), "prefer", LocalState("pos-1", "here", None), peers("a", "b"))
    chooser.note(request(job), "prefer", decision, 1_700_000_000.0)


def test_a_route_has_every_candidate_with_its_numbers_and_the_verdict() -> None:
    chooser = Chooser()
    decided(chooser, "j1")
    chooser.note_served(request("j1"), "id-a")
    found = chooser.routes.find("j1")
    assert found is not None
    facts = json.loads(json.dumps(found.facts(), allow_nan=False))
    assert (facts["job"], facts["model"], facts["policy"], facts["served_by"]) == ("j1", "m", "prefer", "id-a")
    (decision,) = facts["decisions"]
    here, a, b = decision["candidates"]
    assert (here["name"], here["rank"], here["reason"]) == ("here", None, "does not hold the model")
    assert (a["rank"], b["rank"], decision["order"]) == (1, 2, ["id-a", "id-b"])
    expected = {"decode_rate": 50.0, "jobs": 0, "slots": 1, "starts_at_once": True, "wait_s": 0.0, "rtt_ms": 1.0}
    assert expected.items() <= a.items()
    assert a["score"] == 0.9


def test_routes_are_bounded_in_jobs_decisions_and_candidates() -> None:
    chooser = Chooser()
    for number in range(REMEMBERED + 1):
        decided(chooser, f"j{number}")
    assert chooser.routes.find("j0") is None
    assert chooser.routes.find(f"j{REMEMBERED}") is not None
    many = chooser.decide(
        request(), "prefer", LocalState("pos-1", "here", None), peers(*(f"b{n:03d}" for n in range(300)))
    )
    log = RouteLog()
    for _ in range(50):
        log.note("j", "m", "prefer", many, 0.0)
    found = log.find("j")
    assert found is not None
    assert len(found.decisions) == 4
    assert {len(decision.verdicts) for decision in found.decisions} == {64}
    assert found.decisions[0].order[0] in {verdict.peer_id for verdict in found.decisions[0].verdicts}


def test_a_short_route_has_every_candidate_and_who_served_last() -> None:
    verdicts = [Verdict("id-a", "a", True, "candidate"), Verdict("me", "here", False, "does not hold the model")]
    assert short_route(verdicts, "id-a") == ("here=does not hold the model", "a=served")


def test_a_short_route_counts_what_it_has_no_room_for() -> None:
    gone = [Verdict(f"id-{n}", f"warehouse-box-{n:04d}", False, f"silent for {n + 91} s") for n in range(400)]
    slow = [Verdict(f"s-{n}", f"till-{n:04d}", False, f"{n}.5 tok/s, below 10") for n in range(100)]
    parts = short_route([*gone, *slow, Verdict("id-a", "a", True, "candidate")], "id-a")
    text = "; ".join(parts)
    assert len(text) <= MAX_ROUTE
    assert parts[-1] == "a=served"
    shown = sum("warehouse" in part for part in parts)
    assert 10 <= shown < 400
    assert f"({400 - shown} more)=silent for s" in parts
    assert "(100 more)=tok/s" in parts
    routed = Routed("id-a", "a", False, "m", HASH, 1, parts)
    assert dict(served_headers(routed))["x-shoal-route"] == text
