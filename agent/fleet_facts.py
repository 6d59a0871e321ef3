"""The fleet in plain values, for the API and the command line: the fleet itself, and every box. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.claims import lost_claims
from fleet.document.clock import milliseconds
from fleet.document.facts import Box, Used
from fleet.document.replica import Replica
from fleet.document.view import View
from fleet.identity.keys import peer_id_from_public_key


@dataclass(frozen=True)
class Nearby:
    """What is known of a box besides the document. `age` is seconds since it last spoke; `cpu` and `memory` are
    fractions in use; `jobs` run or wait there."""

    connected: bool
    age: float
    jobs: int
    cpu: float
    memory: float


def fleet_facts(replica: Replica, refused_by: Sequence[str] = ()) -> dict[str, object]:
    """The fleet as a whole, totals included; `refused_by` are the PeerIDs of neighbours, where all refuse this box."""
    view = replica.view
    boxes = view.boxes.values()
    return {
        "name": replica.genesis.name,
        "id": replica.fleet_id.hex(),
        "ops": len(replica.ops),
        "boxes": len(view.boxes),
        "revoked": len(view.authority.revoked),
        "policy": {
            "mode": view.governance.firewall.policy.mode,
            "scopes": sorted(view.governance.firewall.policy.scopes),
        },
        "admins": [
            {
                "key": peer_id_from_public_key(key),
                "rank": rank,
                "counts": view.authority.is_admin(key),
                "cut_at": view.authority.cut.get(key),
                "forked_at": view.authority.forked.get(key),
            }
            for key, rank in sorted(view.authority.rank.items(), key=lambda item: (item[1], item[0]))
        ],
        "conflicts": sorted(view.conflicts),
        "contested_invites": {
            invite: [peer_id_from_public_key(op.author) for op in ops]
            for invite, ops in view.authority.contested.items()
        },
        "lost_claims": [claim.plain() for claim in lost_claims(view.authority)],
        "refused_by": list(refused_by),
        "used": _totals(used for box in boxes for used in box.used),
        "unsaved": replica.unsaved,
    }


def box_facts(replica: Replica, own: str, nearby: Mapping[str, Nearby]) -> list[dict[str, object]]:
    """Every box; `own` is the PeerID of the box that answers."""
    view = replica.view
    given = _given(view)
    return [_box(view, box, own, nearby, given) for box in view.boxes.values()]


def _box(
    view: View, box: Box, own: str, nearby: Mapping[str, Nearby], given: Mapping[bytes, Mapping[str, int]]
) -> dict[str, object]:
    peer_id = peer_id_from_public_key(box.key)
    near = nearby.get(peer_id)
    standing = view.standing(box.key)
    return {
        "peer_id": peer_id,
        "name": box.node.name or f"…{peer_id[-8:]}",
        "self": peer_id == own,
        "labels": dict(box.node.labels),
        "version": box.node.version,
        "hardware": {
            "arch": box.node.arch,
            "cpus": box.node.cpus,
            "memory": box.node.memory,
            "disk": box.node.disk,
            "gpu": box.node.gpu,
        },
        "addrs": list(box.addrs),
        "models": [
            {
                "name": held.name,
                "hash": held.hash,
                "size": held.size,
                "complete": held.complete,
                "decode_rate": next((rate.decode for rate in box.rates if rate.hash == held.hash), None),
            }
            for held in box.holdings
        ],
        "admitted": standing.admitted,
        "scopes": sorted(standing.scopes),
        "standing": standing.reason,
        "connected": peer_id == own or (near is not None and near.connected),
        "last_seen_s": 0.0 if peer_id == own else (round(near.age, 1) if near else None),
        "jobs": near.jobs if near else None,
        "cpu": near.cpu if near else None,
        "memory_used": near.memory if near else None,
        "written": milliseconds(box.written) / 1000 if box.written else None,
        "used": _totals(box.used),
        "given": dict(given.get(box.key, {"jobs": 0, "tokens": 0, "failures": 0})),
    }


def _totals(used: Iterable[Used]) -> dict[str, int]:
    totals = {"jobs": 0, "tokens": 0, "failures": 0}
    for one in used:
        totals["jobs"] += one.jobs
        totals["tokens"] += one.tokens
        totals["failures"] += one.failures
    return totals


def _given(view: View) -> dict[bytes, dict[str, int]]:
    """What every box did for others, by what the others say: nobody can raise his own figure."""
    given: dict[bytes, dict[str, int]] = defaultdict(lambda: {"jobs": 0, "tokens": 0, "failures": 0})
    for box in view.boxes.values():
        for used in box.used:
            if used.peer != box.key:
                totals = given[used.peer]
                totals["jobs"] += used.jobs
                totals["tokens"] += used.tokens
                totals["failures"] += used.failures
    return given
