"""The files of the audit trail: appended to by one writer, read by many, thrown away when too old or too many.

A file is `NUMBER-DAY.jsonl`; its number says its place, and its day (UTC) is for people: clocks are set back. A new one
is begun each day, and when one has reached a sixteenth of what all may take. A file is dated, by its time of change, by
the moment it was closed, so a box that started in 1970 and learnt the time later does not lose what it wrote before.

Everything here blocks, and belongs into a thread.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.jobs.outcome import iso_time
from fleet.durable import make_private

#: Below the state folder.
FOLDER: Final = "audit"
#: Of what all files may take, one takes this part at most.
_PARTS: Final = 16
_DAY: Final = 86_400.0
_NAME: Final = re.compile(r"([0-9]{8})-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl")


@dataclass(frozen=True, order=True)
class Part:
    """One file of the trail."""

    number: int
    day: str

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return f"{self.number:08d}-{self.day}.jsonl"


def parts(folder: Path) -> list[Part]:
    """The files of a trail, oldest first; none where the folder is missing. Raises OSError."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    found = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(Part(int(match[1]), match[2]) for match in found)


class AuditFiles:
    """Appends lines. `most` is how many bytes all files may take, `keep` how many seconds a closed one is kept.

    Every method raises OSError where the disk does not take it; what was not written then is not there in part either.
    """

    def __init__(self, folder: Path, *, most: int, keep: float) -> None:
        self.folder: Final = folder
        self._part_size = max(1, most // _PARTS)
        self._most = most
        self._keep = keep
        self._fd: int | None = None
        self._part: Part | None = None
        self._size = 0

    def append(self, lines: Sequence[bytes], now: float) -> None:
        """Write lines, each with its line break, at the end; `now` is seconds since the epoch."""
        data: list[bytes] = []
        size = 0
        for line in lines:
            if data and size + len(line) > self._part_size:
                self._write(b"".join(data), now)
                data, size = [], 0
            data.append(line)
            size += len(line)
        if data:
            self._write(b"".join(data), now)

    def _write(self, data: bytes, now: float) -> None:
        if self._fd is None:
            self._go_on(now)
        if self._part is None or self._part.day != _day(now) or self._size + len(data) > self._part_size:
            self._begin(now)
        if self._fd is None:
            raise AssertionError("a part has been begun")
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def tidy(self, now: float) -> None:
        """Close what is not of today, and delete what is too old."""
        if self._part is not None and self._part.day != _day(now):
            self._close(now)
        self._expire(now, room=0)

    def close(self) -> None:
        """Put what was written on the disk, and let go of it."""
        if self._fd is not None:
            os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd, self._part, self._size = None, None, 0

    def _go_on(self, now: float) -> None:
        """Take up the last file of an earlier process. A line that it was killed in the midst of gets its end."""
        make_private(self.folder)
        known = parts(self.folder)
        if not known or known[-1].day != _day(now):
            return
        fd = os.open(self.folder / known[-1].name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
                size += 1
        except OSError:
            os.close(fd)
            raise
        self._fd, self._part, self._size = fd, known[-1], size

    def _begin(self, now: float) -> None:
        self._close(now)
        self._expire(now, room=self._part_size)
        known = parts(self.folder)
        part = Part(known[-1].number + 1 if known else 1, _day(now))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.folder / part.name, flags, 0o600)
        self._part, self._size = part, 0

    def _close(self, now: float) -> None:
        if self._fd is not None:
            os.utime(self._fd, (now, now))
            self.close()

    def _expire(self, now: float, *, room: int) -> None:
        """Delete files that are too old, and the oldest until so many bytes are free of what all may take."""
        closed = [part for part in parts(self.folder) if part != self._part]
        sizes = {part: (self.folder / part.name).stat() for part in closed}
        total = self._size + sum(stat.st_size for stat in sizes.values())
        for part in closed:
            if sizes[part].st_mtime < now - self._keep or total + room > self._most:
                (self.folder / part.name).unlink()
                total -= sizes[part].st_size


def _day(now: float) -> str:
    return iso_time(now)[:10]
