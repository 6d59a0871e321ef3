"""Who has a job that any box may run: claims in the order in which the broker passed them on. Pure.

A broker hands a fleet-wide job to one box, but what is sent again, or sent to a broker without shared subscriptions,
reaches others. So a box says on a topic of its own, retained, that it claims the job, and begins when that comes back
to it: a broker passes on messages in one order, so of two boxes that claim both see the same claim first. Whoever finds
another's before its own gives way. A claim ends with its time, when its box takes it back, and when its box is offline.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pydantic_core import from_json

#: Jobs whose claims are remembered, boxes whose absence is, and claims on one job.
MAX_JOBS: Final = 10_000
MAX_NODES: Final = 10_000
MAX_CLAIMS: Final = 16
#: Seconds that a claim may last, whatever it says.
MAX_LEASE: Final = 86_400.0
_MAX_BYTES: Final = 1024


@dataclass(frozen=True)
class Claim:
    """That `node` has a job, until `until` by the wall clock. `alone` says that it was sent to no other box: then a box
    that has the job already knows that its client has sent it again."""

    node: str
    until: float
    alone: bool = False


def claim_payload(job: str, until: float, alone: bool) -> bytes:
    """A claim as it is published."""
    return json.dumps({"v": 1, "job": job, "until": round(until, 1), "alone": alone}, separators=(",", ":")).encode()


def read_claim(node: str, job: str, payload: bytes, now: float) -> Claim | None:
    """A box's claim on a job; None where there is none in the payload, such as in the empty one that takes it back."""
    if not payload or len(payload) > _MAX_BYTES:
        return None
    try:
        facts = from_json(payload, allow_inf_nan=False)
    except ValueError:
        return None
    until = facts.get("until") if isinstance(facts, dict) and facts.get("job") == job else None
    if isinstance(until, bool) or not isinstance(until, int | float):
        return None
    return Claim(node, min(float(until), now + MAX_LEASE), facts.get("alone") is True)


class Leases:
    """The claims that came, by job."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, list[Claim]] = OrderedDict()
        self._offline: OrderedDict[str, None] = OrderedDict()

    def heard(self, job: str, claim: Claim) -> None:
        """A box claims a job; where it had a claim, that keeps its place."""
        claims = self._jobs.setdefault(job, [])
        for index, known in enumerate(claims):
            if known.node == claim.node:
                claims[index] = claim
                return
        if len(claims) < MAX_CLAIMS:
            claims.append(claim)
        while len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)

    def taken_back(self, job: str, node: str) -> None:
        """A box has no claim on a job any more."""
        claims = [claim for claim in self._jobs.get(job, ()) if claim.node != node]
        if claims:
            self._jobs[job] = claims
        else:
            self._jobs.pop(job, None)

    def available(self, node: str, online: bool) -> None:
        """Whether a box is there. What one claimed that has gone is free, also once it is back: it claims anew."""
        if online:
            self._offline.pop(node, None)
            return
        self._offline[node] = None
        self._offline.move_to_end(node)
        while len(self._offline) > MAX_NODES:
            self._offline.popitem(last=False)
        for job in [job for job, claims in self._jobs.items() if any(claim.node == node for claim in claims)]:
            self.taken_back(job, node)

    def holder(self, job: str, now: float) -> str | None:
        """The box whose job it is now."""
        for claim in self._jobs.get(job, ()):
            if claim.until > now and claim.node not in self._offline:
                return claim.node
        return None

    def forget_old(self, now: float) -> None:
        """Let go of claims whose time is over."""
        for job, claims in list(self._jobs.items()):
            left = [claim for claim in claims if claim.until > now]
            if left:
                self._jobs[job] = left
            else:
                del self._jobs[job]
