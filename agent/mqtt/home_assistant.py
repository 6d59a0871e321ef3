"""How Home Assistant finds this box by itself: one device with what it is and what its pipelines say.

The payload is that of device discovery, which Home Assistant has since 2024.11
(https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload). It is retained, and published again when
Home Assistant says that it has started. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.mqtt.pipeline import Pipeline
from agent.mqtt.topics import Topics

PREFIX: Final = "homeassistant"
#: Properties of an answer's schema that get an entity of their own.
_MAX_FIELDS: Final = 8
#: Entities that are named as gone, the latest.
_MAX_GONE: Final = 64
NO_PLATFORMS: Final[Mapping[str, str]] = {}


def discovery_topic(prefix: str, topics: Topics) -> str:
    """Where the device is described."""
    return f"{prefix}/device/shoal_{topics.node}/config"


def birth_topic(prefix: str) -> str:
    """Where Home Assistant says `online` when it has started."""
    return f"{prefix}/status"


@dataclass(frozen=True)
class Device:
    """A device's description as it is published, and the platform of each entity that there is of it, or was."""

    payload: bytes
    platforms: Mapping[str, str]


def device(
    name: str, version: str, topics: Topics, pipelines: Sequence[Pipeline], before: Mapping[str, str] = NO_PLATFORMS
) -> Device:
    """Describe the box. `before` are the `platforms` of what was published last.

    An entity that is not described any more stays with Home Assistant; it goes where its platform alone is named.
    """
    unique = f"shoal_{topics.node}"
    components: dict[str, dict[str, Any]] = {
        "connected": {
            "platform": "binary_sensor",
            "name": "Connected",
            "unique_id": f"{unique}_connected",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topics.availability,
            "payload_on": "online",
            "payload_off": "offline",
        },
        "jobs": {
            "platform": "sensor",
            "name": "Jobs",
            "unique_id": f"{unique}_jobs",
            "icon": "mdi:tray-full",
            "state_class": "measurement",
            "state_topic": topics.status,
            "value_template": "{{ value_json.jobs.running + value_json.jobs.waiting }}",
            **_available(topics),
        },
        "models": {
            "platform": "sensor",
            "name": "Models",
            "unique_id": f"{unique}_models",
            "icon": "mdi:brain",
            "entity_category": "diagnostic",
            "state_topic": topics.status,
            "value_template": "{{ value_json.models | count }}",
            "json_attributes_topic": topics.status,
            **_available(topics),
        },
    }
    for pipeline in pipelines:
        components |= _insights(unique, topics, pipeline)
    platforms = {key: str(one["platform"]) for key, one in components.items()}
    gone = {key: platform for key, platform in before.items() if key not in platforms}
    for key in list(gone)[-_MAX_GONE:]:
        components[key] = {"platform": gone[key]}
        platforms[key] = gone[key]
    body = {
        "device": {
            "identifiers": [unique],
            "name": name,
            "manufacturer": "Shoal",
            "model": "edge agent",
            "sw_version": version,
            "serial_number": topics.node,
        },
        "origin": {"name": "shoal", "sw_version": version},
        "components": components,
        "qos": 1,
    }
    payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Device(payload, platforms)


def _insights(unique: str, topics: Topics, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Entities of one pipeline: each simple value of its answer, or the answer's text."""
    key = pipeline.name.replace(".", "_").replace("-", "_")
    title = pipeline.name.replace("-", " ").replace("_", " ").capitalize()
    common = {
        "state_topic": pipeline.publish,
        "json_attributes_topic": pipeline.publish,
        **_available(topics),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, kind in _fields(pipeline):
        path = f"value_json.answer[{json.dumps(name, ensure_ascii=False)}]"
        entity: dict[str, Any] = {"name": f"{title} {name}", "unique_id": f"{unique}_{key}_{_id(name)}", **common}
        if kind == "boolean":
            entity |= {"platform": "binary_sensor", "value_template": f"{{{{ 'ON' if {path} else 'OFF' }}}}"}
        else:
            entity |= {"platform": "sensor", "value_template": f"{{{{ ({path} | string)[:255] }}}}"}
        found[f"{key}_{_id(name)}"] = entity
    if not found:
        found[key] = {
            "platform": "sensor",
            "name": title,
            "unique_id": f"{unique}_{key}",
            # A state has 255 characters at most; the attributes have all of it.
            "value_template": "{{ (value_json.answer | string)[:255] }}",
            **common,
        }
    return found


def _fields(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Simple properties that the schema of an answer has, with their types."""
    schema = json.loads(pipeline.schema) if pipeline.schema else {}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    found = []
    for name, about in properties.items():
        kind = about.get("type") if isinstance(about, dict) else None
        if isinstance(about, dict) and "enum" in about and kind is None:
            kind = "string"
        if kind in ("string", "number", "integer", "boolean"):
            found.append((str(name), str(kind)))
    return found[:_MAX_FIELDS]


def _id(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower())[:64]


def _available(topics: Topics) -> dict[str, object]:
    return {
        "availability_topic": topics.availability,
        "payload_available": "online",
        "payload_not_available": "offline",
    }
