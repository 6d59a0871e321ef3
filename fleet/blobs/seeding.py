"""Super-seeding: what the first holder of a blob shows to whom, so that no block is sent twice before all are. Pure.

A holder that shows all it has is asked by many for the same blocks. One that nobody else could replace (`alone`) shows
its followers an empty bitfield instead, wants a turn for each of them on their behalf (`Slots.want`, when they come and
after each turn), and with the turn tells them of as many blocks as it is worth: those that the fewest were told of.
Once every block is with somebody it shows everything, and is a source like any other.

Source: J. Hoffman, "Superseeding" (BEP 16). Departure: boxes of a fleet do not cheat, so a follower need not prove that
it has passed a block on before it is told of the next.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.rarity import Rarity, indices, mask_of, pick


def alone(blocks: int, others: Iterable[Bitfield]) -> bool:
    """Whether all other boxes together, going by what they are known to hold, lack some block: then super-seed."""
    held = 0
    for bits in others:
        held |= mask_of(bits)
    return held.bit_count() < blocks


@dataclass(slots=True)
class _Follower:
    """Sets of blocks: what it has or was told of before, what it was told of in this turn and not sent, and what it
    was sent."""

    knows: int = 0
    told: int = 0
    sent: int = 0


class SuperSeeder:
    """What one holder has shown and sent of one blob. Peers are PeerIDs, blocks indices. The caller locks."""

    def __init__(self, blocks: int, rng: random.Random) -> None:
        self._all = (1 << blocks) - 1
        self._rng = rng
        self._followers: dict[str, _Follower] = {}
        #: How many followers were sent each block, or hold it from elsewhere.
        self._given = Rarity()
        #: What somebody has been told of in a turn that is not over.
        self._pending = Rarity()

    @property
    def done(self) -> bool:
        """Whether each block is with somebody else: now show everything to everybody, with one bitfield."""
        return self._given.known == self._all

    def peer_up(self, peer: str, bits: Bitfield | None = None) -> None:
        """A follower is there; `bits` is what it holds already, where that is known."""
        self.peer_down(peer)
        held = 0 if bits is None else mask_of(bits) & self._all
        self._followers[peer] = _Follower(held, 0, held)
        self._given.add(held)

    def peer_have(self, peer: str, index: int) -> None:
        """A follower is known to hold this block, from here or not. Knowing it helps, but is not needed."""
        self._hold(peer, index)

    def peer_down(self, peer: str) -> None:
        """A follower is gone; what only that one was given is to be sent again, since it may never come back."""
        follower = self._followers.pop(peer, None)
        if follower is not None:
            self._given.remove(follower.sent)
            self._pending.remove(follower.told)

    def reveal(self, peer: str, count: int) -> tuple[int, ...]:
        """The blocks to tell this follower of, at most `count`, now that it has a turn worth that many.

        None that it holds or was told of. Fewer, or none, when all that is left is on its way to others.
        """
        follower = self._followers.get(peer)
        if follower is None:
            return ()
        fresh = self._all & ~(self._given.known | self._pending.known | follower.knows)
        chosen = 0
        for _ in range(min(count, fresh.bit_count())):
            bit = 1 << pick(fresh, self._rng)
            chosen |= bit
            fresh ^= bit
        follower.knows |= chosen
        follower.told |= chosen
        self._pending.add(chosen)
        return tuple(indices(chosen))

    def sent(self, peer: str, index: int) -> None:
        """The follower was sent the whole block."""
        self._hold(peer, index)

    def turn_over(self, peer: str) -> None:
        """The follower's turn has ended: what it was told of and not sent may be told to others too."""
        follower = self._followers.get(peer)
        if follower is not None:
            self._pending.remove(follower.told)
            follower.told = 0

    def _hold(self, peer: str, index: int) -> None:
        follower = self._followers.get(peer)
        if follower is None or index < 0:
            return
        bit = 1 << index & self._all
        self._given.add(bit & ~follower.sent)
        self._pending.remove(bit & follower.told)
        follower.knows |= bit
        follower.sent |= bit
        follower.told &= ~bit
