"""What gossip needs of a link, and a call with a deadline on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import trio

from fleet.errors import CallTimeoutError, MessageError


class Peer(Protocol):
    """A connected box; `fleet.net.link.Link` is one."""

    @property
    def peer_id(self) -> str:
        """The authenticated PeerID of the other end."""

    @property
    def outbound(self) -> bool:
        """Whether this box dialled."""

    async def call(
        self, method: str, body: Mapping[str, object], on_event: Callable[[object], Awaitable[None]]
    ) -> object:
        """Call the peer; as `Link.call`."""


#: The boxes that are connected now, each once.
Neighbours = Callable[[], Sequence[Peer]]


async def ask(peer: Peer, method: str, body: Mapping[str, object], limit: float) -> Mapping[object, object]:
    """Call a method that answers with a map and has no events; `limit` in seconds.

    Raises CallTimeoutError past the limit, MessageError for an answer of another form, and whatever `Link.call`
    raises. Cancelling it cancels the call on both sides.
    """
    try:
        with trio.fail_after(limit):
            answer = await peer.call(method, body, _no_events)
    except trio.TooSlowError:
        raise CallTimeoutError(f"the peer did not answer {method} within {limit:g} s") from None
    if not isinstance(answer, dict):
        raise MessageError(f"the answer to {method} is not a map")
    return answer


async def _no_events(event: object) -> None:
    raise MessageError("an event of a call that has none")
