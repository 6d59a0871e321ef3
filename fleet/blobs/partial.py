"""A blob of which blocks are missing: what comes is checked, written, and only then said to be there."""

from __future__ import annotations

from pathlib import Path

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import Data


class Partial:
    """Made by `BlobStore.begin` and `BlobStore.resume`. Every method blocks on the disk and may be called from any
    thread, at the same time. Raises BlobGoneError after it was finished, removed or closed."""

    manifest: Manifest
    leaves: tuple[bytes, ...]

    @property
    def have(self) -> Bitfield:
        """The blocks that are on disk and were checked in this process; a copy."""
        raise NotImplementedError

    @property
    def trouble(self) -> str:
        """Why the disk takes nothing now, in words; empty where it does."""
        raise NotImplementedError

    def has(self, index: int) -> bool:
        """Whether a block is there."""
        raise NotImplementedError

    def write(self, index: int, data: Data) -> bool:
        """Check a block, write it, and enter it in the journal; False where it was there already.

        Raises BadBlockError for anything but the block that the manifest names, which is not written, and
        StorePausedError where the disk does not take it: then nothing can be written until `recover` has gone well.
        """
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """A block that is there. Raises MissingBlockError, also when the disk does not give it as it was written: it is
        withdrawn then."""
        raise NotImplementedError

    def check(self, index: int) -> bool:
        """Hash a block again, because somebody says that it is bad; one that is, is withdrawn."""
        raise NotImplementedError

    def recover(self) -> tuple[int, ...]:
        """Go on after StorePausedError; gives the blocks that were lost with it (mostly none), to be fetched again.

        Raises StorePausedError (or NoSpaceError) while the trouble lasts.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Make durable what was written: the data, then the journal. Raises StorePausedError."""
        raise NotImplementedError

    def finish(self) -> Path:
        """Check the whole file, make it durable and give it its place among the complete ones; returns where it is.

        Raises MissingBlockError while blocks are missing, also when some turn out to be bad now (they are withdrawn);
        BadManifestError where all blocks are right and the whole is not what the manifest says (it is removed then);
        StorePausedError.
        """
        raise NotImplementedError
