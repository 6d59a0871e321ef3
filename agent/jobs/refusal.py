"""What a client is told where no box can run its job, and why: the one error that helps."""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import (
    AgentError,
    InterruptedJobError,
    ModelLoadError,
    ModelNotFoundError,
    NoCapablePeerError,
    NoLocalModelError,
    OverloadedError,
    PeerUnreachableError,
    RefusedByPeersError,
)
from agent.jobs import failure
from agent.jobs.failure import Failure
from agent.jobs.job import Job
from agent.jobs.neighbourhood import Neighbourhood
from agent.routing.decide import Decision


def of(fleet: Neighbourhood, job: Job, decision: Decision) -> AgentError:
    """Why no box is asked at all."""
    model = job.request.model
    problem = None if job.policy == "require" else fleet.local_problem(model)
    if problem is not None:
        problem.details["candidates"] = _candidates(decision)
        return problem
    if decision.refusal == "no_local_model":
        return NoLocalModelError(
            f"this box does not hold {model!r} and the request forbids asking another (X-Shoal-Offload: never)",
            details={"candidates": _candidates(decision)},
        )
    peers = fleet.peer_states(model)
    refusing = [peer.name for peer in peers if peer.refused and not peer.connected and peer.may_hold]
    others = any(peer.model is not None and peer.name not in refusing for peer in peers)
    if refusing and not others and not fleet.unheard():
        return RefusedByPeersError(
            f"{', '.join(refusing)} may hold {model!r} but refuses this box's key {fleet.peer_id}; an admin"
            " of that fleet has to let it in, with an invite or by allowing the key",
            details={"candidates": _candidates(decision)},
        )
    failed = [peer.name for peer in peers if peer.model is not None and peer.model.state == "failed"]
    if failed and not any(peer.model is not None and peer.model.state != "failed" for peer in peers):
        return ModelLoadError(
            f"{', '.join(failed)} should hold {model!r} but cannot load it; `shoal doctor` there says why",
            details={"candidates": _candidates(decision)},
        )
    known = fleet.known_models()
    held_somewhere = any(peer.model is not None for peer in peers)
    here = fleet.local_state(model).model is not None
    if known and not held_somewhere and not here and not fleet.unheard():
        return ModelNotFoundError(
            f"no box of this fleet holds {model!r}; it holds: {', '.join(known)}", details={"known": list(known)}
        )
    seen = "; ".join(f"{v.name}: {v.reason}" for v in decision.verdicts)
    return NoCapablePeerError(
        f"no box can serve {model!r} now ({seen}); see `shoal peers` and `shoal doctor`",
        details={"candidates": _candidates(decision)},
        retry_after=30,
    )


def exhausted(fleet: Neighbourhood, failures: Mapping[str, Failure], *, interrupted: bool) -> AgentError:
    """Nobody is left to try after these boxes, by PeerID; `interrupted`: the client has a part of the answer."""
    claim = failure.agreed(list(failures.values()))
    if claim is not None and not interrupted:
        return claim
    tried = "; ".join(f"{_name(fleet, peer)}: {f.reason}" for peer, f in failures.items())
    details = {"tried": [{"peer_id": p, "reason": f.reason} for p, f in failures.items()]}
    if interrupted:
        return InterruptedJobError(f"no box is left to go on with the text ({tried})", details=details)
    busy = [f.retry_after or 1 for f in failures.values() if f.overloaded]
    if busy:
        # The first to have room is enough, and one that exaggerates keeps nobody away from the others.
        text = f"every box that could serve is busy ({tried})"
        etas = [f.eta_s for f in failures.values() if f.eta_s is not None]
        known = {"eta_s": min(etas)} if etas else {}
        return OverloadedError(text, details={**details, **known}, retry_after=min(busy))
    return PeerUnreachableError(
        f"the boxes that were asked failed before the first token ({tried})", details=details, retry_after=5
    )


def _name(fleet: Neighbourhood, peer_id: str) -> str:
    if peer_id == fleet.peer_id:
        return fleet.name
    return next((p.name for p in fleet.peer_states("") if p.peer_id == peer_id), peer_id)


def _candidates(decision: Decision) -> list[dict[str, object]]:
    return [
        {"peer_id": v.peer_id, "name": v.name, "reason": v.reason, "decode_rate": v.decode_rate}
        for v in decision.verdicts
    ]
