"""The contribution accounts of the fleet document as they are now, for routing, queues and the leaderboard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from agent.membership import Membership, peer_id_of
from fleet.contribution import Accounts, Score
from fleet.document.facts import read_box
from fleet.document.op import Op
from fleet.document.replica import Change, Replica
from fleet.errors import FleetError
from fleet.identity.keys import public_key_from_peer_id

_PREFIX: Final = "used/"
#: Scores that are computed, and accounts that are read, between two turns of other tasks: a few milliseconds.
_AT_A_TIME: Final = 64
_READ_AT_A_TIME: Final = 256
#: Boxes of a leaderboard.
MAX_LISTED: Final = 1000


class Contributions:
    """Who did how much for others, by the fleet document as it is now. Belongs to one trio run."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._accounts = Accounts(self._is_member)
        self._replica: Replica | None = None
        #: What the document held before, as far as it has not been read yet.
        self._unread: list[tuple[bytes, str]] = []
        membership.subscribe(self._changed)

    def record(self, peer_id: str) -> float:
        """How well a box has done by others, 0 to 1, for routing; 0.5 for one of which nothing is known."""
        return self._score(peer_id).record

    def weight(self, peer_id: str) -> float:
        """How much a box counts for where it waits with others of its class, 1 to 2."""
        return self._score(peer_id).weight

    def _score(self, peer_id: str) -> Score:
        try:
            key = public_key_from_peer_id(peer_id)
        except FleetError:
            return Score(b"")
        self._read()
        return self._accounts.score(key)

    async def leaderboard(self) -> list[dict[str, object]]:
        """The boxes that did something for others, the most points first, at most MAX_LISTED; in plain values."""
        self._read()
        while self._unread:
            await trio.lowlevel.checkpoint()
            self._read()
        found: list[Score] = []
        for count, one in enumerate(self._accounts.scores(), 1):
            found.append(one)
            if count % _AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
        found.sort(key=lambda one: (-one.points, one.peer))
        return [self._plain(rank, one) for rank, one in enumerate(found[:MAX_LISTED], 1)]

    def _plain(self, rank: int, found: Score) -> dict[str, object]:
        peer_id = peer_id_of(found.peer)
        return {
            "rank": rank,
            "peer_id": peer_id,
            "name": self._membership.name_of(peer_id) or f"…{peer_id[-8:]}",
            "self": found.peer == self._membership.identity.public_key,
            "tier": found.tier,
            "points": round(found.points, 3),
            "jobs": found.jobs,
            "tokens": found.tokens,
            "failures": found.failures,
            "consumers": found.consumers,
            "record": round(found.record, 4),
            "weight": round(found.weight, 4),
        }

    def _is_member(self, key: bytes) -> bool:
        replica = self._membership.replica
        if replica is None:
            return False
        governance = replica.governance
        return key in governance.authority.members and governance.firewall.standing(key).admitted

    def _read(self) -> None:
        """Take in some of what the document held before the first change that this object was told of.

        The accounts of ten thousand boxes would hold up everything else for seconds if they were read at once.
        """
        replica = self._membership.replica
        if replica is None:
            return
        if replica is not self._replica:
            self._replica = replica
            self._unread = [
                (author, path)
                for author, facts in replica.ops.facts().items()
                for path in facts
                if path.startswith(_PREFIX)
            ]
        for author, path in self._unread[-_READ_AT_A_TIME:]:
            self._take(replica, author, (path,))
        del self._unread[-_READ_AT_A_TIME:]

    def _changed(self, change: Change) -> None:
        replica = self._membership.replica
        if replica is None or replica is not self._replica:
            return  # nobody has asked yet
        if change.governance:
            self._accounts.forget_scores()
        for op in (*change.added, *change.dropped):
            if op.kind == "node":
                self._take(replica, op.author, (op.path,))

    def _take(self, replica: Replica, author: bytes, paths: Iterable[str]) -> None:
        """What an author says now at some paths."""
        facts = replica.facts_of(author)
        for path in paths:
            if not path.startswith(_PREFIX):
                continue
            op: Op | None = facts.get(path)
            used = read_box(author, {path: op}).used if op is not None else ()
            if used:
                self._accounts.put(author, used[0])
            else:
                self._take_back(author, path)

    def _take_back(self, author: bytes, path: str) -> None:
        try:
            self._accounts.take_back(author, bytes.fromhex(path.removeprefix(_PREFIX)))
        except ValueError:
            return  # no key stands there, so nothing was ever taken from there
