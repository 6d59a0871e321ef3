"""Targets of how boxes find and admit one another: addresses, the policy, joining, how far a key had counted."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import cbor2
import trio

from agent.addresses import peer_problem
from agent.links import worth_dialling
from fleet import cbor
from fleet.document import bodies, facts
from fleet.document.firewall import read_policy
from fleet.document.op import MAX_OP, Op, signature_holds, write_op
from fleet.document.replica import Replica
from fleet.errors import DeniedError, FleetError, MessageError, RefusedOpError, RemoteError
from fleet.gossip import joining
from fleet.gossip.joining import Doorkeeper
from fleet.gossip.own_seq import highest_seq
from fleet.identity.keys import Identity
from tests.fuzz.base import Target, check_brief
from tests.fuzz.document import ADMIN, BOX, FLEET, GENESIS, raw_ops, token
from tests.fuzz.wire import VALUES, cbor_stretch

MEMBER = Identity.from_seed(b"\x04" * 32)
#: After every time at which a box of these tests countersigns.
_HLC = 1 << 58
_TOKEN = token()
_ELSEWHERE = (f"/ip4/10.0.0.9/tcp/4210/p2p/{MEMBER.peer_id}",)


def _addr(head: str) -> str:
    return f"{head}/p2p/{BOX.peer_id}"


_ADDRS = [_addr(head) for head in ("/ip4/10.0.0.7/tcp/4210", "/ip6/fd00::7/tcp/1", "/dns4/pos-1.example/tcp/65535")]


def run_addrs(data: bytes) -> bool:
    """`worth_dialling` and `peer_problem` of what a box says of its addresses; no loopback, however it is written."""
    addrs = facts.read_addrs(data)
    for addr in addrs:
        peer_problem(addr)
    found = worth_dialling(BOX.peer_id, addrs, _ELSEWHERE)
    for addr in found:
        _, family, host, _, port, _, peer_id = addr.split("/")
        assert (peer_id, 0 < int(port) < 65536) == (BOX.peer_id, True)
        if family in ("ip4", "ip6"):
            address = ipaddress.ip_address(host)
            assert not address.is_loopback
            assert not address.is_unspecified
        else:
            assert "localhost" not in host.lower()
            assert not host.rstrip(".").rpartition(".")[2].isdigit()
    return bool(found)


def run_policy(data: bytes) -> bool:
    """`read_policy` of any setting: what cannot be understood gives nobody anything."""
    policy = read_policy(data)
    assert policy.mode in ("members", "allow-list")
    assert all(map(bodies.is_scope, policy.scopes))
    return policy.mode == "members" or bool(policy.scopes)


@dataclass
class _Answering:
    """A peer that answers every call in one way."""

    answer: object
    peer_id: str = MEMBER.peer_id
    outbound: bool = True

    async def call(
        self, method: str, body: Mapping[str, object], on_event: Callable[[object], Awaitable[None]]
    ) -> object:
        return self.answer


def run_own_seq(data: bytes) -> bool:
    """`highest_seq` of a peer's answer: nothing but an op that the key wrote makes it skip ahead."""
    try:
        answer = cbor.decode(data)
    except cbor.CborError:
        return False
    found = trio.run(partial(highest_seq, [_Answering(answer)], FLEET, BOX.public_key))
    assert found.answered in (0, 1)
    if found.op is None:
        assert found.seq == 0
        return False
    assert (found.op.author, found.op.fleet, found.op.seq) == (BOX.public_key, FLEET, found.seq)
    assert signature_holds(found.op)
    return True


@dataclass
class _Knock:
    """A call of a box that holds the token's secret."""

    body: object
    peer_id: str = _TOKEN.secret.peer_id
    events: list[Mapping[str, object]] = field(default_factory=list)

    async def send(self, event: Mapping[str, object]) -> None:
        self.events.append(event)


def _fleet() -> list[Op]:
    return [
        write_op(ADMIN, FLEET, seq=1, hlc=1, kind="cert", path=MEMBER.public_key.hex(), body="member"),
        _TOKEN.op,
    ]


_FLEET_OPS = _fleet()


def _knock(method: str, data: bytes) -> bool:
    try:
        knock = _Knock(cbor.decode(data))
    except cbor.CborError:
        return False
    replica = Replica(GENESIS, _FLEET_OPS)
    door = Doorkeeper(replica, MEMBER)

    async def answered() -> Mapping[str, object]:
        if method == joining.METHOD_ASK:
            return await door.ask(knock)
        await door.ask(_Knock(_claim()))  # nothing is taken in but the join of a box that was vouched for
        return await door.done(knock)

    try:
        answer = trio.run(answered)
    except (MessageError, DeniedError, RemoteError) as error:
        check_brief(error)
        assert (len(replica.ops), knock.events) == (len(_FLEET_OPS), [])
        return False
    cbor.encode(answer)
    return True


