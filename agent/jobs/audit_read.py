"""Reading the audit trail: which lines are wanted, and a reader that goes through them piece by piece.

However long the trail is, a reader has 64 KiB of it in memory, and gives way after each piece.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from agent.errors import BadRequestError
from agent.jobs.audit_files import Part, parts
from agent.jobs.outcome import iso_time, read_line

#: Bytes that are read of a file at a time; a line that is longer is none of this version's, and is passed over.
PIECE: Final = 64 * 1024
#: Characters of a value that is looked for.
MAX_WANTED: Final = 256
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Wanted:
    """Which outcomes are asked for; empty asks for any. `since` is seconds since the epoch.

    `peer` is a PeerID or a name, `model` a name (as asked for or as it ran) or a content hash, `outcome` an outcome or
    an error's code.
    """

    job: str = ""
    peer: str = ""
    model: str = ""
    outcome: str = ""
    since: float = 0.0

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Whether one outcome is asked for."""
        return (
            self._is(self.job, facts, "job")
            and self._is(self.peer, facts, "peer", "peer_name")
            and self._is(self.model, facts, "asked", "model", "hash")
            and self._is(self.outcome, facts, "outcome", "error")
            # Times are of one form and one length, so their order is that of their text.
            and (not self.since or str(facts["at"]) >= iso_time(self.since))
        )

    def _is(self, wanted: str, facts: Mapping[str, Any], *names: str) -> bool:
        return not wanted or any(facts.get(name) == wanted for name in names)

    def may_match(self, line: bytes) -> bool:
        """Whether a line is worth reading: the cheap part of `matches`."""
        return all(_as_written(value) in line for value in (self.job, self.peer, self.model, self.outcome) if value)


def _as_written(value: str) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii")


def wanted(asked: Mapping[str, str], now: float) -> Wanted:
    """What is asked for, by the names of `Wanted`; raises BadRequestError that names what cannot be understood."""
    for name, value in asked.items():
        if len(value) > MAX_WANTED:
            raise BadRequestError(f"{name} has more than {MAX_WANTED} characters", details={"param": name})
    texts = {name: value for name, value in asked.items() if name != "since"}
    return Wanted(**texts, since=since(asked.get("since", ""), now))


def since(text: str, now: float) -> float:
    """A moment in seconds since the epoch: `2h` ago, a day, or a time as RFC 3339 has it; 0.0 for an empty text.

    A day or time that names no zone is UTC, as the trail is. Raises BadRequestError.
    """
    if not text:
        return 0.0
    span = _SPAN.fullmatch(text)
    if span is not None:
        return max(0.0, now - int(span[1]) * _SECONDS[span[2]])
    try:
        moment = datetime.fromisoformat(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise BadRequestError(
            f"since: {text!r} is neither a span such as 30m, 2h or 7d, nor a date such as 2026-11-20 or"
            " 2026-11-20T08:00:00Z",
            details={"param": "since"},
        ) from None


class AuditReader:
    """Goes through a trail from its oldest line to its newest, and on where it grows. Blocks; belongs into threads."""

    def __init__(self, folder: Path, asked: Wanted) -> None:
        self._folder = folder
        self._asked = asked
        self._part: Part | None = None
        self._fd: int | None = None
        self._rest = b""
        self._skipping = False
        #: Lines that are torn, or none of this version's.
        self.unreadable = 0

    def next(self) -> bytes | None:
        """Wanted lines of the next piece, each with its line break; maybe none. None at the end of the trail for now.

        Raises OSError. After None it may be called again, and finds what has been written since.
        """
        if self._fd is None and not self._open_next():
            return None
        if self._fd is None:
            raise AssertionError("a file has been opened")
        newest = self._is_newest()  # before it is read: what the writer has left has nothing more to come
        piece = os.read(self._fd, PIECE)
        if not piece:
            if not newest:
                self._leave()
                return b""
            return None
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if self._skipping and lines:
            lines, self._skipping = lines[1:], False
        if len(self._rest) > PIECE:
            self._rest, self._skipping = b"", True
            self.unreadable += 1
        return b"".join(line + b"\n" for line in lines if self._is_wanted(line))

    def _is_wanted(self, line: bytes) -> bool:
        if not self._asked.may_match(line):
            return False
        facts = read_line(line)
        if facts is None:
            self.unreadable += bool(line)
            return False
        return self._asked.matches(facts)

    def _open_next(self) -> bool:
        for part in parts(self._folder):
            if self._part is not None and part <= self._part:
                continue
            try:
                fd = os.open(self._folder / part.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # thrown away meanwhile
            self._part = part
            if os.fstat(fd).st_mtime < self._asked.since and not self._is_newest():
                os.close(fd)
                continue  # closed before the time that is asked for
            self._fd = fd
            return True
        return False

    def _is_newest(self) -> bool:
        known = parts(self._folder)
        return not known or self._part is None or known[-1] <= self._part

    def _leave(self) -> None:
        """Go on to the next file; what is left of this one is a line that never got its end."""
        self.unreadable += bool(self._rest)
        self._rest, self._skipping = b"", False
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
