"""How the files of a blob come to be: a new partial, one that is taken up again, and a whole file that gets its place.

In each the description comes first, and the data last: what a crash leaves without data is cleared away at the next
start.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from fleet.blobs.adopt import Adopted
from fleet.blobs.bitfield import Bitfield
from fleet.blobs.description import write_description
from fleet.blobs.folder import Folder, Kind, name_of
from fleet.blobs.handle import SharedFd
from fleet.blobs.hashing import Progress, bad_blocks
from fleet.blobs.journal import Journal, open_journal, write_journal
from fleet.blobs.manifest import Manifest
from fleet.blobs.partial import Partial, Shelf
from fleet.blobs.rot import own_copy

#: What stands beside the data.
_BESIDE: Final[tuple[Kind, ...]] = ("journal", "tree")


@dataclass(frozen=True)
class Known:
    """A partial that was not opened: its description, and what its journal claims."""

    manifest: Manifest
    leaves: tuple[bytes, ...]
    claims: Bitfield

    @property
    def claimed_bytes(self) -> int:
        """How much has to be hashed before it is known what is there."""
        return sum(map(self.manifest.block_size, self.claims))


def make_partial(folder: Folder, manifest: Manifest, leaves: tuple[bytes, ...], shelf: Shelf) -> Partial:
    """A new one without blocks, its room reserved. Raises NoSpaceError and OSError; nothing is left then."""
    fd = -1
    try:
        shelf.check_room(manifest.size)
        write_description(folder, manifest, leaves)
        write_journal(folder, manifest, Bitfield(manifest.blocks))
        fd = folder.create(name_of(manifest.hex, "part"))
        shelf.reserve(fd, manifest.size)
        folder.sync()
        return _partial(folder, manifest, leaves, fd, Bitfield(manifest.blocks), shelf)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        for kind in ("part", *_BESIDE):
            with contextlib.suppress(OSError):
                folder.unlink(name_of(manifest.hex, kind))
        raise


def open_partial(folder: Folder, known: Known, shelf: Shelf, progress: Progress | None = None) -> Partial:
    """Take one up again: what it claims is hashed, in threads. Raises NoSpaceError, OSError, and what `progress`
    raises; it is as it was then."""
    manifest = known.manifest
    fd = folder.open(name_of(manifest.hex, "part"), write=True)
    try:
        if os.fstat(fd).st_nlink > 1:
            fd = own_copy(folder, manifest, fd, shelf.reserve)
        shelf.reserve(fd, manifest.size)
        have = known.claims.copy()
        for index in bad_blocks(fd, manifest, known.leaves, known.claims, progress):
            have.clear(index)
        return _partial(folder, manifest, known.leaves, fd, have, shelf)
    except BaseException:
        os.close(fd)
        raise


def find_data(folder: Folder, manifest: Manifest) -> bool:
    """Whether there are data of a blob that is not complete; under the name of a partial from now on. Raises OSError.

    They may have the other name still: of one that lost its description, or was withdrawn while nothing could be
    written.
    """
    blob, part = name_of(manifest.hex, "blob"), name_of(manifest.hex, "part")
    if folder.stat(part) is not None:
        return True
    if folder.stat(blob) is None:
        return False
    folder.rename(blob, part)
    folder.sync()
    return True


def describe_anew(folder: Folder, manifest: Manifest, leaves: tuple[bytes, ...]) -> Known:
    """Give data that are here another description, as their own was lost or is of another tree; they are to be hashed.
    Raises OSError."""
    write_description(folder, manifest, leaves)
    return Known(manifest, leaves, Bitfield.full(manifest.blocks))


def place(folder: Folder, adopted: Adopted) -> None:
    """Give a file that was taken in its place, durably; what there was of it until now is deleted. Raises OSError."""
    blob = adopted.manifest.hex
    write_description(folder, adopted.manifest, adopted.leaves)
    folder.rename(adopted.name, name_of(blob, "blob"))
    folder.sync()
    # A journal that claims less than everything, alone beside a complete blob, would mean rot: see `rot`.
    folder.unlink(name_of(blob, "journal"))
    folder.unlink(name_of(blob, "part"))


def delete(folder: Folder, blob: str) -> bool:
    """Delete every file of a blob (its id without `sha256:`), durably; whether there was any. Raises OSError.

    The data go first: a description without them is cleared away at the next start, data without it are kept.
    """
    found = [folder.unlink(name_of(blob, kind)) for kind in ("blob", "part")]
    for kind in _BESIDE:
        with contextlib.suppress(OSError):
            found.append(folder.unlink(name_of(blob, kind)))
    folder.sync()
    return any(found)


def _partial(
    folder: Folder, manifest: Manifest, leaves: tuple[bytes, ...], fd: int, have: Bitfield, shelf: Shelf
) -> Partial:
    journal = _journal(folder, manifest, have)
    path = folder.file(manifest.hex, "part")
    return Partial(manifest, leaves, path, SharedFd(fd), journal, shelf)


def _journal(folder: Folder, manifest: Manifest, have: Bitfield) -> Journal:
    journal = open_journal(folder, manifest)
    if journal is None:
        write_journal(folder, manifest, have)
        journal = open_journal(folder, manifest)
        if journal is None:
            raise OSError(5, "the journal that was just written cannot be read")
    try:
        journal.take(have)
    except BaseException:
        journal.close()
        raise
    return journal
