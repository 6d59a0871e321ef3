"""The error tree of `fleet`: every failure has a stable code and a message that names the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class FleetError(Exception):
    """Base of every error raised by `fleet`.

    `code` is stable and travels between boxes; `message` is for people and names the remedy; `details` holds plain
    values (numbers, strings, lists of them) that a program can use. `retryable` says whether asking another box, or
    the same box later, can help.
    """

    code: ClassVar[str] = "fleet"
    retryable: bool = False

    def __init__(self, message: str, *, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})


class IdentityError(FleetError):
    """The box's key is missing, malformed or readable by others; the message gives the command to run."""

    code = "identity"


class RefusedOpError(FleetError):
    """An op, genesis or invite that this box does not accept; `reason` is a stable code of what is wrong with it."""

    code = "refused_op"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, details={"reason": reason})
        self.reason = reason


class StoreError(FleetError):
    """The fleet document cannot be read from or written to disk; the message names the file and the remedy."""

    code = "store"


class DamagedGenesisError(StoreError):
    """The record that says which fleet this box belongs to is no genesis any more; `OpStore.set_genesis_aside` makes
    room for another copy of it."""


class FrameError(FleetError):
    """A peer sent a frame past a limit or not decodable; the link it came on is closed and the refusal counted."""

    code = "bad_frame"


class MessageError(FleetError):
    """A well-formed frame whose content does not match its schema; the call it belongs to fails, the link stays."""

    code = "bad_request"


class DeniedError(FleetError):
    """This box refuses the peer's key, or the peer's key lacks the scope for the method it called."""

    code = "denied"


class PeerRefusedError(FleetError):
    """The other box refused our key at the handshake; retrying does not help until it allows the key."""

    code = "refused"


class PeerUnreachableError(FleetError):
    """No address of the peer answered within the connect deadline, or its link broke during a call."""

    code = "peer_unreachable"
    retryable = True


class CallTimeoutError(FleetError):
    """The peer accepted a call and then sent nothing within the deadline; the call was cancelled on both sides."""

    code = "peer_timeout"
    retryable = True


class BacklogError(FleetError):
    """Whoever asked a peer did not read its answer, which was given up and cancelled there; read answers as they come.

    `details` has `waiting_bytes` and `limit_bytes`. Asking another box would end the same way; asking again and
    reading faster need not.
    """

    code = "backlog"
    retryable = True


class RemoteError(FleetError):
    """The peer answered a call with an error of its own; `code` on the instance is the peer's code."""

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.remote_code = code
        self.retryable = retryable
