"""What may enter the set, and why not; and what the set keeps, drops and remembers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet.document import acceptance, claims, opset
from fleet.document.op import read_op
from fleet.document.opset import OpSet
from tests.property.fleet import Fleet, canonical, pk, receive, sealed, who

INVITE = "ab" * 16

Story = Callable[[Fleet], object]


def outcome_of_last(story: Story) -> str:
    """What becomes of the last op of a story when all before it are held."""
    fleet = Fleet()
    story(fleet)
    *before, last = fleet.ops
    return receive(fleet.replica(before), last.raw)


def invited(fleet: Fleet, **how: str) -> None:
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    fleet.join("j1", INVITE, how.pop("by", "m1"), 5, **how)


STORIES: list[tuple[str, Story]] = [
    ("new", lambda f: f.cert("a1", "m1")),
    ("new", lambda f: f.cert("rec", "m1")),
    ("new", lambda f: f.revoke("rec", "a1")),
    ("new", lambda f: f.allow("a3", "guest", "infer")),
    ("new", lambda f: f.set("a2", "anything/new", None)),
    ("new", lambda f: (f.cert("a1", "b1", "admin"), f.deny("b1", "m1"))),
    ("new", lambda f: (f.cert("a1", "m1"), f.fact("m1", "node", {}))),
    ("new", lambda f: (f.cert("a1", "b1", "admin"), f.fact("b1", "node", {}))),
    ("new", invited),
    ("new", lambda f: (invited(f), f.fact("j1", "node", {}))),
    # An author that was cut off may still send what it wrote before: whether that counts is the view's affair.
    ("new", lambda f: (f.revoke("rec", "a1"), f.deny("a1", "m1"))),
    ("new", lambda f: (f.cert("a1", "m1"), f.revoke("a1", "m1"), f.fact("m1", "node", {}))),
    ("unknown_author", lambda f: f.cert("stranger", "m1")),
    ("unknown_author", lambda f: (f.cert("a1", "m1"), f.allow("m1", "m1"))),
    ("unknown_author", lambda f: (f.cert("a1", "m1"), f.deny("m1", "a1"))),
    ("unknown_author", lambda f: (f.cert("a1", "m1"), f.revoke("m1", "a1"))),
    ("unknown_author", lambda f: (f.cert("a1", "m1"), f.cert("m1", "m1", "admin"))),
    ("unknown_author", lambda f: (f.cert("a1", "m1"), f.set("m1", "model/x", 1))),
    ("unknown_author", lambda f: f.fact("stranger", "node", {})),
    ("unknown_author", lambda f: f.fact("a1", "node", {})),
    ("unknown_author", lambda f: invited(f, by="stranger")),
    ("unknown_author", lambda f: invited(f, by="a1")),
    ("unknown_author", lambda f: invited(f, by="j1")),
    ("unknown_invite", lambda f: (f.cert("a1", "m1"), f.join("j1", INVITE, "m1", 5))),
    ("unknown_invite", lambda f: (invited(f), f.join("j2", "cd" * 16, "m1", 5))),
    ("signature", lambda f: invited(f, secret="j1")),
    ("signature", lambda f: invited(f, signer="j1")),
    ("body", lambda f: f.cert("a1", "m1", "root")),
    ("body", lambda f: f.revoke("a1", "m1", -1)),
    ("body", lambda f: f.write("a1", "fw", pk("m1").hex(), ["perhaps", []])),
    ("body", lambda f: f.set("a1", f"invite/{INVITE}", None)),
    ("body", lambda f: f.write("j1", "join", INVITE, {})),
]


@pytest.mark.parametrize(("outcome", "story"), STORIES)
def test_who_may_write_what(outcome: str, story: Story) -> None:
    assert outcome_of_last(story) == outcome


@pytest.mark.parametrize("kind", ["cert", "revoke", "fw", "cfg", "node", "join"])
def test_what_was_signed_for_one_fleet_counts_in_no_other(kind: str) -> None:
    fleet = Fleet()
    path = {"cfg": "model/x", "node": "node", "join": INVITE}.get(kind, pk("m1").hex())
    body = {"cert": "member", "revoke": 0, "fw": ["deny", []]}.get(kind, 1)
    raw = sealed("a1", [1, Fleet(recovery=()).id, pk("a1"), 1, 1, kind, path, canonical(body), []])
    assert receive(fleet.replica(), raw) == "other_fleet"


def test_an_op_that_is_held_is_held_however_often_it_comes() -> None:
    fleet = Fleet()
    op = fleet.cert("a1", "m1")
    replica = fleet.replica()
    version = replica.version
    assert receive(replica, op.raw) == "held"
    assert (len(replica), replica.version) == (1, version)


def test_reasons_that_pass_are_those_that_go_away_when_other_ops_come() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    join = fleet.join("j1", INVITE, "m1", 5)
    fact = fleet.fact("j1", "node", {})
    replica = OpSet(fleet.genesis)
    reasons = []
    for op in (fact, join, fleet.ops[0], join, fleet.ops[1], fact, join, fact):
        reasons.append(receive(replica, op.raw))
    assert reasons == [
        "unknown_author",
        "unknown_author",
        "new",
        "unknown_invite",
        "new",
        "unknown_author",
        "new",
        "new",
    ]
    assert {"unknown_author", "unknown_invite"} == acceptance.PASSING


# --- facts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_facts_at_one_path_the_higher_seq_stays(newer_first: bool) -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    old, new = fleet.fact("m1", "node", "old"), fleet.fact("m1", "node", "new", hlc=0)
    replica = fleet.replica([fleet.ops[0], *((new, old) if newer_first else (old, new))])
    assert old.id not in replica
    assert replica.facts()[pk("m1")]["node"] == new
    assert receive(replica, old.raw) == "held", "a replay changes nothing, and is no error"
    assert replica.facts()[pk("m1")]["node"] == new
    assert replica.highest_seq(pk("m1")) == 2


def test_the_set_names_what_a_newer_fact_puts_out() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    old = fleet.fact("m1", "node", "old")
    replica = fleet.replica()
    new = fleet.fact("m1", "node", "new")
    assert replica.admit(new) == opset.Admitted(True, (old,))
    assert replica.admit(old) == opset.Admitted(False)
    assert replica.get(old.id) is None
    assert replica.get(new.id) == new


def test_of_two_facts_with_one_seq_the_higher_id_stays() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    one, other = fleet.fact("m1", "node", "one", seq=1), fleet.fact("m1", "node", "other", seq=1)
    for ops in (fleet.ops, [fleet.ops[0], other, one]):
        assert fleet.replica(ops).facts()[pk("m1")]["node"].id == max(one.id, other.id)


def test_an_author_and_a_path_are_a_place_of_their_own() -> None:
    fleet = Fleet()
    for name in ("m1", "m2"):
        fleet.cert("a1", name)
    facts = {fleet.fact(name, path, name).id for name in ("m1", "m2") for path in ("node", "addr")}
    assert facts <= {op.id for op in fleet.replica().ops()}


def test_a_box_that_has_too_many_facts_keeps_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert acceptance.MAX_FACTS == 256
    monkeypatch.setattr(opset, "MAX_FACTS", 3)
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    first = fleet.fact("m1", "hold/0", 0)
    for number in range(1, 3):
        fleet.fact("m1", f"hold/{number}", number)
    neighbour = fleet.fact("m2", "hold/0", 0, seq=1)
    replica = fleet.replica()
    assert replica.admit(fleet.fact("m1", "hold/3", 3)).dropped == (first,)
    assert set(replica.facts()[pk("m1")]) == {"hold/1", "hold/2", "hold/3"}
    assert receive(replica, first.raw) == "quota"
    assert neighbour.id in replica, "nobody else loses anything"
    assert replica.highest_seq(pk("m1")) == 4


# --- quotas of what is kept for ever -------------------------------------------------------------------------------


def test_an_admin_key_writes_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "MAX_ADMIN_OPS", 3)
    fleet = Fleet()
    for number in range(3):
        fleet.set("a1", "model/x", number)
    replica = fleet.replica()
    assert receive(replica, fleet.set("a1", "model/x", 3).raw) == "quota"
    assert receive(replica, fleet.ops[0].raw) == "held"
    assert receive(replica, fleet.set("a2", "model/x", 4).raw) == "new"
    again = fleet.replica()  # in the other order: the same ones are in
    for op in reversed(fleet.ops):
        receive(again, op.raw)
    assert {op.id for op in again.ops()} == {op.id for op in replica.ops()}


def test_twins_of_one_number_are_kept_to_prove_it_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "MAX_TWINS", 2)
    fleet = Fleet()
    replica = fleet.replica()
    outcomes = [receive(replica, fleet.set("a1", "model/x", value, seq=1).raw) for value in range(3)]
    assert outcomes == ["new", "new", "quota"]


def test_a_surplus_of_claims_is_kept_to_show_it_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (claims.SURPLUS_OF_MEMBER, claims.SHARES, claims.SURPLUS_JOINS) == (16, 4, 128)
    monkeypatch.setattr(claims, "SURPLUS_OF_MEMBER", 2)
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    outcomes = []
    replica = fleet.replica()
    for number in range(4):
        outcomes.append(receive(replica, fleet.join(f"j{number}", INVITE, "m1", number).raw))
    assert outcomes == ["new", "new", "new", "quota"]
    more = fleet.invite("a1", INVITE, 2)
    assert receive(replica, more.raw) == "new"
    assert receive(replica, fleet.ops[-2].raw) == "new", "an invite of more uses makes room"


def test_an_earlier_claim_takes_the_place_of_the_latest_and_of_all_that_rested_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "SURPLUS_OF_MEMBER", 1)
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    fleet.join("j1", INVITE, "m1", 1)
    late = fleet.join("j2", INVITE, "m1", 9)
    its = [late, fleet.fact("j2", "node", 1), fleet.join("j3", INVITE, "j2", 10), fleet.fact("j3", "node", 1)]
    replica = fleet.replica()
    admitted = replica.admit(fleet.join("j4", INVITE, "m1", 5))
    assert admitted.new
    assert {op.id for op in admitted.dropped} == {op.id for op in its}
    assert not any(replica.was_certified(pk(name)) for name in ("j2", "j3"))
    assert [receive(replica, op.raw) for op in its] == ["quota", "unknown_author", "unknown_author", "unknown_author"]


def test_a_box_that_knocks_again_has_one_claim_and_that_is_the_first() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    late, early = fleet.join("j1", INVITE, "m1", 9), fleet.join("j1", INVITE, "m1", 5)
    for order in ((late, early), (early, late)):
        replica = fleet.replica([*fleet.ops[:2], *order])
        assert early.id in replica
        assert late.id not in replica
        assert receive(replica, late.raw) == "held"


# --- what the set knows --------------------------------------------------------------------------------------------


def test_what_was_once_known_of_a_key_stays_known() -> None:
    fleet = Fleet()
    fleet.cert("a1", "b1", "admin")
    fleet.cert("a1", "m1")
    fleet.revoke("rec", "a1")
    fleet.revoke("rec", "b1")
    fleet.revoke("rec", "m1")
    replica = fleet.replica()
    assert all(replica.was_admin(pk(name)) for name in ("rec", "a1", "b1"))
    assert all(replica.was_certified(pk(name)) for name in ("b1", "m1"))
    assert not replica.was_admin(pk("m1"))
    assert not replica.was_certified(pk("a1"))
    assert [replica.ops_numbered(pk("a1"), seq) for seq in (1, 2, 3)] == [1, 1, 0]
    assert replica.highest_seq(pk("nobody")) == 0


def test_versions_grow_with_what_changes() -> None:
    fleet = Fleet()
    replica = fleet.replica()
    seen = [(replica.version, replica.authority_version)]
    for op in (fleet.cert("a1", "m1"), fleet.fact("m1", "node", 1), fleet.fact("m1", "node", 2)):
        replica.admit(op)
        seen.append((replica.version, replica.authority_version))
    replica.admit(read_op(fleet.ops[1].raw))
    seen.append((replica.version, replica.authority_version))
    assert seen == [(0, 0), (1, 1), (2, 1), (3, 1), (3, 1)]
    assert replica.governing_ops() == [fleet.ops[0]]
    assert who("m1").public_key in replica.facts()
