"""The gossip of this box: new ops to neighbours, documents compared, and nobody served from a stale document."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from agent.membership import Membership, peer_id_of
from fleet.document.replica import Replica
from fleet.errors import DeniedError, FleetError
from fleet.gossip.antientropy import AntiEntropy
from fleet.gossip.broadcast import Broadcast
from fleet.gossip.freshness import LIMIT, Freshness
from fleet.gossip.intake import Intake
from fleet.gossip.own_seq import highest_seq
from fleet.gossip.sync_server import SyncServer
from fleet.gossip.trees import Trees
from fleet.net.link import Link
from fleet.net.node import Node
from fleet.net.rpc import Handler, IncomingCall, Router

#: Neighbours that are compared with at once after a start, a stop or a time without links.
_ENOUGH: Final = 2
#: Of those so many at a time, and one more after so many seconds while none comes to an end.
_AT_ONCE: Final = 3
_NEXT_AFTER: Final = 1.0
#: Seconds between two looks at the clock, and how much later than due one is when the process stood still.
_HEARTBEAT: Final = 1.0
STOPPED: Final = 5.0

log = structlog.get_logger("shoal.gossip")


class Gossiping:
    """Runs the gossip of one box once it belongs to a fleet.

    `learnt` is set when a neighbour has said how far this box's own key had counted.
    """

    def __init__(self, membership: Membership, node: Node, router: Router) -> None:
        self.learnt: Final = trio.Event()
        self._membership = membership
        self._node = node
        self._router = router
        self._anti: AntiEntropy | None = None
        self._broadcast: Broadcast | None = None
        self._fresh = Freshness(0.0)
        self._beat = _clock_that_runs_in_sleep()
        self._stops = 0
        self._progress = trio.Event()
        self._comparing: set[str] = set()
        self._compared = trio.Event()
        self._links: trio.MemorySendChannel[Link] | None = None

    def link_up(self, link: Link) -> None:
        """A link has come up."""
        if not self._is_source(link.peer_id):
            return
        self._fresh.link_up(link.peer_id, trio.current_time())
        if self._anti is not None:
            self._anti.link_up(link)
        self._catch_up_with(link)

    def link_down(self, link: Link) -> None:
        """A link is over. Where too few are left that were compared with, the others are."""
        if self._node.link(link.peer_id) is not None:
            return  # another one, where both boxes have dialled
        self._fresh.link_down(link.peer_id)
        if len(self._fresh.heard) < _ENOUGH:
            for other in self._sources():
                if other.peer_id not in self._fresh.heard:
                    self._catch_up_with(other)

    def _catch_up_with(self, link: Link) -> None:
        if self._links is not None:
            try:
                self._links.send_nowait(link)
            except trio.WouldBlock:
                log.debug("gossip.busy", peer=link.peer_id)  # the next round reaches it

    async def run(self) -> None:
        """Gossip until cancelled."""
        replica = await self._membership.wait_belongs()
        self._fresh.stopped(trio.current_time())
        trees, intake = Trees(replica), Intake(replica)
        self._anti = anti = AntiEntropy(replica, trees, intake, self._sources, may_have=self._may_have)
        self._broadcast = broadcast = Broadcast(replica, intake, self._members)
        SyncServer(replica, trees, intake).offer_methods(self._router)
        broadcast.offer_methods(self._router)
        self._links, came_up = trio.open_memory_channel[Link](64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anti.run)
            nursery.start_soon(broadcast.run)
            nursery.start_soon(self._catch_up, replica, anti, came_up)
            nursery.start_soon(self._watch_for_stops)
            for link in self._sources():
                self.link_up(link)

    def _is_source(self, peer_id: str) -> bool:
        return self._may_have(peer_id) or self._membership.may_tell(peer_id)

    def _may_have(self, peer_id: str) -> bool:
        """Whether a peer is given what it lacks of the document."""
        return self._membership.is_bare or self._membership.is_member(peer_id)

    def _sources(self) -> list[Link]:
        """Links over which documents are compared."""
        return [link for link in self._node.links() if self._is_source(link.peer_id)]

    def _members(self) -> list[Link]:
        """Links to boxes of the fleet; guests and boxes that are only just joining hear nothing of it."""
        return [link for link in self._node.links() if self._may_have(link.peer_id)]

    async def _catch_up(self, replica: Replica, anti: AntiEntropy, came_up: trio.MemoryReceiveChannel[Link]) -> None:
        """With the first neighbours: learn this box's own seq, and compare, whichever side dialled.

        Several at a time, and one more every second while those are slow: a peer that stalls holds up nobody else.
        """
        async with trio.open_nursery() as nursery:
            async for link in came_up:
                if not self._needs(link):
                    continue
                self._comparing.add(link.peer_id)
                nursery.start_soon(self._compare, replica, anti, link)
                if len(self._comparing) >= _AT_ONCE:
                    with trio.move_on_after(_NEXT_AFTER):
                        await self._compared.wait()

    def _needs(self, link: Link) -> bool:
        """Whether this link is to be compared over now."""
        heard = self._fresh.heard
        return link.peer_id not in self._comparing and link.peer_id not in heard and len(heard) < _ENOUGH

    async def _compare(self, replica: Replica, anti: AntiEntropy, link: Link) -> None:
        try:
            if not self.learnt.is_set():
                found = await highest_seq([link], replica.fleet_id, self._membership.identity.public_key)
                if found.answered:
                    if found.op is not None:
                        await _take(replica, found.op.raw)
                    self.learnt.set()
            stops = self._stops
            report = await anti.exchange(link)
            up = not link.closed.is_set()
            if up and stops == self._stops and not report.error and not report.more:
                self._fresh.compared(link.peer_id)
                self._progress.set()
                self._progress = trio.Event()
        finally:
            self._comparing.discard(link.peer_id)
            self._compared.set()
            self._compared = trio.Event()

    async def _watch_for_stops(self) -> None:
        """Notice that this process stood still: its machine slept, or it was paused."""
        self._beat = _clock_that_runs_in_sleep()  # waiting for a fleet to belong to was no sleep
        while True:
            self._notice_stop()
            await trio.sleep(_HEARTBEAT)

    def _notice_stop(self) -> None:
        now = _clock_that_runs_in_sleep()
        pause, self._beat = now - self._beat, now
        if pause <= _HEARTBEAT + STOPPED:
            return
        log.warning("gossip.stood_still", seconds=round(pause, 1))
        self._stops += 1
        self._fresh.stopped(trio.current_time())
        for link in self._sources():
            self._catch_up_with(link)

    def serve_when_fresh(self, scope: str, handler: Handler) -> Handler:
        """A handler that first lets this box hear from somebody other than the caller.

        A box that was cut off while a key was revoked would otherwise serve that key until the news reaches it. Where
        no other neighbour can be reached, it serves LIMIT seconds after it is back at the latest.
        """

        async def serve(call: IncomingCall) -> Mapping[str, object]:
            await self.hear_from_others(call.peer_id)
            if not self._router.authorise(call.peer_id, scope):
                raise DeniedError("your key is not allowed to do this here", details={"scope": scope})
            return await handler(call)

        return serve

    async def hear_from_others(self, peer_id: str) -> None:
        """Return when what another member knows of this one has been heard, or LIMIT seconds later at the most.

        For before a job is run for a peer, or given to it: it may have been shut out while this box was away.
        """
        self._notice_stop()
        began = trio.current_time()
        while True:
            until = self._fresh.wait_until(peer_id, self._others(), trio.current_time())
            if until is None:
                return
            with trio.move_on_at(min(until, began + LIMIT)) as scope:
                await self._progress.wait()
            if scope.cancelled_caught:
                return

    def _others(self) -> set[str]:
        """The other boxes of the fleet, as far as this one knows them."""
        replica, own = self._membership.replica, self._membership.identity.public_key
        if replica is None:
            return set()
        return {peer_id_of(key) for key in replica.governance.authority.members if key != own}


def _clock_that_runs_in_sleep() -> float:
    """Seconds, those in which the machine slept counted."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _take(replica: Replica, raw: bytes) -> None:
    try:
        await replica.offer([raw])
    except FleetError as error:
        log.warning("gossip.unsaved", reason=error.message)
