"""What a power cut may leave of a folder: every call that changes it is noted, and states that they allow are made.

Of a file what was synced is there; of what was written after that each piece is there, half there, or not. Names change
in the order of the calls (journalling file systems keep that), those since the folder was last synced perhaps not yet.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Write:
    """A piece of a file; `data` None makes it at least `offset` long, and of exactly that length where `exact`."""

    inode: int
    offset: int
    data: bytes | None
    exact: bool = False


@dataclass(frozen=True)
class Name:
    """`new` means `inode`, `old` nothing any more."""

    inode: int | None
    new: str | None
    old: str | None = None


@dataclass(frozen=True)
class Sync:
    """Of one file, or of the folder (None)."""

    inode: int | None


class Recorder:
    """The calls, in order, and what whoever made them noted between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[Write | Name | Sync | str] = []
        #: Of the inodes, whose numbers are given again, the files that they are now.
        self._files: dict[int, int] = {}

    def note(self, what: str) -> None:
        self.calls.append(what)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in _CALLS}

        def inode(fd: int) -> int:
            number = os.fstat(fd).st_ino
            return self._files.get(number, number)

        def named(name: str) -> int:
            number = (self.folder / name).lstat().st_ino
            return self._files.get(number, number)

        def pwrite(fd: int, data: Any, offset: int) -> int:
            done: int = real["pwrite"](fd, data, offset)
            self.calls.append(Write(inode(fd), offset, bytes(data)[:done]))
            return done

        def allocate(fd: int, offset: int, size: int) -> None:
            real["posix_fallocate"](fd, offset, size)
            self.calls.append(Write(inode(fd), offset + size, None))

        def truncate(fd: int, size: int) -> None:
            real["ftruncate"](fd, size)
            self.calls.append(Write(inode(fd), size, None, exact=True))

        def sync(fd: int, call: str) -> None:
            real[call](fd)
            self.calls.append(Sync(None if stat.S_ISDIR(os.fstat(fd).st_mode) else inode(fd)))

        def opened(path: Any, flags: int, *more: Any, dir_fd: int | None = None) -> int:
            fd: int = real["open"](path, flags, *more, dir_fd=dir_fd)
            if flags & os.O_CREAT:
                self._files[os.fstat(fd).st_ino] = -1 - len(self.calls)
                if dir_fd is not None:
                    self.calls.append(Name(inode(fd), path))
            return fd

        def rename(old: str, new: str, **more: Any) -> None:
            real["rename"](old, new, **more)
            self.calls.append(Name(named(new), new, old))

        def unlink(name: str, **more: Any) -> None:
            real["unlink"](name, **more)
            self.calls.append(Name(None, None, name))

        def link(source: str, name: str, **more: Any) -> None:
            real["link"](source, name, **more)
            self.calls.append(Name(named(name), name))

        with mock.patch.multiple(
            os,
            pwrite=pwrite,
            posix_fallocate=allocate,
            ftruncate=truncate,
            fsync=lambda fd: sync(fd, "fsync"),
            fdatasync=lambda fd: sync(fd, "fdatasync"),
            open=opened,
            rename=rename,
            unlink=unlink,
            link=link,
        ):
            yield


_CALLS = ("pwrite", "posix_fallocate", "ftruncate", "fsync", "fdatasync", "open", "rename", "unlink", "link")


def after_power_cut(calls: list[Write | Name | Sync | str], rng: random.Random, target: Path) -> None:
    """Make `target` what a power cut after these calls may leave, as `rng` chooses."""
    synced: dict[int | None, int] = {call.inode: at for at, call in enumerate(calls) if isinstance(call, Sync)}
    files: dict[int, bytearray] = {}
    for at, call in enumerate(calls):
        if isinstance(call, Write):
            content = files.setdefault(call.inode, bytearray())
            kept = 1.0 if at < synced.get(call.inode, -1) else rng.choice((0.0, 0.5, 1.0))
            _apply(content, call, kept)
    names: dict[str, int] = {}
    changes = [(at, call) for at, call in enumerate(calls) if isinstance(call, Name)]
    durable = sum(at < synced.get(None, -1) for at, _ in changes)
    for _, call in changes[: rng.randint(durable, len(changes))]:
        if call.old is not None:
            names.pop(call.old, None)
        if call.new is not None and call.inode is not None:
            names[call.new] = call.inode
    target.mkdir(mode=0o700)
    for name, inode in names.items():
        (target / name).write_bytes(files.get(inode, b""))


def _apply(content: bytearray, call: Write, kept: float) -> None:
    if call.data is None:
        if kept < 1.0:
            return
        if call.exact:
            del content[call.offset :]
        content.extend(bytes(max(0, call.offset - len(content))))
        return
    data = call.data[: int(len(call.data) * kept)]
    content.extend(bytes(max(0, call.offset + len(data) - len(content))))
    content[call.offset : call.offset + len(data)] = data
