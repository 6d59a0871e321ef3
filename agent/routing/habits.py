"""What holds for a request that does not say where it may run and what may stand in for its model. Pure.

A box's own configuration comes first, then policy `routing` of the fleet's document, then what is built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, get_args

from agent.routing.decide import Policy
from fleet.document.settings import Setting
from fleet.models.substitution import Substitution

#: Where the policy stands in the document.
POLICY_PATH: Final = "policy/routing"

C = TypeVar("C", bound=str)


@dataclass(frozen=True)
class Habits:
    """What a request means that does not say more."""

    offload: Policy = "prefer"
    substitution: Substitution = "none"


def habits_of(
    settings: Mapping[str, Setting], offload: Policy | None = None, substitution: Substitution | None = None
) -> Habits:
    """The habits of a box with this configuration (None where it leaves something to the fleet) under these settings.

    What no manifest would say is passed over.
    """
    setting = settings.get(POLICY_PATH)
    said = setting.value if setting is not None and isinstance(setting.value, dict) else {}
    return Habits(
        offload or _one_of(get_args(Policy), said.get("offload")) or "prefer",
        substitution or _one_of(get_args(Substitution), said.get("substitution")) or "none",
    )


def _one_of(values: tuple[C, ...], said: object) -> C | None:
    return next((value for value in values if value == said), None)
