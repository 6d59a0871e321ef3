"""The Yjs document follows the view exactly, by the smallest change, and takes every client's copy along."""

from __future__ import annotations

import gc
import json
import weakref
from itertools import islice
from typing import Any

import pycrdt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import cbor
from fleet.document import yjs
from fleet.document.bodies import FirewallEntry, Invite, prove_invite, vouch
from fleet.document.op import read_op
from fleet.document.plain_json import text_of
from fleet.document.projection import MAPS, Changed, Projection
from fleet.document.view import View
from fleet.document.yjs import StaleClientError
from tests.projected import ADMINS, BOXES, GENESIS, INVITE, NOW, Copy, Fleet


def contents(projection: Projection) -> dict[str, dict[str, str]]:
    return {name: dict(projection.entries(name)) for name in MAPS}


def parsed(projection: Projection, name: str) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in projection.entries(name).items()}


def said(body: bytes) -> Any:
    try:
        return cbor.decode(body)
    except cbor.CborError:
        return None


# --- the document says what the view says --------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("cert"), st.integers(0, 3)),
        st.tuples(
            st.just("fact"),
            st.integers(0, 3),
            st.sampled_from(["node", "addr", "hold/aa", "used/x"]),
            st.sampled_from([{"name": "pos-1", "labels": {"site": "a"}}, {"name": 7}, ["x"], None, b"\1", {b"k": 1}]),
        ),
        st.tuples(st.just("garbage"), st.integers(0, 3)),
        st.tuples(st.just("fw"), st.integers(0, 3), st.sampled_from(["allow", "deny"]), st.booleans()),
        st.tuples(
            st.just("cfg"), st.integers(0, 1), st.sampled_from(["model/a", "policy/firewall"]), st.integers(0, 2)
        ),
        st.tuples(st.just("unset"), st.integers(0, 1)),
        st.tuples(st.just("revoke"), st.integers(0, 3)),
        st.tuples(st.just("join"), st.integers(0, 3)),
    ),
    max_size=25,
)


