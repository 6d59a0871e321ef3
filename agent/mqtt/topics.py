"""The topics of one box, and what a topic or a filter may be. Pure.

    shoal/v1/{fleet}/{node}/availability           retained online or offline
    shoal/v1/{fleet}/{node}/status                 retained, what the box is and does
    shoal/v1/{fleet}/infer/request                 any box of the fleet on this broker
    shoal/v1/{fleet}/{node}/infer/request          this box
    shoal/v1/{fleet}/{node}/infer/{job}/{what}     accepted, delta, result, error; cancel comes in
    shoal/v1/{fleet}/{node}/lease/{job}            retained, that this box has the job
    shoal/v1/{fleet}/{node}/sensor/{id}            in
    shoal/v1/{fleet}/{node}/insight/{pipeline}     out

Levels are lower case. `{node}` is the beginning of the box's public key: names change, and two boxes may have one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

ROOT: Final = "shoal/v1"
#: Bytes of a topic that is taken from others.
MAX_TOPIC: Final = 512
#: Characters of `{node}`, of 64 that the key has in hex.
NODE_CHARS: Final = 16

Answer = Literal["accepted", "delta", "result", "error"]

_NOT_A_LEVEL: Final = re.compile(r"[^a-z0-9_.-]+")
_JOB: Final = re.compile(r"[A-Za-z0-9._:-]{1,48}")
_NODE: Final = re.compile(rf"[0-9a-f]{{{NODE_CHARS}}}")


def node_of(public_key: bytes) -> str:
    """The level of a box in topics."""
    return public_key.hex()[:NODE_CHARS]


def level_of(name: str) -> str:
    """A fleet's name as a level: lower case, and what is no letter, digit, '_', '.' or '-' becomes '-'."""
    return _NOT_A_LEVEL.sub("-", name.lower())[:63].strip("-") or "fleet"


def is_job(text: str) -> bool:
    """Whether a text may be the id of a job, which is a level of topics."""
    return _JOB.fullmatch(text) is not None


def is_node(text: str) -> bool:
    """Whether a text may be the level of a box."""
    return _NODE.fullmatch(text) is not None


def topic_problem(topic: str) -> str | None:
    """Why nothing may be published to a topic, None where it may."""
    if not topic:
        return "is empty"
    if len(topic.encode("utf-8", "replace")) > MAX_TOPIC:
        return f"has more than {MAX_TOPIC} bytes"
    if any(c in topic for c in "+#\0") or not topic.isprintable():
        return "has a wildcard or a character that cannot be printed"
    if topic.startswith("$"):
        return "begins with $, which is the broker's own"
    return None


def filter_problem(text: str) -> str | None:
    """Why a text is no filter of topics, None where it is one."""
    if not text:
        return "is empty"
    if len(text.encode("utf-8", "replace")) > MAX_TOPIC:
        return f"has more than {MAX_TOPIC} bytes"
    if not text.isprintable():
        return "has a character that cannot be printed"
    if text.startswith("$"):
        return "begins with $, which is the broker's own"
    levels = text.split("/")
    if any(("#" in level or "+" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
        return "has a wildcard that is not a level of its own, or a # that is not the last one"
    return None


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter means a topic (MQTT 5, 4.7): a wildcard as the first level means no topic with $."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def covers(wide: str, narrow: str) -> bool:
    """Whether a filter means every topic that another one means."""
    if narrow.startswith("$") and wide[:1] in ("+", "#"):
        return False
    wanted, levels = wide.split("/"), narrow.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or levels[index] == "#" or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


@dataclass(frozen=True)
class Topics:
    """The topics of one box. `fleet` and `node` are levels."""

    fleet: str
    node: str

    @property
    def own(self) -> str:
        """What this box's own topics begin with."""
        return f"{ROOT}/{self.fleet}/{self.node}"

    @property
    def availability(self) -> str:
        """Retained: online or offline."""
        return f"{self.own}/availability"

    @property
    def status(self) -> str:
        """Retained: what this box is and does."""
        return f"{self.own}/status"

    @property
    def fleet_request(self) -> str:
        """Jobs for any box of the fleet on the broker."""
        return f"{ROOT}/{self.fleet}/infer/request"

    @property
    def shared_request(self) -> str:
        """A filter of `fleet_request` by which each job reaches one box."""
        return f"$share/shoal-{self.fleet}/{self.fleet_request}"

    @property
    def own_request(self) -> str:
        """Jobs for this box."""
        return f"{self.own}/infer/request"

    @property
    def cancels(self) -> str:
        """A filter of the topics on which this box's jobs are called off."""
        return f"{self.own}/infer/+/cancel"

    @property
    def leases(self) -> str:
        """A filter of every box's leases."""
        return f"{ROOT}/{self.fleet}/+/lease/+"

    @property
    def availabilities(self) -> str:
        """A filter of every box's availability."""
        return f"{ROOT}/{self.fleet}/+/availability"

    def job(self, job: str, what: Answer) -> str:
        """Where something about a job is said."""
        return f"{self.own}/infer/{job}/{what}"

    def lease(self, job: str) -> str:
        """Where this box says that it has a job."""
        return f"{self.own}/lease/{job}"

    def insight(self, pipeline: str) -> str:
        """Where a pipeline's answers go."""
        return f"{self.own}/insight/{pipeline}"

    def cancelled(self, topic: str) -> str | None:
        """The job that a message on `cancels` calls off."""
        job = topic.removeprefix(f"{self.own}/infer/").removesuffix("/cancel")
        return job if is_job(job) and topic == f"{self.own}/infer/{job}/cancel" else None

    def leased(self, topic: str) -> tuple[str, str] | None:
        """The (node, job) of a message on `leases`."""
        levels = topic.split("/")
        if len(levels) != 6 or levels[4] != "lease" or not matches(self.leases, topic):
            return None
        return (levels[3], levels[5]) if is_node(levels[3]) and is_job(levels[5]) else None

    def available(self, topic: str) -> str | None:
        """The node of a message on `availabilities`."""
        levels = topic.split("/")
        return levels[3] if matches(self.availabilities, topic) and is_node(levels[3]) else None

    def reply_problem(self, topic: str) -> str | None:
        """Why an answer may not go to a ResponseTopic, None where it may: requesters must not make a box speak as
        another one, to Home Assistant, or into topics on which something is asked of it."""
        if problem := topic_problem(topic):
            return problem
        first = topic.split("/", 1)[0]
        return f"is below {first}/, where only boxes publish" if first in ("shoal", "homeassistant") else None
