"""Room on the disk: asked for before a blob is begun, and reserved, so that it does not run out in the middle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from fleet.blobs.errors import NoSpaceError
from fleet.blobs.folder import Folder

#: Makes a file so many bytes long, and gets it the room; raises NoSpaceError and OSError.
Reserve = Callable[[int, int], None]

#: What says that the file system cannot reserve, rather than that there is no room.
_CANNOT: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))


def check_room(folder: Folder, needed: int, keep_free: int) -> None:
    """Raises NoSpaceError where `needed` bytes more would leave less than `keep_free`, and OSError."""
    missing = needed + keep_free - folder.free()
    if needed > 0 and missing > 0:
        raise _no_space(folder, missing, keep_free)


def reserve(folder: Folder, fd: int, size: int, keep_free: int) -> None:
    """Make a file `size` bytes long and get it all the room it takes, beside `keep_free` for others.

    Raises NoSpaceError, the file being as it was but perhaps with more room, and OSError. Where the file system cannot
    reserve, the file is made that long and no more.
    """
    found = os.fstat(fd)
    needed = size - min(size, found.st_blocks * 512)
    check_room(folder, needed, keep_free)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = max(1, needed + keep_free - folder.free())
            raise _no_space(folder, missing, keep_free) from None
        if error.errno not in _CANNOT:
            raise
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)


def _no_space(folder: Folder, missing: int, keep_free: int) -> NoSpaceError:
    return NoSpaceError(
        missing,
        f"{missing} bytes are missing on the disk of {folder.path}, of which {keep_free} are to stay free; remove"
        " models that are not needed (shoal models gc), or give it more room",
    )