def step(fleet: Fleet, what: str, who: int, *more: Any) -> None:
    box, key = BOXES[who], BOXES[who].public_key
    if what == "cert":
        fleet.write(ADMINS[0], "cert", key.hex(), "member")
    elif what == "fact" and fleet.ops.was_certified(key):
        fleet.write(box, "node", more[0], more[1])
    elif what == "garbage" and fleet.ops.was_certified(key):
        good = fleet.write(box, "node", "node", "x")
        signed = cbor.encode([1, GENESIS.fleet_id, key, good.seq + 1, 1, "node", "node", b"\xff", []])
        fleet.ops.admit(read_op(signed + bytes(64)))
    elif what == "fw":
        live = fleet.view().governance.live.get(("fw", key.hex()), ())
        sup = [op.id for op in live] if more[1] else []
        fleet.write(ADMINS[0], "fw", key.hex(), FirewallEntry(more[0]).body(), sup)
    elif what == "cfg":
        value = {"mode": ["members", "allow-list", "?"][more[1]]} if more[0].startswith("policy") else more[1]
        fleet.write(ADMINS[who], "cfg", more[0], value)
    elif what == "unset":
        live = fleet.view().governance.live.get(("cfg", "model/a"), ())
        fleet.write(ADMINS[who], "cfg", "model/a", None, [op.id for op in live])
    elif what == "revoke":
        fleet.write(ADMINS[1], "revoke", key.hex(), 0)
    elif what == "join":
        by = BOXES[(who + 1) % len(BOXES)]
        if not fleet.ops.was_certified(by.public_key):
            return
        if fleet.ops.invite_limit("ab" * 16, INVITE.public_key) is None:
            body = Invite(INVITE.public_key, 1, 5, None, ()).body()
            fleet.write(ADMINS[0], "cfg", "invite/" + "ab" * 16, body)
        proof = prove_invite(INVITE, GENESIS.fleet_id, "ab" * 16, key)
        join = vouch(by, GENESIS.fleet_id, "ab" * 16, key, INVITE.public_key, proof, 9)
        fleet.write(box, "join", "ab" * 16, join.body())


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_after_every_change_the_document_says_what_the_view_says(steps: list[Any]) -> None:
    fleet, projection = Fleet(), Projection(NOW)
    projection.apply(fleet.view())
    copy = Copy().follow(projection)
    for one in steps:
        step(fleet, *one)
        view = fleet.view()
        before, seen = contents(projection), len(copy.updates)
        heard: list[Changed] = []
        stop = projection.subscribe(heard.append)
        projection.apply(view)
        stop()

        facts = {
            f"{key.hex()}/{path}": text_of(said(op.body)) for key, path, op in view.facts() if said(op.body) is not None
        }
        assert projection.entries("facts") == facts
        assert parsed(projection, "members") == {
            key.hex(): {
                "how": view.authority.members[key].how,
                "name": box.node.name,
                "labels": dict(box.node.labels),
            }
            for key, box in view.boxes.items()
        }
        for key, standing in parsed(projection, "firewall").items():
            stands = view.standing(bytes.fromhex(key))
            assert standing == {
                "admitted": stands.admitted,
                "scopes": sorted(stands.scopes),
                "reason": stands.reason,
            }
        named = {*view.authority.members, *view.authority.revoked, *view.governance.firewall.named()}
        assert {bytes.fromhex(key) for key in projection.entries("firewall")} == named
        assert projection.entries("settings") == {
            path: text_of(setting.value) for path, setting in view.settings.items() if setting.value is not None
        }
        assert set(view.conflicts) | {f"invite/{one}" for one in view.authority.contested} == set(
            projection.entries("conflicts")
        )
        assert {bytes.fromhex(key) for key in projection.entries("admins")} == set(view.authority.rank)

        fresh = Projection(NOW)
        fresh.apply(view)
        assert contents(fresh) == contents(projection)
        assert copy.contents() == contents(projection)

        after = contents(projection)
        differ = {
            (name, key)
            for name in MAPS
            for key in before[name].keys() | after[name].keys()
            if before[name].get(key) != after[name].get(key)
        }
        assert len(copy.updates) - seen <= 1, "one transaction a change"
        told = heard[0].keys if heard else frozenset()
        assert differ <= told
        assert projection.apply(view) == 0
        assert len(copy.updates) - seen <= 1, "none where nothing changed"
    assert set(yjs.read_vector(projection.vector())) == {projection.client_id}


def test_one_fact_is_one_entry_and_one_small_update() -> None:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(*BOXES)
    for box in BOXES:
        fleet.write(box, "node", "node", {"name": "pos"})
    projection.apply(fleet.view())
    copy, heard = Copy().follow(projection), list[Changed]()
    projection.subscribe(heard.append)
    fleet.write(BOXES[1], "node", "addr", ["/ip4/10.0.0.1/tcp/4210"])
    assert projection.apply(fleet.view()) == 1
    key = f"{BOXES[1].public_key.hex()}/addr"
    assert [one.keys for one in heard] == [{("facts", key)}]
    assert copy.maps["facts"][key] == '["/ip4/10.0.0.1/tcp/4210"]'
    assert len(copy.updates[-1]) < 200


