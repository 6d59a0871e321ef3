"""A blob that is complete: read block by block, checked at the first reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleet.blobs.manifest import Manifest


class Held:
    """Given by `BlobStore.held`. Every method blocks on the disk and may be called from any thread, at the same time.
    Raises BlobGoneError after it was withdrawn, removed or closed."""

    manifest: Manifest
    leaves: tuple[bytes, ...]
    path: Path

    def read(self, index: int) -> bytes:
        """A block. It is hashed when it is read for the first time in this process, and again once the
        file has changed.

        Raises MissingBlockError where it is not what the manifest says: the blob is withdrawn then, and is a partial
        that lacks this block.
        """
        raise NotImplementedError

    def fd(self) -> int:
        """A descriptor of the file, open for reading, for the caller to close; what it reads is not checked."""
        raise NotImplementedError

    def check(self, index: int) -> bool:
        """Hash a block again, because somebody says that it is bad; if it is, the blob is withdrawn as by `read`."""
        raise NotImplementedError

    def verify(self, progress: Callable[[int, int], None] | None = None) -> tuple[int, ...]:
        """Hash every block again; the bad ones, for which the blob is withdrawn as by `read`.

        `progress` is called in the calling thread with the bytes done and to do; what it raises ends the work.
        """
        raise NotImplementedError
