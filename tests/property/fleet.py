"""A fleet on paper: keys with names, and ops signed byte by byte without the code under test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

import cbor2
from nacl.signing import SigningKey

from fleet.document.op import Op, read_op, signature_holds
from fleet.document.opset import OpSet
from fleet.document.view import Governance, View, fold
from fleet.errors import RefusedOpError
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity


@cache
def who(name: str) -> Identity:
    """The key of this name, the same in every run."""
    return Identity.from_seed(hashlib.blake2b(name.encode(), digest_size=32).digest())


def pk(name: str) -> bytes:
    return who(name).public_key


def canonical(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def hashed(signed: bytes) -> bytes:
    return hashlib.blake2b(signed, digest_size=32).digest()


def sealed(signer: str, fields: Sequence[object]) -> bytes:
    """An op's bytes as the format has them, signed by `signer` whatever the fields say."""
    signed = canonical(fields)
    return signed + SigningKey(who(signer).seed).sign(b"shoal-op-v1\0" + signed).signature


def proof_of(secret: str, fleet: bytes, invite: str, joiner: bytes) -> bytes:
    message = b"shoal-invite-v1\0" + canonical([fleet, bytes.fromhex(invite), joiner])
    return SigningKey(who(secret).seed).sign(message).signature


def consent_of(member: str, fleet: bytes, invite: str, joiner: bytes, proof: bytes, hlc: int) -> bytes:
    message = b"shoal-join-v1\0" + canonical([fleet, bytes.fromhex(invite), joiner, proof, hlc])
    return SigningKey(who(member).seed).sign(message).signature


def receive(replica: OpSet, raw: bytes) -> str:
    """What a replica does with bytes from anywhere: `new`, `held`, or the reason for which it refuses."""
    op = understood(raw)
    if isinstance(op, str):
        return op
    try:
        return "new" if replica.admit(op).new else "held"
    except RefusedOpError as error:
        return error.reason


@lru_cache(maxsize=1 << 14)
def understood(raw: bytes) -> Op | str:
    """What every box makes of these bytes before it looks at its set: an op that its author signed, or the reason."""
    try:
        op = read_op(raw)
    except RefusedOpError as error:
        return error.reason
    return op if signature_holds(op) else "signature"


def incremental(replica: OpSet) -> View:
    """The view as a box makes it: from the indexes of its set, not from a list of ops."""
    return View(replica.genesis, Governance(replica.genesis, replica.governing_ops()), replica.facts())


class Fleet:
    """Writes ops for stories: each author's seq and the clock run by themselves unless given."""

    def __init__(self, recovery: Iterable[str] = ("rec",), admins: Iterable[str] = ("a1", "a2", "a3")) -> None:
        self.genesis = Genesis("paper", tuple(sorted(map(pk, recovery))), tuple(sorted(map(pk, admins))), bytes(16))
        self.id = hashed(self.genesis.raw)
        self.ops: list[Op] = []
        self._seq: dict[str, int] = {}
        self._now = 1000

    def seq(self, author: str) -> int:
        """The last seq this author used."""
        return self._seq.get(author, 0)

    def write(
        self,
        author: str,
        kind: str,
        path: str,
        body: object,
        sup: Iterable[Op] = (),
        *,
        seq: int | None = None,
        hlc: int | None = None,
    ) -> Op:
        """An op signed by its author, remembered in `ops`."""
        self._now += 1
        seq = self.seq(author) + 1 if seq is None else seq
        self._seq[author] = max(seq, self.seq(author))
        at = self._now if hlc is None else hlc
        sups = sorted({op.id for op in sup})
        op = read_op(sealed(author, [1, self.id, pk(author), seq, at, kind, path, canonical(body), sups]))
        self.ops.append(op)
        return op

    def cert(self, author: str, subject: str, role: str = "member", **how: int) -> Op:
        return self.write(author, "cert", pk(subject).hex(), role, **how)

    def revoke(self, author: str, subject: str, keep: int = 0, **how: int) -> Op:
        return self.write(author, "revoke", pk(subject).hex(), keep, **how)

    def allow(self, author: str, subject: str, *scopes: str, sup: Iterable[Op] = (), **how: int) -> Op:
        return self.write(author, "fw", pk(subject).hex(), ["allow", sorted(scopes)], sup, **how)

    def deny(self, author: str, subject: str, *scopes: str, sup: Iterable[Op] = (), **how: int) -> Op:
        return self.write(author, "fw", pk(subject).hex(), ["deny", sorted(scopes)], sup, **how)

    def set(self, author: str, path: str, value: object, sup: Iterable[Op] = (), **how: int) -> Op:
        return self.write(author, "cfg", path, value, sup, **how)

    def fact(self, author: str, path: str, value: object, **how: int) -> Op:
        return self.write(author, "node", path, value, **how)

    def invite(
        self, author: str, invite: str, uses: int, *, bound: str | None = None, sup: Iterable[Op] = (), **how: int
    ) -> Op:
        """An invite whose token holds the secret named `token INVITE`."""
        body = {
            "key": pk(f"token {invite}"),
            "uses": uses,
            "expires": 0,
            "for": pk(bound) if bound else None,
            "labels": {},
        }
        return self.write(author, "cfg", f"invite/{invite}", body, sup, **how)

    def join(
        self, joiner: str, invite: str, by: str, at: int, *, secret: str | None = None, signer: str | None = None
    ) -> Op:
        """A claim; `secret` and `signer` are whose keys really make the two signatures."""
        secret = secret or f"token {invite}"
        proof = proof_of(secret, self.id, invite, pk(joiner))
        sig = consent_of(signer or by, self.id, invite, pk(joiner), proof, at)
        body = {"key": pk(f"token {invite}"), "proof": proof, "by": pk(by), "hlc": at, "sig": sig}
        return self.write(joiner, "join", invite, body)

    def replica(self, ops: Iterable[Op] | None = None) -> OpSet:
        """A set that was offered these ops (all that were written) in this order, again until nothing changes."""
        replica = OpSet(self.genesis)
        offered = list(self.ops if ops is None else ops)
        for _ in range(len(offered) + 2):
            if not sum(receive(replica, op.raw) == "new" for op in offered):
                return replica
        raise AssertionError("the set never comes to rest: an op that was replaced enters it again")

    def view(self, ops: Iterable[Op] | None = None) -> View:
        """The view of a replica that was offered these ops."""
        return fold(self.genesis, self.replica(ops).ops())
