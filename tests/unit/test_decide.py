"""Routing decisions, by the numbers of the behaviours."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.routing.decide import Ask, Decision, LocalState, PeerState, Policy, Rules, decide
from fleet.net.messages import ModelPresence

HASH = "sha256:" + "0" * 64
State = Literal["idle", "loading", "loaded", "failed"]


def model(rate: float | None = 50.0, state: State = "loaded", **changes: Any) -> ModelPresence:
    return ModelPresence(hash=HASH, name="m", state=state, context_tokens=2048, decode_rate=rate, **changes)


def peer(name: str, holding: ModelPresence | None, **changes: Any) -> PeerState:
    fields: dict[str, Any] = {"connected": True, "age": 1.0, "draining": False, "rtt": 0.001, **changes}
    return PeerState(f"id-{name}", name, model=holding, **fields)


def local(holding: ModelPresence | None = None, **changes: Any) -> LocalState:
    return LocalState("me", "here", holding, **changes)


def route(policy: Policy, here: LocalState, peers: Sequence[PeerState] = (), tokens: int = 0) -> Decision:
    return decide(Ask(policy, tokens), here, peers, Rules())


def reasons(decision: Decision) -> dict[str, str]:
    return {verdict.name: verdict.reason for verdict in decision.verdicts}


class NobodyLooks(Sequence[PeerState]):
    """Peers that must not be looked at."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a peer was looked at")

    def __len__(self) -> int:
        raise AssertionError("the peers were counted")

    def __iter__(self) -> Iterator[PeerState]:
        raise AssertionError("the peers were looked at")


@pytest.mark.parametrize("rate", [0.5, 9.0, 50.0, None])
def test_b1_b6_offload_off_runs_here_however_slow_and_no_peer_is_looked_at(rate: float | None) -> None:
    decision = route("never", local(model(rate, running=3, queued=9)), NobodyLooks())
    assert (decision.order, decision.refusal) == (("me",), "")


@pytest.mark.parametrize("holding", [None, model(state="failed")])
def test_b6_offload_off_without_the_model_is_refused(holding: ModelPresence | None) -> None:
    decision = route("never", local(holding), NobodyLooks())
    assert (decision.order, decision.refusal) == ((), "no_local_model")


def test_b2_at_the_threshold_this_box_runs_it_whatever_others_could() -> None:
    decision = route("prefer", local(model(10.0)), [peer("a", model(500))])
    assert decision.order == ("me",)
    assert reasons(decision) == {"here": "holds the model", "a": "not needed"}


def test_b3_below_the_threshold_a_faster_peer_runs_it_and_this_box_is_the_next() -> None:
    decision = route("prefer", local(model(9.9)), [peer("a", model(50)), peer("b", model(5))])
    assert decision.order == ("id-a", "me")
    assert reasons(decision) == {
        "here": "holds the model, 9.9 tok/s",
        "a": "candidate",
        "b": "5 tok/s, no faster than here",
    }


@pytest.mark.parametrize("rate", [4.0, 5.0, None])
def test_b4_peers_that_are_not_known_to_be_faster_leave_it_here(rate: float | None) -> None:
    assert route("prefer", local(model(5.0)), [peer("a", model(rate))]).order == ("me",)


def test_a_faster_peer_where_it_would_end_later_comes_after_this_box() -> None:
    busy = peer("a", model(6.0, running=1, queued=8))
    assert route("prefer", local(model(5.0)), [busy]).order == ("me", "id-a")
    says_no = peer("b", model(500), refusing="91% of its memory is used")
    decision = route("prefer", local(model(5.0)), [says_no])
    assert decision.order == ("me", "id-b")
    assert reasons(decision)["b"] == "busy: 91% of its memory is used"


def test_b5_nobody_can_and_every_box_says_why() -> None:
    peers = [
        peer("off", model(), connected=False),
        peer("closed", None, connected=False, refused=True),
        peer("old", model(), age=91.0),
        peer("bye", model(), draining=True),
        peer("none", None),
        peer("bad", model(state="failed")),
        peer("weak", model(2.0), best_rate=2.0),
    ]
    decision = route("prefer", local(), peers)
    assert decision.order == ()
    assert decision.refusal == "no_capable_peer"
    assert reasons(decision) == {
        "here": "does not hold the model",
        "off": "not connected",
        "closed": "refuses this box's key",
        "old": "silent for 91 s",
        "bye": "shutting down",
        "none": "does not hold the model",
        "bad": "cannot load the model",
        "weak": "only borrows, 2 tok/s at best",
    }
    rates = {verdict.name: verdict.decode_rate for verdict in decision.verdicts}
    assert (rates["off"], rates["weak"], rates["none"]) == (50.0, 2.0, None)


