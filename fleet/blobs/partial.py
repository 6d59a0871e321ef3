"""A blob of which blocks are missing: what comes is checked, written, and only then said to be there.

The order is: the block's hash, the data, the bit in the journal, the bit in memory. Every 64 MiB the data are made
durable, then the journal. What the disk refuses pauses the whole blob: nothing is half there, and nothing is lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.errors import (
    BadBlockError,
    BadManifestError,
    BlobBusyError,
    BlobGoneError,
    MissingBlockError,
    StorePausedError,
)
from fleet.blobs.flush import Flusher
from fleet.blobs.folder import paused
from fleet.blobs.handle import SharedFd, write_all
from fleet.blobs.hashing import Progress, bad_blocks, block_is_sound, read_block, whole_sha256
from fleet.blobs.journal import Journal
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK, Data, leaf_hash


@dataclass(frozen=True)
class PartialState:
    """A blob of which blocks are missing. `blocks` are there; until `checked` that is only what the journal says."""

    manifest: Manifest
    blocks: int
    checked: bool


class Shelf(Protocol):
    """The store that a partial is in."""

    def check_room(self, size: int) -> None:
        """See `fleet.blobs.space.check_room`."""

    def reserve(self, fd: int, size: int) -> None:
        """See `fleet.blobs.space.reserve`."""

    def complete(self, partial: Partial) -> Path:
        """Give a partial whose whole was checked its place among the complete ones. Raises StorePausedError."""

    def discard(self, partial: Partial) -> None:
        """Delete a partial whose manifest contradicts itself."""


class Partial:
    """Made by `BlobStore.begin` and `BlobStore.resume`. Every method blocks on the disk and may be called from any
    thread, at the same time. Raises BlobGoneError after it was finished, removed or closed."""

    def __init__(
        self, manifest: Manifest, leaves: tuple[bytes, ...], path: Path, file: SharedFd, journal: Journal, shelf: Shelf
    ) -> None:
        """Owns `file`, open for writing and of the right size, and `journal`, whose claims were checked."""
        self.manifest = manifest
        self.leaves = leaves
        self.path = path
        self._file = file
        self._journal = journal
        self._shelf = shelf
        self._lock = threading.Lock()
        #: The system lets one thread at a time write to a file, and others wait for it at work: theirs is to hash.
        self._writing = threading.Lock()
        self._trouble: StorePausedError | None = None
        self._closed = False
        #: Blocks that were written since the disk was last asked to keep them, and those that it may have dropped then.
        self._unsynced: list[int] = []
        self._doubtful: list[int] = []
        self._syncing = threading.Lock()
        self._finishing = threading.Lock()
        self._flusher = Flusher(self._sync_quietly)

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def have(self) -> Bitfield:
        """The blocks that are on disk and were checked in this process; a copy."""
        return self._journal.bits.copy()

    def has(self, index: int) -> bool:
        """Whether a block is there."""
        return self._journal.bits.has(index)

    @property
    def count(self) -> int:
        """How many blocks are there."""
        return self._journal.bits.count

    @property
    def trouble(self) -> str:
        """Why the disk takes nothing now, in words; empty where it does."""
        return "" if self._trouble is None else self._trouble.message

    def read(self, index: int) -> bytes:
        """A block that is there. Raises MissingBlockError, also when the disk does not give it any more: it is
        withdrawn then. It was hashed when it was written or resumed, and is not again; see `check`."""
        with self._file.use() as fd:
            if not self.has(index):
                raise MissingBlockError(index, f"block {index} is not here yet")
            try:
                block = read_block(fd, self.manifest, index)
            except OSError as error:
                raise paused(error, f"cannot read {self.path}") from None
        if block is None:
            self._withdraw((index,))
            raise MissingBlockError(index, f"the disk does not give block {index} any more")
        return block

    def check(self, index: int) -> bool:
        """Hash a block again, because somebody says that it is bad; whether it is sound. A bad one is withdrawn."""
        with self._file.use() as fd:
            if not self.has(index):
                return False
            try:
                sound = block_is_sound(fd, self.manifest, self.leaves, index)
            except OSError as error:
                raise paused(error, f"cannot read {self.path}") from None
        if not sound:
            self._withdraw((index,))
        return sound

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, index: int, data: Data) -> bool:
        """Check a block, write it, and enter it in the journal; False where it was there already, which is not hashed.

        Raises BadBlockError for anything but the block that the manifest names, which is not written, and
        StorePausedError where the disk does not take it: then nothing can be written until `recover` has gone well.
        Blocks longer while the disk is more than 128 MiB behind.
        """
        self._check_block(index, data)
        with self._file.use() as fd:
            if self.has(index):
                return False
            if leaf_hash(data, self.manifest.algorithm) != self.leaves[index]:
                raise BadBlockError(index, f"block {index} is not what the manifest says; it was not written")
            self._refuse_in_trouble()
            try:
                with self._writing:
                    write_all(fd, data, index * BLOCK)
                with self._lock:
                    self._refuse_in_trouble()
                    if self.has(index):  # another source was quicker
                        return False
                    self._journal.enter(index)
                    self._unsynced.append(index)
            except OSError as error:
                self._pause(error)
        self._flusher.note(self.manifest.block_size(index))
        return True

    def flush(self) -> None:
        """Make durable what was written: the data, then the journal. Raises StorePausedError."""
        with self._file.use() as fd:
            self._sync(fd)

    def recover(self) -> tuple[int, ...]:
        """Go on after StorePausedError; gives the blocks that were lost with it (mostly none), to be fetched again.

        Raises StorePausedError (or NoSpaceError) while the trouble lasts. Does nothing where there is none.
        """
        with self._file.use() as fd, self._syncing:
            if self._trouble is None:
                return ()
            with self._lock:
                # A disk that could not keep what it was given says so once, and forgets. What was read from memory
                # until now is read from the disk here, and what is not there has to come again.
                self._doubtful += self._unsynced
                self._unsynced = []
                doubtful = sorted(set(self._doubtful))
            try:
                self._shelf.reserve(fd, self.manifest.size)
                os.fdatasync(fd)
                for index in doubtful:
                    os.posix_fadvise(fd, index * BLOCK, self.manifest.block_size(index), os.POSIX_FADV_DONTNEED)
                lost = bad_blocks(fd, self.manifest, self.leaves, doubtful)
                with self._lock:
                    for index in lost:
                        self._journal.bits.clear(index)
                    self._journal.rewrite()
                self._journal.sync()
            except StorePausedError as error:
                self._trouble = error
                raise
            except OSError as error:
                self._pause(error)
            self._doubtful = []
            self._trouble = None
            return lost

    def finish(self, progress: Progress | None = None) -> Path:
        """Check the whole file, make it durable and give it its place among the complete ones; returns where it is.

        Raises MissingBlockError while blocks are missing, also when some turn out to be bad now (they are withdrawn);
        BadManifestError where all blocks are right and the whole is not what the manifest says (it is removed then);
        BlobBusyError while another thread finishes it; StorePausedError. Takes as long as SHA-256 does, 0.5 s for each
        GiB where the CPU has instructions for it. What `progress` raises ends it, and it can be called again.
        """
        if not self._finishing.acquire(blocking=False):
            raise BlobBusyError("another thread is about to finish this blob")
        try:
            with self._file.use() as fd:
                self._check_whole(fd, progress)
                return self._shelf.complete(self)
        finally:
            self._finishing.release()

    def _check_whole(self, fd: int, progress: Progress | None) -> None:
        missing = next(self._journal.bits.missing(), None)
        if missing is not None:
            raise MissingBlockError(missing, f"block {missing} is not here yet")
        self._refuse_in_trouble()
        with self._flushing(fd):
            try:
                if os.fstat(fd).st_size > self.manifest.size:  # somebody wrote behind its end
                    os.ftruncate(fd, self.manifest.size)
                digest = whole_sha256(fd, self.manifest.size, progress)
            except OSError:  # a sector that cannot be read; which blocks are bad is seen below
                digest = ""
        self._refuse_in_trouble()
        if digest == self.manifest.hex:
            return
        try:
            bad = bad_blocks(fd, self.manifest, self.leaves, range(self.manifest.blocks))
        except OSError as error:
            raise paused(error, f"cannot read {self.path}") from None
        if bad:
            self._withdraw(bad)
            raise MissingBlockError(bad[0], f"the disk does not give {len(bad)} blocks as they were written")
        self._shelf.discard(self)
        raise BadManifestError(
            f"every block of {self.manifest.sha256} is right, and the whole has another hash: its manifest contradicts"
            " itself; add the model again (shoal models add)"
        )

    @contextmanager
    def _flushing(self, fd: int) -> Iterator[None]:
        """Make durable what was written, while something else is done."""
        thread = threading.Thread(target=self._sync_quietly, name="shoal-flush")
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def is_file(self, found: os.stat_result | None) -> bool:
        """Whether that is the file that was written to and checked."""
        with self._file.use() as fd:
            return found is not None and os.path.samestat(found, os.fstat(fd))

    # --- the disk -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Make durable what was written, and let nobody use it any more. What the disk refuses now is found at the next
        start."""
        self._flusher.wait()
        with suppress(BlobGoneError, StorePausedError):
            self.flush()
        self.abandon()

    def abandon(self) -> None:
        """Let nobody use it any more, without a word to the disk."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._file.close()
        self._journal.close()

    def _check_block(self, index: int, data: Data) -> None:
        if not 0 <= index < self.manifest.blocks:
            raise BadBlockError(index, f"the blob has no block {index}")
        size = memoryview(data).nbytes
        if size != self.manifest.block_size(index):
            raise BadBlockError(index, f"block {index} has {self.manifest.block_size(index)} bytes, not {size}")

    def _withdraw(self, indexes: tuple[int, ...]) -> None:
        with self._lock:
            for index in indexes:
                # What could not be struck out on disk is found at the next start.
                with suppress(OSError, BlobGoneError):
                    self._journal.strike(index)

    def _refuse_in_trouble(self) -> None:
        trouble = self._trouble
        if trouble is not None:
            raise StorePausedError(trouble.message, details=trouble.details)

    def _pause(self, error: OSError) -> NoReturn:
        trouble = paused(error, f"cannot write {self.path}")
        self._trouble = trouble
        raise trouble from None

    def _sync_quietly(self) -> None:
        # What goes wrong is kept in `_trouble`, which whoever writes next meets.
        with suppress(BlobGoneError, StorePausedError), self._file.use() as fd:
            self._sync(fd)

    def _sync(self, fd: int) -> None:
        with self._syncing:
            self._refuse_in_trouble()  # a sync that goes well after one that did not says nothing: see `recover`
            with self._lock:
                batch, self._unsynced = self._unsynced, []
            try:
                os.fdatasync(fd)
                self._journal.sync()
            except OSError as error:
                with self._lock:
                    self._doubtful += batch
                self._pause(error)
