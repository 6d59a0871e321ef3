"""Which ops may enter the set: small checks, each of which says why it refuses.

Acceptance is about what an op is and who may ever write its kind; whether it counts today (its author may have been
revoked since) is the view's affair. Nothing here looks at a clock.

What depends on the order of arrival is `unknown_author` and `unknown_invite`, and such an op is offered again once what
it rests on has come; and a bound that only an attack with an admin's key can reach, MAX_TWINS: past it boxes may keep
different ops of the attacker's. Which claims of an invite stay is for `claims` to say, whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fleet.document import bodies
from fleet.document.claims import Claim, claim_of
from fleet.document.op import ADMIN_KINDS, Op
from fleet.errors import RefusedOpError

#: Facts of one box: when it has more, those with the lowest seq go.
MAX_FACTS: Final = 256
#: The highest seq of an admin's op. These ops are kept for ever, so there is an end to them.
MAX_ADMIN_OPS: Final = 20_000
#: Ops of one admin with one seq that are kept: two prove the fork, and each that denies closes a door.
MAX_TWINS: Final = 16

#: Reasons that may go away by themselves when other ops arrive.
PASSING: Final = frozenset({"unknown_author", "unknown_invite"})


class Known(Protocol):
    """What the checks ask of the set of ops held so far.

    Every answer only ever goes from no to yes, but for claims beyond the bounds of `claims`, and who came in with them.
    """

    @property
    def fleet_id(self) -> bytes:
        """The fleet this set belongs to."""

    def was_certified(self, key: bytes) -> bool:
        """Whether some admin ever certified the key, or it joined through an invite."""

    def was_admin(self, key: bytes) -> bool:
        """Whether the key is in the genesis, or an admin ever made it one."""

    def invite_limit(self, invite_id: str, key: bytes) -> int | None:
        """How many uses the invites written at this id for this key have at most; None where there are none."""

    def has_room_for(self, claim: Claim) -> bool:
        """Whether the claims that its countersigner made of the invite, which is known, leave room, or are later."""

    def ops_numbered(self, key: bytes, seq: int) -> int:
        """How many ops of an admin with this seq are held: more than one is a fork."""


Check = Callable[[Op, Known], None]


def of_this_fleet(op: Op, known: Known) -> None:
    """The op names this fleet: what was signed for one fleet never counts in another."""
    if op.fleet != known.fleet_id:
        raise RefusedOpError("other_fleet", "the op belongs to another fleet")


def body_is_well_formed(op: Op, known: Known | None = None) -> None:
    """Bodies that carry authority match their schema, whatever is known."""
    if op.kind == "cert":
        bodies.read_role(op.body)
    elif op.kind == "revoke":
        bodies.read_keep(op.body)
    elif op.kind == "fw":
        bodies.read_firewall(op.body)
    elif op.kind == "join":
        bodies.read_join(op.body)
    elif op.kind == "cfg" and op.path.startswith("invite/"):
        bodies.read_invite(op.body)


def admin_kinds_by_admins(op: Op, known: Known) -> None:
    """Only a key that is or was an admin writes certs, revocations, firewall entries and desired state."""
    if op.kind in ADMIN_KINDS and not known.was_admin(op.author):
        raise RefusedOpError("unknown_author", f"{op.kind} ops are written by admins; this author is not known as one")


def facts_by_members(op: Op, known: Known) -> None:
    """Only a box that was let in writes facts, and only its own: a fact's place is its author's key and its path."""
    if op.kind == "node" and not known.was_certified(op.author):
        raise RefusedOpError("unknown_author", "the author of these facts is not known as a member")


def joins_with_an_invite(op: Op, known: Known) -> None:
    """A join rests on an invite that an admin wrote, and on a member that let the box in."""
    if op.kind != "join":
        return
    join = bodies.read_join(op.body)
    if not known.was_certified(join.by):
        raise RefusedOpError("unknown_author", "the box that let this one in is not known as a member")
    uses = known.invite_limit(op.path, join.key)
    if uses is None:
        raise RefusedOpError("unknown_invite", "no admin wrote this invite")
    if not known.has_room_for(claim_of(op)):
        raise RefusedOpError("quota", f"one member has let in far more boxes than the invite's {uses} uses")
    if not bodies.join_is_vouched_for(op, join):
        raise RefusedOpError("signature", "the join does not show the token, or not the consent of a member")


def within_quota(op: Op, known: Known) -> None:
    """One admin cannot fill every box's disk: its numbers end, whatever the order in which its ops arrive."""
    if op.kind not in ADMIN_KINDS:
        return
    if op.seq > MAX_ADMIN_OPS:
        raise RefusedOpError("quota", f"an admin key writes at most {MAX_ADMIN_OPS} ops; make a new admin key")
    if known.ops_numbered(op.author, op.seq) >= MAX_TWINS:
        raise RefusedOpError("quota", "this admin has signed far too many ops with one number")


CHECKS: Final[Sequence[Check]] = (
    of_this_fleet,
    body_is_well_formed,
    admin_kinds_by_admins,
    facts_by_members,
    joins_with_an_invite,
    within_quota,
)


def check(op: Op, known: Known) -> None:
    """Run every check; raises RefusedOpError with the first reason to refuse.

    Limits, form and signature come before this: `read_op`, `signature_holds`.
    """
    for one in CHECKS:
        one(op, known)
