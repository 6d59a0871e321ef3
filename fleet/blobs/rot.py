"""From complete to partial: what is done with a blob in which rot was found, and with what a crash left of that.

The journal comes first, durably, with every block claimed but the bad ones; then the file gets its other name. Between
the two there is a complete file with a journal that claims less than everything. `finish` leaves one whose journal
claims everything; so the two can be told apart at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from typing import Final

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.folder import Folder, name_of
from fleet.blobs.journal import read_journal, write_journal
from fleet.blobs.manifest import Manifest
from fleet.blobs.space import Reserve

#: ioctl of btrfs, XFS and others: share a file's extents (linux/fs.h).
_FICLONE: Final = 0x40049409


def withdraw(folder: Folder, manifest: Manifest, bad: Iterable[int]) -> None:
    """Make a complete blob a partial one that claims every block but `bad`. Raises OSError."""
    bits = Bitfield.full(manifest.blocks)
    for index in bad:
        bits.clear(index)
    write_journal(folder, manifest, bits)
    folder.rename(name_of(manifest.hex, "blob"), name_of(manifest.hex, "part"))
    folder.sync()


def settle(folder: Folder, manifest: Manifest) -> bool:
    """Bring the files of a blob that is there as complete to an end that a crash prevented; whether it is complete.

    One that is not becomes a partial that claims everything, unless there is a partial already: what is missing is seen
    when it is hashed. Raises OSError.
    """
    blob, part, journal = (name_of(manifest.hex, kind) for kind in ("blob", "part", "journal"))
    found = folder.stat(blob)
    right_size = found is not None and found.st_size == manifest.size
    claims = read_journal(folder, manifest)
    if right_size and (claims is None or claims.complete or folder.stat(part) is not None):
        # Finished or adopted, but what it was made from was not cleared away.
        for name in (journal, part):
            if folder.stat(name) is not None:
                with contextlib.suppress(OSError):  # on a disk that is read-only
                    folder.unlink(name)
        return True
    if folder.stat(part) is not None:
        folder.unlink(blob)  # of the wrong size, and not what is being fetched
        return False
    folder.unlink(journal)
    folder.rename(blob, part)
    folder.sync()
    return False


def own_copy(folder: Folder, manifest: Manifest, fd: int, reserve: Reserve) -> int:
    """Make a partial whose file has other names too (it was taken in as a hard link) a file of its own; gives its
    descriptor, and closes `fd`. Repairing it in place would write into somebody else's file.

    Raises NoSpaceError, and OSError; `fd` is as it was then.
    """
    new = folder.new_name()
    target = folder.create(new)
    try:
        if not clone(fd, target):
            reserve(target, manifest.size)
            copy(fd, target, min(os.fstat(fd).st_size, manifest.size))
        os.fsync(target)
        folder.rename(new, name_of(manifest.hex, "part"))
        folder.sync()
    except BaseException:
        os.close(target)
        with contextlib.suppress(OSError):
            folder.unlink(new)
        raise
    os.close(fd)
    return target


def clone(source: int, target: int) -> bool:
    """Make `target` share all that `source` has, where the file system can; whether it could."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def copy(source: int, target: int, size: int) -> None:
    """Copy a file's first `size` bytes; a sector that cannot be read is left out. Raises OSError."""
    done = 0
    while done < size:
        try:
            data = os.pread(source, min(1 << 20, size - done), done)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            done += 1 << 20
            continue
        if not data:
            return
        done += os.pwrite(target, data, done)
