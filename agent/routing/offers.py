"""Which of the models that boxes hold may answer a request: of all of them together, and of one box's the best. Pure.

What boxes hold changes rarely, and the same things are asked for again and again, so choices are kept.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

from fleet.models.aliases import Aliases, Reference
from fleet.models.choice import Choice, Chosen, choose
from fleet.models.name import ModelName, parse_name
from fleet.models.reference import matches
from fleet.models.substitution import Offer, Substitution
from fleet.net.messages import ModelPresence

#: Different models that are compared with what is asked for; one that is asked for by its hash or very name always is.
#: Comparing one takes some 50 us, and each box may name 256.
MAX_OFFERS: Final = 1024
#: Choices that are kept, as long as boxes hold what they hold.
_KEPT: Final = 64
#: What tells two offers apart: hash, name, what it reads as, and whether somebody chose the name.
_Key: TypeAlias = tuple[str, str, str | None, bool]


@dataclass(frozen=True)
class Names:
    """What the fleet's document calls models: its aliases, and the names of models that it knows by hash."""

    aliases: Aliases = field(default_factory=Aliases)
    known_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A holding of one box that may answer. `place` counts from 0, the best that any box has."""

    model: ModelPresence
    chosen: Chosen
    place: int


class Selection:
    """What may answer one request, of all that boxes hold."""

    def __init__(self, choice: Choice, offers: Mapping[_Key, Offer]) -> None:
        self.choice: Final = choice
        # Boxes may have different files under the very name that was asked for. Whoever asks by that name gets the box
        # that is best for the job, whichever of the files that has, so they all come first.
        exact = max((one.preference for one in choice.order if one.match.fit in ("hash", "name")), default=0)
        chosen = {one.offer: (one, max(0, one.preference - exact)) for one in choice.order}
        self._found = {key: chosen[offer] for key, offer in offers.items() if offer in chosen}

    def best_of(self, models: Iterable[ModelPresence]) -> Found | None:
        """What one box has for it: of what it can load the best fit, of equal ones the first; None where nothing fits.

        One that it cannot load is given where there is no other, so that the client is told.
        """
        best, rank = None, (True, len(self._found))
        for model in models:
            found = self._found.get(_key(model))
            if found is not None and (best is None or (model.state == "failed", found[1]) < rank):
                best, rank = (model, *found), (model.state == "failed", found[1])
        return Found(*best) if best is not None else None


class Offers:
    """All that boxes hold, as it was when it was last looked at."""

    def __init__(self) -> None:
        self._keys: frozenset[_Key] = frozenset()
        self._names = Names()
        self._kept: OrderedDict[tuple[str, Substitution], Selection] = OrderedDict()

    def select(
        self, asked: str, substitution: Substitution, models: Iterable[ModelPresence], names: Names
    ) -> Selection:
        """What of `models`, those of all boxes, may answer; raises ModelNameError for what names no model."""
        held = list(map(_key, models))
        keys = frozenset(held)
        if keys != self._keys or names is not self._names:
            self._keys, self._names = keys, names
            self._kept.clear()
        kept = self._kept.get((asked, substitution))
        if kept is None:
            reference = names.aliases.resolve(asked, names.known_as)
            compared = keys if len(keys) <= MAX_OFFERS else _bounded(reference, held)
            offers = {key: _offer(*key) for key in compared}
            choice = choose(reference, set(offers.values()), substitution)
            kept = self._kept[asked, substitution] = Selection(choice, offers)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end((asked, substitution))
        return kept


def _bounded(reference: Reference, held: list[_Key]) -> list[_Key]:
    """What is asked for exactly, and of the rest what the most boxes hold: no box can crowd out what several have."""
    exact = {key for key in held if matches(reference.target, model_hash=key[0], name=key[1])}
    common = [key for key, _ in Counter(held).most_common() if key not in exact]
    return [*exact, *common[: max(0, MAX_OFFERS - len(exact))]]


@lru_cache(maxsize=4096)
def _offer(model_hash: str, name: str, reads: str | None, named: bool) -> Offer:
    # A box that is too old to say what its model reads as is known by its name alone.
    told = name if reads is None else reads
    return Offer(model_hash, name, parse_name(told) if told else ModelName(), named)


def _key(model: ModelPresence) -> _Key:
    return model.hash, model.name, model.reads, model.named
