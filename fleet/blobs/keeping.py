"""Before a box deletes its copy of a blob because others have one, it asks one of them whether that stays.

Of two boxes that delete theirs at the same time, each because of the other's, both would lose it: what the fleet
document says of copies is some seconds old. Who is about to delete a copy therefore says first that it does not keep
it, and asks only then. Of two that do so at once neither is told yes; in any other order the second one is told no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from fleet.blobs import messages as wire
from fleet.blobs.sources import Sources
from fleet.errors import FleetError
from fleet.net.link import Link
from fleet.net.messages import parse
from fleet.net.rpc import IncomingCall, Router

#: Seconds for one box to answer, and for all of them, until they are connected included.
ANSWER_LIMIT: Final = 3.0
LIMIT: Final = 10.0

log = structlog.get_logger("shoal.blobs")


class Keeping:
    """Asks, and answers. `keeps(blob)` is whether this box holds all of a blob and is not about to delete it. Used from
    the event loop alone."""

    def __init__(self, keeps: Callable[[str], bool], sources: Sources) -> None:
        self._keeps = keeps
        self._sources = sources
        self._leaving: Counter[str] = Counter()

    def offer_methods(self, router: Router) -> None:
        """Answer peers that hold SCOPE_BLOBS: who may not fetch here, for him no copy here counts."""
        router.add(wire.METHOD_KEEP, wire.SCOPE_BLOBS, self._answer)

    @contextmanager
    def leaving(self, blob: str) -> Iterator[None]:
        """From before others are asked until the copy is deleted, or stays after all: this box does not keep it."""
        self._leaving[blob] += 1
        try:
            yield
        finally:
            self._leaving[blob] -= 1
            self._leaving += Counter()  # forgets what is at 0

    async def somebody(self, blob: str, peers: Collection[str]) -> str | None:
        """One of these boxes, by PeerID, that keeps its copy; None where none has said so.

        Those that are not connected yet are waited for, LIMIT seconds at most. To be asked within `leaving`.
        """
        asked: set[str] = set()
        with trio.move_on_after(LIMIT):
            while len(asked) < len(peers):
                for link in list(self._sources.links()):
                    if link.peer_id in peers and link.peer_id not in asked:
                        asked.add(link.peer_id)
                        if await self._ask(link, blob):
                            return link.peer_id
                if len(asked) < len(peers):
                    with trio.move_on_after(1.0):  # one that came up while another was asked is not told of again
                        await self._sources.wait_change()
        return None

    async def _ask(self, link: Link, blob: str) -> bool:
        async def no_event(event: object) -> None:
            """There are none."""

        try:
            with trio.move_on_after(ANSWER_LIMIT):
                return parse(wire.Kept, await link.call(wire.METHOD_KEEP, {"blob": blob}, no_event)).keeps
        except FleetError as error:
            log.info("blob.not_said_to_be_kept", blob=blob, peer=link.peer_id, code=error.code)
        return False

    async def _answer(self, call: IncomingCall) -> Mapping[str, object]:
        blob = parse(wire.Keep, call.body).blob
        return {"keeps": not self._leaving[blob] and self._keeps(blob)}
