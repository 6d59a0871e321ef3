"""Problems of the MQTT side: a broker that is away or does not let this box in, and pipelines that fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agent.observe.warning import Warning


def evaluate_broker(facts: Mapping[str, Any] | None) -> tuple[Warning, ...]:
    """Every problem that `MqttRoom.facts` shows; none where no broker is configured. Pure."""
    return () if facts is None else tuple(_problems(facts))


def _problems(facts: Mapping[str, Any]) -> Iterator[Warning]:
    broker, problem = facts["broker"], facts["problem"]
    if facts["state"] == "denied":
        yield Warning(
            "mqtt_denied",
            "error",
            f"the MQTT broker {broker} does not let this box in",
            f"it says: {problem}",
            "check mqtt.user, mqtt.password_file and mqtt.cert_file, and the broker's own log",
        )
    elif facts["state"] == "connecting" and problem:
        yield Warning(
            "mqtt_unreachable",
            "warning",
            f"the MQTT broker {broker} is away",
            f"{problem}. What is to be published waits, as much as mqtt.outbox says",
            "is the broker running, and is mqtt.url right? it is tried again by itself",
        )
    refused = facts.get("refused_topics")
    if refused:
        yield Warning(
            "mqtt_topics_refused",
            "warning",
            f"the MQTT broker {broker} does not let this box read all that it has to",
            f"it refused: {', '.join(sorted(refused))}",
            "allow it in the broker's access rules; there are some to start from in docker/mosquitto",
        )
    for pipeline in facts.get("pipelines", ()):
        if pipeline.get("error"):
            yield Warning(
                "pipeline_failing",
                "warning",
                f"pipeline {pipeline['name']} gives no answers",
                str(pipeline["error"]),
                "see how it stands: shoal pipelines ls; and what it asks: shoal pipelines try FILE --messages RECORDED",
            )