def test_b7_require_takes_peers_at_the_threshold_and_nothing_else() -> None:
    peers = [peer("slow", model(9.9)), peer("just", model(10.0)), peer("fast", model(80)), peer("new", model(None))]
    decision = route("require", local(model(500)), peers)
    assert decision.order == ("id-fast", "id-just", "id-new")
    assert reasons(decision)["slow"] == "9.9 tok/s, below 10"
    assert reasons(decision)["here"] == "offload is required"


@pytest.mark.parametrize("peers", [[], [peer("slow", model(9.9))]])
def test_b7_require_without_such_a_peer_is_refused_even_if_this_box_could(peers: list[PeerState]) -> None:
    decision = route("require", local(model(500)), peers)
    assert (decision.order, decision.refusal) == ((), "no_capable_peer")


def test_b9_equal_peers_loaded_then_rate_then_direct_then_fewest_jobs() -> None:
    many = {"slots": 4}
    best_first = [
        peer("fast", model(90, **many)),
        peer("direct-0", model(20, **many)),
        peer("direct-1", model(20, running=1, **many), rtt=0.0001),
        peer("relayed", model(20, **many), relayed=True, rtt=0.0001),
        peer("slow", model(10, **many)),
        peer("unmeasured", model(None, **many)),
        peer("unloaded-fast", model(500, state="idle", **many)),
    ]
    shuffled = random.Random(3).sample(best_first, len(best_first))
    assert route("prefer", local(), shuffled).order == tuple(p.peer_id for p in best_first)


def test_b11_presence_older_than_90_s_excludes() -> None:
    assert route("prefer", local(), [peer("a", model(), age=90.0)]).order == ("id-a",)
    assert route("prefer", local(), [peer("a", model(), age=90.1)]).order == ()
    assert route("prefer", local(), [peer("a", model(), age=float("nan"))]).order == ()


def test_b12_a_box_whose_best_is_below_3_is_asked_by_nobody_and_still_serves_itself() -> None:
    assert route("prefer", local(), [peer("a", model(2.9), best_rate=2.9)]).order == ()
    assert route("prefer", local(), [peer("a", model(2.9), best_rate=3.0)]).order == ("id-a",)
    assert route("prefer", local(model(1.0))).order == ("me",)


def test_b41_an_empty_queue_wins_against_any_rate_health_and_record() -> None:
    free = peer("free", model(5, running=3, slots=4), health=0.2, record=0.0)
    full = peer("full", model(500, running=4, slots=4), health=1.0, record=1.0)
    assert route("prefer", local(), [full, free]).order == ("id-free", "id-full")


def test_b41_jobs_that_this_box_has_there_itself_fill_a_queue_that_a_peer_calls_empty() -> None:
    liar = peer("liar", model(500, slots=4), asked=4)
    assert route("prefer", local(), [liar, peer("free", model(5))]).order == ("id-free", "id-liar")


def test_b40_a_box_that_says_it_is_overloaded_is_asked_last() -> None:
    peers = [peer("tired", model(500), refusing="95% of its memory is used"), peer("full", model(5, queued=30))]
    assert route("prefer", local(), peers).order == ("id-full", "id-tired")


def test_a_box_with_its_slots_taken_gives_to_those_that_would_be_done_sooner() -> None:
    taken = local(model(20, running=4, queued=6, slots=4))
    peers = [peer("free", model(20, slots=4)), peer("slow", model(9)), peer("full", model(20, queued=40, slots=4))]
    decision = route("prefer", taken, peers)
    assert decision.order == ("id-free", "me", "id-full")
    assert reasons(decision)["here"] == "holds the model, 10 jobs on 4 slots"
    assert route("prefer", local(model(20, running=3, slots=4)), peers).order == ("me",)


def test_a_fleet_where_nobody_has_been_measured_works() -> None:
    peers = [peer("a", model(None)), peer("b", model(None, running=1))]
    assert route("prefer", local(), peers).order == ("id-a", "id-b")
    assert route("require", local(), peers).order == ("id-a", "id-b")
    assert route("prefer", local(model(None)), peers).order == ("me",)


def test_the_box_that_has_the_conversation_is_asked_first_up_to_twice_its_rate() -> None:
    peers = [peer("has-it", model(20)), peer("faster", model(35)), peer("much-faster", model(200))]
    decision = decide(Ask("prefer", remembered_by="id-has-it"), local(), peers, Rules())
    assert decision.order == ("id-much-faster", "id-has-it", "id-faster")


