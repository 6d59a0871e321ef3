"""What can be wrong with a server, whatever it is asked."""

from __future__ import annotations

from typing import Final

_MOST: Final = 200


class ServerTroubleError(Exception):
    """A server cannot be used, or not for this. `reason` fits after "the server"; it may quote what the server said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConnectTroubleError(ServerTroubleError):
    """No connection came about: nothing of a request has reached the server."""


class StatusTroubleError(ServerTroubleError):
    """The server answered with another status than 200."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def quoted(text: object) -> str:
    """What a server said, as a log or a message may show it: one printable line of at most 200 characters."""
    if not isinstance(text, str):
        return ""
    cut = text[: 4 * _MOST]
    line = " ".join("".join(c if c.isprintable() else " " for c in cut).split())
    return line if len(line) <= _MOST else line[: _MOST - 1] + "…"
