"""The gossip of this box: new ops to neighbours, documents compared, and nobody served from a stale document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
import trio

from agent.membership import Membership
from fleet.document.replica import Replica
from fleet.errors import DeniedError, FleetError
from fleet.gossip.antientropy import AntiEntropy
from fleet.gossip.broadcast import Broadcast
from fleet.gossip.intake import Intake
from fleet.gossip.own_seq import highest_seq
from fleet.gossip.sync_server import SyncServer
from fleet.gossip.trees import Trees
from fleet.net.link import Link
from fleet.net.node import Node
from fleet.net.rpc import Handler, IncomingCall, Router

#: How long a box that has just started waits, before it serves a peer, for another neighbour to tell it the news.
FRESH_LIMIT: Final = 5.0

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
        self._compared: set[str] = set()
        self._progress = trio.Event()
        self._started_at = 0.0
        self._links: trio.MemorySendChannel[Link] | None = None

    def link_up(self, link: Link) -> None:
        """A link has come up."""
        if not (self._membership.is_member(link.peer_id) or self._membership.is_bare):
            return
        if self._anti is not None:
            self._anti.link_up(link)
        if self._links is not None:
            try:
                self._links.send_nowait(link)
            except trio.WouldBlock:
                log.debug("gossip.busy", peer=link.peer_id)  # the next round reaches it

    async def run(self) -> None:
        """Gossip until cancelled."""
        replica = await self._membership.wait_belongs()
        self._started_at = trio.current_time()
        trees, intake = Trees(replica), Intake(replica)
        self._anti = anti = AntiEntropy(replica, trees, intake, self._members)
        self._broadcast = broadcast = Broadcast(replica, intake, self._members)
        SyncServer(replica, trees, intake).offer_methods(self._router)
        broadcast.offer_methods(self._router)
        self._links, came_up = trio.open_memory_channel[Link](64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anti.run)
            nursery.start_soon(broadcast.run)
            nursery.start_soon(self._catch_up, replica, anti, came_up)
            for link in self._members():
                self.link_up(link)

    def _members(self) -> list[Link]:
        """Links to boxes of the fleet; guests and boxes that are only just joining hear nothing of it."""
        bare = self._membership.is_bare
        return [link for link in self._node.links() if bare or self._membership.is_member(link.peer_id)]

    async def _catch_up(self, replica: Replica, anti: AntiEntropy, came_up: trio.MemoryReceiveChannel[Link]) -> None:
        """With the first neighbours: learn this box's own seq, and compare, whichever side dialled."""
        async for link in came_up:
            if not self.learnt.is_set():
                found = await highest_seq([link], replica.fleet_id, self._membership.identity.public_key)
                if found.answered:
                    if found.op is not None:
                        await _take(replica, found.op.raw)
                    self.learnt.set()
            if len(self._compared) < 2:
                report = await anti.exchange(link)
                if not report.error and not report.more:
                    self._compared.add(link.peer_id)
                    self._progress.set()
                    self._progress = trio.Event()

    def serve_when_fresh(self, scope: str, handler: Handler) -> Handler:
        """A handler that first lets this box hear from somebody other than the caller.

        A box that was off while a key was revoked would otherwise serve that key until the news reaches it. Where no
        other neighbour can be reached, it serves after FRESH_LIMIT seconds from its start at the latest.
        """

        async def serve(call: IncomingCall) -> Mapping[str, object]:
            await self._hear_from_others(call.peer_id)
            if not self._router.authorise(call.peer_id, scope):
                raise DeniedError("your key is not allowed to do this here", details={"scope": scope})
            return await handler(call)

        return serve

    async def _hear_from_others(self, caller: str) -> None:
        with trio.move_on_at(self._started_at + FRESH_LIMIT):
            while not self._compared - {caller} and self._others_may_come(caller):
                await self._progress.wait()

    def _others_may_come(self, caller: str) -> bool:
        """Whether some other member is still being tried for the first time, or is linked and not compared yet."""
        replica = self._membership.replica
        if replica is None or len(replica.governance.authority.members) <= 2:
            return False
        linked = any(link.peer_id != caller for link in self._node.links())
        untried = any(
            n.peer_id != caller and n.state == "connecting" and not n.failures for n in self._node.neighbours()
        )
        return linked or untried


async def _take(replica: Replica, raw: bytes) -> None:
    try:
        await replica.offer([raw])
    except FleetError as error:
        log.warning("gossip.unsaved", reason=error.message)
