"""What a box answers to its peers: methods by name, each behind a scope, and the counters of what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fleet.errors import DeniedError, FleetError, MessageError
from fleet.net.flood import Seldom


class IncomingCall(Protocol):
    """A peer's call as its handler sees it. `peer_id` is authenticated; `body` is decoded but not validated."""

    @property
    def peer_id(self) -> str:
        """The authenticated PeerID of the caller."""

    @property
    def body(self) -> object:
        """The decoded request, not validated yet."""

    async def send(self, event: Mapping[str, object]) -> None:
        """Send one event to the caller; waits while the link's outbox is full (backpressure)."""


#: Runs one call to its end and returns the body of the answer. It is cancelled when the caller cancels or the link
#: breaks. A FleetError (RemoteError for codes of other rooms) it raises is sent to the caller; anything else becomes
#: `internal` without its text.
Handler = Callable[[IncomingCall], Awaitable[Mapping[str, object]]]
Authorise = Callable[[str, str], bool]


@dataclass
class Router:
    """The methods a box offers. `authorise(peer_id, scope)` is asked at every call, not only at the handshake."""

    authorise: Authorise
    refused: Counter[str] = field(default_factory=Counter)
    #: Told of every call that is refused before a handler is asked: the peer, the method, the body, why.
    on_refused: Callable[[str, str, object, FleetError], None] = lambda peer_id, method, body, error: None
    #: Which refusals are logged; kept over a peer's links, so that coming again does not fill the log.
    seldom: Seldom = field(default_factory=Seldom)
    _methods: dict[str, tuple[str, Handler]] = field(default_factory=dict)

    def add(self, method: str, scope: str, handler: Handler) -> None:
        """Offer `method` to peers that hold `scope`."""
        self._methods[method] = (scope, handler)

    def permits(self, peer_id: str, method: str) -> bool:
        """Whether the peer may (still) call a method; asked again for running calls when the firewall changes."""
        entry = self._methods.get(method)
        return entry is not None and self.authorise(peer_id, entry[0])

    def resolve(self, peer_id: str, method: str) -> Handler:
        """The handler for a peer's call.

        Raises MessageError for a method that does not exist and DeniedError where the peer lacks its scope; both are
        counted in `refused`.
        """
        entry = self._methods.get(method)
        if entry is None:
            self.refused["unknown_method"] += 1
            raise MessageError("this box does not offer that method; it may run an older version")
        scope, handler = entry
        if not self.authorise(peer_id, scope):
            self.refused["denied"] += 1
            raise DeniedError(f"your key is not allowed to call {method} here", details={"scope": scope})
        return handler


#: How many calls one peer may have running here at once; more are refused, not queued.
MAX_CALLS_PER_LINK: Final = 64
