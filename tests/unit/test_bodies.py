"""Bodies that carry authority: every reader returns a value of its schema or refuses, and the signatures of a join bind
the token, the box and the member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.document import bodies
from fleet.document.bodies import FirewallEntry, Invite, Join, join_is_vouched_for, proof_holds, prove_invite, vouch
from fleet.document.op import read_op
from fleet.errors import RefusedOpError
from tests.property import budget
from tests.property.fleet import Fleet, canonical, consent_of, pk, proof_of, sealed, who

INVITE = "ab" * 16
KEY = pk("m1")
SIG = bytes(64)

Reader = Callable[[bytes], object]


def invite(**change: Any) -> dict[str, Any]:
    return {"key": KEY, "uses": 3, "expires": 10, "for": None, "labels": {"site": "north"}} | change


def claim(**change: Any) -> dict[str, Any]:
    return {"key": KEY, "proof": SIG, "by": KEY, "hlc": 5, "sig": SIG} | change


@pytest.mark.parametrize(
    ("reader", "body", "value"),
    [
        (bodies.read_role, "member", "member"),
        (bodies.read_role, "admin", "admin"),
        (bodies.read_keep, 0, 0),
        (bodies.read_keep, (1 << 48) - 1, (1 << 48) - 1),
        (bodies.read_firewall, ["allow", []], FirewallEntry("allow")),
        (bodies.read_firewall, ["deny", ["a", "b_c-9"]], FirewallEntry("deny", frozenset({"a", "b_c-9"}))),
        (bodies.read_firewall, ["allow", sorted(f"s{n}" for n in range(16))], None),
        (bodies.read_invite, invite(), Invite(KEY, 3, 10, None, (("site", "north"),))),
        (bodies.read_invite, invite(**{"for": KEY, "uses": 0, "labels": {}}), Invite(KEY, 0, 10, KEY, ())),
        (bodies.read_invite, invite(uses=10_000, expires=(1 << 48) - 1), None),
        (bodies.read_join, claim(), Join(KEY, SIG, KEY, 5, SIG)),
        (bodies.read_join, claim(hlc=(1 << 63) - 1), None),
    ],
)
def test_what_each_reader_takes(reader: Reader, body: object, value: object) -> None:
    found = reader(canonical(body))
    assert value is None or found == value
    if isinstance(found, FirewallEntry | Invite | Join):
        assert canonical(found.body()) == canonical(body), "it is written as it was read"


@pytest.mark.parametrize(
    ("reader", "wrong"),
    [
        (bodies.read_role, ["Member", "root", "", None, 1, b"admin", ["admin"], {"admin": 1}]),
        (bodies.read_keep, [-1, 1 << 48, 1.0, True, None, "1", [1], {}]),
        (bodies.read_firewall, ["allow", [], ["allow"], ["allow", [], 1], {"0": "allow"}, None]),
        (bodies.read_firewall, [["open", []], ["ALLOW", []], [1, []], [["deny"], []], [None, []], ["deny", None]]),
        (bodies.read_firewall, [["deny", ["b", "a"]], ["deny", ["a", "a"]], ["deny", {"a": 1}], ["deny", "a"]]),
        (bodies.read_firewall, [["deny", [s]] for s in ("", "A", "9a", "a b", "a\n", "x" * 33, 1, b"a", None, ["a"])]),
        (bodies.read_firewall, [["allow", sorted(f"s{n}" for n in range(17))]]),
        (bodies.read_invite, [None, [], {}, invite(more=1), {k: v for k, v in invite().items() if k != "for"}]),
        (bodies.read_invite, [invite(key=wrong) for wrong in (None, KEY[:-1], KEY.hex(), 1)]),
        (bodies.read_invite, [invite(**{"for": wrong}) for wrong in (KEY + b"0", "", 0, False)]),
        (bodies.read_invite, [invite(uses=wrong) for wrong in (-1, 10_001, True, 1.0, None, "1")]),
        (bodies.read_invite, [invite(expires=wrong) for wrong in (-1, 1 << 48, True, 1.5, None)]),
        (bodies.read_invite, [invite(labels=wrong) for wrong in (None, [], {"a": 1}, {1: "a"}, {"a": ""}, {"": "a"})]),
        (bodies.read_invite, [invite(labels=wrong) for wrong in ({"a b": "c"}, {"a": "x" * 64}, {"a": "b\n"})]),
        (bodies.read_invite, [invite(labels={f"l{n}": "v" for n in range(33)})]),
        (bodies.read_join, [None, [], {}, claim(more=1), {k: v for k, v in claim().items() if k != "sig"}]),
        (bodies.read_join, [claim(**{n: w}) for n in ("key", "by") for w in (None, KEY[:-1], SIG, "k")]),
        (bodies.read_join, [claim(**{n: w}) for n in ("proof", "sig") for w in (None, SIG[:-1], KEY, "s")]),
        (bodies.read_join, [claim(hlc=wrong) for wrong in (-1, 1 << 63, True, 1.0, None)]),
    ],
)
def test_what_each_reader_refuses(reader: Reader, wrong: list[object]) -> None:
    for body in wrong:
        with pytest.raises(RefusedOpError) as caught:
            reader(canonical(body))
        assert caught.value.reason == "body", body


def reason(reader: Reader, body: bytes) -> str | None:
    """Why the reader refuses; None where it does not."""
    try:
        reader(body)
    except RefusedOpError as error:
        return error.reason
    return None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=64) | st.just("deny"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*invite(), *claim()]), inner),
    max_leaves=8,
)


@budget(150)
@given(plain)
def test_any_value_is_read_or_refused(value: object) -> None:
    for reader in (
        bodies.read_role,
        bodies.read_keep,
        bodies.read_firewall,
        bodies.read_invite,
        bodies.read_join,
    ):
        assert reason(reader, canonical(value)) in (None, "body")


def test_signatures_are_made_as_the_format_has_them() -> None:
    fleet = Fleet().id
    proof = prove_invite(who("token"), fleet, INVITE, pk("j1"))
    assert proof == proof_of("token", fleet, INVITE, pk("j1"))
    assert vouch(who("m1"), fleet, INVITE, pk("j1"), pk("token"), proof, 7) == Join(
        pk("token"), proof, pk("m1"), 7, consent_of("m1", fleet, INVITE, pk("j1"), proof, 7)
    )


def test_a_proof_is_for_one_token_one_fleet_one_invite_and_one_box() -> None:
    fleet = Fleet().id
    proof = prove_invite(who("token"), fleet, INVITE, pk("j1"))
    assert proof_holds(pk("token"), proof, fleet, INVITE, pk("j1"))
    assert not proof_holds(pk("j1"), proof, fleet, INVITE, pk("j1"))
    assert not proof_holds(pk("token"), bytes(64), fleet, INVITE, pk("j1"))
    assert not proof_holds(pk("token"), proof, bytes(32), INVITE, pk("j1"))
    assert not proof_holds(pk("token"), proof, fleet, "cd" * 16, pk("j1"))
    assert not proof_holds(pk("token"), proof, fleet, INVITE, pk("j2"))


def join_op(author: str = "j1", path: str = INVITE, fleet: bytes | None = None, join: Join | None = None) -> Any:
    here = fleet or Fleet().id
    made = join or good_join()
    fields = [1, here, pk(author), 1, 1, "join", path, canonical(made.body()), []]
    return read_op(sealed(author, fields))


def good_join() -> Join:
    fleet = Fleet().id
    proof = prove_invite(who("token"), fleet, INVITE, pk("j1"))
    return vouch(who("m1"), fleet, INVITE, pk("j1"), pk("token"), proof, 7)


def test_consent_is_for_one_box_one_invite_one_moment_and_by_one_member() -> None:
    join = good_join()
    assert join_is_vouched_for(join_op(), join)
    assert not join_is_vouched_for(join_op(author="j2"), join), "another box took the claim"
    assert not join_is_vouched_for(join_op(path="cd" * 16), join)
    assert not join_is_vouched_for(join_op(fleet=bytes(32)), join)
    for flaw in (
        {"by": pk("m2")},
        {"hlc": 6},
        {"key": pk("m1")},
        {"proof": bytes(64)},
        {"sig": bytes(64)},
        {"sig": join.proof},
        {"proof": join.sig},
    ):
        changed = replace(join, **flaw)
        assert not join_is_vouched_for(join_op(join=changed), changed), flaw


def test_consent_covers_the_proof_too() -> None:
    """A member vouches for what it was shown; another proof of the same token needs its consent again."""
    join = good_join()
    other = prove_invite(who("other token"), Fleet().id, INVITE, pk("j1"))
    changed = replace(join, key=pk("other token"), proof=other)
    assert proof_holds(changed.key, changed.proof, Fleet().id, INVITE, pk("j1"))
    assert not join_is_vouched_for(join_op(join=changed), changed)


def test_labels_come_back_sorted() -> None:
    found = bodies.read_labels({"b": "2", "a": "1"})
    assert found == (("a", "1"), ("b", "2"))
    assert bodies.read_invite(cbor2.dumps(invite(labels={"b": "2", "a": "1"}))).labels == found
