"""What has come of jobs since this process started, in numbers: the part of the metrics that nothing else counts.

No label is a text that a client or a peer is free to choose: models are told apart by the names that ran, so many of
them and of so many from one peer, and the rest are `other`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from agent.jobs.distribution import TOKEN_GAPS, Distribution
from agent.jobs.observation import Observation
from agent.jobs.outcome import Outcome

#: Names of models that are told apart: of those that ran here, of those that ran at peers, and of one peer's of these.
MAX_OWN: Final = 32
MAX_BORROWED: Final = 32
MAX_OF_PEER: Final = 8
OTHER: Final = "other"
#: Seconds from asking to the first token, and to the end.
WAITS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LENGTHS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_NAME: Final = re.compile(r"[A-Za-z0-9._:/@+-]{1,80}")


class ModelNames:
    """Which names of models have a label of their own: the first that come."""

    def __init__(self) -> None:
        self._own: set[str] = set()
        #: Who brought each name.
        self._borrowed: dict[str, str] = {}

    def label(self, name: str, peer: str = "") -> str:
        """The label of a model that ran here, or at a peer; empty where none ran."""
        if not name or name in self._own:
            return name
        if not _NAME.fullmatch(name):
            return OTHER
        if not peer:
            if len(self._own) >= MAX_OWN:
                return OTHER
            self._own.add(name)
            return name
        if name not in self._borrowed:
            of_peer = sum(1 for other in self._borrowed.values() if other == peer)
            if len(self._borrowed) >= MAX_BORROWED or of_peer >= MAX_OF_PEER:
                return OTHER
            self._borrowed[name] = peer
        return name


class Histograms:
    """A distribution for each value of one label."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: Final = tuple(bounds)
        self.of: Final[dict[str, Distribution]] = {}

    def at(self, label: str) -> Distribution:
        """The distribution of a label's value."""
        return self.of.setdefault(label, Distribution(self.bounds))


class JobCounts:
    """Counts outcomes. Keys are the labels' values in the order in which the metrics name them."""

    def __init__(self) -> None:
        self.names: Final = ModelNames()
        self.jobs: Final[Counter[tuple[str, ...]]] = Counter()
        self.errors: Final[Counter[tuple[str, ...]]] = Counter()
        self.tokens: Final[Counter[tuple[str, ...]]] = Counter()
        self.routes: Final[Counter[tuple[str, ...]]] = Counter()
        self.queue: Final = Histograms(WAITS)
        self.first_token: Final = Histograms(WAITS)
        self.gap: Final = Histograms(TOKEN_GAPS)
        self.length: Final = Histograms(LENGTHS)

    def note(self, outcome: Outcome, seen: Observation) -> None:
        """Count one outcome; a job that was only given an earlier answer again used no tokens and made no one wait."""
        model = self.names.label(outcome.model, outcome.peer if outcome.route == "peer" else "")
        self.jobs[outcome.role, model, outcome.route, outcome.outcome] += 1
        if outcome.error:
            self.errors[outcome.role, outcome.error] += 1
        if outcome.role == "asker":
            self.routes[(_decision(outcome, seen),)] += 1
        if outcome.repeats:
            return
        self.tokens[outcome.role, model, "in"] += outcome.prompt_tokens
        self.tokens[outcome.role, model, "out"] += outcome.tokens
        kind = "lent" if outcome.role == "lender" else outcome.route
        if outcome.queue_ms is not None:
            self.queue.at(kind).add(outcome.queue_ms / 1000)
        if outcome.first_token_ms is not None:
            self.first_token.at(kind).add(outcome.first_token_ms / 1000)
        if any(seen.gaps.counts):
            self.gap.at(kind).merge(seen.gaps)
        if outcome.outcome == "ok":
            self.length.at(kind).add(outcome.total_ms / 1000)


def _decision(outcome: Outcome, seen: Observation) -> str:
    """Why a job ran where it did, or did not run."""
    if outcome.repeats:
        return "repeated"
    if outcome.route == "none":
        return outcome.error or outcome.outcome
    if seen.resumed:
        return "resumed"
    return f"{outcome.route}_after_failure" if outcome.tried else outcome.route