def run_join_ask(data: bytes) -> bool:
    """`Doorkeeper.ask` of any body: an answer only for a proof that holds, and else not one op of the fleet."""
    return _knock(joining.METHOD_ASK, data)


def run_join_done(data: bytes) -> bool:
    """`Doorkeeper.done` of any body: what is refused leaves the document as it was."""
    return _knock(joining.METHOD_DONE, data)


def run_join_answer(data: bytes) -> bool:
    """`joining.join` of whatever a member answers: [events of join.ask, its answer, the answer to join.done]."""
    try:
        script = cbor.decode(data)
    except cbor.CborError:
        return False
    if not isinstance(script, list) or len(script) != 3 or not isinstance(script[0], list):
        return False

    async def call(method: str, body: Mapping[str, object], on_event: Callable[[object], Awaitable[None]]) -> object:
        if method == joining.METHOD_DONE:
            return script[2]
        for event in script[0]:
            await on_event(event)
        return script[1]

    try:
        welcome = trio.run(joining.join, _TOKEN, BOX, call)
    except (MessageError, RefusedOpError) as error:
        check_brief(error)
        return False
    except FleetError as error:
        raise AssertionError("an error that is not documented") from error
    assert bodies.join_is_vouched_for(welcome.join, bodies.read_join(welcome.join.body))
    assert all(type(raw) is bytes and len(raw) <= MAX_OP for raw in welcome.ops)
    return True


def _vouched() -> bodies.Join:
    secret, invite_id = _TOKEN.secret, _TOKEN.invite_id
    proof = bodies.prove_invite(secret, FLEET, invite_id, BOX.public_key)
    return bodies.vouch(MEMBER, FLEET, invite_id, BOX.public_key, secret.public_key, proof, _HLC)


def _claim() -> dict[str, object]:
    return {"key": BOX.public_key, "proof": _vouched().proof}


def _join_op() -> bytes:
    body = _vouched().body()
    return write_op(BOX, FLEET, seq=1, hlc=_HLC + 1, kind="join", path=_TOKEN.invite_id, body=body).raw


def _answers() -> list[object]:
    join = _vouched()
    answer = {"by": join.by, "hlc": join.hlc, "sig": join.sig}
    return [[[{"ops": raw_ops()}, {"ops": []}], answer, {"lost": False}], [[], answer, {}]]


_TOKENS = tuple(cbor2.dumps(word) for word in ("key", "proof", "op", "ops", "by", "hlc", "sig", "lost", "o", "mode"))

ADMISSION = (
    Target(
        "addrs",
        run_addrs,
        lambda: [cbor2.dumps(_ADDRS), cbor2.dumps(_ADDRS[:1])],
        [
            *cbor_stretch(),
            lambda n: cbor2.dumps(["/" * 255] * (n // 256)),
            lambda n: cbor2.dumps([_addr("/dns4/" + "a." * 60 + "/tcp/1")] * (n // 200)),
            lambda n: cbor2.dumps([_addr("/ip6/" + ":" * 100 + "/tcp/1")] * (n // 200)),
        ],
        tokens=(b"/dns4/0x7f.1/tcp/", b"/ip6/::ffff:127.0.0.1/tcp/", b"/dns6/localhost./tcp/", b"%eth0", b"0177.0.0.1"),
    ),
    Target(
        "policy",
        run_policy,
        lambda: [cbor2.dumps({"mode": "members"}), cbor2.dumps({"mode": "allow-list", "scopes": ["infer", "blobs"]})],
        [*cbor_stretch(), lambda n: cbor2.dumps({"mode": "members", "scopes": ["infer"] * (n // 6)})],
        tokens=_TOKENS,
    ),
    Target(
        "own_seq",
        run_own_seq,
        lambda: [cbor2.dumps({"o": raw_ops()[0]})],
        [*cbor_stretch(), lambda n: cbor2.dumps({"o": bytes(n)})],
        tokens=_TOKENS,
    ),
    Target(
        "join_ask",
        run_join_ask,
        lambda: [cbor2.dumps(_claim())],
        [*cbor_stretch(), lambda n: cbor2.dumps({"key": bytes(n), "proof": bytes(n)})],
        tokens=_TOKENS,
    ),
    Target(
        "join_done",
        run_join_done,
        lambda: [cbor2.dumps({"op": _join_op()})],
        [*cbor_stretch(), lambda n: cbor2.dumps({"op": bytes(n)})],
        tokens=_TOKENS,
    ),
    Target(
        "join_answer",
        run_join_answer,
        lambda: [cbor2.dumps(answer) for answer in _answers()],
        [
            *cbor_stretch(),
            lambda n: cbor2.dumps([[{"ops": [b""] * n}], {}, {}]),
            lambda n: cbor2.dumps([[], {"by": b"x" * n, "hlc": 1, "sig": b""}, {}]),
            lambda n: cbor2.dumps([[], {"by": [[]] * n, "hlc": VALUES[6], "sig": "x" * n}, {}]),
        ],
        tokens=_TOKENS,
    ),
)
