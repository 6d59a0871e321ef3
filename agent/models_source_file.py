"""A download that is under way: its bytes, and what is needed to go on with it after a stop, a crash or a power cut.

    KEY.download   the bytes                     KEY.json   which version they are of, and how many are durable

Only what was made durable is gone on with: after a power cut a file may be as long as it was and hold nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agent.errors import BadRequestError
from fleet.blobs.handle import write_all
from fleet.durable import make_private, sync_folder

#: Bytes after which what came is made durable. A power cut loses about so much.
_SYNC_EVERY: Final = 64 << 20
_MAX_STATE: Final = 16 * 1024


@dataclass(frozen=True)
class Version:
    """What tells one version of a file behind a URL from another, as its server gave it. `etag` is a strong one, or
    empty; `modified` the text of Last-Modified, or empty; `size` in bytes, None where the server did not say.

    `sha256` is what a hub says the file's hash is: 64 hex digits, or empty.
    """

    etag: str = ""
    modified: str = ""
    size: int | None = None
    sha256: str = ""

    @property
    def condition(self) -> str:
        """For If-Range; empty where nothing tells the version."""
        return self.etag or self.modified


class Download:
    """The file of one URL in `folder`, locked. Every method blocks and raises OSError."""

    def __init__(self, folder: Path, url: str) -> None:
        """Open what there is of it, or make it. Raises BadRequestError while it is being fetched already."""
        make_private(folder)
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.path: Final = folder / f"{key}.download"
        self._state = folder / f"{key}.json"
        self._fd = _open_locked(self.path)
        self._unsynced = 0
        self._removed = False
        self.version, self.size = self._restored()
        #: Bytes that were there at first.
        self.resumed: Final = self.size
        os.ftruncate(self._fd, self.size)

    def begin(self, version: Version) -> None:
        """Start from nothing, with this version."""
        os.ftruncate(self._fd, 0)
        self.size, self.version = 0, version
        self.save()

    def write(self, data: bytes) -> None:
        """Add to its end; what could not be written whole is not there."""
        try:
            write_all(self._fd, data, self.size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_EVERY:
            self.save()

    def save(self) -> None:
        """Make durable what came, then that it did."""
        os.fdatasync(self._fd)
        self._unsynced = 0
        new = self._state.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump({"durable": self.size, "version": asdict(self.version)}, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._state)
        sync_folder(self._state.parent)

    def start(self, size: int) -> bytes:
        """Its first bytes, `size` at most."""
        return os.pread(self._fd, min(size, self.size), 0)

    def close(self) -> None:
        """Save what came, as far as the disk takes it, and unlock it."""
        try:
            if not self._removed:
                with contextlib.suppress(OSError):
                    self.save()
        finally:
            os.close(self._fd)

    def remove(self) -> None:
        """Delete it; it is still to be closed."""
        self._removed = True
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def _restored(self) -> tuple[Version, int]:
        """What the state says, as far as the file bears it out."""
        try:
            fd = os.open(self._state, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                state = json.loads(file.read(_MAX_STATE))
            durable, version = state["durable"], Version(**state["version"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return Version(), 0
        texts = (version.etag, version.modified, version.sha256)
        size_is_sound = version.size is None or (type(version.size) is int and version.size >= 0)
        if type(durable) is not int or not all(type(text) is str for text in texts) or not size_is_sound:
            return Version(), 0
        if not 0 <= durable <= os.fstat(self._fd).st_size:
            return Version(), 0
        return version, durable


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BadRequestError("that is being fetched already; see shoal transfers") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(f"{path} is no regular file")
        if found.st_nlink:  # else it was removed while the lock was awaited
            return fd
        os.close(fd)
