"""Targets of the fleet document: ops, what stands in their bodies, the genesis and invite tokens."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from fleet import cbor
from fleet.document import bodies, facts
from fleet.document.acceptance import body_is_well_formed
from fleet.document.invites import PREFIX, Token, read_token
from fleet.document.op import ADMIN_KINDS, MAX_OP, Kind, Op, read_op, signature_holds, write_op
from fleet.document.settings import Setting
from fleet.errors import RefusedOpError
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity
from tests.fuzz.base import Target
from tests.fuzz.wire import cbor_stretch, is_plain

ADMIN, BOX, SECRET = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
GENESIS = Genesis("shop", (b"\x09" * 32,), (ADMIN.public_key,), b"\0" * 16)
FLEET = GENESIS.fleet_id
_INVITE_ID = "ab" * 16
_HASH = "ab" * 32

NODE = facts.Node("pos-1", "0.1.0", (("role", "pos"), ("site", "shop/3")), "aarch64", 4, 1 << 32, 1 << 36, "", "0" * 32)
INVITE = bodies.Invite(SECRET.public_key, 3, 1_900_000_000_000, None, (("role", "pos"),))
JOIN = bodies.vouch(
    ADMIN, FLEET, _INVITE_ID, BOX.public_key, SECRET.public_key,
    bodies.prove_invite(SECRET, FLEET, _INVITE_ID, BOX.public_key), 1 << 58,
)  # fmt: skip
#: (author, kind, path, body) of ops as boxes write them.
OPS: list[tuple[Identity, Kind, str, object]] = [
    (BOX, "node", "node", NODE.body()),
    (BOX, "node", "addr", ["/ip4/10.0.0.7/tcp/4210"]),
    (BOX, "node", f"hold/{_HASH}", {"name": "smollm2", "size": 98_000_000, "complete": 1.0}),
    (BOX, "node", f"perf/{_HASH}", {"decode": 12.5, "prefill": 300.0}),
    (BOX, "node", f"used/{ADMIN.public_key.hex()}", {"jobs": 1, "tokens": 2, "failures": 0}),
    (BOX, "join", _INVITE_ID, JOIN.body()),
    (ADMIN, "cert", BOX.public_key.hex(), "member"),
    (ADMIN, "revoke", BOX.public_key.hex(), 17),
    (ADMIN, "fw", BOX.public_key.hex(), ["deny", ["blobs", "infer"]]),
    (ADMIN, "cfg", f"invite/{_INVITE_ID}", INVITE.body()),
    (ADMIN, "cfg", "policy/firewall.mode", "members"),
]
_BODIES = [cbor.encode(body) for *_, body in OPS]


def _ops() -> list[Op]:
    sup = [hashlib.sha256(bytes([n])).digest() for n in range(3)]
    return [
        write_op(
            author,
            FLEET,
            seq=number + 1,
            hlc=1 << 58,
            kind=kind,
            path=path,
            body=body,
            sup=sup[: number % 4] if kind in ADMIN_KINDS else (),
        )
        for number, (author, kind, path, body) in enumerate(OPS)
    ]


def raw_ops() -> list[bytes]:
    """An op of every sort, as it travels."""
    return [op.raw for op in _ops()]


def run_op(data: bytes) -> bool:
    """`read_op`, and everything that looks at an op before its author is known to be anybody."""
    try:
        op = read_op(data)
    except RefusedOpError:
        return False
    assert op.raw == data
    fields: list[object] = [1, op.fleet, op.author, op.seq, op.hlc, op.kind, op.path, op.body, list(op.sup)]
    assert cbor.encode(fields) == data[:-64]
    signature_holds(op)
    if op.kind in ("cert", "revoke", "fw"):
        assert len(op.subject) == 32
    try:
        body_is_well_formed(op)
    except RefusedOpError:
        return True
    if op.kind == "join":
        bodies.join_is_vouched_for(op, bodies.read_join(op.body))
    assert is_plain(Setting(op).value)
    facts.read_box(op.author, {op.path: op})
    return True


def _same(read: Callable[[bytes], Any], value: Any) -> None:
    assert read(cbor.encode(value.body())) == value


def run_body(data: bytes) -> bool:
    """`bodies.read_*` of any bytes: a value that is written as it was read, or RefusedOpError."""
    accepted = False
    for read in (bodies.read_role, bodies.read_keep, bodies.read_firewall, bodies.read_invite, bodies.read_join):
        try:
            value = read(data)
        except RefusedOpError:
            continue
        accepted = True
        if isinstance(value, str | int):
            assert read(cbor.encode(value)) == value
        else:
            _same(read, value)
    return accepted


_FACTS = ("node", "addr", f"hold/{_HASH}", "hold/", f"perf/{_HASH}", f"used/{_HASH}", "used/AB", "other/x")


def _fact(path: str, body: bytes) -> Op:
    return Op(b"", FLEET, b"", 1, 1, "node", path, body, (), b"")


def _read_node(body: bytes) -> facts.Node:
    return facts.read_box(b"", {"node": _fact("node", body)}).node


def run_facts(data: bytes) -> bool:
    """`facts.read_box` and `read_addrs`: whatever a box says of itself, it can be read, and written again."""
    ops = {path: _fact(path, data) for path in _FACTS}
    box = facts.read_box(BOX.public_key, ops)
    _same(_read_node, box.node)
    assert facts.read_addrs(cbor.encode(list(box.addrs))) == box.addrs
    assert all(0 <= holding.complete <= 1 for holding in box.holdings)
    return box != facts.Box(BOX.public_key, facts.Node(), seq=1, written=1)


def run_genesis(data: bytes) -> bool:
    """`Genesis.read`: one encoding for each genesis."""
    try:
        genesis = Genesis.read(data)
    except RefusedOpError:
        return False
    assert genesis.raw == data
    return True


def token() -> Token:
    """A token as `shoal invite` hands it out."""
    op = next(op for op in _ops() if op.path.startswith("invite/"))
    return Token(GENESIS, op, SECRET, (f"/ip4/10.0.0.7/tcp/4210/p2p/{ADMIN.peer_id}",))


def run_token(data: bytes) -> bool:
    """`read_token` of any text."""
    try:
        found = read_token(data.decode("utf-8", "surrogateescape"))
    except RefusedOpError:
        return False
    assert read_token(found.text()) == found
    assert found.invite.key == found.secret.public_key
    return True


def run_token_inside(data: bytes) -> bool:
    """`read_token` of any bytes in the token's own coding, which damage to the text seldom leaves whole."""
    return run_token(PREFIX.encode() + base64.urlsafe_b64encode(data).rstrip(b"="))


