"""Whether this box has heard the news since it was last cut off, so that it serves nobody who was shut out meanwhile.

Pure: links and comparisons are told to it, with the time. A box is cut off while it does not run, while its machine
sleeps, and while it has no link. When a link comes up after that, the news may be on its way: until another box than
the caller has been compared with, or LIMIT seconds are over, callers wait.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

#: Seconds in which a box that comes back hears from its neighbours, or serves without.
LIMIT: Final = 5.0


class Freshness:
    """What one box has heard; `now` is in seconds of one clock throughout."""

    def __init__(self, now: float) -> None:
        self._heard: set[str] = set()
        #: Those whose last link broke before they had been compared with: they hold up nobody a second time.
        self._mute: set[str] = set()
        self._deadline = now + LIMIT

    def link_up(self, peer_id: str, now: float) -> None:
        """A link has come up: what its other end knows may be news."""
        self._heard.discard(peer_id)
        if peer_id not in self._mute:
            self._deadline = now + LIMIT

    def link_down(self, peer_id: str) -> None:
        """A link is over: what happens at its other end is no longer heard."""
        if peer_id in self._heard:
            self._heard.discard(peer_id)
        elif len(self._mute) < 4096:
            self._mute.add(peer_id)

    def compared(self, peer_id: str) -> None:
        """This box and a linked one hold the same now."""
        self._heard.add(peer_id)
        self._mute.discard(peer_id)

    def stopped(self, now: float) -> None:
        """The process stood still, and its links may only seem to be up: what was heard before is old."""
        self._heard.clear()
        self._mute.clear()
        self._deadline = now + LIMIT

    @property
    def heard(self) -> Collection[str]:
        """The boxes that have been compared with over the links that are up."""
        return self._heard

    def wait_until(self, peer_id: str, members: Collection[str], now: float) -> float | None:
        """Until when work for a peer, or by it, is to wait for news from another of the `members`; None where not.

        It need not where another one has been heard, where there is no other in the fleet, or the time for it is over.
        Whether others can be reached does not matter: that is found out in the same time.
        """
        if self._heard - {peer_id} or now >= self._deadline:
            return None
        return self._deadline if set(members) - {peer_id} else None
