"""What stands in the bodies of ops that carry authority: certificates, revocations, firewall entries, invites, joins.

Each reader takes the bytes of a body and returns a frozen value, or raises RefusedOpError. Facts of boxes are in
`fleet.document.facts`: they are believed of their author only, so nothing is refused for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from fleet import cbor
from fleet.document.clock import MAX_HLC
from fleet.document.op import KEY_BYTES, MAX_SEQ, SIGNATURE_BYTES, Op
from fleet.errors import RefusedOpError
from fleet.identity.keys import Identity, verify

Role = Literal["member", "admin"]
Verdict = Literal["allow", "deny"]

MAX_USES: Final = 10_000
MAX_SCOPES: Final = 16
MAX_LABELS: Final = 32
_SCOPE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_PROOF_DOMAIN: Final = b"shoal-invite-v1\0"
_VOUCH_DOMAIN: Final = b"shoal-join-v1\0"


@dataclass(frozen=True)
class FirewallEntry:
    """`allow` adds scopes (none named: the policy's defaults); `deny` takes scopes away (none named: every one)."""

    verdict: Verdict
    scopes: frozenset[str] = frozenset()

    def body(self) -> object:
        """As it is written."""
        return [self.verdict, sorted(self.scopes)]


@dataclass(frozen=True)
class Invite:
    """Leave to join. `key` is the public half of the secret in the token; `bound_to` the only box that may use it;
    `expires` milliseconds since the epoch, looked at by the box that lets somebody in, never by the view."""

    key: bytes
    uses: int
    expires: int
    bound_to: bytes | None
    labels: tuple[tuple[str, str], ...]

    def body(self) -> object:
        """As it is written."""
        return {
            "key": self.key,
            "uses": self.uses,
            "expires": self.expires,
            "for": self.bound_to,
            "labels": dict(self.labels),
        }


@dataclass(frozen=True)
class Join:
    """A claim of an invite: `proof` shows that it had the token, `sig` that the member `by` let it in, at `hlc`."""

    key: bytes
    proof: bytes
    by: bytes
    hlc: int
    sig: bytes

    def body(self) -> object:
        """As it is written."""
        return {"key": self.key, "proof": self.proof, "by": self.by, "hlc": self.hlc, "sig": self.sig}


@lru_cache(maxsize=16)
def read_role(body: bytes) -> Role:
    """The body of a cert op."""
    value = _decode(body)
    if value == "member":
        return "member"
    if value == "admin":
        return "admin"
    raise RefusedOpError("body", "a cert says member or admin")


def read_keep(body: bytes) -> int:
    """The body of a revoke op: the last seq of the revoked key that still counts."""
    value = _decode(body)
    if type(value) is not int or not 0 <= value <= MAX_SEQ:
        raise RefusedOpError("body", "a revoke holds the last seq that still counts")
    return value


@lru_cache(maxsize=256)
def read_firewall(body: bytes) -> FirewallEntry:
    """The body of a fw op."""
    value = _decode(body)
    if not isinstance(value, list) or len(value) != 2 or value[0] not in ("allow", "deny"):
        raise RefusedOpError("body", "a firewall entry is [allow or deny, scopes]")
    scopes = value[1]
    if type(scopes) is not list or len(scopes) > MAX_SCOPES or not all(is_scope(scope) for scope in scopes):
        raise RefusedOpError("body", f"a firewall entry lists at most {MAX_SCOPES} scopes")
    if scopes != sorted(set(scopes)):
        raise RefusedOpError("body", "the scopes of a firewall entry are sorted")
    return FirewallEntry(value[0], frozenset(scopes))


def read_invite(body: bytes) -> Invite:
    """The body of a cfg op at invite/ID."""
    value = _decode(body)
    if not isinstance(value, dict) or set(value) != {"key", "uses", "expires", "for", "labels"}:
        raise RefusedOpError("body", "not an invite: wrong fields")
    key, uses, expires, bound_to = value["key"], value["uses"], value["expires"], value["for"]
    if not _is_key(key) or not (bound_to is None or _is_key(bound_to)):
        raise RefusedOpError("body", "not an invite: a key has 32 bytes")
    if type(uses) is not int or not 0 <= uses <= MAX_USES:
        raise RefusedOpError("body", f"an invite has at most {MAX_USES} uses")
    if type(expires) is not int or not 0 <= expires < 1 << 48:
        raise RefusedOpError("body", "not an invite: expires is milliseconds since the epoch")
    return Invite(key, uses, expires, bound_to, read_labels(value["labels"]))


def read_labels(value: object) -> tuple[tuple[str, str], ...]:
    """Labels as sorted pairs; raises RefusedOpError past the limits."""
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise RefusedOpError("body", f"labels are a map of at most {MAX_LABELS}")
    for name, text in value.items():
        if type(name) is not str or type(text) is not str or not _LABEL.fullmatch(name) or not _LABEL.fullmatch(text):
            raise RefusedOpError("body", "a label is NAME=VALUE, each of letters, digits, . _ / -, at most 63 long")
    return tuple(sorted(value.items()))


def read_join(body: bytes) -> Join:
    """The body of a join op; its signatures are checked by `join_is_vouched_for`."""
    value = _decode(body)
    if not isinstance(value, dict) or set(value) != {"key", "proof", "by", "hlc", "sig"}:
        raise RefusedOpError("body", "not a join: wrong fields")
    if not (_is_key(value["key"]) and _is_key(value["by"])):
        raise RefusedOpError("body", "not a join: a key has 32 bytes")
    if not (_is_signature(value["proof"]) and _is_signature(value["sig"])):
        raise RefusedOpError("body", "not a join: a signature has 64 bytes")
    if type(value["hlc"]) is not int or not 0 <= value["hlc"] <= MAX_HLC:
        raise RefusedOpError("body", "not a join: hlc is out of range")
    return Join(**value)


def prove_invite(secret: Identity, fleet: bytes, invite_id: str, joiner: bytes) -> bytes:
    """What a box that holds a token's secret shows: the invite's signature over the box's own key."""
    return secret.sign(_PROOF_DOMAIN + cbor.encode([fleet, bytes.fromhex(invite_id), joiner]))


def proof_holds(key: bytes, proof: bytes, fleet: bytes, invite_id: str, joiner: bytes) -> bool:
    """Whether `proof` was made by the invite's secret for this box."""
    return verify(key, _PROOF_DOMAIN + cbor.encode([fleet, bytes.fromhex(invite_id), joiner]), proof)


def vouch(member: Identity, fleet: bytes, invite_id: str, joiner: bytes, key: bytes, proof: bytes, hlc: int) -> Join:
    """A member's countersignature: it let `joiner` in at `hlc`."""
    sig = member.sign(_VOUCH_DOMAIN + cbor.encode([fleet, bytes.fromhex(invite_id), joiner, proof, hlc]))
    return Join(key, proof, member.public_key, hlc, sig)


def join_is_vouched_for(op: Op, join: Join) -> bool:
    """Whether both signatures in a join hold: the invite's over the box's key, and the member's over that."""
    signed = cbor.encode([op.fleet, bytes.fromhex(op.path), op.author, join.proof, join.hlc])
    return proof_holds(join.key, join.proof, op.fleet, op.path, op.author) and verify(
        join.by, _VOUCH_DOMAIN + signed, join.sig
    )


def is_scope(value: object) -> bool:
    """Whether a value is the name of a scope."""
    return type(value) is str and _SCOPE.fullmatch(value) is not None


def _decode(body: bytes) -> object:
    try:
        return cbor.decode(body)
    except cbor.CborError as error:
        raise RefusedOpError("body", f"the body is not CBOR: {error}") from None


def _is_key(value: object) -> bool:
    return type(value) is bytes and len(value) == KEY_BYTES


def _is_signature(value: object) -> bool:
    return type(value) is bytes and len(value) == SIGNATURE_BYTES
