"""Prompts over what was collected: `{value}`, `{mean}`, `{payload.items}`; `{{` and `}}` are braces. Pure.

    topic      the topic                     value, last   the newest value          first   the oldest
    topic.N    its level N, from 0           values        all that are kept         before  that of the last prompt
    count      how many there were           min max mean  of the numbers            change  last less before
    seconds    how long it took to collect   time          of the newest, in UTC     payload       the newest, whole
    payload.KEY.KEY                          a value in the newest, where that is JSON

What is put in is never read as a template again, and is cut to limits: whoever sends to a sensor's topic writes a part
of the prompt, and no more than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from agent.mqtt.collecting import Collected
from agent.mqtt.readings import BadReadingError, Reading, at_path, is_path

#: Characters that one name may put in, values that `values` lists, and characters of a whole prompt.
MAX_PART: Final = 8192
MAX_LISTED: Final = 100
MAX_PROMPT: Final = 64 * 1024

NAMES: Final = (
    "topic", "value", "last", "first", "values", "before", "change", "count", "min", "max", "mean", "seconds", "time",
    "payload",
)  # fmt: skip
_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_LEVEL: Final = re.compile(r"topic\.([0-9]{1,2})")


def template_problem(template: str) -> str | None:
    """Why a text is no template, None where it is one."""
    for found in _PART.finditer(template):
        name = found[1]
        if found[0] in ("{{", "}}"):
            continue
        if name is None:
            return f"has a single brace at character {found.start()}; write {{{{ or }}}} for one"
        if name in NAMES or _LEVEL.fullmatch(name):
            continue
        if name.startswith("payload.") and is_path(name.removeprefix("payload.")):
            continue
        return f"{{{name[:40]}}} is nothing that can be put in; there are {', '.join(NAMES)}, topic.N and payload.KEY"
    return None


def payload_paths(template: str) -> tuple[str, ...]:
    """The paths that a template wants of a payload."""
    names = [found[1] for found in _PART.finditer(template) if found[1]]
    return tuple(dict.fromkeys(name.removeprefix("payload.") for name in names if name.startswith("payload.")))


def payload_value(reading: Reading, path: str) -> Any:
    """The value at a path of a message's payload. Raises BadReadingError where there is none."""
    if reading.fields is None:
        raise BadReadingError("sensor_bad", f"is no JSON, and the prompt wants its {path}")
    return at_path(reading.fields, path)


def fill(template: str, collected: Collected) -> str:
    """The prompt. Raises BadReadingError where the newest message lacks what the template wants of it."""
    known = _known(collected)

    def part(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        name = found[1]
        if name in known:
            return known[name][:MAX_PART]
        level = _LEVEL.fullmatch(name)
        if level:
            levels = collected.last.topic.split("/")
            return levels[int(level[1])] if int(level[1]) < len(levels) else ""
        return _shown(payload_value(collected.last, name.removeprefix("payload.")))[:MAX_PART]

    return _PART.sub(part, template)[:MAX_PROMPT]


def figures(collected: Collected) -> dict[str, object]:
    """What an answer says of what it is about."""
    found: Mapping[str, object] = {
        "count": collected.count,
        "last": collected.last.value,
        "min": collected.least,
        "max": collected.most,
        "mean": None if collected.mean is None else round(collected.mean, 6),
        "seconds": round(collected.seconds, 3),
    }
    return {key: value for key, value in found.items() if value is not None}


def _known(collected: Collected) -> Mapping[str, str]:
    last, before = collected.last, collected.before
    readings = collected.readings
    step = -(-len(readings) // MAX_LISTED)
    # Thinned evenly, and with the newest in any case.
    listed = readings[(len(readings) - 1) % step :: step]
    change = last.number - before if last.number is not None and isinstance(before, float) else None
    return {
        "topic": last.topic,
        "value": _shown(last.value),
        "last": _shown(last.value),
        "first": _shown(readings[0].value),
        "values": ", ".join(_shown(one.value)[:256] for one in listed),
        "before": _shown(before),
        "change": _shown(change),
        "count": str(collected.count),
        "min": _shown(collected.least),
        "max": _shown(collected.most),
        "mean": _shown(collected.mean),
        "seconds": f"{collected.seconds:.4g}",
        "time": datetime.fromtimestamp(min(max(last.at, 0.0), 253402300799.0), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "payload": _shown(last.value if last.fields is None else last.fields),
    }


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
