"""Which questions find what differs between this box's set of ids and a peer's. Pure: answers in, questions out.

The peer is not believed: a walk asks a bounded number of questions, hears of a bounded number of ids, and holds a
bounded number of both, whatever the answers. It goes depth first, in an order of its own, so that a walk that was cut
short does not begin with the same ids the next time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fleet.gossip import sync_messages as wire
from fleet.gossip.digest_tree import HEX, ID_BYTES, LEAF, MAX_DEPTH, DigestTree, Listing

#: With this many prefixes that differ still to visit, asking for their ids is cheaper than for more digests.
MANY: Final = 64
#: Questions in one walk, and ids that it hears of: 6.4 MB.
MAX_QUESTIONS: Final = 512
MAX_HEARD: Final = 200_000
#: No more questions while this many ids wait to be fetched.
MAX_WANTED: Final = 2 * wire.MAX_IDS
#: What the listing of a branch or a leaf takes at most, about.
LISTING_BYTES: Final = 512


@dataclass(frozen=True)
class AskNodes:
    """Ask for the listings of these prefixes."""

    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class AskIds:
    """Ask for the ids under these prefixes."""

    prefixes: tuple[str, ...]


class Walk:
    """One comparison of `mine` with a peer's tree.

    `wanted` are ids the peer has and this box lacks, `offered` ids it is the other way round with; whoever drives the
    walk takes them out of the lists. `skip(id)` says that an id is not wanted, although this box does not hold it.
    """

    def __init__(self, mine: DigestTree, skip: Callable[[bytes], bool], rng: random.Random) -> None:
        self._mine = mine
        self._skip = skip
        self._rng = rng
        self._stack: list[tuple[str, int]] = []
        self._questions = 0
        self._heard = 0
        self.wanted: Final[list[bytes]] = []
        self.offered: Final[list[bytes]] = []
        #: How many ids were found on one side only, so far.
        self.differing = 0

    def start(self, root: Listing) -> None:
        """Begin with the listing of the peer's root."""
        self._compare("", root)

    @property
    def cut_short(self) -> bool:
        """True when there was more to find than one walk may ask for."""
        return bool(self._stack) and self._spent

    @property
    def _spent(self) -> bool:
        return self._questions >= MAX_QUESTIONS or self._heard >= MAX_HEARD

    def question(self, size: int = wire.MAX_BATCH) -> AskNodes | AskIds | None:
        """What to ask next, so that the answer has about `size` bytes at most.

        None when nothing is left, the walk has asked enough, or enough waits in `wanted`.
        """
        if self._spent or len(self.wanted) >= MAX_WANTED or not self._stack:
            return None
        self._questions += 1
        many = len(self._stack) >= MANY
        most = min(wire.MAX_IDS, size // ID_BYTES)
        width = min(wire.MAX_PREFIXES, max(1, size // LISTING_BYTES))
        first, count = self._stack.pop()
        prefixes = [first]
        lists = self._lists(first, count, most, many)
        room = most - count
        while self._stack and len(prefixes) < width:
            prefix, count = self._stack[-1]
            if self._lists(prefix, count, most, many) != lists or (lists and count > room):
                break
            self._stack.pop()
            prefixes.append(prefix)
            room -= count
        return AskIds(tuple(prefixes)) if lists else AskNodes(tuple(prefixes))

    def _lists(self, prefix: str, count: int, most: int, many: bool) -> bool:
        """Whether to ask for the ids under a prefix at once, of which the peer says that there are `count`."""
        if len(prefix) >= MAX_DEPTH:
            return True
        return count <= most and (count <= LEAF or many or 2 * self._mine.count(prefix) <= count)

    def nodes(self, question: AskNodes, listings: Sequence[Listing]) -> None:
        """Take the answer to AskNodes."""
        for prefix, listing in zip(question.prefixes, listings, strict=True):
            self._compare(prefix, listing)

    def ids(self, question: AskIds, lists: Sequence[Sequence[bytes] | None]) -> None:
        """Take the answer to AskIds; a prefix that had grown too large meanwhile is left for the next walk."""
        for prefix, theirs in zip(question.prefixes, lists, strict=True):
            if theirs is not None:
                self._differ(prefix, theirs)

    def _compare(self, prefix: str, listing: Listing) -> None:
        if not listing.digests:
            self._differ(prefix, listing.ids)
            return
        deeper = []
        for digit, digest, count in zip(HEX, listing.digests, listing.counts, strict=True):
            child = prefix + digit
            if digest == self._mine.digest(child):
                continue
            if count == 0:
                self._offer(self._mine.ids(child))
            else:
                deeper.append((child, count))
        self._rng.shuffle(deeper)
        self._stack += deeper

    def _differ(self, prefix: str, theirs: Sequence[bytes]) -> None:
        self._heard += len(theirs)
        known = set(theirs)
        self._offer(op_id for op_id in self._mine.ids(prefix) if op_id not in known)
        missing = [op_id for op_id in theirs if op_id not in self._mine and not self._skip(op_id)]
        self.differing += len(missing)
        self.wanted.extend(missing)

    def _offer(self, ids: Iterable[bytes]) -> None:
        before = len(self.offered)
        self.offered.extend(ids)
        self.differing += len(self.offered) - before
