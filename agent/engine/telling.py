"""What a model's process tells of its disk, as lines on its standard error that the agent looks for. Pure.

The thread that writes conversations must not use the socket: what it sent could fall into the middle of another
thread's frame. A line shorter than PIPE_BUF (4096 bytes) gets into a pipe whole.
"""

from __future__ import annotations

from typing import Final

#: Begins what a line tells; words of llama.cpp may stand before it.
_MARK: Final = "shoal: conversations: "
_SAVED: Final = "saved"
#: Characters of a reason.
_MAX_REASON: Final = 200
#: Bytes of a line that has not ended; of a longer one the end is read.
_MAX_LINE: Final = 4096


def told(reason: str) -> str:
    """A line, with its line break, that says why conversations are not saved; with an empty reason, that they are."""
    return f"{_MARK}{_clean(reason) or _SAVED}\n"


class Listener:
    """Finds such lines among all that a process writes. What it finds is the process's word: bounded and printable."""

    def __init__(self) -> None:
        self._line = b""

    def feed(self, data: bytes) -> str | None:
        """The last reason among the lines that `data` ended, empty where conversations are saved; None without one."""
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_MAX_LINE:]
        found = None
        for line in lines:
            _, mark, reason = line[-_MAX_LINE:].decode("utf-8", "replace").rpartition(_MARK)
            if mark:
                found = "" if reason == _SAVED else _clean(reason)
        return found


def without(text: str) -> str:
    """What a process wrote, less those lines: they say nothing of how it ended."""
    return "\n".join(line for line in text.split("\n") if _MARK not in line)


def _clean(reason: str) -> str:
    return "".join(c for c in reason if c.isprintable())[:_MAX_REASON]
