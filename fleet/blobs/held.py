"""A blob that is complete: read block by block, checked at the first reading."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple, Protocol

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.errors import MissingBlockError
from fleet.blobs.folder import paused
from fleet.blobs.handle import SharedFd
from fleet.blobs.hashing import Progress, bad_blocks, read_block
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import leaf_hash


class Stamp(NamedTuple):
    """What changes when somebody writes to a file; the second of the times is set by the kernel alone, and has steps of
    some milliseconds, within which a change is not seen. `names` is how many the file has: none once it was deleted."""

    size: int
    written: int
    changed: int
    names: int


class Shelf(Protocol):
    """The store that a held blob is in."""

    def withdraw(self, held: Held, bad: tuple[int, ...]) -> None:
        """Make it a partial that lacks these blocks; nothing where that was done already."""


class Held:
    """Given by `BlobStore.held`. Every method blocks on the disk and may be called from any thread, at the same time.
    Raises BlobGoneError after it was withdrawn, removed or closed, and StorePausedError where the disk fails as such.

    A box that gives a bad block is banned by whoever gets it, so none is given that was not hashed in this process and
    since the file was last written to.
    """

    def __init__(
        self, manifest: Manifest, leaves: tuple[bytes, ...], path: Path, file: SharedFd, shelf: Shelf, *, checked: bool
    ) -> None:
        """Owns `file`, which is open for reading; `checked` is whether all of it was hashed just now."""
        self.manifest = manifest
        self.leaves = leaves
        self.path = path
        self._file = file
        self._shelf = shelf
        self._lock = threading.Lock()
        with file.use() as fd:
            self._stamp = _stamp(fd)
        self._checked = Bitfield.full(manifest.blocks) if checked else Bitfield(manifest.blocks)

    def read(self, index: int) -> bytes:
        """A block. It is hashed when it is read for the first time in this process, and again once the file has
        changed.

        Raises MissingBlockError where it is not what the manifest says: the blob is withdrawn then, and is a partial
        that lacks this block. Raises IndexError for a block that the blob does not have.
        """
        self.manifest.block_size(index)
        with self._file.use() as fd:
            block = self._sound(fd, index, again=False)
            if block is None:
                self._shelf.withdraw(self, (index,))
                raise MissingBlockError(index, f"block {index} rotted on the disk of this box; it is fetched again")
        return block

    def check(self, index: int) -> bool:
        """Hash a block again, because somebody says that it is bad; if it is, the blob is withdrawn as by `read`."""
        self.manifest.block_size(index)
        with self._file.use() as fd:
            sound = self._sound(fd, index, again=True) is not None
            if not sound:
                self._shelf.withdraw(self, (index,))
        return sound

    def verify(self, progress: Progress | None = None) -> tuple[int, ...]:
        """Hash every block again; the bad ones, for which the blob is withdrawn as by `read`.

        `progress` is called in the calling thread with the bytes done and to do; what it raises ends the work.
        """
        with self._file.use() as fd:
            stamp = _stamp(fd)
            try:
                bad = bad_blocks(fd, self.manifest, self.leaves, range(self.manifest.blocks), progress)
            except OSError as error:
                raise paused(error, f"cannot read {self.path}") from None
            if not self._is_whole(stamp):
                bad = bad or (self.manifest.blocks - 1,)
            if bad:
                self._shelf.withdraw(self, bad)
            else:
                with self._lock:
                    self._stamp, self._checked = stamp, Bitfield.full(self.manifest.blocks)
        return bad

    def fd(self) -> int:
        """A descriptor of the file, open for reading, for the caller to close; what it reads is not checked."""
        with self._file.use() as fd:
            return os.dup(fd)

    def close(self) -> None:
        """Let nobody use it any more."""
        self._file.close()

    def _is_whole(self, stamp: Stamp) -> bool:
        """Whether there is a file, without anything behind its end."""
        return stamp.size == self.manifest.size and stamp.names > 0

    def _sound(self, fd: int, index: int, *, again: bool) -> bytes | None:
        """A block that is as the manifest says; None where it is not."""
        try:
            stamp = _stamp(fd)
            block = read_block(fd, self.manifest, index)
        except OSError as error:
            raise paused(error, f"cannot read {self.path}") from None
        with self._lock:
            if stamp != self._stamp:
                self._stamp, self._checked = stamp, Bitfield(self.manifest.blocks)
            checked = self._checked
        if block is None or not self._is_whole(stamp):
            return None
        if again or not checked.has(index):
            if leaf_hash(block, self.manifest.algorithm) != self.leaves[index]:
                return None
            with self._lock:
                checked.set(index)  # of the version that was read; another one has another field
        return block


def _stamp(fd: int) -> Stamp:
    found = os.fstat(fd)
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)