def test_a_surplus_join_and_rival_settings_are_shown() -> None:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(BOXES[0], BOXES[1])
    step(fleet, "join", 3)
    step(fleet, "join", 2)  # is let in by 3, and one use was all there was
    fleet.write(ADMINS[0], "cfg", "model/a", 1)
    fleet.write(ADMINS[1], "cfg", "model/a", 2)
    projection.apply(fleet.view())
    conflicts = parsed(projection, "conflicts")
    assert sorted(conflicts) == ["invite/" + "ab" * 16, "model/a"]
    invite = conflicts["invite/" + "ab" * 16]
    assert len(invite["members"]) == len(invite["surplus"]) == 1
    claims = [conflicts["model/a"]["holds"], *conflicts["model/a"]["rivals"]]
    assert sorted(claim["value"] for claim in claims) == [1, 2]


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=3))
def test_what_was_left_in_the_middle_is_made_whole_by_the_next_call(
    steps: list[Any], attempts: list[tuple[int, int]]
) -> None:
    fleet, projection = Fleet(), Projection(NOW)
    copy = Copy().follow(projection)
    steps_a_part = len(steps) // (len(attempts) + 1) + 1
    for number, (until, at_once) in enumerate(attempts):
        for one in steps[number * steps_a_part : (number + 1) * steps_a_part]:
            step(fleet, *one)
        under_way = projection.steps(fleet.view(), at_once)
        assert all(0 < written <= at_once for written in islice(under_way, until))
        under_way.close()
    for one in steps[len(attempts) * steps_a_part :]:
        step(fleet, *one)
    for _ in projection.steps(fleet.view(), 3):
        pass
    fresh = Projection(NOW)
    fresh.apply(fleet.view())
    assert contents(projection) == contents(fresh) == copy.contents()
    assert projection.apply(fleet.view()) == 0


def test_a_rebuild_that_was_left_in_the_middle_has_not_happened() -> None:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(*BOXES)
    projection.apply(fleet.view())
    copy = Copy().follow(projection)
    before, client_id = contents(projection), projection.client_id
    under_way = projection.rebuild_steps(2)
    assert next(under_way) == 2
    under_way.close()
    assert (contents(projection), projection.client_id) == (before, client_id)
    assert sum(projection.rebuild_steps(2)) == sum(len(entries) for entries in before.values())
    assert contents(projection) == before == copy.contents()
    assert projection.client_id == client_id + 1


# --- growth --------------------------------------------------------------------------------------------------------


def test_ten_thousand_overwrites_of_one_entry_do_not_grow_the_document() -> None:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(BOXES[0])
    views = []
    for value in (1, 2):
        fleet.write(BOXES[0], "node", "perf/a", value)
        views.append(fleet.view())
    projection.apply(views[0])
    size = len(projection.answer(b"\0"))
    for turn in range(10_000):
        assert projection.apply(views[1 - turn % 2]) == 1
    assert len(projection.answer(b"\0")) <= size + 64
    assert projection.dead == 10_000


def test_rebuilding_forgets_the_dead_and_takes_every_copy_along() -> None:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(*BOXES)
    views = []
    for value in (1, 2):
        for box in BOXES:
            fleet.write(box, "node", "perf/a", {"decode": float(value)})
            views.append(fleet.view())
    for turn in range(3_000):
        projection.apply(views[turn * 3 % len(views)])
    copy, away = Copy().follow(projection), Copy().sync(projection)
    grown = len(projection.answer(b"\0"))
    assert not projection.overgrown, "few enough"
    turn = 0
    while not projection.overgrown:
        projection.apply(views[turn * 3 % len(views)])
        turn += 1
    assert projection.dead > 10_000

    held, client_id = contents(projection), projection.client_id
    old = weakref.ref(projection._doc)
    updates = len(copy.updates)
    projection.rebuild()
    gc.disable()
    try:
        assert old() is None, "a Doc may only be dropped by its own thread, and not by whichever collects garbage"
    finally:
        gc.enable()
    assert contents(projection) == held == copy.contents()
    assert len(copy.updates) == updates + 1
    assert projection.client_id > client_id
    assert projection.dead == 0
    assert len(projection.answer(b"\0")) < grown / 2
    assert away.sync(projection).contents() == held

    fleet.write(BOXES[2], "node", "addr", [])
    projection.apply(fleet.view())
    assert copy.contents() == contents(projection) == away.sync(projection).contents()


# --- copies that outlive the process -------------------------------------------------------------------------------


