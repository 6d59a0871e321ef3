"""Who has a job that any box may run: claims in the order in which the broker passed them on. Pure.

A broker hands a fleet-wide job to one box, but what is sent again, or sent to a broker without shared subscriptions,
reaches others. So a box says on a topic of its own, retained, that it claims the job, and begins when that comes back
to it: a broker passes on messages in one order, so of two boxes that claim both see the same claim first. Whoever finds
another's before its own gives way.

A claim says for how many seconds it stands, counted from when it was heard, and is said anew while its box has the job:
so it does not matter what the clocks of boxes show, and a box that has ended is not waited for, also where the broker
ended with it and nobody was told. It ends at once when its box takes it back, or is offline.
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
#: Seconds that a claim may stand, whatever it says.
MAX_LEASE: Final = 3600.0
_MAX_BYTES: Final = 1024


@dataclass(frozen=True)
class Claim:
    """That `node` has a job, until `until` on the clock of the box that heard it. `alone` says that it was sent to no
    other box: then a box that has the job already knows that its client has sent it again."""

    node: str
    until: float
    alone: bool = False


def claim_payload(job: str, seconds: float, alone: bool) -> bytes:
    """A claim that stands for so many seconds, as it is published."""
    return json.dumps({"v": 1, "job": job, "seconds": seconds, "alone": alone}, separators=(",", ":")).encode()


def read_claim(node: str, job: str, payload: bytes, now: float) -> Claim | None:
    """A box's claim on a job, heard at `now`; None where there is none in the payload, such as in the empty one that
    takes it back."""
    if not payload or len(payload) > _MAX_BYTES:
        return None
    try:
        facts = from_json(payload, allow_inf_nan=False)
    except ValueError:
        return None
    seconds = facts.get("seconds") if isinstance(facts, dict) and facts.get("job") == job else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    # Bounded before it becomes a float: JSON has numbers that no float holds.
    return Claim(node, now + float(max(0, min(seconds, MAX_LEASE))), facts.get("alone") is True)


class Leases:
    """The claims that came, by job; `now` is seconds on any clock that does not go back."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, list[Claim]] = OrderedDict()
        self._offline: OrderedDict[str, None] = OrderedDict()

    def heard(self, job: str, claim: Claim, now: float) -> None:
        """A box claims a job; a claim of its that still stands keeps its place."""
        claims = self._jobs.setdefault(job, [])
        claims[:] = [known for known in claims if known.until > now]
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

    def forget(self, node: str) -> None:
        """A box has no claims any more."""
        for job in [job for job, claims in self._jobs.items() if any(claim.node == node for claim in claims)]:
            self.taken_back(job, node)

    def available(self, node: str, online: bool) -> None:
        """Whether a box is there. What one claimed that has gone is free, also once it is back: it claims anew."""
        if online:
            self._offline.pop(node, None)
            return
        self._offline[node] = None
        self._offline.move_to_end(node)
        while len(self._offline) > MAX_NODES:
            self._offline.popitem(last=False)
        self.forget(node)

    def holder(self, job: str, now: float) -> str | None:
        """The box whose job it is now."""
        for claim in self._jobs.get(job, ()):
            if claim.until > now and claim.node not in self._offline:
                return claim.node
        return None

    def forget_old(self, now: float) -> None:
        """Let go of claims that stand no more."""
        for job, claims in list(self._jobs.items()):
            left = [claim for claim in claims if claim.until > now]
            if left:
                self._jobs[job] = left
            else:
                del self._jobs[job]