def _token_inside() -> bytes:
    one = token()
    return cbor.encode([1, one.genesis.raw, one.op.raw, one.secret.seed, list(one.addrs)])


def _op_stretch() -> list[Callable[[int], bytes]]:
    head = [1, FLEET, BOX.public_key, 1, 1, "node", "node"]
    return [
        *cbor_stretch(),
        lambda n: cbor.encode([*head, b"\0" * n, []]) + bytes(64),
        lambda n: cbor.encode([*head, b"\xa0", [k.to_bytes(32, "big") for k in range(n // 34)]]) + bytes(64),
        lambda n: cbor.encode([*head[:6], "a/" + "a" * n, b"\xa0", []]) + bytes(64),
    ]


def _facts_stretch() -> list[Callable[[int], bytes]]:
    return [
        *cbor_stretch(),
        lambda n: cbor.encode(["/ip4/10.0.0.7/tcp/1"] * (n // 20)),
        lambda n: cbor.encode({"name": "x" * n, "labels": {f"k{i}": "v" for i in range(n // 8)}}),
        lambda n: cbor.encode({"labels": {"k": "v" * n}, "gpu": "\n" * n}),
    ]


_TOKENS = tuple(
    cbor.encode(word)
    for word in (
        "member", "admin", "allow", "deny", "infer", "key", "uses", "expires", "for", "labels", "proof", "by", "hlc",
        "sig", "name", "version", "arch", "cpus", "memory", "disk", "gpu", "instance", "size", "complete", "decode",
        "prefill", "jobs", "tokens", "failures", "recovery", "admins", "nonce", "v", "node", "join", "cert", "revoke",
        "fw", "cfg",
    )
)  # fmt: skip

DOCUMENT = (
    Target("op", run_op, raw_ops, _op_stretch(), MAX_OP + 1, memory=120, tokens=_TOKENS),
    Target("body", run_body, lambda: _BODIES[5:10], cbor_stretch(), tokens=_TOKENS),
    Target("facts", run_facts, lambda: _BODIES[:5], _facts_stretch(), memory=200, tokens=_TOKENS),
    Target("genesis", run_genesis, lambda: [GENESIS.raw], cbor_stretch(), tokens=_TOKENS),
    Target(
        "token",
        run_token,
        lambda: [token().text().encode(), b" " + token().text().encode() + b"\n"],
        [lambda n: PREFIX.encode() + b"A" * n, lambda n: b" " * n, lambda n: PREFIX.encode() + b"=" * n],
        memory=110,
        tokens=(PREFIX.encode(),),
    ),
    Target("token_inside", run_token_inside, lambda: [_token_inside()], cbor_stretch(), memory=110, tokens=_TOKENS),
)
