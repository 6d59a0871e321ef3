"""Who did how much for others: points, tiers, a record for routing and a weight in queues. Pure.

A box writes what it consumed, and from whom, under its own key; what a box has earned is what the others say. So nobody
can raise his own score, and what one other member's word can do, true or not, is bounded: it is worth `MOST_OF_ONE`
points, which is less than gold needs, and as much evidence of failures as `MOST_EVIDENCE` jobs.

| quantity | formula, over the consumers `c` of a box |
|---|---|
| points of `c` | (tokens + 100 a job) / 1000 x jobs / (jobs + failures), at most 400 |
| points | their sum |
| tier | the highest whose points are there: bronze 1, silver 100, gold 500, platinum 1500, diamond 4000, master 10000 |
| success | the mean of 10 jobs that went well and of each `c`'s share of good jobs, which weighs min(100, its jobs) |
| record | success x (1 + min(1, log(1 + points) / log(10001))) / 2 |
| weight | 1 for no tier, a sixth more for each tier, 2 for master |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fleet.document.facts import Used

Tier = Literal["", "bronze", "silver", "gold", "platinum", "diamond", "master"]

#: Tiers by the points they need, lowest first.
TIERS: Final[tuple[tuple[Tier, float], ...]] = (
    ("bronze", 1),
    ("silver", 100),
    ("gold", 500),
    ("platinum", 1500),
    ("diamond", 4000),
    ("master", 10000),
)
TOKENS_PER_POINT: Final = 1000
#: Tokens that a job counts for besides those of its answer: prompts are not counted, and vectors have no answer.
TOKENS_PER_JOB: Final = 100
#: Points that the word of one consumer is worth.
MOST_OF_ONE: Final = 400.0
#: Jobs that the word of one consumer weighs, where it is about success.
MOST_EVIDENCE: Final = 100
#: Good jobs that a box is credited with before anybody has said anything.
_CREDIT: Final = 10


@dataclass(frozen=True)
class Score:
    """What a box has done for others. `consumers` have said so; `record` is 0 to 1, `weight` 1 to 2."""

    peer: bytes
    points: float = 0.0
    tier: Tier = ""
    jobs: int = 0
    tokens: int = 0
    failures: int = 0
    consumers: int = 0
    record: float = 0.5
    weight: float = 1.0


def points_of(used: Used) -> float:
    """The points that one consumer's account gives its provider."""
    tried = used.jobs + used.failures
    if not tried:
        return 0.0
    served = used.tokens + TOKENS_PER_JOB * used.jobs
    return min(MOST_OF_ONE, served / TOKENS_PER_POINT * used.jobs / tried)


def tier_of(points: float) -> Tier:
    """The highest tier that so many points reach; empty below bronze."""
    reached: Tier = ""
    for tier, needed in TIERS:
        if points >= needed:
            reached = tier
    return reached


def score(peer: bytes, accounts: Iterable[Used]) -> Score:
    """The score of a box by what its consumers have written, one account each; its own is to be left out."""
    points, evidence, good, consumers = 0.0, float(_CREDIT), float(_CREDIT), 0
    jobs = tokens = failures = 0
    for used in accounts:
        tried = used.jobs + used.failures
        if not tried:
            continue
        weighs = min(MOST_EVIDENCE, tried)
        evidence += weighs
        good += weighs * used.jobs / tried
        points += points_of(used)
        jobs, tokens, failures = jobs + used.jobs, tokens + used.tokens, failures + used.failures
        consumers += 1
    tier = tier_of(points)
    share = min(1.0, math.log1p(points) / math.log1p(TIERS[-1][1]))
    return Score(
        peer,
        points=points,
        tier=tier,
        jobs=jobs,
        tokens=tokens,
        failures=failures,
        consumers=consumers,
        record=good / evidence * (1 + share) / 2,
        weight=weight_of(tier),
    )


def weight_of(tier: Tier) -> float:
    """How much a box of a tier counts for where it waits with others of its class: 1 to 2."""
    ranks = [name for name, _ in TIERS]
    return 1.0 + ((ranks.index(tier) + 1) / len(ranks) if tier else 0.0)


class Accounts:
    """The accounts of a fleet, kept as they change, so that a score costs nothing until one of its accounts does.

    `counts(key)` says whether a key is a box of the fleet now: the word of one that is not is worth nothing, and it has
    no score itself. After that has changed for any key, call `forget_scores`.
    """

    def __init__(self, counts: Callable[[bytes], bool]) -> None:
        self._counts = counts
        self._of: dict[bytes, dict[bytes, Used]] = {}
        self._scores: dict[bytes, Score] = {}

    def put(self, consumer: bytes, used: Used) -> None:
        """What a consumer says now of one provider. What a box says of itself is passed over."""
        if consumer == used.peer:
            return
        self._of.setdefault(used.peer, {})[consumer] = used
        self._scores.pop(used.peer, None)

    def take_back(self, consumer: bytes, provider: bytes) -> None:
        """A consumer no longer says anything of a provider."""
        accounts = self._of.get(provider, {})
        if accounts.pop(consumer, None) is not None:
            self._scores.pop(provider, None)
        if not accounts:
            self._of.pop(provider, None)

    def forget_scores(self) -> None:
        """Compute every score anew when it is next asked for."""
        self._scores.clear()

    def score(self, provider: bytes) -> Score:
        """The score of a box; that of a key which is none now is empty."""
        known = self._scores.get(provider)
        if known is None:
            known = Score(provider)
            if self._counts(provider):
                accounts: Mapping[bytes, Used] = self._of.get(provider, {})
                known = score(provider, (used for consumer, used in accounts.items() if self._counts(consumer)))
            self._scores[provider] = known
        return known

    def scores(self) -> Iterator[Score]:
        """The score of every box that anybody has consumed from, in no order."""
        for provider in list(self._of):
            found = self.score(provider)
            if found.consumers:
                yield found
