"""What the MQTT side counts, by name: one label of one metric, so that nothing is skipped in silence."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

Event = Literal[
    "connected",
    "connection_failed",
    "connection_lost",
    "fell_back_to_3_1_1",
    "received",
    "published",
    "refused_by_broker",
    "too_large_for_broker",
    "outbox_dropped",
    "delta_dropped",
    "unexpected_topic",
    "bad_topic",
    "request",
    "request_retained",
    "request_repeated",
    "request_bad",
    "request_not_utf8",
    "request_too_large",
    "request_overloaded",
    "request_displaced",
    "job_replayed",
    "job_given_up",
    "job_cancelled",
    "lease_given_way",
    "lease_unconfirmed",
    "journal_failed",
    "sensor",
    "sensor_bad",
    "sensor_not_utf8",
    "sensor_too_large",
    "sensor_too_many_topics",
    "sensor_prompt",
    "sensor_rate_limited",
    "sensor_superseded",
    "insight",
    "insight_failed",
    "insight_bad_answer",
]

EVENTS: Final[tuple[Event, ...]] = Event.__args__  # type: ignore[attr-defined]  # a Literal has its values there


class Counts:
    """Counters since the agent started."""

    def __init__(self) -> None:
        self.events: Final[Counter[str]] = Counter()

    def note(self, event: Event, number: int = 1) -> None:
        """Count an event."""
        self.events[event] += number
