"""Which boxes a placement falls on. Every box works it out for itself from the same document: all agree. Pure.

Boxes that could take the model are put in one order: those that hold the whole of it, those that have part of it, the
others, and those that are gone; among equals by a hash of model and key (rendezvous hashing), so that models spread and
a box more or less moves few of them. The first are the homes. A home that is gone stays one, as a till does that is off
at night; while fewer than `least` of the homes are there, the next boxes that are stand in. Who holds the model comes
first, so a stand-in that has fetched it stays, and nothing moves back and forth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agent.reconcile.desired import FleetModel, Placement
from agent.reconcile.schedule import Window, window_for
from agent.reconcile.selector import why_not
from fleet.document.facts import Box
from fleet.document.view import View

Role = Literal["home", "stand-in", "spare", "not"]

#: What a loaded model takes beyond its file, about: the exact figure needs the file's header, which only holders have.
_OVERHEAD: Final = 128 << 20

#: What a box has to be allowed to be given blocks by others.
SCOPE_BLOBS: Final = "blobs"
#: So much of its file at least counts as a part: announced in steps of this.
STEP: Final = 0.25


@dataclass(frozen=True)
class Verdict:
    """What a placement means for one box. `why` is the reason it is none of its homes, empty for those that are.

    `complete` is how much of the model it holds, 0 to 1; `gone` whether it has not been heard for long.
    """

    key: bytes
    name: str
    role: Role
    why: str
    complete: float
    gone: bool


@dataclass(frozen=True)
class Falls:
    """Where a placement falls. `short` is how many copies fewer than `least` there can be."""

    placement: Placement
    verdicts: tuple[Verdict, ...]
    short: int = 0

    def chosen(self) -> tuple[bytes, ...]:
        """The keys of the boxes that are to hold the model."""
        return tuple(one.key for one in self.verdicts if one.role in ("home", "stand-in"))

    @property
    def copies(self) -> int:
        """Whole copies on chosen boxes that are there."""
        return sum(one.complete >= 1 and not one.gone for one in self.verdicts if one.role in ("home", "stand-in"))

    @property
    def lacks(self) -> bool:
        """Whether fewer whole copies are there than are to be kept."""
        return self.placement.least is not None and self.copies < self.placement.least


def gone_boxes(boxes: Mapping[bytes, Box]) -> frozenset[bytes]:
    """Boxes that another one has not heard for long, and that have written nothing since it said so."""
    return frozenset(
        claim.peer
        for key, box in boxes.items()
        for claim in box.gone
        if claim.peer != key and claim.peer in boxes and claim.hlc > boxes[claim.peer].written
    )


def falls(placement: Placement, view: View, boxes: Mapping[bytes, Box], gone: Collection[bytes]) -> Falls:
    """Where a placement falls by what the document says; on no box where it means no model that can be fetched.

    `boxes` are those of the view.
    """
    model = placement.model
    if model is None:
        return Falls(placement, ())
    verdicts = [_candidate(placement, model, view, box, key in gone) for key, box in boxes.items()]
    able = sorted((one for one in verdicts if one.role == "spare"), key=lambda one: _order(model.hash, one))
    wanted = placement.most or placement.least or len(able)
    homes = able[:wanted]
    there = sum(not one.gone for one in homes)
    missing = max(0, (placement.least or 0) - there)
    stand_ins = [one for one in able[wanted:] if not one.gone][:missing]
    spare = "enough others have it" if placement.most or placement.least else ""
    roles: dict[bytes, tuple[Role, str]] = {one.key: ("home", "") for one in homes}
    roles |= {one.key: ("stand-in", "") for one in stand_ins}
    told = tuple(
        Verdict(one.key, one.name, *roles.get(one.key, (one.role, one.why or spare)), one.complete, one.gone)
        for one in sorted(verdicts, key=lambda one: (one.role == "not", _order(model.hash, one)))
    )
    return Falls(placement, told, max(0, missing - len(stand_ins)))


def memory_for(size: int) -> int:
    """About how many bytes of memory a model takes, by the size of its file."""
    return size + size // 8 + _OVERHEAD


def held_part(box: Box, model_hash: str) -> float:
    """How much of a model a box says it holds, 0 to 1."""
    return next((held.complete for held in box.holdings if held.hash == model_hash), 0.0)


def _candidate(placement: Placement, model: FleetModel, view: View, box: Box, gone: bool) -> Verdict:
    complete = held_part(box, model.hash)
    reason = _refusal(placement, model, view, box, complete)
    return Verdict(box.key, box.node.name, "not" if reason else "spare", reason, complete, gone)


def _refusal(placement: Placement, model: FleetModel, view: View, box: Box, complete: float) -> str:
    if not box.written:
        return "it has said nothing of itself yet"
    reason = why_not(placement.terms, box)
    if reason:
        return reason
    standing = view.standing(box.key)
    if not standing.admitted:
        return f"it is not let in ({standing.reason})"
    if complete >= 1:
        return _no_memory(model, box)
    if SCOPE_BLOBS not in standing.scopes:
        return "the fleet's firewall does not let it have blocks of models (scope blobs)"
    if window_for(Window(), view.settings, box).never:
        return "the fleet's policy has no hours for models on its metered link"
    if box.node.space == 0:
        return "it takes no more models: its disk is full, or its link is metered"
    if box.node.space is not None and model.size * (1 - complete) > box.node.space:
        return f"it needs {_mb(model.size)} of disk, and {_mb(box.node.space)} are free for models there"
    return _no_memory(model, box)


def _no_memory(model: FleetModel, box: Box) -> str:
    budget = box.node.budget
    if budget is not None and memory_for(model.size) > budget:
        if budget == 0:
            return "it has no engine to run models with"
        return f"it needs about {_mb(memory_for(model.size))} of memory, and models may take {_mb(budget)} there"
    return ""


def _order(model_hash: str, one: Verdict) -> tuple[int, bytes]:
    if one.complete >= 1:
        rank = 0
    elif one.gone:
        rank = 3
    else:
        rank = 1 if one.complete >= STEP else 2
    return rank, hashlib.blake2b(model_hash.encode() + one.key, digest_size=16).digest()


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
