"""When models may travel: the box's own hours and the fleet's policy together."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.reconcile.schedule import Window, own_window, window_for
from fleet.document.facts import Box, Node
from tests.property.fleet import Fleet

TILL = Box(b"t" * 32, Node("till-1", labels=(("role", "till"),)), written=1)
NOON = datetime(2026, 3, 29, 12, 0).astimezone()


def at(hour: int, minute: int = 0) -> datetime:
    return NOON.replace(hour=hour, minute=minute)


def policy(*rules: Any, own: Window | None = None) -> Window:
    fleet = Fleet()
    fleet.set("a1", "policy/transfer", {"rules": list(rules)})
    return window_for(own or Window(), fleet.view().settings, TILL)


@pytest.mark.parametrize(
    ("window", "hour", "open_"),
    [
        (Window(), 12, True),
        (own_window(["22:00-06:00"], False, None), 23, True),
        (own_window(["22:00-06:00"], False, None), 5, True),
        (own_window(["22:00-06:00"], False, None), 6, False),
        (own_window(["01:00-02:00", "12:00-13:00"], True, None), 12, True),
        (own_window([], True, None), 12, False),
        (policy({"hours": ["22:00-06:00"]}), 12, False),
        (policy({"hours": ["22:00-06:00"]}, own=own_window(["05:00-12:00"], False, None)), 5, True),
        (policy({"hours": ["22:00-06:00"]}, own=own_window(["05:00-12:00"], False, None)), 23, False),
        (policy({"hours": ["22:00-06:00"]}, own=own_window(["10:00-12:00"], False, None)), 11, False),
        (policy({"metered": True}), 3, False),
        (policy({"selector": {"labels": {"role": "kiosk"}}, "metered": True}), 3, True),
        (policy({"selector": {"where": "nonsense"}, "metered": True}, {"hours": ["03:00-04:00"]}), 12, False),
        (policy({"selector": {"where": "role=till"}}, {"metered": True}), 12, True),  # the first that means it
        (policy({"hours": 7}, "text"), 12, True),
    ],
)
def test_whether_models_travel(window: Window, hour: int, open_: bool) -> None:
    assert (window.closed(at(hour)) == "") == open_


def test_the_lower_rate_counts_and_nonsense_does_not() -> None:
    assert policy({"upload_rate": 5000}, own=Window(rate=9000)).rate == 5000
    assert policy({"upload_rate": 5000}, own=Window(rate=90)).rate == 90
    assert policy({"upload_rate": -1}).rate is None


def test_it_says_when_to_look_again() -> None:
    window = own_window(["22:00-06:00"], False, None)
    now = at(21, 30)
    assert window.seconds_to_change(now) == 1800
    assert window.closed(now)
    assert not window.closed(now + timedelta(seconds=1800))
    assert "22:00-06:00" in window.closed(now)
