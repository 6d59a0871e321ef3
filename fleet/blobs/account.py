"""What a running fetch counts, written by its threads and read by whoever watches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from fleet.blobs.manifest import Manifest
from fleet.blobs.progress import Lane, Progress, SourceProgress, State

#: Seconds over which a rate is taken.
_WINDOW: Final = 8.0
#: Rates are kept in steps of this many seconds.
_STEP: Final = 0.25

SourceState = Literal["connecting", "waiting", "sending", "banned"]


class _Rate:
    """Bytes a second over the last seconds in which anything may have come."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int]] = deque()
        self._began: float | None = None

    def add(self, now: float, size: int) -> None:
        if self._began is None:
            self._began = now
        step = int(now / _STEP)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1] = (step, self._steps[-1][1] + size)
        else:
            self._steps.append((step, size))
        self._forget(now)

    def value(self, now: float) -> float:
        self._forget(now)
        if self._began is None:
            return 0.0
        return sum(size for _, size in self._steps) / max(_STEP, min(_WINDOW, now - self._began))

    def _forget(self, now: float) -> None:
        oldest = int((now - _WINDOW) / _STEP)
        while self._steps and self._steps[0][0] <= oldest:
            self._steps.popleft()


@dataclass
class _Source:
    lane: Lane = ""
    state: SourceState = "connecting"
    bytes: int = 0
    rate: _Rate = field(default_factory=_Rate)


class Account:
    """The account of one fetch, or of several of the same blob one after the other. Thread-safe.

    `clock` gives seconds of a clock that never goes back.
    """

    def __init__(self, manifest: Manifest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.manifest = manifest
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "waiting"
        self._reason = ""
        self._blocks = 0
        self._bytes = 0
        self._checked = 0
        self._moved = 0
        self._wasted = 0
        self._rate = _Rate()
        self._sources: dict[str, _Source] = {}

    def progress(self) -> Progress:
        """How far it is now."""
        with self._lock:
            now = self._clock()
            rate = self._rate.value(now)
            left = self.manifest.size - self._bytes
            eta = 0.0 if not left else left / rate if rate > 0 else None
            sources = tuple(
                SourceProgress(peer, one.lane, one.state, one.bytes, one.rate.value(now))
                for peer, one in self._sources.items()
            )
            return Progress(
                blob=self.manifest.sha256,
                state=self._state,
                reason=self._reason,
                size=self.manifest.size,
                blocks_total=self.manifest.blocks,
                blocks=self._blocks,
                bytes=self._bytes,
                checked=self._checked,
                moved=self._moved,
                wasted=self._wasted,
                rate=rate,
                eta=eta,
                sources=sources,
            )

    # --- what the fetch says ------------------------------------------------------------------------------------------

    def enter(self, state: State, reason: str = "") -> None:
        """What it does from now on; `reason` for people where it is paused."""
        with self._lock:
            self._state, self._reason = state, reason

    def found(self, blocks: int, size: int) -> None:
        """So many blocks, and bytes, are on disk: what is counted from here on comes on top."""
        with self._lock:
            self._blocks, self._bytes = blocks, size

    def checked(self, size: int) -> None:
        """So many bytes in all were hashed again."""
        with self._lock:
            self._checked = size

    def written(self, size: int) -> None:
        """A block was checked and written."""
        with self._lock:
            self._blocks += 1
            self._bytes += size

    def wasted(self, size: int) -> None:
        """So many of the bytes that were moved are of no use."""
        with self._lock:
            self._wasted += size

    # --- what its sources say -----------------------------------------------------------------------------------------

    def source(self, peer: str, state: SourceState, lane: Lane | None = None) -> None:
        """What a source does now; `lane` where that has changed. One that is banned stays so."""
        with self._lock:
            one = self._sources.setdefault(peer, _Source())
            if one.state != "banned":
                one.state = state
            if lane is not None:
                one.lane = lane

    def gone(self, peer: str) -> None:
        """A source is no more; one that was banned is kept, for people to see."""
        with self._lock:
            if peer in self._sources and self._sources[peer].state != "banned":
                del self._sources[peer]

    def moved(self, peer: str, size: int) -> None:
        """So many bytes of blocks came over the network."""
        with self._lock:
            now = self._clock()
            self._moved += size
            self._rate.add(now, size)
            one = self._sources.get(peer)
            if one is not None:
                one.bytes += size
                one.rate.add(now, size)
