"""What holds for a request that does not say more: as the box says, or else the fleet, or else as usual."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.routing.habits import POLICY_PATH, Habits, habits_of
from fleet.document.settings import Setting
from fleet.document.view import Governance
from tests.harness import Fleet


def settings(value: object) -> Mapping[str, Setting]:
    fleet = Fleet()
    return Governance(fleet.genesis, [fleet.write("cfg", POLICY_PATH, value)]).settings


def test_a_box_comes_before_its_fleet_and_the_fleet_before_what_is_usual() -> None:
    said = settings({"offload": "require", "substitution": "family"})
    assert habits_of({}) == Habits("prefer", "none")
    assert habits_of(said) == Habits("require", "family")
    assert habits_of(said, "never") == Habits("never", "family")
    assert habits_of(said, None, "none") == Habits("require", "none")
    assert habits_of(settings({"substitution": "quant"})) == Habits("prefer", "quant")


@pytest.mark.parametrize(
    "value",
    [None, 7, "family", [], {"substitution": "any"}, {"substitution": 1, "offload": ["never"]}, {"offload": ""}],
)
def test_what_no_manifest_would_say_is_passed_over(value: object) -> None:
    assert habits_of(settings(value)) == Habits()
