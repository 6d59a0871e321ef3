"""Boxes that are kept out of a fleet: what they and the others say of it, and how they get in again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from fleet.document import bodies
from fleet.document.bundle import write_bundle
from fleet.document.invites import Token
from fleet.document.op import Op, write_op
from fleet.document.store import OpStore
from fleet.errors import DeniedError, RemoteError
from fleet.gossip.joining import METHOD_ASK, SCOPE_JOIN
from fleet.identity.keys import Identity, public_key_from_peer_id
from fleet.net.rpc import IncomingCall
from tests.harness import Agent, Fleet, agents, peer_id_of, seed_of
from tests.integration.test_cli_fleet import Shoal, make_key, running, until
from tests.peer import peer

STRANGER = peer_id_of("a stranger")


def at(box: Agent) -> Shoal:
    """The command on a box, with the key of its fleet's admin."""
    keys = box.folder / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    key = keys / "admin.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_text(box.fleet.admin.seed.hex())
    return Shoal(box, keys)


def claim(token: Token, joiner: str, member: str, hlc: int) -> Op:
    """The join op of a box that a member let in at a time of the test's choice."""
    fleet, key = token.genesis.fleet_id, token.secret.public_key
    own = Identity.from_seed(seed_of(joiner))
    proof = bodies.prove_invite(token.secret, fleet, token.invite_id, own.public_key)
    vouching = Identity.from_seed(seed_of(member))
    join = bodies.vouch(vouching, fleet, token.invite_id, own.public_key, key, proof, hlc)
    return write_op(own, fleet, seq=1, hlc=hlc + 1, kind="join", path=token.invite_id, body=join.body())


def lay_down(box: Agent, ops: Sequence[Op]) -> None:
    """Make this the document of a box that does not run."""
    store = OpStore(box.folder / "state" / "fleet")
    store.found(box.fleet.genesis)
    store.open()
    store.commit(ops, [])
    store.close()


class Contest:
    """Two boxes claimed one use of an invite: `early` has it, `late` is kept out. No box runs; all know everything."""

    def __init__(self, tmp_path: Path) -> None:
        self.fleet = Fleet()
        self.member, self.early, self.late = (
            Agent(tmp_path / name, name, {}, {}, self.fleet) for name in ("pos-1", "early", "late")
        )
        self.token = self.fleet.invite(self.member.p2p_addr)
        now = int(time.time() * 1000) << 16
        self.ops = [
            *self.fleet.certify(self.member.peer_id),
            self.token.op,
            claim(self.token, "early", "pos-1", now),
            claim(self.token, "late", "pos-1", now + 10),
        ]
        for box in (self.member, self.early, self.late):
            lay_down(box, self.ops)


@pytest.fixture
def contest(tmp_path: Path) -> Contest:
    return Contest(tmp_path)


def warnings_of(box: Agent) -> dict[str, dict[str, Any]]:
    facts = httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()
    return {warning["code"]: warning for warning in facts["warnings"]}


def fleet_of(box: Agent) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{box.url}/v1/fleet/boxes", timeout=10).json()["fleet"]
    return found


# --- shoal admit ---------------------------------------------------------------------------------------------------


def test_an_admin_admits_a_key_without_an_invite(contest: Contest) -> None:
    here = at(contest.member)
    refused = here.json("admit", STRANGER, code=2)
    assert "nothing was changed" in refused["message"]
    assert refused["details"]["after"] == "member"
    assert here.standing(STRANGER).startswith("unknown key")

    done = here.text("admit", STRANGER, "--yes")
    assert done.code == 0, done
    assert "unknown key" in done.err
    assert "-> member [" in done.err
    assert "--join-fleet" in done.out
    assert here.standing(STRANGER) == "member"
    written = here.op_count()
    again = here.json("admit", STRANGER)
    assert (again["ops"], again["changes"], again["after"]) == ([], [], "member")
    assert "nothing to do" in here.text("admit", STRANGER, "--yes").out
    assert here.op_count() == written


def test_several_keys_are_admitted_together_or_not_at_all(contest: Contest) -> None:
    here = at(contest.member)
    others = [peer_id_of("stranger-1"), peer_id_of("stranger-2")]
    done = here.json("admit", STRANGER, *others, others[0], "--yes")
    assert [box["key"] for box in done["boxes"]] == [STRANGER, *others]
    assert {box["after"] for box in done["boxes"]} == {"member"}
    assert len(done["ops"]) == 3
    assert here.standing(others[1]) == "member"

    here.json("revoke", STRANGER, "--yes")
    written = here.op_count()
    third = peer_id_of("stranger-3")
    assert here.json("admit", third, STRANGER, "--yes", code=4)["code"] == "denied"
    assert here.op_count() == written
    said = here.text("admit", others[0], third, "--yes")
    assert "nothing to do" in said.out.splitlines()[0]
    assert "is now a member" in said.out.splitlines()[1]
    assert here.standing(third) == "member"


