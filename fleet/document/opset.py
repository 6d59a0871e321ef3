"""The set of ops a box holds: grows by union, keeps of every fact only the latest, bounds claims, forgets nothing else.

Merging two sets is admitting the ops of the one to the other, in any order, as often as one likes. Pure: no I/O; the
caller has checked signatures (`op.signature_holds`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fleet.document import bodies, claims
from fleet.document.acceptance import MAX_FACTS, check
from fleet.document.claims import Claim, Terms
from fleet.document.op import ADMIN_KINDS, Op
from fleet.errors import RefusedOpError
from fleet.identity.genesis import Genesis


def refuse_other_fleets(genesis: Genesis, ops: Iterable[Op]) -> None:
    """Raise RefusedOpError (`other_fleet`) unless all ops are of the fleet of this genesis."""
    others = [op.fleet for op in ops if op.fleet != genesis.fleet_id]
    if others:
        raise RefusedOpError(
            "other_fleet",
            f"{len(others)} ops on this box's disk are of another fleet (id {others[0].hex()[:16]}…) than its genesis"
            f" (id {genesis.fleet_id.hex()[:16]}…); with the agent stopped, shoal doctor --repair sets them aside."
            " Where genesis.cbor is what is wrong, put the right one back first",
        )


@dataclass(frozen=True)
class Admitted:
    """What admitting an op did. `new` is False for one that is held, or older than what is held; `dropped` are the
    ops that left the set for it."""

    new: bool
    dropped: tuple[Op, ...] = ()


_HELD: Final = Admitted(False)


class OpSet:
    """Ops by id, and the indexes that the acceptance rules need."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis: Final = genesis
        self.fleet_id: Final = genesis.fleet_id
        self._ops: dict[bytes, Op] = {}
        self._facts: dict[bytes, dict[str, Op]] = {}
        self._admins = {*genesis.recovery, *genesis.admins}
        self._certified: set[bytes] = set()
        self._invites: dict[Terms, int] = {}
        #: Claims by invite and countersigner, then by the box that was let in; and how many there are of each invite.
        self._claims: dict[tuple[Terms, bytes], dict[bytes, Claim]] = {}
        self._claimed: Counter[Terms] = Counter()
        self._let_in: Counter[bytes] = Counter()
        self._numbered: dict[tuple[bytes, int], int] = {}
        self._highest: dict[bytes, int] = {}
        #: Grows with every op that can change who is what: certs, revocations, firewall, settings, joins.
        self.authority_version = 0
        #: Grows with every change of any kind.
        self.version = 0

    def __len__(self) -> int:
        return len(self._ops)

    def __contains__(self, op_id: object) -> bool:
        return op_id in self._ops

    def get(self, op_id: bytes) -> Op | None:
        """The op with this id."""
        return self._ops.get(op_id)

    def ops(self) -> Iterable[Op]:
        """Every op; not to be held across a change."""
        return self._ops.values()

    def governing_ops(self) -> list[Op]:
        """Every op but the facts of boxes."""
        return [op for op in self._ops.values() if op.kind != "node"]

    def facts(self) -> Mapping[bytes, Mapping[str, Op]]:
        """The latest facts of every author by path, whether it is a member today or not.

        Not to be held across a change; but one author's facts may be, for a change of them makes new ones.
        """
        return self._facts

    def highest_seq(self, author: bytes) -> int:
        """The highest seq of an author's ops that was ever admitted here; 0 for an author never heard of."""
        return self._highest.get(author, 0)

    # --- Known, for the acceptance rules ---------------------------------------------------------------------------

    def was_certified(self, key: bytes) -> bool:
        """See acceptance.Known."""
        return key in self._certified or key in self._let_in

    def was_admin(self, key: bytes) -> bool:
        """See acceptance.Known."""
        return key in self._admins

    def invite_limit(self, invite_id: str, key: bytes) -> int | None:
        """See acceptance.Known."""
        return self._invites.get((invite_id, key))

    def has_room_for(self, claim: Claim) -> bool:
        """See acceptance.Known."""
        own = self._claims.get((claim.terms, claim.by), {})
        if len(own) < claims.most_of_member(self._invites[claim.terms]) or claim.op.author in own:
            return True
        return any(claim.order < other.order for other in own.values())

    def ops_numbered(self, key: bytes, seq: int) -> int:
        """See acceptance.Known."""
        return self._numbered.get((key, seq), 0)

    # --- growing ---------------------------------------------------------------------------------------------------

    def admit(self, op: Op) -> Admitted:
        """Take an op in; raises RefusedOpError with the reason for one that may not enter."""
        if op.id in self._ops:
            return _HELD
        check(op, self)
        if op.kind == "node":
            return self._admit_fact(op)
        if op.kind == "join":
            return self._admit_claim(claims.claim_of(op))
        self._govern(op)
        return Admitted(True)

    def restore(self, ops: Iterable[Op]) -> None:
        """Take back ops that this box had accepted before; nothing is checked again but whose fleet they are.

        Raises RefusedOpError (`other_fleet`), before any is taken, where a disk has ops of another one.
        """
        held = list(ops)
        refuse_other_fleets(self.genesis, held)
        for op in held:
            if op.kind != "node":
                self._govern(op)
                continue
            own = self._facts.get(op.author)
            if own is None:
                own = self._facts[op.author] = {}
            if op.path in own or len(own) >= MAX_FACTS:
                with contextlib.suppress(RefusedOpError):
                    self._admit_fact(op)
                continue
            # What a set that was kept by the rules consists of.
            own[op.path] = op
            self._ops[op.id] = op
            if op.seq > self._highest.get(op.author, 0):
                self._highest[op.author] = op.seq
        self.version += 1

    def _govern(self, op: Op) -> None:
        """Keep an op of an admin, or a join, and note what it makes possible."""
        self._keep(op)
        self.authority_version += 1
        if op.kind in ADMIN_KINDS:
            number = (op.author, op.seq)
            self._numbered[number] = self._numbered.get(number, 0) + 1
        if op.kind == "cert":
            self._certified.add(op.subject)
            if bodies.read_role(op.body) == "admin":
                self._admins.add(op.subject)
        elif op.kind == "join":
            claim = claims.claim_of(op)
            self._claims.setdefault((claim.terms, claim.by), {})[op.author] = claim
            self._claimed[claim.terms] += 1
            self._let_in[op.author] += 1
        elif op.kind == "cfg" and op.path.startswith("invite/"):
            invite = bodies.read_invite(op.body)
            place = (op.path.removeprefix("invite/"), invite.key)
            self._invites[place] = max(invite.uses, self._invites.get(place, 0))

    def _admit_claim(self, claim: Claim) -> Admitted:
        own = self._claims.get((claim.terms, claim.by), {})
        uses = self._invites[claim.terms]
        held = own.get(claim.op.author)
        if held is not None:
            if held.order < claim.order:
                return _HELD  # the box knocked again
            self._drop_claim(held)
            self._govern(claim.op)
            return Admitted(True, (held.op,))
        if len(own) < claims.most_of_member(uses) and self._claimed[claim.terms] < claims.most_of_invite(uses):
            self._govern(claim.op)
            return Admitted(True)
        every = [one for found in self._claims.values() for one in found.values()]
        stay = claims.kept(self._certified, [*every, claim], self._invites)
        if claim.op.id not in stay:
            raise RefusedOpError("quota", "far more boxes than the invite's uses have claimed it, and earlier")
        gone = [one for one in every if one.op.id not in stay]
        for one in gone:
            self._drop_claim(one)
        self._govern(claim.op)
        return Admitted(True, (*(one.op for one in gone), *self._drop_facts_of({one.op.author for one in gone})))

    def _drop_claim(self, claim: Claim) -> None:
        """Take a claim out, and with it its author's leave to speak, if that rested on it."""
        author, place = claim.op.author, (claim.terms, claim.by)
        del self._ops[claim.op.id]
        del self._claims[place][author]
        if not self._claims[place]:
            del self._claims[place]
        self._claimed[claim.terms] -= 1
        self._let_in[author] -= 1
        if not self._let_in[author]:
            del self._let_in[author]

    def _drop_facts_of(self, authors: Iterable[bytes]) -> list[Op]:
        """Take out what was said by those that are not known any more: a box that never knew them takes none of it."""
        gone = [op for key in authors if not self.was_certified(key) for op in self._facts.pop(key, {}).values()]
        for op in gone:
            del self._ops[op.id]
        return gone

    def _admit_fact(self, op: Op) -> Admitted:
        own = self._facts.get(op.author, {})
        held = own.get(op.path)
        if held is not None and (held.seq, held.id) >= (op.seq, op.id):
            return _HELD  # a replay, or a way back
        after = {**own, op.path: op}
        gone = held
        if len(after) > MAX_FACTS:
            # Which facts stay depends on the set alone: those with the highest seq. See docs/fleet-document.md.
            gone = min(after.values(), key=lambda fact: (fact.seq, fact.id))
            if gone is op:
                raise RefusedOpError("quota", f"a box has at most {MAX_FACTS} facts")
            del after[gone.path]
        if gone is not None:
            del self._ops[gone.id]
        self._facts[op.author] = after
        self._keep(op)
        return Admitted(True, () if gone is None else (gone,))

    def _keep(self, op: Op) -> None:
        self._ops[op.id] = op
        self.version += 1
        if op.seq > self._highest.get(op.author, 0):
            self._highest[op.author] = op.seq
