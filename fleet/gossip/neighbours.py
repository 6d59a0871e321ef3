"""Which boxes of the fleet a box keeps links to. Pure: the time, what is linked and the dice are arguments.

Every box dials the two that follow it in the order of all keys, which closes a ring round the fleet, and some at
random, which keeps it together when boxes on the ring go off. A box that falls short of twelve links, counting those
that others dialled, dials more; one that has enough changes nothing.

No island stays: whoever is off is replaced, and the true successors on the ring, off or not, are tried again for
ever, so that two halves of a fleet that each got along without the other find together.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

#: Links a box has at least, where the fleet is large enough; half of them it dials itself.
DEGREE: Final = 12
DIALLED: Final = DEGREE // 2
#: Those that follow on the ring.
SUCCESSORS: Final = 2
#: With more links than this the surplus is closed. Far above DEGREE, so that joining boxes do not push others out.
MAX_LINKS: Final = 3 * DEGREE
#: Seconds before a box that could not be reached is tried again: doubling, up to MAX_RETRY.
FIRST_RETRY: Final = 5.0
MAX_RETRY: Final = 120.0
#: Seconds between attempts at one more box at random, where links are missing.
_TRIES: Final = 4 * DEGREE


@dataclass(frozen=True)
class Plan:
    """What to do now: boxes to dial, and links to close because there are far too many."""

    dial: tuple[str, ...] = ()
    close: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Absent:
    """A box that did not answer: how often in a row, and when to try again (seconds)."""

    failures: int
    retry_at: float


class Neighbours:
    """The choice of one box. `members` is always sorted, may name this box, and may change from call to call."""

    def __init__(self, own: str, rng: random.Random) -> None:
        self._own = own
        self._rng = rng
        self._chosen: dict[str, None] = {}
        self._absent: dict[str, _Absent] = {}

    @property
    def chosen(self) -> tuple[str, ...]:
        """The boxes this one dials and keeps."""
        return tuple(self._chosen)

    def failed(self, peer: str, now: float) -> None:
        """A chosen box could not be reached, or has closed the link because it has too many."""
        known = self._absent.get(peer)
        failures = 1 if known is None else known.failures + 1
        delay = min(FIRST_RETRY * 2.0 ** min(failures - 1, 10), MAX_RETRY) * self._rng.uniform(0.75, 1.25)
        self._absent[peer] = _Absent(failures, now + delay)

    def reached(self, peer: str) -> None:
        """A link to this box has come up."""
        self._absent.pop(peer, None)

    def plan(self, members: Sequence[str], linked: Collection[str], now: float) -> Plan:
        """What to do, given the links there are. Call it when they or the members change, and every few seconds.

        Dials nobody that failed a short while ago, and chooses nobody new while there are links enough.
        """
        others = len(members) - self._is_member(members, self._own)
        self._forget_strangers(members)
        ring = self._successors(members, now)
        if others <= DEGREE:
            wanted = [peer for peer in members if peer != self._own]
            self._chosen = dict.fromkeys(wanted)
            return Plan(self._due(wanted, linked, now))
        kept = (peer for peer in self._chosen if peer in linked or self._may_try(peer, now))
        self._chosen = dict.fromkeys([*ring, *kept])
        # A box that failed before counts again only once its link is up.
        live = {*linked, *(peer for peer in self._chosen if peer not in self._absent)}
        missing = DIALLED - sum(peer in live for peer in self._chosen)
        # Beyond its own share a box dials half of what is missing: others are about to dial it as well.
        missing = max(missing, (DEGREE - len(live) + 1) // 2)
        self._choose(members, missing, live, now)
        return Plan(self._due(self._chosen, linked, now), self._surplus(members, linked))

    def _forget_strangers(self, members: Sequence[str]) -> None:
        """Whoever is no member any more is neither dialled nor remembered."""
        for table in (self._chosen, self._absent):
            for peer in [peer for peer in table if not self._is_member(members, peer)]:
                del table[peer]

    def _is_member(self, members: Sequence[str], peer: str) -> bool:
        index = bisect_left(members, peer)
        return index < len(members) and members[index] == peer

    def _may_try(self, peer: str, now: float) -> bool:
        absent = self._absent.get(peer)
        return absent is None or absent.retry_at <= now

    def _successors(self, members: Sequence[str], now: float) -> list[str]:
        """The next two on the ring, and where one of them is off, the next that is not known to be off as well."""
        start = bisect_right(members, self._own)
        found: list[str] = []
        present = 0
        for step in range(min(len(members), _TRIES)):
            peer = members[(start + step) % len(members)]
            if peer == self._own:
                break
            here = self._may_try(peer, now)
            if here or step < SUCCESSORS:
                found.append(peer)
            present += here
            if present >= SUCCESSORS:
                break
        return found

    def _choose(self, members: Sequence[str], missing: int, live: set[str], now: float) -> None:
        for _ in range(_TRIES):
            if missing <= 0:
                return
            peer = self._rng.choice(members)
            if peer != self._own and peer not in live and peer not in self._chosen and self._may_try(peer, now):
                self._chosen[peer] = None
                live.add(peer)
                missing -= 1

    def _due(self, wanted: Collection[str], linked: Collection[str], now: float) -> tuple[str, ...]:
        return tuple(peer for peer in wanted if peer not in linked and self._may_try(peer, now))

    def _surplus(self, members: Sequence[str], linked: Collection[str]) -> tuple[str, ...]:
        """Links that others dialled, at random, but never one between neighbours on the ring."""
        excess = len(linked) - MAX_LINKS
        if excess <= 0:
            return ()
        start = bisect_left(members, self._own)
        before = {members[(start - step) % len(members)] for step in range(1, SUCCESSORS + 1)}
        closable = sorted(peer for peer in linked if peer not in self._chosen and peer not in before)
        return tuple(self._rng.sample(closable, min(excess, len(closable))))
