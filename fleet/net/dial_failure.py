"""Why a dial failed, in words that a person can act on. Pure: an exception of the transport in, a text out.

libp2p wraps the cause in up to seven layers, some of which are lists of errors, and shows the outermost.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Final

from libp2p.exceptions import MultiError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure

_MAX_TEXT: Final = 200
_ERRNO: Final[Mapping[int, str]] = {
    errno.ECONNREFUSED: "connection refused: nothing listens on this port",
    errno.EHOSTUNREACH: "no route to host: it is off, or in another network",
    errno.ENETUNREACH: "network is unreachable from this box",
    errno.ETIMEDOUT: "timed out: it is off, or a firewall drops what is sent there",
    errno.EACCES: "not permitted by this box's own firewall",
    errno.EPERM: "not permitted by this box's own firewall",
}
_HUNG_UP: Final = "it closed the connection during the handshake: it may be busy, or no box of a fleet"
_STRANGE: Final = "what answers there does not speak the protocol: another service has this port"


def describe(error: BaseException, addr: str) -> str:
    """The cause of a failed dial of the multiaddr `addr`, in one line of at most 200 characters."""
    chain = list(_causes(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno is not None and one.errno in _ERRNO:
            return _ERRNO[one.errno]
    for one in chain:
        if isinstance(one, PeerIDMismatchesPubkey):
            return f"another box answers there: its key is not {addr.rsplit('/p2p/', 1)[-1]}"
    for one in chain:
        if isinstance(one, IncompleteReadError | ConnectionResetError | BrokenPipeError):
            return _HUNG_UP
    for one in chain:
        if isinstance(one, SecurityUpgradeFailure | MuxerUpgradeFailure | HandshakeFailure):
            return _STRANGE
    if addr.startswith("/dns"):
        return f"the name {addr.split('/')[2]} leads to no address"
    text = str(chain[-1]) or type(chain[-1]).__name__
    return text.splitlines()[0][:_MAX_TEXT]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first, through groups of errors."""
    yield error
    inner: tuple[BaseException, ...] = ()
    if isinstance(error, MultiError):
        inner = tuple(error.errors)
    elif isinstance(error, BaseExceptionGroup):
        inner = error.exceptions
    elif error.__cause__ is not None:
        inner = (error.__cause__,)
    for one in inner:
        yield from _causes(one)
