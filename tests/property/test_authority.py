"""The rules of authority as stories: who is believed, up to where, and who cannot undo whom.

Each story states what follows, in words of its own; `ways` shuffles the ops, because no story may depend on the order
in which they arrive.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.document.op import Op
from fleet.document.view import View
from tests.property import budget
from tests.property.fleet import Fleet, incremental, pk

DEFAULTS = frozenset({"infer", "blobs", "models"})
INVITE = "ab" * 16
OTHER_INVITE = "cd" * 16


def ways(fleet: Fleet) -> Iterator[View]:
    """The view of these ops in several orders of arrival; they must be one view."""
    digests = set()
    for seed in range(4):
        ops = list(fleet.ops)
        if seed:
            random.Random(seed).shuffle(ops)
        view = incremental(fleet.replica(ops))
        digests.add(view.digest())
        yield view
    assert len(digests) == 1


def members(view: View) -> set[bytes]:
    return set(view.boxes)


# --- revocation ----------------------------------------------------------------------------------------------------


def test_what_an_admin_wrote_up_to_keep_stays_and_what_it_writes_later_never_counts() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    early = fleet.deny("a2", "m1")
    fleet.set("a2", "model/x", "early")
    kept = fleet.seq("a2")
    fleet.revoke("rec", "a2", kept)
    fleet.allow("a2", "thief", sup=[])
    fleet.allow("a2", "m1", sup=[early])
    fleet.set("a2", "model/x", "late", hlc=1 << 60)
    fleet.cert("a2", "m2")
    fleet.cert("a2", "b1", "admin")
    fleet.set("b1", "model/y", "by a late admin")
    fleet.revoke("a2", "a3", 0)
    fleet.revoke("a2", "m1", 0)
    fleet.invite("a2", INVITE, 5)
    fleet.cert("a1", "m3")
    fleet.join("j1", INVITE, "m3", 5000)
    for view in ways(fleet):
        assert view.authority.cut == {pk("a2"): kept}
        assert not view.standing(pk("m1")).admitted
        assert view.standing(pk("m1")).ops == (early,)
        assert not view.standing(pk("thief")).admitted
        assert {path: setting.value for path, setting in view.settings.items()} == {"model/x": "early"}
        assert members(view) == {pk("m1"), pk("m3")}
        assert set(view.authority.rank) == {pk(name) for name in ("rec", "a1", "a2", "a3")}
        assert not view.authority.is_admin(pk("a2"))
        assert view.authority.is_admin(pk("a1"))


def test_a_revoked_key_is_refused_whatever_else_is_said_of_it() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.fact("m1", "node", {"name": "gone"})
    fleet.allow("a2", "m1")
    revoke = fleet.revoke("a1", "m1", 1 << 40)
    fleet.cert("a3", "m1")
    fleet.allow("a3", "m1", "infer")
    for view in ways(fleet):
        assert not view.standing(pk("m1")).admitted
        assert view.standing(pk("m1")).reason == "revoked"
        assert view.standing(pk("m1")).ops == (revoke,)
        assert members(view) == set()
        assert list(view.facts()) == []


@pytest.mark.parametrize("target", ["rec", "a1"])
def test_nobody_revokes_a_higher_rank(target: str) -> None:
    fleet = Fleet()
    fleet.cert("a2", "b1", "admin")
    fleet.set(target, "model/x", 1)
    fleet.revoke("b1", target)
    if target == "rec":
        fleet.revoke("a1", "rec")
        fleet.revoke("rec", "rec")
    for view in ways(fleet):
        assert view.settings["model/x"].value == 1
        assert view.authority.cut == {}
        assert view.authority.is_admin(pk(target))


def test_a_chain_of_certificates_falls_with_its_first_link() -> None:
    fleet = Fleet()
    fleet.cert("a1", "b1", "admin")
    fleet.cert("b1", "c1", "admin")
    fleet.cert("c1", "d1", "admin")
    fleet.set("d1", "model/x", "deep")
    fleet.cert("d1", "m1")
    for view in ways(fleet):
        assert [view.authority.rank[pk(name)] for name in ("rec", "a1", "b1", "c1", "d1")] == [0, 1, 2, 3, 4]
        assert view.settings["model/x"].value == "deep"
        assert members(view) == {pk("m1")}
    fleet.revoke("rec", "a1", 0)
    for view in ways(fleet):
        assert set(view.authority.rank) == {pk(name) for name in ("rec", "a1", "a2", "a3")}
        assert view.settings == {}
        assert members(view) == set()


def test_equals_suspend_one_another_until_recovery_settles_it() -> None:
    fleet = Fleet()
    fleet.set("a1", "model/x", "one")
    fleet.set("a2", "place/x", "two")
    fleet.revoke("a1", "a2")
    fleet.revoke("a2", "a1")
    for view in ways(fleet):
        assert view.settings == {}
        assert set(view.authority.cut) == {pk("a1"), pk("a2")}
        assert not view.authority.is_admin(pk("a1"))
        assert not view.authority.is_admin(pk("a2"))
    fleet.revoke("rec", "a2")
    for view in ways(fleet):
        assert {path: setting.value for path, setting in view.settings.items()} == {"model/x": "one"}
        assert view.authority.is_admin(pk("a1"))
        assert not view.authority.is_admin(pk("a2"))


def test_the_lowest_keep_counts() -> None:
    fleet = Fleet()
    for value in range(6):
        fleet.set("a1", f"model/{value}", value)
    fleet.revoke("rec", "a1", 4)
    fleet.revoke("rec", "a1", 2)
    fleet.revoke("a2", "a1", 5)
    for view in ways(fleet):
        assert set(view.settings) == {"model/0", "model/1"}


# --- one rogue admin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["rec", "a2", "a1"])
@pytest.mark.parametrize("forks", [False, True])
def test_a_rogue_admin_cannot_hide_the_members_by_revoking_its_equals(judge: str, forks: bool) -> None:
    """Also where the only one to answer is an admin that it has revoked."""
    fleet = Fleet()
    for number in range(4):
        fleet.cert(("a1", "a2")[number % 2], f"m{number}")
    fleet.invite("a1", INVITE, 1)
    fleet.join("j1", INVITE, "m0", 5000)
    everybody = {pk(name) for name in ("m0", "m1", "m2", "m3", "j1")}
    fleet.revoke("a3", "a1")
    fleet.revoke("a3", "a2")
    fleet.revoke(judge, "a3", 0 if judge == "rec" else 1)
    if forks:
        fleet.set("a3", "model/x", 1, seq=1)
    for view in ways(fleet):
        assert members(view) == everybody
        assert all(view.standing(key).admitted for key in everybody)


def test_a_fork_alone_does_not_hide_the_members_that_the_forked_admin_let_in_nor_lets_it_hide_others() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a3", "m2")
    fleet.set("a3", "model/x", 1, seq=1)
    fleet.revoke("a3", "a1", 0)
    for view in ways(fleet):
        assert view.authority.forked == {pk("a3"): 1}
        assert members(view) == {pk("m1"), pk("m2")}


def test_a_clean_revoker_voids_what_its_equal_certified_after_keep() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    kept = fleet.seq("a1")
    fleet.cert("a1", "m2")
    fleet.revoke("a2", "a1", kept)
    for view in ways(fleet):
        assert members(view) == {pk("m1")}


# --- forks ---------------------------------------------------------------------------------------------------------


def test_after_a_fork_only_what_closes_doors_is_believed() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    fleet.cert("a1", "m3")
    old = fleet.deny("a1", "m2")
    fleet.set("a2", "model/before", 1)
    fork = fleet.seq("a2") + 1
    one = fleet.set("a2", "model/x", "one", seq=fork)
    other = fleet.set("a2", "model/x", "other", seq=fork)
    fleet.allow("a2", "m2", sup=[old])
    fleet.allow("a2", "guest")
    fleet.set("a2", "place/y", 1, hlc=1 << 60)
    fleet.cert("a2", "b1", "admin")
    fleet.set("b1", "place/z", 1)
    later = fleet.deny("a2", "m1")
    scoped = fleet.deny("a2", "m3", "infer")
    fleet.revoke("a2", "j1")
    for view in ways(fleet):
        assert view.authority.forked == {pk("a2"): fork}
        assert {path: setting.value for path, setting in view.settings.items()} == {"model/before": 1}
        assert view.standing(pk("m2")).ops == (old,)
        assert view.standing(pk("m1")).ops == (later,)
        assert view.standing(pk("m3")).scopes == DEFAULTS - {"infer"}
        assert scoped in view.standing(pk("m3")).ops
        assert not view.standing(pk("guest")).admitted
        assert pk("b1") not in view.authority.rank
        assert set(view.authority.revoked) == {pk("j1")}
        assert not view.authority.is_admin(pk("a2"))
    held = fleet.replica()
    assert one.id in held
    assert other.id in held, "both sides of a fork are kept as proof"


def test_the_fork_itself_can_be_of_a_deny_and_an_allow_and_the_deny_stands() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    deny = fleet.deny("a2", "m1", seq=1)
    fleet.allow("a2", "m1", seq=1)
    fleet.allow("a2", "m1", sup=[deny], seq=2)
    for view in ways(fleet):
        assert view.standing(pk("m1")).ops == (deny,)


def test_a_forked_admin_that_is_revoked_closes_no_door_after_keep() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    fleet.set("a2", "model/x", 1, seq=1)
    fleet.set("a2", "model/x", 2, seq=1)
    fleet.deny("a2", "m1", seq=2)
    fleet.deny("a2", "m2", seq=3)
    fleet.revoke("rec", "a2", 2)
    for view in ways(fleet):
        assert not view.standing(pk("m1")).admitted
        assert view.standing(pk("m2")).admitted


# --- denies --------------------------------------------------------------------------------------------------------


def test_only_who_has_seen_a_deny_takes_it_back() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    first = fleet.deny("a1", "m1")
    second = fleet.deny("a2", "m1")
    fleet.allow("a1", "m1", sup=[first], hlc=1 << 60)
    for view in ways(fleet):
        assert view.standing(pk("m1")).ops == (second,), "the deny that was not seen stays"
    fleet.allow("a3", "m1", sup=[second])
    for view in ways(fleet):
        assert view.standing(pk("m1")).admitted


def test_an_op_replaces_only_its_own_kind_and_path() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    deny = fleet.deny("a1", "m1")
    setting = fleet.set("a1", "model/x", 1)
    fleet.allow("a2", "m2", sup=[deny, setting])
    fleet.set("a2", "model/y", 2, sup=[deny, setting])
    for view in ways(fleet):
        assert view.standing(pk("m1")).ops == (deny,)
        assert view.settings["model/x"].value == 1


def test_a_deny_returns_when_the_admin_that_took_it_back_is_cut_off_before_that() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    deny = fleet.deny("a1", "m1")
    fleet.allow("a2", "m1", sup=[deny])
    fleet.revoke("rec", "a2", 0)
    for view in ways(fleet):
        assert view.standing(pk("m1")).ops == (deny,)


@budget(60)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 255)), max_size=14))
def test_a_live_deny_of_an_admin_that_is_not_revoked_is_never_lost(made: list[tuple[int, bool, bool, int]]) -> None:
    """Each admin writes at its own box, sees what the mask lets through, and a2 may use a seq twice: the deny of an
    admin goes away only through an allow or deny that names it, of an admin that has not forked by then."""
    fleet = Fleet()
    fleet.cert("a1", "m1")
    written: list[tuple[Op, bool, set[bytes]]] = []
    for author, deny, again, mask in made:
        name = f"a{author + 1}"
        seen = [op for place, (op, _, _) in enumerate(written) if mask >> place % 8 & 1]
        seq = fleet.seq(name) if again and name == "a2" and fleet.seq(name) else None
        write = fleet.deny if deny else fleet.allow
        op = write(name, "m1", sup=seen) if seq is None else write(name, "m1", sup=seen, seq=seq)
        written.append((op, deny, {one.id for one in seen}))
    twice = [op.seq for op, _, _ in written if op.author == pk("a2")]
    fork = min(
        (seq for seq in twice if len({op.id for op, _, _ in written if op.author == pk("a2") and op.seq == seq}) > 1),
        default=1 << 60,
    )
    believed = [entry for entry in written if entry[0].author != pk("a2") or entry[0].seq < fork]
    alive = {op.id for op, deny, _ in written if deny and not any(op.id in seen for _, _, seen in believed)}
    for view in ways(fleet):
        assert view.standing(pk("m1")).admitted == (not alive)
        if alive:
            assert {op.id for op in view.standing(pk("m1")).ops} == alive


# --- who is no admin -----------------------------------------------------------------------------------------------


def test_what_members_and_strangers_write_of_authority_never_enters_the_set() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    deny = fleet.deny("a1", "m2")
    before = fleet.view().digest()
    for liar in ("m1", "stranger"):
        fleet.allow(liar, "m2", sup=[deny])
        fleet.deny(liar, "m1")
        fleet.cert(liar, "friend")
        fleet.cert(liar, liar, "admin")
        fleet.revoke(liar, "a1")
        fleet.revoke(liar, "m2")
        fleet.set(liar, "policy/firewall", {"mode": "members", "scopes": ["admin"]})
        fleet.invite(liar, INVITE, 9)
        fleet.join("friend", INVITE, "m1", 5000)
    for view in ways(fleet):
        assert view.digest() == before
    assert len(fleet.replica()) == 3


def test_the_facts_of_a_box_are_written_by_that_box_alone_and_never_roll_back() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    old = fleet.fact("m1", "node", {"name": "old"})
    new = fleet.fact("m1", "node", {"name": "new"})
    fleet.fact("m2", "node", {"name": "mine"}, seq=99)
    fleet.write("m2", "node", "node", None, seq=100)
    fleet.fact("stranger", "node", {"name": "stranger"})
    fleet.fact("a1", "node", {"name": "an admin is no box"}, seq=50)
    for view in ways(fleet):
        assert view.box(pk("m1")).node.name == "new"
        assert view.box(pk("m2")).node.name == ""
        assert members(view) == {pk("m1"), pk("m2")}
        assert {key for key, _, _ in view.facts()} == {pk("m1"), pk("m2")}
    replica = fleet.replica()
    assert not replica.admit(old).new
    assert new.id in replica
    assert old.id not in replica


# --- invites -------------------------------------------------------------------------------------------------------


def test_an_invite_of_two_uses_lets_in_the_two_that_were_countersigned_first() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.cert("a1", "m2")
    fleet.invite("a1", INVITE, 2)
    late = fleet.join("j1", INVITE, "m1", 9000)
    fleet.join("j2", INVITE, "m1", 5000)
    fleet.join("j3", INVITE, "m2", 7000)
    fleet.join("j3", INVITE, "m1", 9500)  # knocks twice: that is one use
    for view in ways(fleet):
        assert members(view) == {pk(name) for name in ("m1", "m2", "j2", "j3")}
        assert view.authority.surplus_joins == (late,)
        assert not view.standing(pk("j1")).admitted
        assert late in view.authority.contested[INVITE]


@pytest.mark.parametrize("settled", ["cert", "revoke", "invite"])
def test_a_surplus_is_settled_for_good_by_an_admin(settled: str) -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1)
    fleet.join("j1", INVITE, "m1", 5000)
    fleet.join("j2", INVITE, "m1", 6000)
    if settled == "cert":
        fleet.cert("a2", "j2")
    elif settled == "revoke":
        fleet.revoke("a2", "j2")
    else:
        fleet.invite("a2", OTHER_INVITE, 1)
        fleet.join("j2", OTHER_INVITE, "m1", 7000)
    for view in ways(fleet):
        assert view.authority.surplus_joins == ()
        assert view.authority.contested == {}
        assert view.standing(pk("j2")).admitted == (settled != "revoke")
        assert view.standing(pk("j1")).admitted


def test_who_was_pushed_out_by_backdated_claims_is_back_once_their_countersigner_is_revoked() -> None:
    fleet = Fleet()
    for member in ("m1", "m2"):
        fleet.cert("a1", member)
    fleet.invite("a1", INVITE, 2)
    fleet.join("j1", INVITE, "m1", 5000)
    fleet.join("j2", INVITE, "m1", 6000)
    fleet.join("evil", INVITE, "m2", 0)
    fleet.join("evil2", INVITE, "evil", 1)
    for view in ways(fleet):
        assert members(view) == {pk(name) for name in ("m1", "m2", "evil", "evil2")}
    fleet.revoke("a1", "m2")
    for view in ways(fleet):
        assert members(view) - {pk("m2")} == {pk(name) for name in ("m1", "j1", "j2")}
        assert not view.standing(pk("evil")).admitted
        assert not view.standing(pk("evil2")).admitted


def test_what_a_box_countersigned_that_is_revoked_since_counts_where_there_is_room() -> None:
    fleet = Fleet()
    for member in ("m1", "m2"):
        fleet.cert("a1", member)
    fleet.invite("a1", INVITE, 2)
    fleet.join("j1", INVITE, "m1", 5000)
    fleet.join("j2", INVITE, "m2", 4000)
    fleet.revoke("a1", "m2")
    for view in ways(fleet):
        assert members(view) - {pk("m2")} == {pk(name) for name in ("m1", "j1", "j2")}


def test_who_was_let_in_lets_others_in_also_when_the_first_clock_was_a_day_ahead() -> None:
    """Nobody follows a clock that far ahead, so the later countersignature may show the earlier time."""
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 3)
    fleet.join("j1", INVITE, "m1", 1 << 50)
    fleet.join("j2", INVITE, "j1", 6000)
    fleet.join("j3", INVITE, "j2", 5000)
    for view in ways(fleet):
        assert members(view) == {pk(name) for name in ("m1", "j1", "j2", "j3")}


@pytest.mark.parametrize(
    "flaw", ["bound to another", "no consent", "no token", "countersigned by itself", "countersigned by a stranger"]
)
def test_a_claim_needs_the_token_a_member_and_the_right_box(flaw: str) -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 3, bound="j2" if flaw == "bound to another" else None)
    fleet.join(
        "j1",
        INVITE,
        {"countersigned by itself": "j1", "countersigned by a stranger": "stranger"}.get(flaw, "m1"),
        5000,
        signer="j1" if flaw == "no consent" else None,
        secret="j1" if flaw == "no token" else None,
    )
    fleet.fact("j1", "node", {"name": "not in"})
    for view in ways(fleet):
        assert members(view) == {pk("m1")}
        assert not view.standing(pk("j1")).admitted
        assert view.authority.surplus_joins == ()


def test_an_invite_that_is_bound_lets_its_box_in() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.invite("a1", INVITE, 1, bound="j1")
    fleet.join("j1", INVITE, "m1", 5000)
    for view in ways(fleet):
        assert view.standing(pk("j1")).scopes == DEFAULTS


def test_an_invite_that_an_admin_withdraws_lets_nobody_in() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    first = fleet.invite("a1", INVITE, 3)
    fleet.invite("a2", INVITE, 0, sup=[first])
    claim = fleet.join("j1", INVITE, "m1", 5000)
    for view in ways(fleet):
        assert members(view) == {pk("m1")}
        assert view.authority.surplus_joins == (claim,)


def test_an_invite_from_after_an_admins_cut_lets_nobody_in() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    fleet.set("a2", "model/x", 1)
    fleet.invite("a2", INVITE, 3)
    fleet.join("j1", INVITE, "m1", 5000)
    fleet.revoke("rec", "a2", 1)
    for view in ways(fleet):
        assert members(view) == {pk("m1")}


def test_a_fork_does_not_take_back_a_policy_that_shuts() -> None:
    fleet = Fleet()
    fleet.cert("a2", "m1")
    fleet.set("a1", "policy/firewall", {"mode": "allow-list"}, seq=2)
    fleet.set("a1", "model/x", 1, seq=1)
    fleet.set("a1", "model/x", 2, seq=1)
    view = fleet.view()
    assert pk("a1") in view.authority.forked
    assert not view.standing(pk("m1")).admitted, "as strict as it was before the fork"
    assert "model/x" not in view.settings
