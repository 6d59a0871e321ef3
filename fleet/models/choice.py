"""Which of the models that boxes have may answer a request, best first, and what to say where none may. Pure.

Load and health are no concern here: among offers with one `preference` the fastest box is chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fleet.models.aliases import Reference
from fleet.models.substitution import (
    FITS,
    REASONS,
    SUBSTITUTIONS,
    Match,
    Offer,
    Reason,
    Refusal,
    Substitution,
    match,
)

#: Models that an error lists.
MAX_LISTED: Final = 8


@dataclass(frozen=True)
class Chosen:
    """An offer that may answer. `preference` counts from 0, the best; offers that are as good have the same one."""

    offer: Offer
    match: Match
    preference: int


@dataclass(frozen=True)
class Passed:
    """An offer that may not answer, and why."""

    offer: Offer
    refusal: Refusal


@dataclass(frozen=True)
class Choice:
    """All offers for one request: those that may answer in order, and the others, those that came nearest first."""

    reference: Reference
    substitution: Substitution
    order: tuple[Chosen, ...]
    passed: tuple[Passed, ...]

    @property
    def reason(self) -> Reason | None:
        """Why nothing may answer, as of the offer that came nearest; None where something may or nothing is there."""
        return self.passed[0].refusal.reason if self.passed and not self.order else None

    @cached_property
    def possible(self) -> tuple[tuple[Substitution, tuple[str, ...]], ...]:
        """What might answer if more were allowed: each setting that would help, with the names it would add."""
        found = []
        for setting in SUBSTITUTIONS:
            names = (passed.offer.name for passed in self.passed if passed.refusal.allowed_by == setting)
            if listed := tuple(dict.fromkeys(names)):
                found.append((setting, listed))
        return tuple(found)

    def problem(self) -> str:
        """For people: why nothing may answer, what is there and what to do. Empty where something may."""
        if self.order:
            return ""
        none = f"no box that can be asked has {self.reference.asked}"
        if not self.passed:
            return f"{none}, nor any other model"
        if self.possible:
            setting, names = self.possible[0]
            nearest = next(p.refusal for p in self.passed if p.refusal.allowed_by == setting)
            return (
                f"{none}; there is {_listed(names)} ({nearest}): ask for one of them by name, or allow it with"
                f" substitution {setting}"
            )
        if self.reference.hash:
            return f"{none}; what is asked for by its content is served by that alone"
        if not self.reference.model.family:
            names = tuple(dict.fromkeys(passed.offer.name for passed in self.passed))
            return f"{none}, which is of no known family, so that nothing else can answer; there is {_listed(names)}"
        nearest = self.passed[0].refusal
        return (
            f"{none}; the nearest is {self.passed[0].offer.name}, which is another model ({nearest}): ask for what is"
            " there by name, or set an alias"
        )


def choose(reference: Reference, offers: Iterable[Offer], substitution: Substitution = "none") -> Choice:
    """Sort offers by whether and how well they fit.

    Before all others comes what was asked for: its content, then its name, then what says the same. Then substitutes:
    the size asked for before another, of others the larger, and of one size the better quantisation. The order depends
    on nothing but the offers themselves, so all boxes come to the same one.
    """
    chosen: list[tuple[Offer, Match]] = []
    passed: list[Passed] = []
    judged: dict[Offer, Match | Refusal] = {}  # many boxes hold the same few models
    for offer in offers:
        found = judged.get(offer)
        if found is None:
            found = judged[offer] = match(reference, offer, substitution)
        if isinstance(found, Match):
            chosen.append((offer, found))
        else:
            passed.append(Passed(offer, found))
    ranks = _ranks(chosen)
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    order = [Chosen(*pair, places[rank]) for pair, rank in zip(chosen, ranks, strict=True)]
    order.sort(key=lambda one: (one.preference, FITS.index(one.match.fit), one.offer.name, one.offer.hash))
    passed.sort(key=lambda one: (*_distance(one), one.offer.name, one.offer.hash))
    return Choice(reference, substitution, tuple(order), tuple(passed))


def _ranks(chosen: list[tuple[Offer, Match]]) -> list[tuple[float, ...]]:
    """The rank of each. What was asked for is as good under each of the names that boxes have for that content."""
    best: dict[str, tuple[float, ...]] = {}
    for offer, found in chosen:
        if offer.hash:
            best[offer.hash] = min(_rank(offer, found), best.get(offer.hash, _rank(offer, found)))
    return [
        _rank(offer, found) if found.substituted else best.get(offer.hash, _rank(offer, found))
        for offer, found in chosen
    ]


def _rank(offer: Offer, found: Match) -> tuple[float, ...]:
    """Smaller is better."""
    quality = offer.model.quantisation.quality if offer.model.quantisation else 0.0
    return (FITS.index(found.fit), -(offer.model.size or 0) if found.fit == "family" else 0, -quality)


def _distance(passed: Passed) -> tuple[float, ...]:
    """How far from what was asked for: the later the first reason stands in REASONS, the nearer."""
    refusal, model = passed.refusal, passed.offer.model
    quality = model.quantisation.quality if model.quantisation else 0.0
    return (-REASONS.index(refusal.reason), len(refusal.differs), -quality)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
