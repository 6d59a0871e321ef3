"""How far the fetch of one blob is: a record for people and programs, and the account it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: waiting: nobody who holds a missing block is there; checking: what is on disk is hashed again; paused: the disk does
#: not take more, `reason` says why; verifying: all blocks are there and the whole file is hashed.
State = Literal["waiting", "checking", "fetching", "paused", "verifying", "done"]
Lane = Literal["", "fast", "stream"]


@dataclass(frozen=True)
class SourceProgress:
    """One box that blocks come from: over which lane, how many bytes so far, and bytes a second lately.

    `state` is connecting, waiting (no slot there, or nothing of it is needed), sending, or banned for a bad block.
    """

    peer_id: str
    lane: Lane
    state: Literal["connecting", "waiting", "sending", "banned"]
    bytes: int
    rate: float


@dataclass(frozen=True)
class Progress:
    """How far a fetch is, at one moment.

    `bytes` of `size` and `blocks` of `blocks_total` are on disk and checked; `checked` bytes have been hashed again
    since the start; `moved` bytes came over the network in this run, of which `wasted` were of no use (damaged, or
    there already). `rate` is bytes a second over the last seconds, `eta` seconds or None where nothing tells.
    """

    blob: str
    state: State
    reason: str
    size: int
    blocks_total: int
    blocks: int
    bytes: int
    checked: int
    moved: int
    wasted: int
    rate: float
    eta: float | None
    sources: tuple[SourceProgress, ...]

    @property
    def fraction(self) -> float:
        """What part of the blob is on disk, 0 to 1."""
        return self.bytes / self.size if self.size else 1.0
