"""Which boxes of the fleet this one keeps links to, as the document names them and their addresses."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from typing import Final

import trio

from agent.addresses import peer_problem
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
            node.keep(peer_id, worth_dialling(peer_id, replica.view.box(members[peer_id]).addrs, node.addrs()))
        for peer_id in plan.close:
            linked[peer_id].close("too many links here; others have room")
        kept = wanted
        with trio.move_on_after(_REVIEW):
            await news.wait()


def worth_dialling(peer_id: str, addrs: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Those of a box's addresses that can lead to it: what a member writes must not make others knock anywhere.

    Loopback is dialled only by a box that is itself on loopback alone, as all boxes of a demonstration are. What a real
    name stands for is found out by whoever dials it: one that resolves to loopback passes here.
    """
    on_loopback = all(map(_is_loopback, own))
    return tuple(
        addr
        for addr in addrs
        if peer_problem(addr) is None
        and addr.rsplit("/p2p/", 1)[-1] == peer_id
        and (on_loopback or not _is_loopback(addr))
    )


def _is_loopback(addr: str) -> bool:
    host = addr.split("/")[2].lower().rstrip(".")
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host)
    except ValueError:
        return "localhost" in host  # names that are numbers in disguise have no valid host, see `peer_problem`
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified or address.is_multicast


def _members(membership: Membership) -> dict[str, bytes]:
    """The boxes that may be dialled, PeerID to key."""
    if membership.replica is None:
        return {}
    view = membership.replica.view
    return {peer_id_of(key): key for key in view.authority.members if view.standing(key).admitted}
