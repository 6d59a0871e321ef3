"""Who is an admin, of what rank, up to which op; who is revoked; who is a member. A pure fold over the set of ops.

Ranks: recovery keys 0, the genesis' admins 1, whoever an admin certifies one more than that admin. A revocation by a
higher rank cuts a lower one off; between equals both suspend one another, until a higher rank settles it. An author
that signs two ops with one seq (a fork) is not believed from there on, except where it closes doors.

Nothing depends on the order in which ops arrived, and no clock is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import Final, Literal

from fleet.document import bodies
from fleet.document.op import Op
from fleet.identity.genesis import Genesis

#: Higher than any seq: nothing is cut off.
NO_LIMIT: Final = 1 << 60

How = Literal["cert", "join"]

_SEQ_AND_ID: Final = attrgetter("seq", "id")


@dataclass(frozen=True, slots=True)
class Membership:
    """How a key became a member, and the op that says so; `labels` are those of the invite it came in with."""

    how: How
    op: Op
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Authority:
    """The standing of every key. `cut` and `forked` hold seqs: the last that counts, the first that does not."""

    rank: Mapping[bytes, int]
    cut: Mapping[bytes, int]
    forked: Mapping[bytes, int]
    revoked: Mapping[bytes, tuple[Op, ...]]
    members: Mapping[bytes, Membership]
    surplus_joins: tuple[Op, ...]
    #: Boxes that took part in two claims of one use, winner and losers, by invite id.
    contested: Mapping[str, tuple[Op, ...]] = field(default_factory=dict)

    def counts(self, op: Op) -> bool:
        """Whether an admin's op is to be believed."""
        return (
            op.author in self.rank
            and op.seq <= self.cut.get(op.author, NO_LIMIT)
            and op.seq < self.forked.get(op.author, NO_LIMIT)
        )

    def closes_a_door(self, op: Op) -> bool:
        """Whether an op that denies is to be believed: also one from a forked branch, but none from after a cut."""
        return op.author in self.rank and op.seq <= self.cut.get(op.author, NO_LIMIT)

    def is_admin(self, key: bytes) -> bool:
        """Whether what the key writes next would count."""
        return key in self.rank and key not in self.cut and key not in self.forked


def fold_authority(genesis: Genesis, ops: Iterable[Op]) -> Authority:
    """The authority that follows from a set of ops, in any order; facts of boxes among them are ignored."""
    by_author: dict[bytes, list[Op]] = {}
    joins: list[Op] = []
    for op in ops:
        if op.kind == "join":
            joins.append(op)
        elif op.kind != "node":
            by_author.setdefault(op.author, []).append(op)
    for own in by_author.values():
        own.sort(key=_SEQ_AND_ID)
    ranks = _Ranks(by_author, _forks(by_author))
    ranks.climb(genesis)
    certs: dict[bytes, Op] = {}
    for op in ranks.member_certs():
        certs.setdefault(op.subject, op)
    members = {key: Membership("cert", op) for key, op in certs.items()}
    surplus, contested = _let_in(joins, ranks.invites(), members, ranks.revokes)
    return Authority(
        rank=ranks.rank,
        cut=ranks.all_cuts(),
        forked=ranks.forked,
        revoked={key: tuple(sorted(found, key=lambda op: op.id)) for key, found in ranks.revokes.items()},
        members=members,
        surplus_joins=surplus,
        contested=contested,
    )


def _forks(by_author: Mapping[bytes, Sequence[Op]]) -> dict[bytes, int]:
    """Authors that signed two ops with one seq, and the first such seq."""
    forked = {}
    for author, own in by_author.items():
        for one, other in pairwise(own):
            if one.seq == other.seq and one.id != other.id:
                forked[author] = one.seq
                break
    return forked


