"""What a client is told where no box can run its job, and why: the one error that helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
from agent.jobs.neighbourhood import Neighbourhood, Survey
from agent.routing.decide import Decision
from fleet.models.choice import Choice

#: Models that `details` list for each setting that would let them answer.
_MAX_POSSIBLE: Final = 32


def of(fleet: Neighbourhood, job: Job, decision: Decision, survey: Survey) -> AgentError:
    """Why no box is asked at all."""
    model, choice = job.request.model, survey.choice
    own = survey.local.model.hash if survey.local.model is not None else choice.reference.target
    problem = None if fleet.policy(job.policy) == "require" else fleet.local_problem(own)
    if problem is not None:
        problem.details["candidates"] = _candidates(decision)
        return problem
    if decision.refusal == "no_local_model":
        return NoLocalModelError(
            f"this box does not hold {model!r} and the request forbids asking another (X-Shoal-Offload: never)",
            details={"candidates": _candidates(decision), **_near(choice)},
        )
    peers = survey.peers
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
    here = survey.local.model is not None
    if known and not held_somewhere and not here and not fleet.unheard():
        return ModelNotFoundError(
            choice.problem() or f"no box of this fleet holds {model!r}; it holds: {', '.join(known)}",
            details={"known": list(known), "param": "model", **_near(choice)},
        )
    seen = "; ".join(f"{v.name}: {v.reason}" for v in decision.verdicts)
    nearest = f"; {choice.problem()}" if choice.passed and not choice.order else ""
    return NoCapablePeerError(
        f"no box can serve {model!r} now ({seen}); see `shoal peers` and `shoal doctor`{nearest}",
        details={"candidates": _candidates(decision), **_near(choice)},
        retry_after=30,
    )


def exhausted(names: Mapping[str, str], failures: Mapping[str, Failure], *, interrupted: bool) -> AgentError:
    """Nobody is left to try after these boxes, by PeerID; `names` are what people call them.

    `interrupted`: the client has a part of the answer.
    """
    claim = failure.agreed(list(failures.values()))
    if claim is not None and not interrupted:
        return claim
    tried = "; ".join(f"{names.get(peer, peer)}: {f.reason}" for peer, f in failures.items())
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


def _near(choice: Choice) -> dict[str, object]:
    """For programs: why nothing that there is may answer, and what would if more were allowed."""
    if choice.reason is None:
        return {}
    possible = {setting: list(names[:_MAX_POSSIBLE]) for setting, names in choice.possible}
    return {"reason": choice.reason, "substitution": choice.substitution, "possible": possible}


def _candidates(decision: Decision) -> list[dict[str, object]]:
    return [
        {"peer_id": v.peer_id, "name": v.name, "reason": v.reason, "decode_rate": v.decode_rate}
        for v in decision.verdicts
    ]
