"""Which boxes a placement falls on: the same wherever it is worked out, and steady when boxes come and go."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.observe.copies import evaluate_copies
from agent.reconcile.homes import Falls, gone_boxes
from agent.reconcile.plan import Actual
from agent.reconcile.schedule import own_window, window_for
from agent.reconcile.situation import Situation, situation_of
from tests.property import budget
from tests.property.fleet import Fleet, pk

HASH = "sha256:" + "5" * 64
MODEL = {"hash": HASH, "size_bytes": 100 << 20, "root": "ab" * 32, "algorithm": "sha256"}
NAMES = [f"m{number}" for number in range(8)]
ROOM = {"space": 1 << 40, "budget": 1 << 34, "memory": 8 << 30, "labels": {"site": "berlin"}}


def fleet_of(names: Iterable[str] = NAMES, **spec: Any) -> Fleet:
    fleet = Fleet()
    for name in names:
        fleet.cert("a1", name)
        fleet.fact(name, "node", {"name": name, **ROOM})
    fleet.set("a1", "model/smol", MODEL)
    fleet.set("a1", "place/here", {"model": "smol", **spec})
    return fleet


def holds(fleet: Fleet, *names: str, complete: float = 1.0) -> None:
    for name in names:
        fleet.fact(name, f"hold/{HASH}", {"name": "smol", "size": MODEL["size_bytes"], "complete": complete})


def leaves(fleet: Fleet, name: str, witness: str) -> None:
    fleet.fact(witness, f"gone/{pk(name).hex()}", True)


def seen_by(fleet: Fleet, name: str) -> Situation:
    return situation_of(fleet.view(), pk(name), ())


def chosen(fleet: Fleet) -> set[str]:
    (fall,) = seen_by(fleet, "m0").falls
    return {one.name for one in fall.verdicts if one.key in fall.chosen()}


def fall_of(fleet: Fleet) -> Falls:
    return seen_by(fleet, "m0").falls[0]


def test_a_second_name_for_a_content_takes_nothing_from_the_first() -> None:
    fleet = fleet_of(max=2)
    before = chosen(fleet)
    fleet.set("a1", "model/fresh", MODEL)
    assert chosen(fleet) == before
    wishes = seen_by(fleet, "m0").wishes
    for name in ("smol", "Smol", "fresh", HASH):
        assert wishes.by_name(name) is wishes.models[HASH]
    assert wishes.called(HASH) == ("fresh", "smol")
    assert wishes.by_name("other") is None


def test_without_bounds_every_box_that_the_selector_means() -> None:
    fleet = fleet_of(selector={"labels": {"site": "berlin"}, "where": "ram>=2GB"})
    fleet.fact("m3", "node", {"name": "m3", **ROOM, "labels": {"site": "ulm"}})
    fleet.fact("m4", "node", {"name": "m4", **ROOM, "memory": 10**9})
    assert chosen(fleet) == set(NAMES) - {"m3", "m4"}
    whys = {one.name: one.why for one in fall_of(fleet).verdicts if one.role == "not"}
    assert whys == {"m3": "site=berlin: label site is ulm", "m4": "ram>=2GB: it has 1GB"}


def test_a_box_without_room_is_passed_over_and_says_why() -> None:
    fleet = fleet_of(replicas="all")
    fleet.fact("m1", "node", {"name": "m1", **ROOM, "space": 1 << 20})
    fleet.fact("m2", "node", {"name": "m2", **ROOM, "budget": 1 << 20})
    assert chosen(fleet) == set(NAMES) - {"m1", "m2"}
    holds(fleet, "m1")
    assert chosen(fleet) == set(NAMES) - {"m2"}  # it has it already


def test_a_box_whose_link_never_carries_models_is_passed_over() -> None:
    fleet = fleet_of(max=8)
    fleet.set("a1", "policy/transfer", {"rules": [{"selector": {"where": "name=m1"}, "metered": True}]})
    assert chosen(fleet) == set(NAMES) - {"m1"}
    holds(fleet, "m1")
    assert chosen(fleet) == set(NAMES)


def test_a_box_that_was_revoked_or_denied_gets_none() -> None:
    fleet = fleet_of(max=8)
    fleet.revoke("a1", "m1")
    fleet.deny("a1", "m2")
    fleet.deny("a1", "m3", "blobs")
    assert chosen(fleet) == set(NAMES) - {"m1", "m2", "m3"}


def test_who_holds_it_comes_first() -> None:
    fleet = fleet_of(max=2)
    others = sorted(set(NAMES) - chosen(fleet))[:2]
    holds(fleet, *others)
    assert chosen(fleet) == set(others)


def test_min_restores_the_copy_of_a_box_that_is_gone_and_nothing_moves_when_it_is_back() -> None:
    fleet = fleet_of(min=3, max=3)
    first = chosen(fleet)
    assert len(first) == 3
    holds(fleet, *first)
    lost, *_ = sorted(first)
    leaves(fleet, lost, sorted(first - {lost})[0])
    fall = fall_of(fleet)
    (stand_in,) = {one.name for one in fall.verdicts if one.role == "stand-in"}
    assert fall.copies == 2
    assert fall.lacks
    assert chosen(fleet) == first | {stand_in}
    holds(fleet, stand_in)
    after = chosen(fleet)
    assert stand_in in after
    assert len(after - {lost}) == 3
    assert not fall_of(fleet).lacks
    fleet.fact(lost, "here", 1)  # it is back, and says something
    assert lost not in {one.name for one in fall_of(fleet).verdicts if one.gone}
    assert len(chosen(fleet)) == 3
    assert chosen(fleet) <= first | {stand_in}


def test_without_min_a_box_that_is_off_at_night_keeps_its_place() -> None:
    fleet = fleet_of(max=3)
    first = chosen(fleet)
    holds(fleet, *first)
    lost, witness, _ = sorted(first)
    leaves(fleet, lost, witness)
    assert chosen(fleet) == first


def test_a_box_that_is_gone_and_holds_nothing_is_not_waited_for() -> None:
    fleet = fleet_of(max=3)
    lost = sorted(chosen(fleet))[0]
    leaves(fleet, lost, "m7" if lost != "m7" else "m6")
    assert lost not in chosen(fleet)
    assert len(chosen(fleet)) == 3


def test_it_says_how_many_copies_there_cannot_be() -> None:
    fleet = fleet_of(NAMES[:2], min=3)
    assert fall_of(fleet).short == 1
    situation = seen_by(fleet, "m0")
    room = Actual(free=1 << 40, memory=1 << 40)
    assert [warning.code for warning in evaluate_copies(situation, room)] == ["copies_lacking"]
    full = Actual(free=1, memory=1 << 40)
    assert [warning.code for warning in evaluate_copies(situation, full)] == ["copies_lacking", "model_not_fetched"]
    fleet.set("a1", "place/odd", {"model": "nobody has it"})
    assert "placement_unusable" in {warning.code for warning in evaluate_copies(seen_by(fleet, "m0"), room)}
    assert evaluate_copies(None, room) == ()


def test_a_word_about_a_box_counts_only_from_a_member_and_until_that_box_writes() -> None:
    fleet = fleet_of()
    leaves(fleet, "m1", "m1")
    assert gone_boxes(fleet.view().boxes) == frozenset()
    leaves(fleet, "m1", "m2")
    assert gone_boxes(fleet.view().boxes) == {pk("m1")}
    fleet.fact("m1", "here", 7)
    assert gone_boxes(fleet.view().boxes) == frozenset()


def test_a_placement_of_what_nobody_vouches_for_falls_nowhere_and_says_so() -> None:
    for body in ({"source": "x"}, {"hash": HASH}, {**MODEL, "root": "zz"}, {**MODEL, "size_bytes": -1}):
        fleet = fleet_of()
        fleet.set("a1", "model/smol", body, [op for op in fleet.ops if op.path == "model/smol"])
        fall = fall_of(fleet)
        assert not fall.chosen()
        assert fall.placement.problem


def test_a_placement_may_name_the_hash_or_an_alias() -> None:
    for reference in (HASH, "SMOL.gguf", "till"):
        fleet = fleet_of(model=reference, max=1)
        fleet.set("a1", "alias/till", {"model": "smol"})
        assert len(chosen(fleet)) == 1


@given(st.sets(st.sampled_from(NAMES), min_size=1), st.integers(1, 8), st.randoms())
@budget(25)
def test_every_box_comes_to_the_same_and_one_more_box_moves_at_most_one_copy(
    there: set[str], most: int, rng: Any
) -> None:
    fleet = fleet_of(sorted(there), max=most)
    ops = list(fleet.ops)
    views = []
    for _ in range(2):
        rng.shuffle(ops)
        views.append(fleet.view(ops))
    found = [situation_of(view, pk(name), ()).falls[0].chosen() for view in views for name in there]
    assert all(one == found[0] for one in found)
    assert len(found[0]) == min(most, len(there))
    fleet.cert("a1", "new")
    fleet.fact("new", "node", {"name": "new", **ROOM})
    after = set(situation_of(fleet.view(), pk("new"), ()).falls[0].chosen())
    assert len(set(found[0]) - after) <= 1
    assert after - set(found[0]) <= {pk("new")}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from([HASH, "smol", "ab" * 32, "ram>=2GB", "22:00-06:00", "here"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["hash", "root", "size_bytes", "algorithm", "context_tokens", "model", "selector", "labels", "where", "min",
             "max", "replicas", "rules", "hours", "metered", "upload_rate"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["model/smol", "place/here", "place/b", "policy/transfer"]), ANYTHING)))
@budget(100)
def test_whatever_admins_write_is_read_or_passed_over(written: list[tuple[str, Any]]) -> None:
    fleet = fleet_of(NAMES[:2])
    for path, value in written:
        fleet.set("a1", path, value, [op for op in fleet.ops if op.path == path])
    situation = seen_by(fleet, "m0")
    window = window_for(own_window((), False, None), situation.view.settings, situation.view.box(pk("m0")))
    assert isinstance(window.closed(datetime(2026, 1, 1, 12)), str)
