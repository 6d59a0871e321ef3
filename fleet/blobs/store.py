"""Blobs on the disk of one box: complete ones, and those of which blocks are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.blobs.held import Held
from fleet.blobs.manifest import Manifest
from fleet.blobs.partial import Partial

#: Called in the thread that asked for the work, with the bytes done and to do; what it raises ends the work.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PartialState:
    """A blob of which blocks are missing. `blocks` are there; until `checked` that is only what the journal says."""

    manifest: Manifest
    blocks: int
    checked: bool


class BlobStore:
    """The blobs in `folder`, for one process at a time. `keep_free` bytes of the disk are left to others.

    Blocking and thread-safe. `open` first; or use it as a context manager.
    """

    def __init__(self, folder: Path, *, keep_free: int) -> None:
        self.folder = folder
        self.keep_free = keep_free

    def open(self) -> None:
        """Lock the folder and find what is there; nothing is hashed. Raises BlobBusyError, StorePausedError."""
        raise NotImplementedError

    def close(self) -> None:
        """Make durable what was written, and let go of every file; what is used after that raises BlobGoneError."""
        raise NotImplementedError

    def held(self) -> Mapping[str, Held]:
        """The complete blobs, by id."""
        raise NotImplementedError

    def partials(self) -> Mapping[str, PartialState]:
        """The blobs of which blocks are missing, by id, whether they were opened or not."""
        raise NotImplementedError

    def partial(self, blob: str) -> Partial | None:
        """The blob that was begun or resumed, for reading what there is of it; None where there is none."""
        raise NotImplementedError

    def room(self) -> int:
        """How many bytes can be taken beside what is to stay free."""
        raise NotImplementedError

    def begin(self, manifest: Manifest, leaves: Sequence[bytes], progress: Progress | None = None) -> Partial:
        """Make a place for a blob and reserve the disk for it; go on with what there is of it, once it was hashed.

        Whoever begins a blob that is open already gets the same Partial. Raises AlreadyHeldError, NoSpaceError,
        BadManifestError (the leaves do not fold to the root), BlobBusyError, StorePausedError.
        """
        raise NotImplementedError

    def resume(self, progress: Progress | None = None) -> Mapping[str, Partial]:
        """Open every partial that an earlier process left: each block that its journal claims is hashed again, in
        threads. Only what is on disk counts then."""
        raise NotImplementedError

    def adopt(self, path: Path, *, algorithm: str = "sha256", progress: Progress | None = None) -> Held:
        """Take a complete file in: as a clone or a hard link where the file system allows it, else as a copy.

        Reads it once, for its hash and its leaves. Raises BlobFileError, NoSpaceError, StorePausedError.
        """
        raise NotImplementedError

    def remove(self, blob: str) -> bool:
        """Delete a blob, complete or not, also one in use; whether there was one."""
        raise NotImplementedError
