"""What `shoal doctor` says of models that are to be somewhere and are not. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.observe.warning import Warning
from agent.reconcile.plan import Actual, obstacle
from agent.reconcile.situation import Situation


def evaluate_copies(situation: Situation | None, actual: Actual) -> tuple[Warning, ...]:
    """The warnings about placements and about what is wanted of this box; none where it belongs to no fleet."""
    if situation is None:
        return ()
    return (*_placements(situation), *_wanted(situation, actual))


def _placements(situation: Situation) -> Iterator[Warning]:
    for fall in situation.falls:
        placement = fall.placement
        if placement.problem:
            yield Warning(
                "placement_unusable",
                "warning",
                f"placement {placement.name} has no effect",
                placement.problem,
                f"put it right, or take it away: shoal delete place/{placement.name}",
            )
        elif fall.short or (placement.least is None and not fall.chosen()):
            lacking = f"{fall.short} fewer than the {placement.least} that are to be kept" if fall.short else "none"
            yield Warning(
                "copies_lacking",
                "warning",
                f"too few boxes can hold what placement {placement.name} asks for",
                f"{lacking} can take the model now",
                f"see why: shoal placements explain {placement.name}; then widen --on, lower --min, or make room",
            )


def _wanted(situation: Situation, actual: Actual) -> Iterator[Warning]:
    here = {copy.hash for copy in actual.copies} | actual.own | {fetch.hash for fetch in actual.fetching}
    for want in situation.desired.wants:
        # Hours that will come are no trouble.
        why = obstacle(want, actual) if want.hash not in here and not actual.closed else ""
        if why:
            yield Warning(
                "model_not_fetched",
                "warning",
                f"{want.name} is to be on this box, and is not",
                why,
                "see: shoal models show, shoal transfers; free space with shoal models gc, or place it elsewhere",
            )
