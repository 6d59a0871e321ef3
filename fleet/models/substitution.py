"""Whether a model that a box has may answer for the one that is asked for, and if not what differs. Pure.

Nothing stands in for another model unless the request, a policy or the fleet allows it. Even then family, version,
purpose and variant have to be the same, and known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fleet.models.aliases import Reference
from fleet.models.name import ModelName, label_of
from fleet.models.quantisation import Quantisation
from fleet.models.reference import canonical_name

#: `none`: the model itself. `quant`: any quantisation of it. `family`: any size and quantisation of it.
Substitution = Literal["none", "quant", "family"]
SUBSTITUTIONS: Final[tuple[Substitution, ...]] = ("none", "quant", "family")

#: How an offer fits: by content; by its very name; by all that the request's name says; with another quantisation; with
#: another size. In order of preference.
Fit = Literal["hash", "name", "same", "quant", "family"]
FITS: Final[tuple[Fit, ...]] = ("hash", "name", "same", "quant", "family")

#: Why an offer does not fit. In order: the first that holds is the reason.
Reason = Literal[
    "hash", "unknown_family", "family", "version", "unknown_size", "size", "type", "variant", "quantisation"
]
REASONS: Final[tuple[Reason, ...]] = (
    "hash", "unknown_family", "family", "version", "unknown_size", "size", "type", "variant", "quantisation",
)  # fmt: skip
#: What a name of a file must not be wrong in.
_NAMED: Final = frozenset({"family", "version", "size", "type"})


@dataclass(frozen=True)
class Offer:
    """A model that some box has. `model` is what is known of it, from its header where there is one (`described`).

    `named` is whether somebody chose `name`, as against a file that happens to be called so: such a name serves only
    where the header does not say otherwise.
    """

    hash: str
    name: str
    model: ModelName
    named: bool = True


@dataclass(frozen=True)
class Difference:
    """One thing in which an offer is not what is asked for, in words."""

    what: Reason
    asked: str
    here: str

    def __str__(self) -> str:
        if self.what == "hash":
            return "other content"
        if self.what == "unknown_family":
            return (
                "the name asked for is of no known family" if not self.asked else "the one here is of no known family"
            )
        if self.what == "unknown_size":
            return "the name asked for says no size" if not self.asked else "the size of the one here is not known"
        return f"{self.what} {self.here or 'not said'} instead of {self.asked or 'none'}"


@dataclass(frozen=True)
class Match:
    """An offer that may answer. `differs` says in what it is not what was asked for; the client is told that."""

    fit: Fit
    differs: tuple[Difference, ...] = ()

    @property
    def substituted(self) -> bool:
        """Whether it is another model than was asked for."""
        return self.fit in ("quant", "family")

    def __str__(self) -> str:
        words = {"hash": "the content asked for", "name": "the name asked for", "same": "what the name asks for"}
        return words.get(self.fit) or "; ".join(map(str, self.differs))


@dataclass(frozen=True)
class Refusal:
    """An offer that may not answer: the first reason, all that differs, and what would have to be allowed for it.

    `allowed_by` is None where nothing helps.
    """

    reason: Reason
    differs: tuple[Difference, ...]
    allowed_by: Substitution | None = None

    def __str__(self) -> str:
        return "; ".join(map(str, self.differs))


def match(reference: Reference, offer: Offer, substitution: Substitution = "none") -> Match | Refusal:
    """Whether an offer may answer for what is asked for.

    The content asked for by its hash always may, whatever it is called. A name serves if it is the offer's very name,
    or else if both can be read and say the same; of a quantisation that the request does not name, any will do.
    """
    if reference.hash:
        if reference.hash == offer.hash:
            return Match("hash")
    elif reference.name == canonical_name(offer.name) and not _misnamed(reference.model, offer):
        return Match("name")
    differs = differences(reference.model, offer.model)
    needed = _needed(reference.model, offer.model, differs)
    if reference.hash:
        # Who asks for content and allows a substitute gets what goes by the same name, as far as one is known.
        differs = (Difference("hash", reference.hash, offer.hash), *(differs if reference.model.family else ()))
        needed = "quant" if needed == "none" else needed
    if needed is None or SUBSTITUTIONS.index(needed) > SUBSTITUTIONS.index(substitution):
        return Refusal(differs[0].what, differs, needed)
    fits: dict[Substitution, Fit] = {"none": "same", "quant": "quant", "family": "family"}
    return Match(fits[needed], differs)


def differences(asked: ModelName, here: ModelName) -> tuple[Difference, ...]:
    """All in which a model is not what a name asks for, in the order of REASONS."""
    if not (asked.family and here.family):
        return (Difference("unknown_family", asked.family, here.family),)
    found = []
    if asked.family != here.family:
        found.append(Difference("family", asked.family, here.family))
    if asked.version != here.version:
        found.append(Difference("version", asked.version, here.version))
    if not (asked.size_known and here.size_known):
        found.append(Difference("unknown_size", _size(asked), _size(here)))
    elif not asked.same_size(here):
        found.append(Difference("size", _size(asked), _size(here)))
    if asked.purposes != here.purposes:
        found.append(Difference("type", " ".join(asked.purposes), " ".join(here.purposes)))
    if asked.variant != here.variant:
        found.append(Difference("variant", " ".join(asked.variant), " ".join(here.variant)))
    if asked.quantisation is not None and asked.quantisation != here.quantisation:
        found.append(Difference("quantisation", asked.quantisation.name, _quantisation(here.quantisation)))
    return tuple(found)


def _needed(asked: ModelName, here: ModelName, differs: tuple[Difference, ...]) -> Substitution | None:
    """The least that would have to be allowed; None where nothing helps."""
    what = {found.what for found in differs}
    if what <= {"quantisation"}:
        return "quant" if what else "none"
    # For one size to take the place of another both have to be numbers: which is larger must be known.
    sized = asked.size is not None and here.size is not None
    return "family" if sized and what <= {"size", "quantisation"} else None


def _misnamed(asked: ModelName, offer: Offer) -> bool:
    """Whether a name that nobody chose is contradicted by what is known of the model.

    A header that says more than the name contradicts nothing; one that cannot be of the named family does.
    """
    if offer.named or not asked.family:
        return False
    found = differences(asked, offer.model)
    return any(one.what == "unknown_family" or (one.what in _NAMED and one.asked and one.here) for one in found)


def _size(model: ModelName) -> str:
    label = model.size_label or (label_of(model.size) if model.size is not None else "")
    return f"{label}-A{label_of(model.active)}" if model.active is not None else label


def _quantisation(found: Quantisation | None) -> str:
    return found.name if found else ""
