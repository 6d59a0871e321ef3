"""Whether an op counts in a view, and why not: for `shoal history` and `shoal firewall explain`. Pure."""

from __future__ import annotations

from agent.claims import lost_claims_of
from agent.cli.naming import Names
from fleet import cbor
from fleet.document import bodies
from fleet.document.op import Op
from fleet.document.view import View
from fleet.errors import RefusedOpError


class Verdicts:
    """Answers for the ops of one view. `ops` is every op that is held, facts included where they are to be judged."""

    def __init__(self, view: View, ops: list[Op]) -> None:
        self._view = view
        self._names = Names(view)
        self._replaced_by: dict[tuple[str, str, bytes], Op] = {}
        for op in ops:
            if op.kind in ("fw", "cfg") and view.authority.counts(op):
                for old in op.sup:
                    self._replaced_by[op.kind, op.path, old] = op
        self._facts = {op.id for _, _, op in view.facts()}

    def why_not(self, op: Op) -> str:
        """Why an op has no effect today; empty where it has."""
        if op.kind == "node":
            return "" if op.id in self._facts else "its author is no member now"
        if op.kind == "join":
            return self._join(op)
        return self._authority(op) or self._kind(op)

    def _authority(self, op: Op) -> str:
        authority = self._view.authority
        if op.author not in authority.rank:
            return "its author is no admin"
        if authority.counts(op):
            return ""
        closes = op.kind == "fw" and bodies.read_firewall(op.body).verdict == "deny"
        if closes and authority.closes_a_door(op):
            return ""
        if op.kind == "cert" and self._is_the_membership_of(op, op.subject):
            return ""  # the certificates of members outlive a fork, see authority._vouching
        if op.kind == "revoke" and op in authority.revoked.get(op.subject, ()):
            return ""
        if op.seq > authority.cut.get(op.author, op.seq):
            return f"its author was revoked, and only its ops up to {authority.cut[op.author]} count"
        return f"its author signed two ops with number {authority.forked.get(op.author)}; later ones do not count"

    def _kind(self, op: Op) -> str:
        authority = self._view.authority
        if op.kind in ("fw", "cfg"):
            live = self._view.governance.live.get((op.kind, op.path), ())
            if op not in live:
                by = self._replaced_by.get((op.kind, op.path, op.id))
                return f"replaced by {self._names.of(by.author)}, op {by.id.hex()[:12]}" if by else "replaced"
            setting = self._view.settings.get(op.path) if op.kind == "cfg" else None
            if setting is not None and setting.op.body != op.body:
                return f"in conflict, and op {setting.op.id.hex()[:12]} is the later one"
            return ""
        if op.kind == "revoke":
            revoked = op in authority.revoked.get(op.subject, ())
            return "" if revoked else "it names a key of higher rank, or a recovery key"
        if bodies.read_role(op.body) == "admin":
            return ""
        return "" if self._is_the_membership_of(op, op.subject) else "another op had let the box in before"

    def _join(self, op: Op) -> str:
        if self._is_the_membership_of(op, op.author):
            return ""
        if op in self._view.authority.surplus_joins:
            takers = [self._names.of(key) for key in self._takers(op)]
            return f"the invite was used up by {', '.join(takers) or 'others'}"
        if op.author in self._view.authority.members:
            return "another op had let the box in before"
        return "its invite, or the box that let it in, does not count"

    def _takers(self, join: Op) -> tuple[bytes, ...]:
        claims = lost_claims_of(self._view.authority, join.author)
        return next((claim.taken_by for claim in claims if claim.invite_id == join.path), ())

    def _is_the_membership_of(self, op: Op, key: bytes) -> bool:
        member = self._view.authority.members.get(key)
        return member is not None and member.op.id == op.id


def plain_value(op: Op) -> object:
    """What an op says, as a plain value; None for a setting that was deleted, and for what cannot be read."""
    try:
        return cbor.decode(op.body)
    except cbor.CborError:
        return None


def value_text(op: Op, names: Names) -> str:
    """What an op says, in a few words."""
    try:
        if op.kind == "revoke":
            keep = bodies.read_keep(op.body)
            return f"its ops after {keep} do not count" if keep else "none of its ops count"
        if op.kind == "fw":
            entry = bodies.read_firewall(op.body)
            return " ".join([entry.verdict, ",".join(sorted(entry.scopes))]).rstrip()
        if op.kind == "join":
            return f"let in by {names.of(bodies.read_join(op.body).by)}"
        if op.kind == "cfg" and op.path.startswith("invite/"):
            return f"{bodies.read_invite(op.body).uses} uses"
    except RefusedOpError:
        return "unreadable"
    value = plain_value(op)
    if value is None and op.kind == "cfg":
        return "deleted"
    from fleet.document.plain_json import text_of

    text = value if isinstance(value, str) else text_of(value)
    return text if len(text) <= 100 else text[:97] + "..."
