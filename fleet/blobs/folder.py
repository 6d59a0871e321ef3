"""The files of a store: how they are named, opened and replaced. Nothing there is trusted to be what it is called.

    HEX.blob     a complete blob                    HEX.tree     its manifest and leaves
    HEX.part     one of which blocks are missing    HEX.journal  which of its blocks are there
    ANY.new      not finished; removed when the folder is opened

HEX is the blob's id, so that no name comes from outside. Links, pipes and whatever else is no regular file are never
opened through their names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, cast

from fleet.blobs.errors import BlobBusyError, StorePausedError
from fleet.blobs.handle import SharedFd, write_all
from fleet.durable import make_private

Kind = Literal["blob", "part", "journal", "tree"]

_NAME: Final = re.compile(r"([0-9a-f]{64})\.(blob|part|journal|tree)")
_NEW: Final = ".new"
#: A pipe would keep whoever opens it waiting, and a link lead elsewhere.
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class StrangeFileError(OSError):
    """What has the name of a file of the store is no regular file."""


class Folder:
    """An open and locked folder. Every method blocks and raises OSError unless it says otherwise, and BlobGoneError
    after `close`."""

    def __init__(self, path: Path) -> None:
        """Make it if need be (0700), and lock it. Raises BlobBusyError while another store has it, StorePausedError."""
        self.path = path
        self._numbers = itertools.count()
        try:
            make_private(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise paused(error, f"cannot open {path}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise BlobBusyError(f"another process uses {path}; stop it first") from None
            raise paused(error, f"cannot lock {path}") from None
        self._dir = SharedFd(fd)

    def close(self) -> None:
        """Unlock it, once the last thread is done with what it does here."""
        self._dir.close()

    def file(self, blob: str, kind: Kind) -> Path:
        """Where a file of a blob is; `blob` is its id without `sha256:`."""
        return self.path / name_of(blob, kind)

    def list(self) -> dict[str, set[Kind]]:
        """The regular files of each blob; what was not finished is removed."""
        found: dict[str, set[Kind]] = {}
        with self._dir.use() as here:
            names = os.listdir(here)  # noqa: PTH208 - of what is open, whatever the path leads to now
        for name in names:
            match = _NAME.fullmatch(name)
            if match is not None and self.stat(name) is not None:
                found.setdefault(match[1], set()).add(cast(Kind, match[2]))
            elif name.endswith(_NEW) and self.stat(name) is not None:
                with contextlib.suppress(OSError):  # on a disk that is read-only it may stay
                    self.unlink(name)
        return found

    def stat(self, name: str) -> os.stat_result | None:
        """Of a regular file; None for anything else."""
        try:
            with self._dir.use() as here:
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def open(self, name: str, *, write: bool = False) -> int:
        """Open a regular file that is there; raises StrangeFileError for anything else."""
        try:
            with self._dir.use() as here:
                fd = os.open(name, (os.O_RDWR if write else os.O_RDONLY) | _SAFE, dir_fd=here)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise StrangeFileError(error.errno, f"{name} is no regular file") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StrangeFileError(errno.EINVAL, f"{name} is no regular file")
        return fd

    def create(self, name: str) -> int:
        """Make a file that only its owner reads, in place of whatever has that name; not a folder."""
        self.unlink(name)
        with self._dir.use() as here:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=here)

    def new_name(self) -> str:
        """A name that nothing has yet, for what is not finished."""
        return f"{next(self._numbers)}{_NEW}"

    def link(self, fd: int, name: str) -> None:
        """Give the very file that is open as `fd` one more name here."""
        with self._dir.use() as here:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=here, follow_symlinks=True)

    def replace(self, name: str, parts: Sequence[bytes]) -> None:
        """Write a whole file, durably, in place of the old one: after a power cut it is the old one or the new one."""
        new = self.new_name()
        fd = self.create(new)
        try:
            offset = 0
            for part in parts:
                write_all(fd, part, offset)
                offset += len(part)
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(new)
            raise
        finally:
            os.close(fd)
        self.rename(new, name)
        self.sync()

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of whatever had that."""
        with self._dir.use() as here:
            os.rename(old, new, src_dir_fd=here, dst_dir_fd=here)

    def unlink(self, name: str) -> bool:
        """Take a name away; whether it was there."""
        try:
            with self._dir.use() as here:
                os.unlink(name, dir_fd=here)
        except FileNotFoundError:
            return False
        return True

    def sync(self) -> None:
        """Make the names durable."""
        with self._dir.use() as here:
            os.fsync(here)

    def free(self) -> int:
        """Bytes that the disk has free for this user."""
        with self._dir.use() as here:
            found = os.fstatvfs(here)
        return found.f_bavail * found.f_frsize


def name_of(blob: str, kind: Kind) -> str:
    """The name of a blob's file."""
    return f"{blob}.{kind}"


def paused(error: OSError, what: str) -> StorePausedError:
    """What an OSError of the store's disk means to whoever uses the store."""
    words = error.strerror or str(error)
    remedies = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "raise the quota",
        errno.EROFS: "mount it for writing; a file system that was found damaged is made read-only",
        errno.EIO: "check the disk: it fails",
        errno.EACCES: "check who owns the folder",
        errno.EPERM: "check who owns the folder",
    }
    remedy = remedies.get(error.errno or 0, "check the disk and who owns the folder")
    return StorePausedError(f"{what}: {words}; {remedy}", details={"errno": error.errno or 0})
