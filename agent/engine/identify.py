"""Which model a file holds: its header's facts, and its content hash, which is cached by what `stat` says of it."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.engine.json_file import read_entries, write_entries
from fleet.models.gguf import GgufError, GgufFacts, read_facts

_CHUNK: Final = 1024 * 1024


@dataclass(frozen=True)
class FileStamp:
    """What tells one version of a file from another without reading it.

    `mtime_ns` can be set by whoever writes the file, `ctime_ns` by the kernel alone.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Identity:
    """A model file as it was found. `stamp` is None where there is no file, `hash` empty where it cannot be read.

    `facts` is None where the file cannot be run; `error` then says why.
    """

    stamp: FileStamp | None
    hash: str = ""
    facts: GgufFacts | None = None
    error: str = ""


class Stopped(Exception):  # noqa: N818 - no error: the caller asked for it
    """Identifying was stopped before it was complete."""


def stamp_of(path: Path) -> FileStamp | None:
    """The file's stamp now, None where there is none."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def identify(path: Path, cache: HashCache, stop: threading.Event) -> Identity:
    """Read a file's header and hash it all; blocks for as long as the disk takes, so it is for a thread.

    A file that cannot be run is hashed all the same, so that a request for it can be told why. Raises Stopped soon
    after `stop` is set.
    """
    stamp = None
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever, and keep the agent from stopping.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            stamp = _stamp(found)
            if not stat.S_ISREG(found.st_mode):
                return Identity(stamp, error="the file cannot be read: it is a device or a pipe")
            facts, error = None, ""
            try:
                facts = read_facts(file)
            except GgufError as problem:
                error = problem.message
            digest = cache.get(path, stamp) or _hash(file, stop)
            if _stamp(os.fstat(file.fileno())) != stamp:
                return Identity(stamp, error="the file changed while it was read")
    except PermissionError as problem:
        needed = f"uid {os.geteuid()}, which the agent runs as, has to be able to read it and its folder"
        return Identity(stamp, error=f"the file cannot be read: {problem.strerror or problem}: {needed}")
    except OSError as problem:
        return Identity(stamp, error=f"the file cannot be read: {problem.strerror or problem}")
    cache.put(path, stamp, digest)
    return Identity(stamp, f"sha256:{digest}", facts, error)


class HashCache:
    """Content hashes of files that have not changed since they were hashed, kept over restarts in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._entries = read_entries(file)  # hashes can be made again

    def get(self, path: Path, stamp: FileStamp) -> str | None:
        """The hash, in hex, of the file with this stamp; None if it is not known."""
        entry = self._entries.get(str(path.absolute()))
        if entry is None or entry.get("stamp") != _as_list(stamp):
            return None
        digest = entry.get("sha256")
        return digest if isinstance(digest, str) and len(digest) == 64 else None

    def put(self, path: Path, stamp: FileStamp, digest: str) -> None:
        """Remember a hash. A cache that cannot be written costs time at the next start and nothing else."""
        entry = {"stamp": _as_list(stamp), "sha256": digest}
        with self._lock:
            if self._entries.get(str(path.absolute())) == entry:
                return
            self._entries = {p: e for p, e in self._entries.items() if Path(p).exists()}
            self._entries[str(path.absolute())] = entry
            try:
                write_entries(self._file, self._entries)
            except OSError:
                return


def _hash(file: Any, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        if stop.is_set():
            raise Stopped
        digest.update(chunk)
    return digest.hexdigest()


def _stamp(found: os.stat_result) -> FileStamp:
    return FileStamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _as_list(stamp: FileStamp) -> list[int]:
    return [stamp.device, stamp.inode, stamp.size, stamp.mtime_ns, stamp.ctime_ns]
