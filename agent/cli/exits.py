"""The exit codes of `shoal`, and which error leads to which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
DENIED: Final = 4
DEGRADED: Final = 5
INTERRUPTED: Final = 130

#: Exit code of every error code that does not simply mean "failed".
_BY_CODE: Final[Mapping[str, int]] = {
    "usage": USAGE,
    "config": USAGE,
    "identity": USAGE,
    "token": USAGE,
    "bundle": USAGE,
    "manifest": USAGE,
    "agent_unreachable": UNREACHABLE,
    "no_capable_peer": UNREACHABLE,
    "peer_unreachable": UNREACHABLE,
    "unauthorized": DENIED,
    "denied": DENIED,
    "refused": DENIED,
    "expired": DENIED,
    "other_fleet": DENIED,
}


def exit_code(error_code: str) -> int:
    """The exit code for an error's stable code; 1 for any that is not listed."""
    return _BY_CODE.get(error_code, FAILED)
