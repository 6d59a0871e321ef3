"""The threads of a fetch that check and write what its lanes bring, so that lanes go on receiving meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from fleet.blobs.errors import BadBlockError, BlobError
from fleet.blobs.partial import Partial

#: One hashes while the other writes; a third gains nothing on the two to four cores that boxes have.
THREADS: Final = 2


class Outcome(Protocol):
    """What becomes of blocks; called from the threads that write."""

    def is_banned(self, peer: str) -> bool:
        """Whether what comes from a source is to be thrown away."""

    def written(self, peer: str, index: int, size: int) -> None:
        """A block is on disk; it may have been there before."""

    def lied(self, peer: str, index: int, size: int) -> None:
        """A block is not what the manifest names; it was not written."""

    def failed(self, peer: str, index: int, size: int, error: BlobError) -> None:
        """A block could not be written: the disk does not take it, or the blob is gone."""


@dataclass(frozen=True)
class _Block:
    peer: str
    index: int
    data: memoryview
    done: Callable[[], None]


class Writing:
    """A queue of blocks, and what is done with each. `run` it in THREADS threads; `close` ends them."""

    def __init__(self, partial: Partial, outcome: Outcome) -> None:
        self._partial = partial
        self._outcome = outcome
        self._queue: SimpleQueue[_Block | None] = SimpleQueue()

    def put(self, peer: str, index: int, data: memoryview, done: Callable[[], None]) -> None:
        """Check and write a block; `done` is called when `data` is not needed any more."""
        self._queue.put(_Block(peer, index, data, done))

    def close(self) -> None:
        """Let one thread end, once what was put before is written."""
        self._queue.put(None)

    def run(self) -> None:
        """Write until closed. Blocks; raises nothing of what goes wrong with a block."""
        while (block := self._queue.get()) is not None:
            try:
                self.write(block.peer, block.index, block.data)
            finally:
                block.done()

    def write(self, peer: str, index: int, data: memoryview | bytes | bytearray) -> None:
        """Check and write one block in the calling thread. Blocks on the disk."""
        size = len(data)
        if self._outcome.is_banned(peer):
            self._outcome.lied(peer, index, size)
            return
        try:
            self._partial.write(index, data)
        except BadBlockError:
            self._outcome.lied(peer, index, size)
        except BlobError as error:
            self._outcome.failed(peer, index, size, error)
        else:
            self._outcome.written(peer, index, size)
