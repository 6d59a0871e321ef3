"""What to say to each source of a fetch: that a turn is wanted, which blocks are asked for, which no longer. No I/O.

The choice of blocks is the picker's. Here is what the two sides' agreement on turns (`fleet.blobs.slots`) makes of it:
a source gives a turn of some blocks, which are asked for as far as it keeps up; with the last of them the next turn is
wanted, in time for no pause to come between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.picker import Picker


@dataclass
class _Source:
    """`credit` is how many blocks may still be asked for in this turn, `wanted` whether one was said to be wanted and
    has not begun; `cancels` are blocks to take back. One that is not `proven` has sent no good block yet: it is asked
    for one at a time, so that a liar wastes no more than that."""

    credit: int = 0
    wanted: bool = False
    proven: bool = False
    cancels: list[int] = field(default_factory=list)


class Asking:
    """All sources of one fetch. Thread-safe.

    `wake(peer)` is called when that source's lane is to call `take`; `say(peer, want)` when the source is to be told
    that a turn is wanted, or that there is nothing to ask for. Both are called from any thread, must not block and must
    not call back.
    """

    def __init__(
        self,
        picker: Picker,
        *,
        clock: Callable[[], float],
        wake: Callable[[str], None],
        say: Callable[[str, bool], None],
    ) -> None:
        self._picker = picker
        self._clock = clock
        self._wake = wake
        self._say = say
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}

    # --- what sources say ---------------------------------------------------------------------------------------------

    def shows(self, peer: str, bits: Bitfield, rtt: float | None) -> None:
        """A source is there, or has something else than before."""
        with self._lock:
            if peer in self._picker.banned:
                return
            self._sources.setdefault(peer, _Source())
            self._picker.peer_up(peer, bits, rtt=rtt)
            self._look(peer)

    def has_more(self, peer: str, indexes: Iterable[int]) -> None:
        """A source has more blocks than before."""
        with self._lock:
            if peer in self._sources:
                for index in indexes:
                    self._picker.peer_have(peer, index)
                self._look(peer)

    def turn(self, peer: str, blocks: int) -> None:
        """A source gives a turn of so many blocks, in addition to what is left of the last."""
        with self._lock:
            source = self._sources.get(peer)
            if source is not None:
                source.wanted = False
                source.credit += blocks
                self._look(peer)

    def unheard(self, peer: str) -> None:
        """A source did not take it that a turn is wanted: it is said again, at the next `look`."""
        with self._lock:
            if peer in self._sources:
                self._sources[peer].wanted = False

    def gone(self, peer: str) -> None:
        """A source is no more: others are asked for what it was asked for."""
        with self._lock:
            if self._sources.pop(peer, None) is not None:
                self._picker.peer_down(peer)
                self._look_at_all()

    # --- what the lanes do --------------------------------------------------------------------------------------------

    def take(self, peer: str) -> tuple[list[int], list[int]]:
        """What is to be asked of a source now, and what is to be taken back."""
        asks: list[int] = []
        with self._lock:
            source = self._sources.get(peer)
            if source is None:
                return [], []
            cancels, source.cancels = source.cancels, []
            now = self._clock()
            outstanding = len(self._picker.asked(peer))
            depth = self._picker.depth(peer) if source.proven else 1
            while source.credit and outstanding < depth:
                index = self._picker.next(peer, now)
                if index is None:
                    if not outstanding:
                        source.credit = 0
                        self._say(peer, False)
                    break
                source.credit -= 1
                outstanding += 1
                asks.append(index)
            if not source.credit:
                self._want(peer, source, now)
        return asks, cancels

    def arrived(self, peer: str, index: int) -> bool:
        """A block was checked and written. False where it was here before."""
        with self._lock:
            useful = self._picker.received(peer, index, self._clock())
            if useful:
                for other in self._picker.to_cancel(index):
                    if other in self._sources and other != peer:
                        self._sources[other].cancels.append(index)
                        self._wake(other)
            if peer in self._sources:
                self._sources[peer].proven = True
                self._look(peer)
            if self._picker.remaining <= len(self._sources) or not self._picker.asked(peer):
                # Near the end, what others were asked for may be had sooner elsewhere; and where one has sent all it
                # was asked for, another may take its place.
                self._look_at_all()
            return useful

    def refused(self, peer: str, index: int) -> None:
        """A source does not send a block that was asked for: the turn is over. The next is wanted at the next `look`:
        one that shows what it does not send would be asked again and again, as fast as it refuses."""
        with self._lock:
            source = self._sources.get(peer)
            if source is not None:
                source.credit = 0
                self._picker.failed(peer, index)

    def lane_ended(self, peer: str) -> None:
        """Nothing more comes over a source's lane; another may be opened."""
        with self._lock:
            source = self._sources.get(peer)
            if source is not None:
                source.credit, source.wanted, source.cancels = 0, False, []
                for index in self._picker.asked(peer):
                    self._picker.failed(peer, index)
                self._look_at_all()

    def lies(self, peer: str, index: int) -> None:
        """What a source sent is not what the manifest names: it is asked for nothing any more."""
        with self._lock:
            self._picker.bad(peer, index)
            self._sources.pop(peer, None)
            self._look_at_all()

    # --- the whole ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See who is late, and who can be asked for what they were asked for; to be called now and then."""
        with self._lock:
            self._look_at_all()

    @property
    def remaining(self) -> int:
        """How many blocks are not here yet."""
        with self._lock:
            return self._picker.remaining

    @property
    def expecting(self) -> bool:
        """Whether anything that was asked for is still to come."""
        with self._lock:
            return any(self._picker.asked(peer) for peer in self._sources)

    @property
    def lacking(self) -> bool:
        """Whether some missing block is with none of the sources."""
        with self._lock:
            return self._picker.unavailable > 0

    def _look_at_all(self) -> None:
        for peer in list(self._sources):
            self._look(peer)

    def _look(self, peer: str) -> None:
        source = self._sources[peer]
        if source.credit:
            self._wake(peer)
        else:
            self._want(peer, source, self._clock())

    def _want(self, peer: str, source: _Source, now: float) -> None:
        if not source.wanted and self._picker.wants(peer, now):
            source.wanted = True
            self._say(peer, True)
