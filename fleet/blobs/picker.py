"""Which block of a blob to ask of which source next: rarest first, each asked once, late ones asked again. Pure.

Bitfields, answers and the time are arguments; there is no I/O. Not thread-safe: the caller locks.

Source: B. Cohen, "Incentives Build Robustness in BitTorrent" (2003) for rarest first and the end-game. Departure: in
the end-game a block is asked of a second source only where that one would have it here sooner: where a whole fleet
fetches at once, every block that is sent twice delays another.
"""

from __future__ import annotations

import random
from statistics import median_low
from typing import Final

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.intake import Intake
from fleet.blobs.meter import Meter
from fleet.blobs.rarity import Rarity, indices, mask_of, pick
from fleet.blobs.source import Source

#: A block is late after this many times what one takes at a usual source, but not within LEAST_PATIENCE seconds.
LATE: Final = 4.0
LEAST_PATIENCE: Final = 2.0
#: Seconds until a block is late where no source has been measured.
FIRST_PATIENCE: Final = 15.0
#: Seconds a block takes at a source that has not been measured, where none has been.
FIRST_PACE: Final = 1.0
#: Seconds between looks at who is late.
LOOK: Final = 0.5
#: What a share counts as at least.
LEAST_SHARE: Final = 0.01
#: Sources that one block is asked of at a time, those that are late not counted.
ASKERS: Final = 2