def two_histories() -> tuple[View, View]:
    """What the document said before a restart, and after one: some entries gone, some new, some changed."""
    before, after = Fleet(), Fleet()
    for fleet, box, value in ((before, BOXES[0], 1), (after, BOXES[1], 2)):
        fleet.let_in(box, BOXES[2])
        fleet.write(BOXES[2], "node", "perf/a", value)
        fleet.write(box, "node", "node", {"name": f"pos-{value}"})
    return before.view(), after.view()


def test_a_copy_that_outlives_the_process_is_repaired_in_one_update() -> None:
    before, after = two_histories()
    first = Projection(NOW)
    first.apply(before)
    copy = Copy().sync(first)
    second = Projection(NOW + 1)
    second.apply(after)
    assert copy.contents() != contents(second)
    copy.sync(second)
    assert copy.contents() == contents(second)
    third = Projection(NOW + 2)
    third.apply(before)
    assert copy.sync(third).contents() == contents(third)


def test_one_client_id_for_two_histories_would_leave_a_copy_wrong_for_ever() -> None:
    before, after = two_histories()
    first, second = Projection(NOW), Projection(NOW)
    first.apply(before)
    copy = Copy().sync(first)
    second.apply(after)
    copy.doc.apply_update(second._doc.get_update(copy.doc.get_state()))
    assert copy.contents() != contents(second)


def test_a_copy_of_a_later_history_is_refused_and_not_spoilt() -> None:
    before, after = two_histories()
    first, second = Projection(NOW), Projection(NOW - 5)
    first.apply(before)
    second.apply(after)
    with pytest.raises(StaleClientError):
        Copy().sync(first).sync(second)
    with pytest.raises(StaleClientError):
        second.answer(yjs.vector({second.client_id: 1000}))


def test_what_a_client_writes_into_its_own_copy_concerns_nobody() -> None:
    before, after = two_histories()
    projection = Projection(NOW)
    projection.apply(before)
    copy = Copy().follow(projection)
    with copy.doc.transaction():
        copy.doc.get("mine", type=pycrdt.Map)["x"] = "1"
    projection.apply(after)
    assert copy.contents() == contents(projection)
    assert set(yjs.read_vector(projection.vector())) == {projection.client_id}


# --- what a client sends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vector",
    [
        b"",
        b"\x01",
        b"\x01\x05",
        b"\x00\x00",
        b"\x02\x05\x01\x05\x02",
        b"\xff" * 8,
        b"\xff\xff\xff\xff\xff\xff\xff\x7f\x01\x01",
        yjs.integer(yjs.MAX_VECTOR_ENTRIES + 1),
        yjs.integer((1 << 32) - 1) + b"\x01\x01",
    ],
)
def test_what_is_no_state_vector_is_refused(vector: bytes) -> None:
    with pytest.raises(yjs.YjsError):
        Projection(NOW).answer(vector)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_no_state_vector_does_more_than_be_refused(vector: bytes) -> None:
    projection = Projection(NOW)
    projection.apply(two_histories()[0])
    try:
        answer = projection.answer(vector)
    except yjs.YjsError:
        return
    copy = Copy()
    copy.take(answer)


@given(st.dictionaries(st.integers(0, yjs.MAX_SAFE_INTEGER), st.integers(0, yjs.MAX_SAFE_INTEGER), max_size=5))
def test_a_state_vector_is_read_as_it_was_written(clocks: dict[int, int]) -> None:
    assert yjs.read_vector(yjs.vector(clocks)) == clocks


# --- CBOR as JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [None, True, "ü"]}, '{"a":[null,true,"ü"],"b":1}'),
        (b"hi", '{"$bytes":"6869"}'),
        (float("nan"), '{"$float":"nan"}'),
        (float("-inf"), '{"$float":"-inf"}'),
        ({b"\1": "a"}, '{"$map":[[{"$bytes":"01"},"a"]]}'),
        ((1 << 64) - 1, "18446744073709551615"),
        (1.5, "1.5"),
    ],
)
def test_a_cbor_value_has_one_json_text(value: object, text: str) -> None:
    assert text_of(cbor.decode(cbor.encode(value))) == text