def test_a_revoked_key_is_not_admitted(contest: Contest) -> None:
    here = at(contest.member)
    here.json("admit", STRANGER, "--yes")
    here.json("revoke", STRANGER, "--yes")
    written = here.op_count()
    refused = here.json("admit", STRANGER, "--yes", code=4)
    assert refused["code"] == "denied"
    assert "new identity" in refused["message"]
    assert here.op_count() == written


def test_a_key_of_no_admin_admits_nobody(contest: Contest) -> None:
    here = at(contest.member)
    nobody = Shoal(contest.member, contest.member.folder / "others")
    make_key(nobody)
    assert nobody.json("admit", STRANGER, "--yes", code=4)["code"] == "denied"
    assert here.standing(STRANGER).startswith("unknown key")


def test_a_member_that_the_firewall_keeps_out_is_named_as_such(contest: Contest) -> None:
    here = at(contest.member)
    here.json("firewall", "deny", STRANGER, "--yes")
    admitted = here.json("admit", STRANGER, "--yes")
    assert (admitted["after"], admitted["admitted"]) == ("denied by the firewall", False)
    said = here.text("admit", STRANGER)
    assert "nothing to do" in said.out
    assert f"shoal firewall allow {STRANGER}" in said.out


# --- the contested invite, on disk ---------------------------------------------------------------------------------


def test_a_lost_claim_is_explained_and_settled_by_an_admin(contest: Contest) -> None:
    here, late = at(contest.member), contest.late.peer_id
    explained = here.json("firewall", "explain", late)
    assert explained["lost_claims"] == [
        {"key": late, "invite": contest.token.invite_id, "taken_by": [contest.early.peer_id]}
    ]
    words = here.text("firewall", "explain", late).out
    assert f"invite {contest.token.invite_id} came after the uses were gone" in words
    assert contest.early.peer_id[-8:] in words
    assert f"shoal admit {late}" in words
    assert "used up by …" + contest.early.peer_id[-8:] in here.text("firewall", "explain", late, "--all").out
    listed = here.text("boxes").out
    assert f"{late} is kept out" in listed
    assert f"shoal admit {late}" in listed
    assert late in here.text("fleet", "show").out
    assert here.json("firewall", "explain", contest.early.peer_id)["lost_claims"] == []

    settled = here.json("admit", late, "--yes")
    assert settled["settles"] == [contest.token.invite_id]
    assert here.standing(late) == "member"
    assert here.json("boxes")["fleet"]["lost_claims"] == []
    assert "kept out" not in here.text("boxes").out


def test_a_box_that_knows_it_lost_needs_another_token(contest: Contest) -> None:
    late = at(contest.late)
    denied = late.json("join", contest.token.text(), code=4)
    assert denied["code"] == "denied"
    assert contest.early.peer_id in denied["message"]
    assert f"shoal admit {contest.late.peer_id}" in denied["message"]
    assert "nothing to do" in at(contest.early).text("join", contest.token.text()).out
    other = Fleet("another").invite(contest.member.p2p_addr)
    assert late.json("join", other.text(), code=4)["code"] == "other_fleet"

    with running(contest.member, contest.late):
        contest.member.start()
        token = at(contest.member).json("invite")["token"]
        assert late.json("join", token)["state"] == "at_next_start"
        contest.late.start()
        contest.late.wait_line("join.done", 30)
        until(lambda: late.standing(contest.late.peer_id) == "member")
        until(lambda: at(contest.member).standing(contest.late.peer_id) == "member")
        assert "nothing to do" in late.text("join", token).out


def test_a_box_that_knows_it_was_revoked_needs_a_new_identity(contest: Contest) -> None:
    early, new = contest.early, contest.fleet.invite(contest.member.p2p_addr)
    revoke = contest.fleet.revoke(early.peer_id, 9)
    lay_down(early, [new.op, revoke])
    assert "new identity" in at(early).json("join", new.text(), code=4)["message"]
    with running(early):
        early.start()
        assert "new identity" in at(early).json("join", new.text(), code=4)["message"]
        assert "revoked" in warnings_of(early)["not_admitted"]["text"]


# --- the contested invite, between boxes that run ------------------------------------------------------------------


