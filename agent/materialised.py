"""The fleet document as the Yjs document that local apps follow, kept up with the replica while anybody looks at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio
import trio.lowlevel

from agent.errors import OverloadedError
from agent.membership import Membership
from fleet.document.replica import Change, Replica

if TYPE_CHECKING:
    from fleet.document.projection import Projection

#: Changes that follow one another faster than this are shown together (seconds).
_COALESCE: Final = 0.05
#: Entries that are written before others run: some 5 ms.
_AT_ONCE: Final = 128
#: A document of more ops than this is not made while a client waits; one of so many takes some 20 ms.
_SMALL: Final = 512
#: Seconds after which a client that came too early is told to come back: 10,000 boxes take one to two.
_COME_BACK: Final = 2


class Materialised:
    """Makes the document when the first app asks for it, and keeps it from then on.

    A box on which nobody looks at the document does not pay for a second copy of it.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._projection: Projection | None = None
        #: Set once the document has been brought to some view from end to end.
        self._filled = False
        self._stale = trio.Event()
        membership.subscribe(self._note)

    def find(self) -> Projection | None:
        """The document as it is now; None while this box belongs to no fleet.

        Raises OverloadedError the first times that it is asked for in a large fleet: `run` makes it meanwhile.
        """
        replica = self._membership.replica
        if replica is None:
            return None
        if self._projection is None:
            # pycrdt takes 5 MB, which a box on which nobody looks at the document keeps for itself.
            from fleet.document.projection import Projection

            self._projection = Projection(int(time.time() * 1000))
            if len(replica.ops) <= _SMALL:
                self._projection.apply(replica.view)
                self._filled = True
            else:
                self._stale.set()
        if not self._filled:
            raise OverloadedError("the document is being made for the first time; come again", retry_after=_COME_BACK)
        return self._projection

    def _note(self, change: Change) -> None:
        if self._projection is not None:
            self._stale.set()

    async def run(self) -> None:
        """Show each change soon after it was committed, until cancelled.

        Other tasks run after every 128 entries. What follows the document sees a change of more than that in parts.
        Cancelled in between it leaves the document so; the next `run` ends what this one began.
        """
        while True:
            await self._stale.wait()
            if self._filled:
                await trio.sleep(_COALESCE)
            self._stale = trio.Event()
            if self._projection is not None and self._membership.replica is not None:
                await self._follow(self._projection, self._membership.replica)

    async def _follow(self, projection: Projection, replica: Replica) -> None:
        try:
            for _ in projection.steps(replica.view, _AT_ONCE):
                await trio.lowlevel.checkpoint()
            self._filled = True
            if projection.overgrown:
                for _ in projection.rebuild_steps(_AT_ONCE):
                    await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self._stale.set()
            raise
