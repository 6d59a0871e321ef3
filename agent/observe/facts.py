"""Gathering from a running agent what the warnings are judged from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Final

import psutil
import trio

from agent.claims import lost_claims
from agent.config import Config
from agent.engine.pool import EnginePool
from agent.fleet_view import FleetView
from agent.jobs.audit import AuditTrail
from agent.membership import Membership, peer_id_of
from agent.observe.clocks import ClockFact, newest_date
from agent.observe.known import (
    AuditFact,
    DocumentFacts,
    Facts,
    KnockFact,
    LostClaimFact,
    ModelFact,
    PeerFact,
    ServerFact,
)
from agent.version import VERSION
from fleet.document.op import MAX_SEQ
from fleet.identity.keys import public_key_from_peer_id
from fleet.net.dialler import Neighbour
from fleet.net.gate import Refusal
from fleet.net.node import Node

_ENGINE_INSTALLED: Final = find_spec("llama_cpp") is not None


def gather(
    config: Config,
    *,
    node: Node,
    view: FleetView,
    pool: EnginePool,
    membership: Membership,
    knocks: Sequence[Refusal],
    turned_away: Mapping[str, int],
    refused_by: Sequence[str],
    join_problem: str,
    clones: int = 0,
    trail: AuditTrail,
) -> Facts:
    """The facts as they stand now; for the last ones see `Facts`."""
    memory = psutil.virtual_memory()
    return Facts(
        peer_id=node.peer_id,
        name=config.name,
        version=VERSION,
        addrs=node.addrs(),
        allowed=_admitted(membership, node.peer_id),
        targets=tuple(neighbour.peer_id for neighbour in node.neighbours()),
        mdns=config.net.mdns,
        models=tuple(
            ModelFact(held.name, held.state, held.error, held.doubts, held.unsaved)
            for held in pool.models()
            if not held.engine
        ),
        engines=tuple(ServerFact(engine.kind, engine.url, engine.error, engine.detected) for engine in pool.engines()),
        peers=tuple(_peer(neighbour, node, view) for neighbour in node.neighbours()),
        knocks=tuple(
            KnockFact(refusal.peer_id, refusal.remote_addr, refusal.count)
            for refusal in knocks
            if refusal.direction == "inbound"
        ),
        memory_free=memory.available / memory.total,
        engine_installed=_ENGINE_INSTALLED,
        document=_document(membership, view, clones),
        turned_away=turned_away,
        refused_by=tuple(view.name_of(peer_id) for peer_id in refused_by),
        join_problem=join_problem,
        clocks=_clocks(membership, node, view),
        audit=AuditFact(trail.problem, trail.waiting, trail.lost),
    )


def _clocks(membership: Membership, node: Node, view: FleetView) -> tuple[ClockFact, ...]:
    if membership.replica is None:
        return ()
    now, known = time.time(), membership.replica.ops.facts()
    found = []
    for link in node.links():
        written = newest_date(known.get(public_key_from_peer_id(link.peer_id), {}).values())
        if written is not None:
            found.append(ClockFact(view.name_of(link.peer_id), written / 1000 - now))
    return tuple(found)


def _admitted(membership: Membership, own: str) -> tuple[str, ...]:
    if membership.replica is None:
        return ()
    governance = membership.replica.governance
    keys = {*governance.authority.members, *governance.firewall.named()}
    peers = (peer_id_of(key) for key in keys if governance.firewall.standing(key).admitted)
    return tuple(peer for peer in peers if peer != own)


def _document(membership: Membership, seen: FleetView, clones: int) -> DocumentFacts | None:
    replica = membership.replica
    if replica is None:
        return None
    view = replica.view
    own = membership.identity.public_key
    standing = view.standing(own)
    entry = view.authority.members.get(own)
    return DocumentFacts(
        fleet=replica.genesis.name,
        admitted=standing.admitted,
        standing=standing.reason,
        forked_admins=tuple(peer_id_of(key) for key in view.authority.forked if key in view.authority.rank),
        conflicts=tuple(view.conflicts),
        lost_claims=tuple(
            LostClaimFact(
                peer_id_of(claim.key),
                seen.name_of(peer_id_of(claim.key)),
                claim.invite_id,
                tuple(seen.name_of(peer_id_of(taker)) for taker in claim.taken_by),
            )
            for claim in lost_claims(view.authority)
        ),
        came_with=entry.op.path if entry is not None and entry.how == "join" else "",
        clones=clones,
        unsaved=replica.unsaved,
        numbers_left=MAX_SEQ - replica.ops.highest_seq(own),
    )


def _peer(neighbour: Neighbour, node: Node, view: FleetView) -> PeerFact:
    connected = node.link(neighbour.peer_id) is not None
    seen = view.presence.last(neighbour.peer_id)
    return PeerFact(
        peer_id=neighbour.peer_id,
        name=view.name_of(neighbour.peer_id),
        state="connected" if connected else neighbour.state,
        last_error=neighbour.last_error,
        down_for=None if connected else trio.current_time() - neighbour.down_since,
        version=seen.presence.version if connected and seen else None,
    )
