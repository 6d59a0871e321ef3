"""What the fleet document means for one box: which models are wanted of it, and who else has copies. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.reconcile.desired import FleetModel, Wishes, read_wishes
from agent.reconcile.homes import Falls, falls, gone_boxes, held_part
from agent.reconcile.plan import Desired, Want
from fleet.document.facts import Box
from fleet.document.view import View


@dataclass(frozen=True)
class Situation:
    """One state of the document, as the box `own` sees it. `boxes` are the view's."""

    view: View
    boxes: Mapping[bytes, Box]
    own: bytes
    wishes: Wishes
    gone: frozenset[bytes]
    falls: tuple[Falls, ...]
    desired: Desired

    def kept_elsewhere(self, model_hash: str, missed: Collection[bytes] = ()) -> int:
        """Boxes that are there, hold the whole model, and are to: what they have stays, whatever this box does.

        `missed` are boxes that this one cannot reach now, whatever the document says.
        """
        keepers = {
            one.key
            for fall in self.falls
            if fall.placement.model is not None and fall.placement.model.hash == model_hash
            for one in fall.verdicts
            if one.role in ("home", "stand-in") and one.complete >= 1 and not one.gone
        }
        return len(keepers - {self.own} - set(missed))

    def holders(self, model_hash: str) -> tuple[bytes, ...]:
        """Other boxes that are let in and say that they hold the whole model, those first that are there."""
        found = [
            key
            for key, box in self.boxes.items()
            if key != self.own and held_part(box, model_hash) >= 1 and self.view.standing(key).admitted
        ]
        return tuple(sorted(found, key=lambda key: (key in self.gone, key)))

    def present_holders(self, model_hash: str, missed: Collection[bytes] = ()) -> tuple[bytes, ...]:
        """Those of the holders that are there, and not `missed`."""
        return tuple(key for key in self.holders(model_hash) if key not in self.gone and key not in missed)

    def matters(self) -> frozenset[bytes]:
        """The boxes of which others have to know when they are gone: what they were to hold would go elsewhere."""
        return frozenset(
            one.key
            for fall in self.falls
            for one in fall.verdicts
            if one.role in ("home", "stand-in") and (fall.placement.least is not None or one.complete < 1)
        )

    def stands_in(self) -> frozenset[str]:
        """The models that are wanted of this box for no other reason than that one of their homes is gone."""
        roles: dict[str, set[str]] = {}
        for fall in self.falls:
            for one in fall.verdicts:
                if fall.placement.model is not None and one.key == self.own:
                    roles.setdefault(fall.placement.model.hash, set()).add(one.role)
        return frozenset(blob for blob, found in roles.items() if "stand-in" in found and "home" not in found)

    def placed_by(self, model_hash: str) -> tuple[str, ...]:
        """The placements that want a model of this box."""
        return tuple(
            fall.placement.name
            for fall in self.falls
            if fall.placement.model is not None
            and fall.placement.model.hash == model_hash
            and self.own in fall.chosen()
        )


class Boxes:
    """The boxes of one view after the other: those of which nothing has changed are not read again, which is most of
    the work in a large fleet. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[object, object, Box]] = {}

    def of(self, view: View) -> Mapping[bytes, Box]:
        """Every box of a view."""
        fresh = {}
        for key, member in view.authority.members.items():
            if not view.shows(key):
                continue
            facts, before = view.facts_of(key), self._known.get(key)
            same = before is not None and before[0] is facts and before[1] is member
            fresh[key] = before if same and before is not None else (facts, member, view.box(key))
        self._known = fresh
        return {key: fresh[key][2] for key in sorted(fresh)}


def situation_of(view: View, own: bytes, pins: Collection[str], boxes: Boxes | None = None) -> Situation:
    """What a view means for a box. `pins` are models that an operator asked for on this box."""
    wishes = read_wishes(view.settings)
    told = (boxes or Boxes()).of(view)
    gone = gone_boxes(told) - {own} if wishes.models else frozenset()
    found = tuple(falls(placement, view, told, gone) for placement in wishes.placements)
    known = frozenset(content for content, model in wishes.models.items() if model.manifest is not None)
    wants: dict[str, Want] = {}
    for content in sorted(pins):
        model = wishes.models.get(content)
        if model is not None and model.manifest is not None:
            wants[content] = _want(model, pulled=True)
    for fall in found:
        model = fall.placement.model
        if model is not None and own in fall.chosen():
            before = wants.get(model.hash)
            urgent = fall.lacks or (before is not None and before.urgent)
            wants[model.hash] = _want(model, pulled=before is not None and before.reason == "pulled", urgent=urgent)
    return Situation(view, told, own, wishes, gone, found, Desired(tuple(wants.values()), known))


def _want(model: FleetModel, *, pulled: bool, urgent: bool = False) -> Want:
    return Want(model.hash, model.name, model.size, "pulled" if pulled else "placed", urgent)
