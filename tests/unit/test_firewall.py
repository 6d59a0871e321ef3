"""Who may speak to a box, and about what: unknown is denied, any live deny wins, and the policy sets the defaults."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fleet.document.firewall import DEFAULT_SCOPES, Policy, read_policy
from tests.property.fleet import Fleet, canonical, pk

Story = Callable[[Fleet], object]
ALL = frozenset({"infer", "blobs", "models"})
NOBODY = None


def member(fleet: Fleet) -> None:
    fleet.cert("a1", "m1")


def policy(fleet: Fleet, mode: str, *scopes: str) -> None:
    fleet.set("a1", "policy/firewall", {"mode": mode, **({"scopes": sorted(scopes)} if scopes else {})})


#: What is said of m1, and the scopes it then has; NOBODY where it is not let in.
STORIES: list[tuple[str, Story, frozenset[str] | None]] = [
    ("never heard of", lambda f: None, NOBODY),
    ("a member", member, ALL),
    ("a member by an admin of rank 2", lambda f: (f.cert("a1", "b1", "admin"), f.cert("b1", "m1")), ALL),
    ("an admin is no member", lambda f: f.cert("a1", "m1", "admin"), NOBODY),
    ("a guest, let in by name", lambda f: f.allow("a1", "m1"), ALL),
    ("a guest with one scope", lambda f: f.allow("a1", "m1", "infer"), {"infer"}),
    ("a guest with scopes of two admins", lambda f: (f.allow("a1", "m1", "x"), f.allow("a2", "m1", "y")), {"x", "y"}),
    ("a member with a scope more", lambda f: (member(f), f.allow("a1", "m1", "admin")), ALL | {"admin"}),
    ("a member allowed without scopes", lambda f: (member(f), f.allow("a1", "m1")), ALL),
    ("a member denied", lambda f: (member(f), f.deny("a1", "m1")), NOBODY),
    ("a member denied one scope", lambda f: (member(f), f.deny("a1", "m1", "infer")), ALL - {"infer"}),
    ("a member denied what it has not", lambda f: (member(f), f.deny("a1", "m1", "admin")), ALL),
    ("a member denied every scope it has", lambda f: (member(f), f.deny("a1", "m1", *ALL)), NOBODY),
    (
        "denies of two admins add up",
        lambda f: (member(f), f.deny("a1", "m1", "infer"), f.deny("a2", "m1", "blobs")),
        {"models"},
    ),
    ("a guest denied", lambda f: (f.allow("a1", "m1"), f.deny("a2", "m1")), NOBODY),
    ("a guest denied its scope", lambda f: (f.allow("a1", "m1", "infer"), f.deny("a2", "m1", "infer")), NOBODY),
    ("a stranger denied a scope", lambda f: f.deny("a1", "m1", "infer"), NOBODY),
    ("denied first, allowed without having seen it", lambda f: (f.deny("a1", "m1"), f.allow("a2", "m1")), NOBODY),
    (
        "a scope denied first, allowed without having seen it",
        lambda f: (member(f), f.deny("a1", "m1", "infer"), f.allow("a2", "m1", "infer")),
        ALL - {"infer"},
    ),
    ("denied, then allowed by who saw it", lambda f: f.allow("a2", "m1", sup=[f.deny("a1", "m1")]), ALL),
    ("allowed, then narrowed", lambda f: f.allow("a1", "m1", "infer", sup=[f.allow("a1", "m1")]), {"infer"}),
    ("the entry of another key", lambda f: (member(f), f.deny("a1", "m2"), f.revoke("a1", "m3")), ALL),
    ("revoked", lambda f: (member(f), f.revoke("a1", "m1", 9)), NOBODY),
    ("revoked and allowed", lambda f: (member(f), f.allow("a1", "m1"), f.revoke("a2", "m1")), NOBODY),
    ("revoked, never a member", lambda f: (f.allow("a1", "m1"), f.revoke("a1", "m1")), NOBODY),
    ("list: a member", lambda f: (policy(f, "allow-list"), member(f)), NOBODY),
    ("list: a member allowed", lambda f: (policy(f, "allow-list"), member(f), f.allow("a1", "m1")), ALL),
    (
        "list: a member allowed a scope has the defaults too",
        lambda f: (policy(f, "allow-list"), member(f), f.allow("a1", "m1", "admin")),
        ALL | {"admin"},
    ),
    ("list: a guest", lambda f: (policy(f, "allow-list"), f.allow("a1", "m1", "infer")), {"infer"}),
    (
        "list: allowed and denied",
        lambda f: (policy(f, "allow-list"), member(f), f.allow("a1", "m1"), f.deny("a2", "m1")),
        NOBODY,
    ),
    ("list: a member denied a scope", lambda f: (policy(f, "allow-list"), f.deny("a1", "m1", "infer")), NOBODY),
    ("fewer defaults", lambda f: (policy(f, "members", "blobs"), member(f)), {"blobs"}),
    ("fewer defaults, a guest", lambda f: (policy(f, "members", "blobs"), f.allow("a1", "m1")), {"blobs"}),
    (
        "fewer defaults, a scope more",
        lambda f: (policy(f, "members", "blobs"), member(f), f.allow("a1", "m1", "infer")),
        {"blobs", "infer"},
    ),
    ("a policy nobody understands", lambda f: (policy(f, "open"), member(f)), NOBODY),
    ("a policy taken back", lambda f: (f.set("a1", "policy/firewall", None), member(f)), ALL),
    ("the policy of a member", lambda f: (member(f), f.set("m1", "policy/firewall", {"mode": "allow-list"})), ALL),
]


@pytest.mark.parametrize(("story", "scopes"), [pytest.param(*rest, id=name) for name, *rest in STORIES])
def test_standing(story: Story, scopes: frozenset[str] | None) -> None:
    fleet = Fleet()
    story(fleet)
    standing = fleet.view().standing(pk("m1"))
    assert standing.admitted == (scopes is not None)
    assert standing.scopes == (scopes or frozenset())


def test_a_standing_names_its_reason_and_the_ops_that_decide_it() -> None:
    fleet = Fleet()
    cert = fleet.cert("a1", "m1")
    cases: list[tuple[str, tuple[object, ...]]] = []

    def now() -> None:
        standing = fleet.view().standing(pk("m1"))
        cases.append((standing.reason, standing.ops))

    now()
    allow = fleet.allow("a1", "m1", "admin")
    now()
    deny = fleet.deny("a2", "m1")
    now()
    revoke = fleet.revoke("a1", "m1")
    now()
    assert cases == [
        ("member", (cert,)),
        ("member", (cert, allow)),
        ("denied by the firewall", (deny,)),
        ("revoked", (revoke,)),
    ]
    view = fleet.view()
    assert view.standing(pk("nobody")).reason == "unknown key: no member, and not allowed by name"
    assert set(view.governance.firewall.named()) == {pk("m1")}


def test_why_a_member_stays_out() -> None:
    fleet = Fleet()
    cert = fleet.cert("a1", "m1")
    scoped = fleet.deny("a1", "m1", *ALL)
    assert fleet.view().standing(pk("m1")).ops == (scoped,)
    assert fleet.view().standing(pk("m1")).reason == "member, but every scope is denied"
    fleet.cert("a1", "m2")
    policy(fleet, "allow-list")
    standing = fleet.view().standing(pk("m2"))
    assert standing.reason == "a member, but the policy asks for an allow by name"
    assert len(standing.ops) == 1
    assert cert not in standing.ops


CLOSED = Policy("allow-list", frozenset())


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, Policy()),
        (None, Policy()),
        ({"mode": "members"}, Policy()),
        ({"mode": "allow-list"}, Policy("allow-list")),
        ({"scopes": ["infer"]}, Policy("members", frozenset({"infer"}))),
        ({"mode": "allow-list", "scopes": []}, CLOSED),
        ({"mode": "members", "from a newer version": 1}, Policy()),
        ({"mode": "Members"}, CLOSED),
        ({"mode": None}, CLOSED),
        ({"mode": ["members"]}, CLOSED),
        ({"scopes": None}, CLOSED),
        ({"scopes": "infer"}, CLOSED),
        ({"scopes": ["infer", 1]}, CLOSED),
        ({"scopes": ["In fer"]}, CLOSED),
        ({"scopes": [["infer"]]}, CLOSED),
        ("members", CLOSED),
        ([], CLOSED),
        (0, CLOSED),
        (False, CLOSED),
    ],
)
def test_a_policy_that_is_not_understood_closes(body: Any, found: Policy) -> None:
    assert read_policy(canonical(body)) == found


def test_without_a_policy_members_are_let_in() -> None:
    assert read_policy(None) == Policy("members", DEFAULT_SCOPES)
    assert DEFAULT_SCOPES == ALL


def test_of_two_policies_at_once_the_later_holds_and_both_are_shown() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    open_ = fleet.set("a1", "policy/firewall", {"mode": "members"}, hlc=10)
    fleet.set("a2", "policy/firewall", {"mode": "allow-list"}, hlc=11)
    view = fleet.view()
    assert not view.standing(pk("m1")).admitted
    assert view.conflicts["policy/firewall"].rivals == (open_,)


def test_a_standing_is_the_same_to_the_last_op_whatever_came_first() -> None:
    fleet = Fleet()
    fleet.cert("a1", "m1")
    for name in ("a1", "a2", "a3"):
        fleet.deny(name, "m1")
    standings = {fleet.view(ops).standing(pk("m1")) for ops in itertools.permutations(fleet.ops)}
    assert len(standings) == 1
