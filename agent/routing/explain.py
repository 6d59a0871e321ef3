"""What was decided about a job, kept for a while and told: whole for people who ask, short for a header. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.routing.decide import Decision, Policy, Verdict
from agent.routing.score import finish, score, starts_at_once, wait

#: Jobs that are remembered, and decisions of one: each box that fails makes one more.
REMEMBERED: Final = 256
_DECISIONS: Final = 4
#: Boxes of one decision that are remembered; those that were not asked are counted past it.
_CANDIDATES: Final = 64
#: Characters that all candidates together may take in a header.
MAX_ROUTE: Final = 1000


@dataclass(frozen=True)
class Route:
    """What is known of where one job went.

    `decided_at` is seconds since the epoch at the first decision; there is a further one for each box that failed
    before. `served_by` is a PeerID, empty until a box has served.
    """

    job: str
    model: str
    policy: Policy
    decided_at: float
    decisions: tuple[Decision, ...]
    served_by: str = ""

    def facts(self) -> dict[str, object]:
        """The route as the API tells it."""
        return {
            "job": self.job,
            "model": self.model,
            "policy": self.policy,
            "decided_at": round(self.decided_at, 3),
            "served_by": self.served_by or None,
            "decisions": [_decision_facts(decision) for decision in self.decisions],
        }


class RouteLog:
    """The routes of the last jobs of this box."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._routes: dict[str, Route] = {}

    def note(self, job: str, model: str, policy: Policy, decision: Decision, now: float) -> None:
        """A decision about a job, the first one or one after a failure. `now` is seconds since the epoch."""
        known = self._routes.get(job)
        if known is None:
            self._routes[job] = Route(job, model, policy, now, (_bounded(decision),))
        elif len(known.decisions) < _DECISIONS:
            self._routes[job] = replace(known, decisions=(*known.decisions, _bounded(decision)))
        if len(self._routes) > self._most:
            del self._routes[next(iter(self._routes))]

    def note_served(self, job: str, peer_id: str) -> None:
        """A box has served the job."""
        known = self._routes.get(job)
        if known is not None:
            self._routes[job] = replace(known, served_by=peer_id)

    def find(self, job: str) -> Route | None:
        """What is remembered of a job."""
        return self._routes.get(job)


def short_route(verdicts: Sequence[Verdict], served_by: str, limit: int = MAX_ROUTE) -> tuple[str, ...]:
    """One part `NAME=reason` a box, the one that served last, of at most `limit` characters joined by `; `.

    Where they would be more, boxes past the limit are counted by their reason, so that none is left out unsaid.
    """
    served = [verdict for verdict in verdicts if verdict.peer_id == served_by]
    others = [verdict for verdict in verdicts if verdict.peer_id != served_by]
    last = [f"{verdict.name}=served" for verdict in served]
    shown = len(others)
    while True:
        parts = [*map(str, others[:shown]), *_counted(others[shown:]), *last]
        if shown == 0 or len("; ".join(parts)) <= limit:
            return tuple(parts)
        shown = shown - 1 if shown <= 32 else shown // 2


def _counted(verdicts: Sequence[Verdict]) -> list[str]:
    """Boxes by the first words of their reason, such as `(7 more)=not connected`."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        kind = _kind(verdict.reason)
        counts[kind] = counts.get(kind, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"({count} more)={kind}" for kind, count in most[:8]]
    rest = sum(count for _, count in most[8:])
    return [*parts, f"({rest} more)=other reasons"] if rest else parts


def _kind(reason: str) -> str:
    """A reason without its numbers and a peer's own words."""
    words = reason.split(":", 1)[0].split(",", 1)[0]
    return " ".join(word for word in words.split() if not word[:1].isdigit())[:40]


def _bounded(decision: Decision) -> Decision:
    asked = set(decision.order[:_CANDIDATES])
    kept = [verdict for verdict in decision.verdicts if verdict.peer_id in asked]
    others = [verdict for verdict in decision.verdicts if verdict.peer_id not in asked]
    kept += others[: max(0, _CANDIDATES - len(kept))]
    listed = {verdict.peer_id for verdict in kept}
    return replace(decision, verdicts=tuple(verdict for verdict in decision.verdicts if verdict.peer_id in listed))


def _decision_facts(decision: Decision) -> dict[str, object]:
    ranks = {peer_id: rank for rank, peer_id in enumerate(decision.order, 1)}
    return {
        "refusal": decision.refusal or None,
        "order": list(decision.order),
        "candidates": [_candidate_facts(verdict, ranks.get(verdict.peer_id)) for verdict in decision.verdicts],
    }


def _candidate_facts(verdict: Verdict, rank: int | None) -> dict[str, object]:
    numbers = verdict.numbers
    known: Mapping[str, object] = {}
    if numbers is not None:
        known = {
            "loaded": numbers.loaded,
            "jobs": numbers.jobs,
            "slots": numbers.slots,
            "room": numbers.room,
            "starts_at_once": starts_at_once(numbers),
            "wait_s": round(wait(numbers), 2),
            "finish_s": round(finish(numbers), 2),
            "health": round(numbers.health, 3),
            "record": round(numbers.record, 3),
            "rtt_ms": None if numbers.rtt is None else round(numbers.rtt * 1000, 2),
            "relayed": numbers.relayed,
            "remembers": numbers.remembers,
            "score": round(score(numbers), 4),
        }
    return {
        "peer_id": verdict.peer_id,
        "name": verdict.name,
        "accepted": verdict.accepted,
        "rank": rank,
        "reason": verdict.reason,
        "decode_rate": verdict.decode_rate,
        "choice": verdict.choice,
        **known,
    }
