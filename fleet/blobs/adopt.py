"""Taking a complete file in: it is hashed once, and shares the disk's room with the original where it can.

A clone (btrfs, XFS) is a file of its own that takes no room until one of the two is written. A hard link is the same
file under one more name: whoever writes into the original changes the blob, which is noticed by the file's times. Else
it is copied, and what is hashed is what was copied.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fleet.blobs.errors import BlobFileError
from fleet.blobs.folder import Folder
from fleet.blobs.hashing import Progress, hash_file
from fleet.blobs.manifest import MAX_SIZE, Manifest
from fleet.blobs.merkle import Algorithm, root_of
from fleet.blobs.rot import clone
from fleet.blobs.space import Reserve


@dataclass(frozen=True)
class Adopted:
    """A file that was hashed and is durable under `name`, and what it is."""

    name: str
    manifest: Manifest
    leaves: tuple[bytes, ...]


def take_in(folder: Folder, path: Path, algorithm: Algorithm, reserve: Reserve, progress: Progress | None) -> Adopted:
    """Bring a file into the folder under a name of its own. The original stays as it is.

    Raises BlobFileError, NoSpaceError, MissingAlgorithmError, OSError, and what `progress` raises; nothing is left
    then.
    """
    root_of((), algorithm)  # what is missing is said before the file is read
    source = _open(path)
    name = folder.new_name()
    try:
        return _bring(folder, path, source, name, algorithm, reserve, progress)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.unlink(name)
        raise
    finally:
        os.close(source)


def _bring(
    folder: Folder,
    path: Path,
    source: int,
    name: str,
    algorithm: Algorithm,
    reserve: Reserve,
    progress: Progress | None,
) -> Adopted:
    size = os.fstat(source).st_size
    copied = False
    own = folder.create(name)
    try:
        if not clone(source, own):
            linked = _link(folder, source, name)
            if linked is None:
                copied = True
                reserve(own, size)
            else:
                os.close(own)
                own = linked
        before = _stamp(own)
        if before[0] != size:
            raise _changed(path)
        try:
            digest, leaves = hash_file(
                source if copied else own, size, algorithm, copy_to=own if copied else None, progress=progress
            )
        except EOFError:
            raise _changed(path) from None
        # A clone and a copy are nobody else's, and what was hashed is what was copied; a link may be written to.
        if not copied and _stamp(own) != before:
            raise _changed(path)
        os.fsync(own)
    finally:
        os.close(own)
    manifest = Manifest(f"sha256:{digest}", size, root_of(leaves, algorithm), algorithm)
    return Adopted(name, manifest, leaves)


def _link(folder: Folder, source: int, name: str) -> int | None:
    """The open file under one more name, in place of what has that; None where that cannot be."""
    spare = folder.new_name()
    try:
        folder.link(source, spare)
    except OSError:
        return None
    try:
        fd = folder.open(spare)
        folder.rename(spare, name)
    except OSError:
        with contextlib.suppress(OSError):
            folder.unlink(spare)
        raise
    return fd


def _stamp(fd: int) -> tuple[int, int]:
    # Not the third time, which changes with the names too.
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> BlobFileError:
    return BlobFileError(f"{path} changed while it was read; add it again once nobody writes to it")


def _open(path: Path) -> int:
    try:
        # A pipe that nobody writes to would keep us waiting.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BlobFileError(f"cannot read {path}: {error.strerror or error}") from None
    found = os.fstat(fd)
    why = ""
    if not stat.S_ISREG(found.st_mode):
        why = "is no regular file"
    elif found.st_size == 0:
        why = "is empty"
    elif found.st_size > MAX_SIZE:
        why = f"has more than {MAX_SIZE} bytes"
    if why:
        os.close(fd)
        raise BlobFileError(f"{path} {why}; name the file of a model")
    return fd