def test_a_cache_with_no_room_for_the_job_is_no_empty_queue() -> None:
    roomy = peer("roomy", model(10, slots=4, free_cells=4000))
    tight = peer("tight", model(40, slots=4, running=1, free_cells=100))
    assert route("prefer", local(), [tight, roomy], tokens=500).order == ("id-roomy", "id-tight")
    assert route("prefer", local(), [tight, roomy], tokens=50).order == ("id-tight", "id-roomy")


def test_a_local_model_that_cannot_load_falls_back_to_peers() -> None:
    decision = route("prefer", local(model(state="failed")), [peer("a", model())])
    assert decision.order == ("id-a",)
    assert str(decision.verdicts[0]) == "here=cannot load the model"


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


RATES = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.0, 2.9, 3.0, 9.9, 10.0, 12.0])
SHARES = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
MODELS = st.builds(
    ModelPresence,
    hash=st.just(HASH),
    name=st.just("m"),
    state=st.sampled_from(["idle", "loading", "loaded", "failed"]),
    context_tokens=st.integers(0, 1 << 30),
    decode_rate=_maybe(RATES),
    running=st.integers(0, 1 << 20) | st.integers(0, 5),
    queued=st.integers(0, 1 << 20) | st.integers(0, 5),
    slots=st.integers(1, 1 << 16) | st.integers(1, 5),
    free_cells=_maybe(st.integers(0, 1 << 40)),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[PeerState]:
    ids = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8))
    return [
        PeerState(
            f"id-{one}",
            draw(st.sampled_from(["box", one])),
            connected=draw(st.booleans()),
            age=draw(st.floats(0, 200)),
            draining=draw(st.sampled_from([False, False, True])),
            model=draw(_maybe(MODELS)),
            rtt=draw(_maybe(st.floats(0, 100))),
            refused=draw(st.booleans()),
            relayed=draw(st.booleans()),
            best_rate=draw(_maybe(RATES)),
            asked=draw(st.integers(0, 5)),
            health=draw(SHARES),
            record=draw(SHARES),
            refusing=draw(st.sampled_from(["", "tired"])),
        )
        for one in ids
    ]


ASKS = st.builds(
    Ask,
    st.sampled_from(["never", "prefer", "require"]),
    st.integers(0, 10_000),
    st.sampled_from([None, "id-a", "id-b"]),
)
LOCALS = st.builds(
    LocalState, st.just("me"), st.just("here"), _maybe(MODELS), st.sampled_from([None, True, False]), SHARES
)


@given(ASKS, LOCALS, fleets(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_decision_is_sound_and_the_same_however_the_peers_are_listed(
    ask: Ask, here: LocalState, peers: list[PeerState], chance: random.Random
) -> None:
    here = replace(here, slow=False) if here.model and here.model.decode_rate is None else here
    decision = decide(ask, here, peers, Rules())
    assert decision == decide(ask, here, chance.sample(peers, len(peers)), Rules())
    assert bool(decision.order) != bool(decision.refusal)
    assert len(set(decision.order)) == len(decision.order)
    by_id = {one.peer_id: one for one in peers}
    for peer_id in decision.order:
        if peer_id == "me":
            assert here.model is not None
            assert here.model.state != "failed"
            assert ask.policy != "require"
            continue
        asked = by_id[peer_id]
        assert ask.policy != "never"
        assert asked.connected
        assert asked.age <= 90
        assert not asked.draining
        assert asked.model is not None
        assert asked.model.state != "failed"
        assert asked.best_rate is None or asked.best_rate >= 3
        rate = asked.model.decode_rate
        assert ask.policy != "require" or rate is None or rate >= 10
    accepted = {verdict.peer_id for verdict in decision.verdicts if verdict.accepted}
    assert accepted == set(decision.order)
    if ask.policy != "never":
        assert {verdict.peer_id for verdict in decision.verdicts} == {"me", *by_id}


@given(fleets(), MODELS, SHARES, SHARES)
@settings(max_examples=200, deadline=None)
def test_what_one_peer_says_never_changes_the_order_of_the_others(
    peers: list[PeerState], lie: ModelPresence, health: float, record: float
) -> None:
    if not peers:
        return
    honest = decide(Ask(), local(), peers, Rules()).order
    liar = replace(peers[0], model=lie, health=health, record=record)
    lied = decide(Ask(), local(), [liar, *peers[1:]], Rules()).order
    assert [one for one in honest if one != liar.peer_id] == [one for one in lied if one != liar.peer_id]
