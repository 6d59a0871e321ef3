"""The table of what neighbours last said about their load. Pure: the caller passes the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet.net.messages import Presence

#: A box that has not spoken for this long is out of routing (seconds).
MAX_AGE: Final = 90.0
#: Presence goes out on connect, on change, and at least this often (seconds).
INTERVAL: Final = 10.0


@dataclass(frozen=True)
class Seen:
    """A neighbour's last presence and when it came, in seconds on the caller's clock."""

    presence: Presence
    at: float


class PresenceTable:
    """Last presence of each neighbour. A presence speaks only for the authenticated key it came from."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def greet(self, peer_id: str, presence: Presence, now: float) -> None:
        """A neighbour's presence from its Hello; a restarted process counts from 0 again, so `seq` may go back."""
        self._seen[peer_id] = Seen(presence, now)

    def update(self, peer_id: str, presence: Presence, now: float) -> bool:
        """A later presence on the same link; False (and no change) when its `seq` does not grow."""
        known = self._seen.get(peer_id)
        if known is not None and presence.seq <= known.presence.seq:
            return False
        self._seen[peer_id] = Seen(presence, now)
        return True

    def forget(self, peer_id: str) -> None:
        """A box that belongs to the fleet no longer."""
        self._seen.pop(peer_id, None)

    def last(self, peer_id: str) -> Seen | None:
        """What the neighbour last said, however long ago."""
        return self._seen.get(peer_id)

    def all(self) -> Mapping[str, Seen]:
        """Every neighbour that ever spoke to this process."""
        return dict(self._seen)

    def fresh(self, now: float, max_age: float = MAX_AGE) -> Mapping[str, Seen]:
        """Neighbours that spoke within `max_age` seconds."""
        return {peer: seen for peer, seen in self._seen.items() if now - seen.at <= max_age}
