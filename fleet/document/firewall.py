"""Who may speak to a box, and about what. Pure; unknown keys are denied, and any deny that is live wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fleet import cbor
from fleet.document import bodies
from fleet.document.authority import Authority, Membership
from fleet.document.op import Op

Mode = Literal["members", "allow-list"]

#: Where the policy stands among the settings.
POLICY_PATH: Final = "policy/firewall"
#: What a member may ask of another without anything being said about it.
DEFAULT_SCOPES: Final = frozenset({"infer", "blobs", "models"})


@dataclass(frozen=True)
class Policy:
    """`members`: every member is let in; `allow-list`: only members that are also allowed by name."""

    mode: Mode = "members"
    scopes: frozenset[str] = DEFAULT_SCOPES


@dataclass(frozen=True)
class Standing:
    """What a key may do here, why, and the ops that decide it."""

    admitted: bool
    scopes: frozenset[str]
    reason: str
    ops: tuple[Op, ...] = ()


def read_policy(body: bytes | None) -> Policy:
    """The policy in a setting's body; one that cannot be understood lets nobody in by membership alone."""
    if body is None:
        return Policy()
    try:
        value = cbor.decode(body)
    except cbor.CborError:
        value = ()
    if value is None:
        return Policy()  # deleted
    if not isinstance(value, dict):
        return Policy("allow-list", frozenset())
    mode, scopes = value.get("mode", "members"), value.get("scopes", sorted(DEFAULT_SCOPES))
    if mode not in ("members", "allow-list") or type(scopes) is not list or not all(map(bodies.is_scope, scopes)):
        return Policy("allow-list", frozenset())
    return Policy(mode, frozenset(scopes))


class Firewall:
    """The standing of every key, given the authority, the live firewall ops and the policy."""

    def __init__(self, authority: Authority, live: Mapping[bytes, Sequence[Op]], policy: Policy) -> None:
        self._authority = authority
        self._live = live
        self.policy = policy

    def standing(self, key: bytes) -> Standing:
        """What this key may do."""
        revokes = self._authority.revoked.get(key)
        if revokes:
            return Standing(False, frozenset(), "revoked", revokes)
        entries = [(op, bodies.read_firewall(op.body)) for op in self._live.get(key, ())]
        denies = [op for op, entry in entries if entry.verdict == "deny" and not entry.scopes]
        if denies:
            return Standing(False, frozenset(), "denied by the firewall", tuple(denies))
        allows = [(op, entry) for op, entry in entries if entry.verdict == "allow"]
        member = self._authority.members.get(key)
        scopes = frozenset(
            scope for _, entry in allows for scope in (entry.scopes or self.policy.scopes or DEFAULT_SCOPES)
        )
        if member is not None and (allows or self.policy.mode == "members"):
            scopes |= self.policy.scopes
        if member is None and not allows:
            return Standing(False, frozenset(), "unknown key: no member, and not allowed by name")
        if not allows and self.policy.mode == "allow-list":
            return Standing(False, frozenset(), "a member, but the policy asks for an allow by name", _ops(member))
        scopes -= {scope for _, entry in entries if entry.verdict == "deny" for scope in entry.scopes}
        reason = "member" if member is not None else "allowed by name, no member"
        if not scopes:
            return Standing(False, scopes, f"{reason}, but every scope is denied", tuple(op for op, _ in entries))
        return Standing(True, scopes, reason, (*_ops(member), *(op for op, _ in entries)))

    def named(self) -> Iterable[bytes]:
        """The keys that a live firewall op names."""
        return self._live.keys()


def _ops(member: Membership | None) -> tuple[Op, ...]:
    return () if member is None else (member.op,)
