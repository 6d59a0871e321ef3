"""Which claims of an invite are kept where there are far more than it has uses: a pure function of the claims.

Whoever has a token and some member's key can countersign claims without an end, with any time he likes. They must not
fill the disks, and must not push out the claims that others countersigned. So a member's claims of one invite are
bounded first, the earliest stay; then those of the whole invite, and there every countersigner has its turn: its first
claim, then everybody's second. Members that admins certified come before those that were let in by them, and so on.

A claim that is beyond the bounds stays beyond them however many more there are: so it does not matter which came first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fleet.document import bodies
from fleet.document.op import Op

#: Claims kept that one member countersigned, beyond the invite's uses: what is surplus is to be shown.
SURPLUS_OF_MEMBER: Final = 16
#: Claims kept of one invite: so many times its uses, for members that are cut off from one another, and some more.
SHARES: Final = 4
SURPLUS_JOINS: Final = 128

#: An invite's id, and the key that its claims have to prove.
Terms = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Claim:
    """A join op and what it says. The `order` is by the time of the countersignature."""

    op: Op
    terms: Terms
    by: bytes
    order: tuple[int, bytes]


def claim_of(op: Op) -> Claim:
    """What a join op claims."""
    join = bodies.read_join(op.body)
    return Claim(op, (op.path, join.key), join.by, (join.hlc, op.id))


def most_of_member(uses: int) -> int:
    """Boxes that one member can let in with one invite, as far as claims are kept."""
    return uses + SURPLUS_OF_MEMBER


def most_of_invite(uses: int) -> int:
    """Claims that are kept of one invite."""
    return SHARES * uses + SURPLUS_JOINS


def kept(certified: Iterable[bytes], claims: Iterable[Claim], uses: Mapping[Terms, int]) -> dict[bytes, Claim]:
    """The claims that stay, by op id. `certified` are the keys that admins certified.

    A claim whose countersigner is neither certified nor let in by a claim that stays does not stay.
    """
    known = set(certified)
    waiting: dict[bytes, list[Claim]] = {}
    for claim in claims:
        waiting.setdefault(claim.by, []).append(claim)
    room = {terms: most_of_invite(most) for terms, most in uses.items()}
    found: dict[bytes, Claim] = {}
    authors = [key for key in waiting if key in known]
    while authors:
        turns: dict[Terms, list[tuple[int, tuple[int, bytes], Claim]]] = {}
        for by in authors:
            for terms, own in _by_terms(waiting.pop(by)).items():
                first = _first_of_each(own)[: most_of_member(uses[terms])]
                turns.setdefault(terms, []).extend((turn, claim.order, claim) for turn, claim in enumerate(first))
        let_in: dict[bytes, None] = {}
        for terms, line in turns.items():
            line.sort(key=lambda one: one[:2])
            chosen = [claim for _, _, claim in line[: room[terms]]]
            room[terms] -= len(chosen)
            found |= {claim.op.id: claim for claim in chosen}
            let_in |= dict.fromkeys(claim.op.author for claim in chosen if claim.op.author not in known)
        known |= let_in.keys()
        authors = [key for key in let_in if key in waiting]
    return found


def _first_of_each(claims: Iterable[Claim]) -> list[Claim]:
    """Every box's first claim, the earliest first: a box that knocks again takes up no more room."""
    first: dict[bytes, Claim] = {}
    for claim in sorted(claims, key=lambda one: one.order):
        first.setdefault(claim.op.author, claim)
    return list(first.values())


def _by_terms(claims: Iterable[Claim]) -> dict[Terms, list[Claim]]:
    found: dict[Terms, list[Claim]] = {}
    for claim in claims:
        found.setdefault(claim.terms, []).append(claim)
    return found
