"""The fleet document as the Yjs document that local apps follow, kept up with the replica while anybody looks at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from agent.membership import Membership
from fleet.document.replica import Change

if TYPE_CHECKING:
    from fleet.document.projection import Projection

#: Changes that follow one another faster than this are shown together (seconds).
_COALESCE: Final = 0.05


class Materialised:
    """Makes the document when the first app asks for it, and keeps it from then on.

    A box on which nobody looks at the document does not pay for a second copy of it.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._projection: Projection | None = None
        self._stale = trio.Event()
        membership.subscribe(self._note)

    def find(self) -> Projection | None:
        """The document as it is now; None while this box belongs to no fleet."""
        replica = self._membership.replica
        if replica is None:
            return None
        if self._projection is None:
            # pycrdt takes 5 MB, which a box on which nobody looks at the document keeps for itself.
            from fleet.document.projection import Projection

            self._projection = Projection(int(time.time() * 1000))
            self._projection.apply(replica.view)
        return self._projection

    def _note(self, change: Change) -> None:
        if self._projection is not None:
            self._stale.set()

    async def run(self) -> None:
        """Show each change soon after it was committed, until cancelled."""
        while True:
            await self._stale.wait()
            await trio.sleep(_COALESCE)
            self._stale = trio.Event()
            if self._projection is not None and self._membership.replica is not None:
                self._projection.apply(self._membership.replica.view)
                if self._projection.overgrown:
                    self._projection.rebuild()
