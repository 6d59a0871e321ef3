"""What can go wrong with a blob, and what the caller does about it."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.errors import FleetError


class BlobError(FleetError):
    """Base of the errors of `fleet.blobs`."""

    code = "blob"


class BadManifestError(BlobError):
    """A manifest past a limit, one whose leaves do not fold to its root, or one that contradicts itself: its blocks
    are all right and the whole is not what it says. Asking again does not help; the model has to be added again."""

    code = "bad_manifest"


class MissingAlgorithmError(BlobError):
    """The manifest's algorithm is not installed on this box; the message says how to install it."""

    code = "missing_algorithm"


class BadBlockError(BlobError):
    """What was to be written is not the block that the manifest names: it was not written. Whoever sent it lies, or its
    disk rots; ask another box."""

    code = "bad_block"
    retryable = True

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message, details={"block": index})
        self.index = index


class MissingBlockError(BlobError):
    """The block is not here (any more): rot was found in it, or it never came. `have` says which are."""

    code = "missing_block"
    retryable = True

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message, details={"block": index})
        self.index = index


class StorePausedError(BlobError):
    """The disk does not take what is written (full, read-only, failing). Nothing that was written before is lost; once
    the trouble is over, `Partial.recover` lets writing go on. `details["errno"]` is the system's number."""

    code = "store_paused"
    retryable = True

    def __init__(self, message: str, *, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message, details=details)


class NoSpaceError(StorePausedError):
    """There is no room for a blob beside what is to stay free; `details["missing_bytes"]` is how much is lacking."""

    code = "no_space"

    def __init__(self, missing: int, message: str) -> None:
        super().__init__(message, details={"missing_bytes": missing})
        self.missing = missing


class BlobGoneError(BlobError):
    """The file was closed, removed or replaced while it was used; ask the store for it again."""

    code = "blob_gone"
    retryable = True


class BlobBusyError(BlobError):
    """The blob is being checked, finished or removed by another thread, or the folder is used by another process."""

    code = "blob_busy"
    retryable = True


class AlreadyHeldError(BlobError):
    """The whole blob is here: there is nothing to fetch. `BlobStore.held` has it."""

    code = "already_held"


class BlobFileError(BlobError):
    """A file that was to be taken in cannot be: it is missing, no regular file, empty, too large, or it changed while
    it was read. The message names it and the remedy."""

    code = "blob_file"
