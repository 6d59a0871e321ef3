"""Why a model is where it is: placements, and what this box makes of them, in plain values and in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.reconcile.desired import FleetModel
from agent.reconcile.homes import Falls, Verdict
from agent.reconcile.plan import Actual, Want, obstacle
from agent.reconcile.situation import Situation
from fleet.identity.keys import peer_id_from_public_key


def placement_facts(fall: Falls, own: bytes) -> dict[str, object]:
    """A placement: what it asks for, where it falls, and why not elsewhere."""
    placement, model = fall.placement, fall.placement.model
    return {
        "placement": placement.name,
        "model": model.name if model else placement.reference,
        "hash": model.hash if model else "",
        "size_bytes": model.size if model else 0,
        "on": ",".join(map(str, placement.terms)),
        "min": placement.least,
        "max": placement.most,
        "copies": fall.copies,
        "short": fall.short,
        "problem": placement.problem,
        "summary": summary(fall),
        "boxes": [_verdict_facts(one, own) for one in fall.verdicts],
    }


def summary(fall: Falls) -> str:
    """One sentence on how a placement stands."""
    placement = fall.placement
    if placement.problem:
        return placement.problem
    chosen = [one for one in fall.verdicts if one.role in ("home", "stand-in")]
    if not chosen:
        return "no box of the fleet can take it; see the reasons"
    text = f"{fall.copies} of {len(chosen)} boxes hold it"
    away = sum(one.gone for one in chosen)
    if away:
        hold = "box holds" if fall.copies == 1 else "boxes hold"
        text = f"{fall.copies} {hold} it, of {len(chosen)} that are to; of these {away} cannot be reached"
    if fall.short:
        text += f"; {fall.short} fewer than the {placement.least} that are to be kept can take it now"
    return text


def want_facts(want: Want, situation: Situation, actual: Actual) -> dict[str, object]:
    """What this box does about a model that is wanted here: state is held, fetching or waiting, and why."""
    if want.hash in actual.own or any(copy.hash == want.hash for copy in actual.copies):
        state, why = "held", ""
    elif any(fetch.hash == want.hash for fetch in actual.fetching):
        state, why = "fetching", ""
    else:
        state, why = "waiting", obstacle(want, actual) or "another model is fetched first"
    return {
        "model": want.name,
        "hash": want.hash,
        "size_bytes": want.size,
        "reason": want.reason,
        "urgent": want.urgent,
        "placements": list(situation.placed_by(want.hash)),
        "state": state,
        "why": why,
    }


def model_facts(model: FleetModel, situation: Situation, names: Mapping[bytes, str]) -> dict[str, object]:
    """A model of the fleet: what vouches for it, who holds it, and what wants it."""
    manifest = model.manifest
    return {
        "name": model.name,
        "names": list(situation.wishes.called(model.hash)),
        "hash": model.hash,
        "size_bytes": model.size,
        "root": manifest.root.hex() if manifest else "",
        "algorithm": manifest.algorithm if manifest else "",
        "blocks": manifest.blocks if manifest else 0,
        "problem": model.problem,
        "holders": [
            {
                "peer_id": peer_id_from_public_key(key),
                "name": names.get(key, ""),
                "gone": key in situation.gone,
                "self": key == situation.own,
                "complete": complete,
            }
            for key, complete in _holding(model.hash, situation)
        ],
        "placements": [
            fall.placement.name
            for fall in situation.falls
            if fall.placement.model is not None and fall.placement.model.hash == model.hash
        ],
    }


def _holding(model_hash: str, situation: Situation) -> list[tuple[bytes, float]]:
    found = [
        (key, held.complete) for key, box in situation.boxes.items() for held in box.holdings if held.hash == model_hash
    ]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def _verdict_facts(one: Verdict, own: bytes) -> dict[str, object]:
    return {
        "peer_id": peer_id_from_public_key(one.key),
        "name": one.name,
        "self": one.key == own,
        "role": one.role,
        "why": one.why,
        "complete": one.complete,
        "gone": one.gone,
    }
