"""Super-seeding: what the first holder of a blob reveals to whom, so that it sends each block once before any twice. Pure.

A holder that shows all it has is asked for the same blocks by many. One that is alone with the blob (see `alone`)
shows a follower an empty bitfield instead, and with each turn (see fleet.blobs.slots) as many blocks as the turn is
worth: those that the fewest were given. Once each block is with somebody it shows everything and is a source like any
other.

Source: J. Hoffman, "Superseeding", BEP 16. Departure: boxes of a fleet do not cheat, so the next block is not held
back until the last one was seen elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from fleet.blobs.bitfield import Bitfield


def alone(blocks: int, others: Iterable[Bitfield]) -> bool:
    """Whether nobody else is known to hold the whole blob and no two others hold it between them: then super-seed."""
    raise NotImplementedError


class SuperSeeder:
    """What one holder has revealed and sent of one blob. Peers are PeerIDs, blocks indices. The caller locks."""

    def __init__(self, blocks: int, rng: random.Random) -> None: ...

    @property
    def done(self) -> bool:
        """Whether each block is with somebody else: now show everything to everybody, with one bitfield."""
        raise NotImplementedError

    def peer_up(self, peer: str, bits: Bitfield | None = None) -> None:
        """A follower is there; `bits` is what it holds already, where that is known."""

    def peer_have(self, peer: str, index: int) -> None:
        """Somebody else is known to hold this block, from us or not. Knowing it is of use, but not needed."""

    def peer_down(self, peer: str) -> None:
        """A follower is gone: what nobody else was given counts as not sent."""

    def reveal(self, peer: str, count: int) -> tuple[int, ...]:
        """The blocks to tell this follower of, at most `count`, now that it has a turn worth that many.

        Blocks that were revealed to it and not sent count towards `count`. Nothing of what it holds or was given.
        """
        raise NotImplementedError

    def sent(self, peer: str, index: int) -> None:
        """The follower was sent the whole block."""
