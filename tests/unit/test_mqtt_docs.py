"""The page about MQTT says what there is: every count, every code, every topic."""

from __future__ import annotations

import re
from pathlib import Path

from agent.mqtt.counts import EVENTS
from agent.mqtt.replies import codes
from agent.mqtt.topics import Topics

PAGE = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text("utf-8")


def test_every_count_is_described_and_nothing_else() -> None:
    table = PAGE.split("## What is counted")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(EVENTS)


def test_every_event_is_counted_somewhere() -> None:
    source = "".join(
        path.read_text("utf-8")
        for path in (Path(__file__).parents[2] / "agent" / "mqtt").glob("*.py")
        if path.name != "counts.py"
    )
    assert not [event for event in EVENTS if f'"{event}"' not in source]


def test_every_code_is_described() -> None:
    assert set(
        re.findall(r"^\| `(\w+)` \|", PAGE.split("## Answers")[1].split("## What holds")[0], re.MULTILINE)
    ) == set(codes())


def test_every_topic_of_a_box_is_described() -> None:
    described = set(re.findall(r"^((?:shoal|homeassistant)/\S+)", PAGE, re.MULTILINE))
    topics = Topics("{fleet}", "{node}")
    own = {topics.availability, topics.status, topics.fleet_request, topics.own_request, topics.lease("{job}")}
    assert own | {topics.insight("{pipeline}"), topics.job("{job}", "accepted")} <= described