class _Ranks:
    """Walks down from rank 0, a rank at a time: first what the rank revokes, then whom it certifies."""

    def __init__(self, by_author: Mapping[bytes, Sequence[Op]], forked: Mapping[bytes, int]) -> None:
        self.rank: dict[bytes, int] = {}
        self.forked = forked
        self.revokes: dict[bytes, list[Op]] = {}
        self._by_author = by_author
        self._cut_from_above: dict[bytes, int] = {}
        self._cut_by_equals: dict[bytes, int] = {}
        self._between_equals: list[Op] = []

    def climb(self, genesis: Genesis) -> None:
        """Find every admin's rank and cut."""
        level = set(genesis.recovery)
        self.rank = dict.fromkeys(level, 0)
        pending = set(genesis.admins)
        rank = 0
        while True:
            self._revoke(level, rank)
            below = pending | self._certified_by(level)
            pending = set()
            level = {key for key in below if key not in self.rank}
            if not level:
                return
            rank += 1
            self.rank |= dict.fromkeys(level, rank)

    def _revoke(self, level: set[bytes], rank: int) -> None:
        for author in level:
            for op in self._by_author.get(author, ()):
                if op.kind != "revoke" or op.seq > self._cut_from_above.get(author, NO_LIMIT):
                    continue
                subject = op.subject
                theirs = self.rank.get(subject)
                if theirs is not None and theirs < max(rank, 1):
                    continue  # nobody revokes a higher rank, and nobody at all a recovery key
                equal = theirs is not None
                cuts = self._cut_by_equals if equal else self._cut_from_above
                cuts[subject] = min(cuts.get(subject, NO_LIMIT), bodies.read_keep(op.body))
                self.revokes.setdefault(subject, []).append(op)
                if equal:
                    self._between_equals.append(op)

    def _certified_by(self, level: set[bytes]) -> set[bytes]:
        return {
            op.subject
            for author in level
            for op in self._by_author.get(author, ())
            if op.kind == "cert" and bodies.read_role(op.body) == "admin" and self._counts(op)
        }

    def _counts(self, op: Op) -> bool:
        return op.seq <= self._cut(op.author) and op.seq < self.forked.get(op.author, NO_LIMIT)

    def _cut(self, author: bytes) -> int:
        return min(self._cut_from_above.get(author, NO_LIMIT), self._cut_by_equals.get(author, NO_LIMIT))

    def all_cuts(self) -> dict[bytes, int]:
        """The last seq that counts of each revoked key."""
        return {key: self._cut(key) for key in self.revokes}

    def _vouching(self) -> dict[bytes, int]:
        """The last seq up to which an admin's certificates of members hold.

        A fork does not void them, and a revocation between equals only where the revoker itself is beyond reproach:
        otherwise one rogue admin could hide the fleet by revoking everybody who certified it.
        """
        last = dict(self._cut_from_above)
        for op in self._between_equals:
            if op.author not in self.forked and op.author not in self.revokes:
                subject = op.subject
                last[subject] = min(last.get(subject, NO_LIMIT), bodies.read_keep(op.body))
        return last

    def member_certs(self) -> list[Op]:
        """The certificates of members that hold, in a fixed order."""
        return [op for op in self._vouched if op.kind == "cert" and bodies.read_role(op.body) == "member"]

    def invites(self) -> dict[str, list[tuple[Op, bodies.Invite]]]:
        """The invites that were ever good, by id; one that was superseded since bounds the uses, see `_let_in`."""
        found: dict[str, list[tuple[Op, bodies.Invite]]] = {}
        for op in self._vouched:
            if op.kind == "cfg" and op.path.startswith("invite/"):
                found.setdefault(op.path.removeprefix("invite/"), []).append((op, bodies.read_invite(op.body)))
        return found

    @cached_property
    def _vouched(self) -> list[Op]:
        last = self._vouching()
        return [
            op
            for author in sorted(self.rank)
            for op in self._by_author.get(author, ())
            if op.seq <= last.get(author, NO_LIMIT)
        ]


def _let_in(
    joins: Sequence[Op],
    invites: Mapping[str, Sequence[tuple[Op, bodies.Invite]]],
    members: dict[bytes, Membership],
    revoked: Container[bytes],
) -> tuple[tuple[Op, ...], dict[str, tuple[Op, ...]]]:
    """Add to `members` who joined, the earliest countersignature first; the others are the surplus.

    A claim is looked at once its countersigner is in: by the clock alone, a box that was let in by one whose clock is
    far ahead (which nobody follows, see `clock`) could itself let nobody in. What a revoked box countersigned counts
    where there is room, and comes after all else: a member that backdates to push others out is revoked, and they are
    back.
    """
    waiting: dict[bytes, list[tuple[bool, int, bytes, Op, Sequence[bodies.Invite]]]] = {}
    for op in joins:
        join = bodies.read_join(op.body)
        good = [
            invite
            for _, invite in invites.get(op.path, ())
            if invite.key == join.key and invite.bound_to in (None, op.author)
        ]
        if good:
            waiting.setdefault(join.by, []).append((join.by in revoked, join.hlc, op.id, op, good))
    ready = [claim for key in members for claim in waiting.pop(key, ())]
    heapq.heapify(ready)
    used: dict[str, set[bytes]] = {}
    claims: list[Op] = []
    surplus: list[Op] = []
    while ready:
        _, _, _, op, terms = heapq.heappop(ready)
        claims.append(op)
        takers = used.setdefault(op.path, set())
        if op.author not in takers and len(takers) >= min(invite.uses for invite in terms):
            surplus.append(op)
            continue
        takers.add(op.author)
        if op.author not in members:
            members[op.author] = Membership("join", op, max(invite.labels for invite in terms))
            for claim in waiting.pop(op.author, ()):
                heapq.heappush(ready, claim)
    # An admin's certificate or revocation settles the matter, and so does another invite.
    surplus = [op for op in surplus if op.author not in members and op.author not in revoked]
    contested = {path: tuple(op for op in claims if op.path == path) for path in {op.path for op in surplus}}
    return tuple(surplus), contested