class Picker:
    """What is missing of one blob, who has it, and what was asked of whom.

    Peers are named by PeerID, blocks by index, times are seconds of one monotonic clock. A call costs some microseconds
    at 1,024 blocks, and memory is about a kilobyte a source for each 8,192 blocks.
    """

    def __init__(self, blocks: int, have: Bitfield, rng: random.Random) -> None:
        self._blocks = blocks
        self._rng = rng
        self._missing = ((1 << blocks) - 1) & ~mask_of(have)
        #: Missing and not asked of anybody; and missing and not asked of any source that is in time.
        self._unasked = self._free = self._missing
        #: Whom each outstanding block was asked of; blocks that have come meanwhile stay until `to_cancel`.
        self._askers: dict[int, list[str]] = {}
        self._sources: dict[str, Source] = {}
        #: How many sources were asked for something and are not crawling.
        self._sending = 0
        self._banned: set[str] = set()
        self._rarity = Rarity()
        self._meter = Meter()
        self._intake = Intake()
        self._usual: float | None = None
        self._looked = float("-inf")
        self._now = 0.0

    # --- sources ------------------------------------------------------------------------------------------------------

    def peer_up(self, peer: str, bits: Bitfield, *, rtt: float | None = None, share: float = 1.0) -> None:
        """A source is there and holds `bits`; once more with other `bits` replaces what it was known to hold.

        `rtt` in seconds. `share` (above 0, to 1) is what part of a usual source's pace to expect until this one's is
        measured: less for a relayed or capped one. A banned peer stays banned.
        """
        if peer in self._banned:
            return
        mask = mask_of(bits) & self._missing
        source = self._sources.get(peer)
        if source is None:
            self._sources[peer] = Source(mask, rtt or 0.0, max(share, LEAST_SHARE))
        else:
            self._rarity.remove(source.bits)
            source.bits, source.share = mask, max(share, LEAST_SHARE)
            source.rtt = source.rtt if rtt is None else rtt
            for index in indices(source.asked_mask & self._missing & ~mask):
                self._drop(peer, source, index)
        self._rarity.add(mask)

    def peer_have(self, peer: str, index: int) -> bool:
        """A source has one more block; whether that is one to ask for. Of a peer that is not up, or an index out of
        range: ignored."""
        source = self._sources.get(peer)
        if source is None or not 0 <= index < self._blocks:
            return False
        bit = 1 << index
        if not bit & self._missing or bit & source.bits:
            return False
        source.bits |= bit
        self._rarity.add(bit)
        return bit & self._free != 0

    def peer_lacks(self, peer: str, index: int) -> None:
        """A source has withdrawn a block that it said it had; what was asked of it for that is free again."""
        source = self._sources.get(peer)
        if source is None or not 0 <= index < self._blocks or not source.bits >> index & 1:
            return
        source.bits ^= 1 << index
        self._rarity.remove(1 << index)
        self._drop(peer, source, index)

    def peer_down(self, peer: str) -> None:
        """A source is gone; what it was asked for is free again. A ban outlasts it."""
        source = self._sources.pop(peer, None)
        if source is None:
            return
        self._rarity.remove(source.bits)
        for index in list(source.asked):
            self._drop(peer, source, index)

    # --- the choice ---------------------------------------------------------------------------------------------------

    def wants(self, peer: str, now: float) -> bool:
        """Whether to ask that source for a turn (see fleet.blobs.slots): it has something that is to be asked of it,
        and not enough others are sending (see fleet.blobs.intake). Ask again for all sources when one has sent all it
        was asked for.
        """
        source = self._sources.get(peer)
        if source is None or self._enough(source) or not (self._open(source, now) or self._sooner(source, now)):
            return False
        source.hoped = True
        return True

    def depth(self, peer: str) -> int:
        """How many blocks to have asked of that source at a time: enough to keep it busy, 1 of a crawler, at most 8."""
        source = self._sources.get(peer)
        return 0 if source is None else source.depth

    def next(self, peer: str, now: float) -> int | None:
        """The block to ask of that source now; it counts as asked. None: nothing, now.

        Rarest first, ties at random, and none that another source was asked for, but for two cases: its source is late
        (it crawls), or it is the end and this source would have it here sooner (end-game; at most two are asked).
        Nothing, too, where the turn that this source gives was wanted and by now enough others are sending. One that
        was not wanted is used: it comes from a super-seeder, and what that shows goes to nobody else meanwhile.
        """
        source = self._sources.get(peer)
        if source is None:
            return None
        chosen = 0
        if not (source.hoped and self._enough(source)):
            chosen = self._open(source, now) or self._sooner(source, now)
        if not chosen:
            source.hoped = False
            return None
        index = self._choose(chosen)
        self._sending -= source.counts
        source.ask(index, now)
        self._sending += source.counts
        self._askers.setdefault(index, []).append(peer)
        self._unasked &= ~(1 << index)
        if not source.late:
            self._free &= ~(1 << index)
        return index

    def _choose(self, mask: int) -> int:
        return pick(self._rarity.rarest(mask), self._rng)

    def _enough(self, source: Source) -> bool:
        """Whether enough other sources are sending for this one not to be asked."""
        return not source.asked and self._intake.full(self._sending)

    def _open(self, source: Source, now: float) -> int:
        """The blocks that are free to be asked of this source."""
        self._now = now
        if now >= self._looked + LOOK:
            self._look(now)
        return source.bits & self._free & ~source.asked_mask

    def _sooner(self, source: Source, now: float) -> int:
        """In the end-game: the one outstanding block that would profit most from being asked of this source too."""
        if self._unasked:
            return 0
        shared = source.bits & self._missing & ~source.asked_mask
        if not shared:
            return 0
        pace = self._pace(source)
        # A whole block sooner: what is gained by less is lost with the block that is sent for nothing.
        latest = source.would_have(pace, now) + pace
        chosen = 0
        for index in indices(shared):
            askers = [one for peer in self._askers[index] if not (one := self._sources[peer]).late]
            if not askers or len(askers) >= ASKERS:
                continue
            due = min(asker.due(index, self._pace(asker), now) for asker in askers)
            if due > latest:
                latest, chosen = due, 1 << index
        return chosen

    # --- what became of it --------------------------------------------------------------------------------------------

    def received(self, peer: str, index: int, now: float) -> bool:
        """The block came from that source and was checked and written. False: it was here already, so it was wasted."""
        self._now = now
        source = self._sources.get(peer)
        if source is not None:
            patience = self._patience(source)
            self._sending -= source.counts
            took = source.came(index, now)
            if took is not None:
                self._forget(index, peer)
                source.crawls = took > patience
                source.late = False
                self._free &= ~source.asked_mask
            self._sending += source.counts
        if not 0 <= index < self._blocks or not self._missing >> index & 1:
            return False
        bit = 1 << index
        self._missing ^= bit
        self._unasked &= ~bit
        self._free &= ~bit
        self._meter.add(now)
        self._intake.came(now, self.remaining)
        return True

    def failed(self, peer: str, index: int) -> None:
        """That source will not send the block now (refused, cancelled, not written): it is free again, for it too."""
        source = self._sources.get(peer)
        if source is not None:
            self._drop(peer, source, index)

    def bad(self, peer: str, index: int) -> None:
        """What that source sent for `index` did not match the manifest: it is banned for this blob, all that was asked
        of it is free again, and what still comes from it is to be thrown away."""
        self._banned.add(peer)
        self.peer_down(peer)

    def to_cancel(self, index: int) -> tuple[str, ...]:
        """Which sources were asked for a block that is here now, each named once: tell them not to send it."""
        if not 0 <= index < self._blocks or self._missing >> index & 1:
            return ()
        peers = tuple(self._askers.get(index, ()))
        for peer in peers:
            source = self._sources[peer]
            self._drop(peer, source, index)
            source.last = self._now
        return peers

    # --- how it goes --------------------------------------------------------------------------------------------------

    @property
    def banned(self) -> frozenset[str]:
        """The peers that sent a bad block."""
        return frozenset(self._banned)

    @property
    def remaining(self) -> int:
        """Blocks that are not here yet."""
        return self._missing.bit_count()

    @property
    def enough(self) -> bool:
        """Whether as many sources are sending as are to: until one has sent all, no other is wanted."""
        return self._sending >= self._intake.limit

    @property
    def unavailable(self) -> int:
        """How many of them no source has."""
        return (self._missing & ~self._rarity.known).bit_count()

    @property
    def rate(self) -> float:
        """Blocks a second over the last seconds in which any came; 0.0 before the second."""
        return self._meter.rate(self._meter.last)

    def asked(self, peer: str) -> tuple[int, ...]:
        """What was asked of that source and has not come, oldest first."""
        source = self._sources.get(peer)
        return () if source is None else tuple(source.asked)

    def crawling(self, now: float) -> frozenset[str]:
        """The sources that are later with a block than they should be, or were with their last."""
        self._look(now)
        return frozenset(peer for peer, source in self._sources.items() if source.late or source.crawls)

    def eta(self, now: float) -> float | None:
        """Seconds until the last block, going by the rate; 0.0 when all are here, None where nothing came lately."""
        if not self._missing:
            return 0.0
        rate = self._meter.rate(now)
        return self.remaining / rate if rate > 0 else None

    # --- who is late --------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Find who is late; what was asked of them is free for others."""
        self._looked = now
        measured = [source.pace for source in self._sources.values() if source.pace is not None]
        self._usual = median_low(measured) if measured else None
        for source in self._sources.values():
            if source.asked and not source.late and now - source.since() > self._patience(source):
                self._sending -= source.counts
                source.late = True
                for index in source.asked:
                    self._release(index)

    def _patience(self, source: Source) -> float:
        """Seconds that this source may take for a block before it is late. Going by what is usual, not by what it has
        shown itself: a source that always crawls is late with every block."""
        if self._usual is None:
            return FIRST_PATIENCE
        return max(LEAST_PATIENCE, LATE * self._usual / source.share) + source.rtt

    def _pace(self, source: Source) -> float:
        """Seconds that a block of this source takes, measured or expected."""
        if source.pace is not None:
            return source.pace
        return (self._usual or FIRST_PACE) / source.share

    # --- asks that end ------------------------------------------------------------------------------------------------

    def _drop(self, peer: str, source: Source, index: int) -> None:
        self._sending -= source.counts
        if source.drop(index):
            self._forget(index, peer)
            self._release(index)
        self._sending += source.counts

    def _forget(self, index: int, peer: str) -> None:
        askers = self._askers[index]
        askers.remove(peer)
        if not askers:
            del self._askers[index]
            self._unasked |= self._missing & 1 << index

    def _release(self, index: int) -> None:
        """Make a block free unless somebody in time was asked for it."""
        bit = 1 << index
        if bit & self._missing and all(self._sources[peer].late for peer in self._askers.get(index, ())):
            self._free |= bit