def test_a_box_that_lost_its_invite_is_told_so_and_joins_again(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}, connect=False) as (one, two):
        token = one.fleet.invite(one.p2p_addr)
        for box in (one, two):
            box.offer(token.op)
        elsewhere = Token(token.genesis, token.op, token.secret, (two.p2p_addr,))
        a = Agent(tmp_path / "box-a", "box-a", {}, {"SHOAL_JOIN_TOKEN": token.text()}, one.fleet)
        b = Agent(tmp_path / "box-b", "box-b", {}, {"SHOAL_JOIN_TOKEN": elsewhere.text()}, one.fleet)
        with running(a, b):
            for new in (a, b):
                new.start()
                new.wait_line("join.done", 30)
            for box in (one, two):
                box.stop()
            one.dial(two)
            for box in (one, two):
                box.start()
            until(lambda: fleet_of(two)["lost_claims"] != [])
            for box in (one, two):
                until(lambda box=box: "contested_invite" in warnings_of(box))  # type: ignore[misc]
            said = warnings_of(one)["contested_invite"]
            assert b.peer_id in said["text"]
            assert "box-a" in said["text"]
            assert token.invite_id in said["text"]
            assert f"shoal admit {b.peer_id}" in said["remedy"]

            # The refused box hears nothing of why, and takes itself for a member; it must not look like one.
            there = at(b)
            until(lambda: fleet_of(b)["refused_by"] == [two.peer_id])
            assert there.standing(b.peer_id) == "member"
            outcast = warnings_of(b)["outcast"]
            assert token.invite_id in outcast["text"]
            assert f"shoal admit {b.peer_id}" in outcast["remedy"]
            assert "shoal join" in outcast["remedy"]
            assert there.text("doctor").code == 5
            listed = there.text("boxes").out
            assert "refused by the others" in listed
            assert "pos-2: every box that answers refuses this one" in listed
            assert warnings_of(one).keys().isdisjoint({"outcast"})

            # The old token will never do; a new one does.
            denied = there.json("join", elsewhere.text(), code=4)
            assert denied["code"] == "denied"
            assert f"shoal admit {b.peer_id}" in denied["message"]
            assert "first" in warnings_of(b)["outcast"]["text"], "what came of the last attempt"
            assert there.json("join", at(two).json("invite")["token"])["state"] == "member"
            until(lambda: fleet_of(b)["refused_by"] == [])
            until(lambda: there.text("boxes").out.count("now") >= 2)
            assert "outcast" not in warnings_of(b)
            assert "nothing to do" in there.text("join", elsewhere.text()).out
            until(lambda: fleet_of(one)["lost_claims"] == [])


# --- knocking ------------------------------------------------------------------------------------------------------


def test_a_box_that_is_told_to_come_again_does(tmp_path: Path) -> None:
    fleet = Fleet()
    answers = [
        RemoteError("overloaded", "every use of the invite is promised", retryable=True),
        RemoteError("denied", "not now", retryable=True),
        DeniedError("the invite is used up"),
    ]

    async def ask(call: IncomingCall) -> Mapping[str, object]:
        raise answers.pop(0)

    async def main() -> None:
        async with peer("pos-1") as member:
            member.router.add(METHOD_ASK, SCOPE_JOIN, ask)
            token = fleet.invite(member.node.addrs()[0])
            box = Agent(tmp_path / "new", "new", {}, {"SHOAL_JOIN_TOKEN": token.text()}, fleet)
            with running(box):
                box.spawn()
                for words in ("promised", "not now"):
                    line = await trio.to_thread.run_sync(box.wait_line, "join.waiting", 30)
                    assert words in line["reason"]
                line = await trio.to_thread.run_sync(box.wait_line, "join.given_up", 30)
                assert "used up" in line["reason"]

    trio.run(main)


def test_a_refusal_at_one_address_does_not_keep_a_box_from_the_next(tmp_path: Path) -> None:
    async def ask(call: IncomingCall) -> Mapping[str, object]:
        raise DeniedError("this box is no member itself and cannot let anybody in; knock at another")

    async def main(one: Agent) -> None:
        async with peer("outcast") as outcast:
            outcast.router.add(METHOD_ASK, SCOPE_JOIN, ask)
            token = one.fleet.invite(outcast.node.addrs()[0], one.p2p_addr)
            await trio.to_thread.run_sync(one.offer, token.op)
            box = Agent(tmp_path / "new", "new", {}, {"SHOAL_JOIN_TOKEN": token.text()}, one.fleet)
            with running(box):
                box.spawn()
                line = await trio.to_thread.run_sync(box.wait_line, "join.done", 30)
                assert line["member"] == one.peer_id

    with agents(tmp_path, {"pos-1": {}}) as (one,):
        trio.run(main, one)


# --- what is of another fleet --------------------------------------------------------------------------------------


def test_what_is_of_another_fleet_is_a_conflict_and_changes_nothing(tmp_path: Path) -> None:
    other = Fleet("other-shops")
    with agents(tmp_path, {"pos-1": {}}) as (one,):
        before = fleet_of(one)
        bundle = "".join(write_bundle(other.genesis, [op.raw for op in other.certify(STRANGER)]))
        asked = [
            httpx.post(f"{one.url}/v1/fleet/document/offer", content=bundle, timeout=10),
            httpx.post(f"{one.url}/v1/fleet/join", json={"token": other.invite().text()}, timeout=10),
        ]
        for answer in asked:
            assert answer.status_code == 409
            error = answer.json()["error"]
            assert error["code"] == "other_fleet"
            assert "'test-fleet'" in error["message"]
            assert "'other-shops'" in error["message"]
            assert error["details"]["fleet"] == one.fleet.genesis.fleet_id.hex()
            assert error["details"]["other_fleet"] == other.genesis.fleet_id.hex()
        assert fleet_of(one) == before
        # Its own genesis is no conflict.
        own = "".join(write_bundle(one.fleet.genesis, [one.fleet.certify(STRANGER)[0].raw]))
        assert httpx.post(f"{one.url}/v1/fleet/document/offer", content=own, timeout=10).status_code == 200
        assert public_key_from_peer_id(STRANGER).hex() in {op["path"] for op in at(one).json("history")["ops"]}
