"""Which boxes of the fleet this one keeps links to, as the document names them and their addresses."""

from __future__ import annotations

import random
from typing import Final

import trio

from agent.membership import Membership, peer_id_of
from fleet.document.replica import Change
from fleet.gossip.neighbours import Neighbours
from fleet.net.node import Node

#: Seconds after which boxes that could not be reached are looked at again.
_REVIEW: Final = 5.0


async def keep_links(membership: Membership, node: Node) -> None:
    """Dial the boxes that the plan of `fleet.gossip.neighbours` asks for, as the document changes, until cancelled."""
    replica = await membership.wait_belongs()
    news = trio.Event()

    def note(change: Change) -> None:
        if change.governance or any(op.path == "addr" for op in change.added):
            news.set()

    membership.subscribe(note)
    neighbours = Neighbours(node.peer_id, random.SystemRandom())
    members = _members(membership)
    kept: set[str] = set()
    failures: dict[str, int] = {}
    while True:
        if news.is_set():
            news = trio.Event()
            members = _members(membership)
        now = trio.current_time()
        for neighbour in node.neighbours():
            if neighbour.failures > failures.get(neighbour.peer_id, 0):
                neighbours.failed(neighbour.peer_id, now)
            failures[neighbour.peer_id] = neighbour.failures
        linked = {link.peer_id: link for link in node.links()}
        for peer_id in linked:
            neighbours.reached(peer_id)
        plan = neighbours.plan(sorted(members), linked, now)
        wanted = set(neighbours.chosen)
        for peer_id in kept - wanted:
            node.forget(peer_id)
            failures.pop(peer_id, None)
        for peer_id in wanted:
            node.keep(peer_id, replica.view.box(members[peer_id]).addrs)
        for peer_id in plan.close:
            linked[peer_id].close("too many links here; others have room")
        kept = wanted
        with trio.move_on_after(_REVIEW):
            await news.wait()


def _members(membership: Membership) -> dict[str, bytes]:
    """The boxes that may be dialled, PeerID to key."""
    if membership.replica is None:
        return {}
    view = membership.replica.view
    return {peer_id_of(key): key for key in view.authority.members if view.standing(key).admitted}
