"""Which block of a blob to ask of which source next: rarest first, each asked once, late ones asked again. Pure.

Bitfields, answers and the time are arguments; there is no I/O. Not thread-safe: the caller locks.
"""

from __future__ import annotations

import random
from typing import Final

from fleet.blobs.bitfield import Bitfield

#: Blocks to have asked of one source at a time: `Picker.depth` stays between them.
MIN_DEPTH: Final = 2
MAX_DEPTH: Final = 8


class Picker:
    """What is missing of one blob, who has it, and what was asked of whom.

    Peers are named by PeerID, blocks by index, times are seconds of one monotonic clock.
    """

    def __init__(self, blocks: int, have: Bitfield, rng: random.Random) -> None: ...

    # --- sources ------------------------------------------------------------------------------------------------------

    def peer_up(self, peer: str, bits: Bitfield, *, rtt: float | None = None, share: float = 1.0) -> None:
        """A source is there and holds `bits`; once more with other `bits` replaces what it was known to hold.

        `rtt` in seconds. `share` (above 0, to 1) is what part of a usual source's pace to expect until this one's is
        measured: less for a relayed or capped one. A banned peer stays banned.
        """

    def peer_have(self, peer: str, index: int) -> None:
        """A source has one more block. Of a peer that is not up, or an index out of range: ignored."""

    def peer_lacks(self, peer: str, index: int) -> None:
        """A source has withdrawn a block that it said it had; what was asked of it for that is free again."""

    def peer_down(self, peer: str) -> None:
        """A source is gone; what it was asked for is free again. A ban outlasts it."""

    # --- the choice ---------------------------------------------------------------------------------------------------

    def wants(self, peer: str, now: float) -> bool:
        """Whether `next` would name a block: whether to ask that source for a turn (see fleet.blobs.slots)."""
        raise NotImplementedError

    def depth(self, peer: str) -> int:
        """How many blocks to have asked of that source at a time: enough to keep it busy, MIN_DEPTH to MAX_DEPTH."""
        raise NotImplementedError

    def next(self, peer: str, now: float) -> int | None:
        """The block to ask of that source now; it counts as asked. None: nothing, now.

        Rarest first, ties at random, and none that another source was asked for, but for two cases: its source is late
        (it crawls), or it is the end and this source would have it here sooner (end-game; at most two are asked).
        """
        raise NotImplementedError

    # --- what became of it --------------------------------------------------------------------------------------------

    def received(self, peer: str, index: int, now: float) -> bool:
        """The block came from that source and was checked and written. False: it was here already, so it was wasted."""
        raise NotImplementedError

    def failed(self, peer: str, index: int) -> None:
        """That source will not send the block (refused, cancelled, not written): it is free again."""

    def bad(self, peer: str, index: int) -> None:
        """What that source sent did not match the manifest: it is banned for this blob, whatever else was asked of it
        is free again, and what still comes from it is to be thrown away."""

    def to_cancel(self, index: int) -> tuple[str, ...]:
        """Which sources were asked for a block that is here now, each named once: tell them not to send it."""
        raise NotImplementedError

    # --- how it goes --------------------------------------------------------------------------------------------------

    @property
    def banned(self) -> frozenset[str]:
        """The peers that sent a bad block."""
        raise NotImplementedError

    @property
    def remaining(self) -> int:
        """Blocks that are not here yet."""
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """Blocks a second over the last seconds in which any came; 0.0 before the first."""
        raise NotImplementedError

    def asked(self, peer: str) -> tuple[int, ...]:
        """What was asked of that source and has not come, oldest first."""
        raise NotImplementedError

    def crawling(self, now: float) -> frozenset[str]:
        """The sources that are later with a block than they should be."""
        raise NotImplementedError

    def eta(self, now: float) -> float | None:
        """Seconds until the last block, going by `rate`; 0.0 when all are here, None where nothing has come lately."""
        raise NotImplementedError
