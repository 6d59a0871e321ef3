"""Tests that need more of a machine than Python: skipped with the reason where it lacks that, failed in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest

_LACKING = "lacks what it needs"


def require(config: pytest.Config, items: Sequence[pytest.Item], missing: Callable[[], str]) -> None:
    """Skip these tests for what `missing` says, which is empty where they can run and is asked only if any is to run.

    With CI=true they fail instead, by `check` in the setup of each.
    """
    if not items or config.option.collectonly or config.option.markexpr == "not docker":
        return
    why = missing()
    for item in items if why else ():
        if os.environ.get("CI") == "true":
            item.user_properties.append((_LACKING, why))
        else:
            item.add_marker(pytest.mark.skip(reason=why))


def check(item: pytest.Item) -> None:
    """Fail a test that `require` found this machine to be unfit for, in CI."""
    for name, why in item.user_properties:
        if name == _LACKING:
            pytest.fail(f"CI runs these tests: {why}", pytrace=False)
