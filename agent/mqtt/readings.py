"""What a sensor's message says: a number or a text, out of a payload that anybody may have sent. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from agent.mqtt.request import too_deep

#: Bytes of a payload, characters of a text value, and how deep the JSON may be nested.
MAX_PAYLOAD: Final = 64 * 1024
MAX_VALUE: Final = 4096
MAX_DEPTH: Final = 8
#: A path to a value in a JSON payload: keys, and places of lists.
PATH: Final = r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}$"
_PATH: Final = re.compile(PATH)


class BadReadingError(ValueError):
    """A message that says nothing that can be used; `kind` is what it is counted as."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind: Final = kind


@dataclass(frozen=True)
class Reading:
    """One message of a sensor. `at` is seconds since the epoch; `value` a number, or a text; `fields` is the payload's
    JSON where that is an object or a list, else None."""

    at: float
    topic: str
    value: float | str
    fields: Any = None

    @property
    def number(self) -> float | None:
        """The value where it is a number."""
        return self.value if isinstance(self.value, float) else None


def read(topic: str, payload: bytes, at: float, path: str | None) -> Reading:
    """What a message says; `path` is where in its JSON the value stands. Raises BadReadingError."""
    if len(payload) > MAX_PAYLOAD:
        raise BadReadingError("sensor_too_large", f"has {len(payload)} bytes, and {MAX_PAYLOAD} is the limit")
    try:
        text = payload.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadReadingError("sensor_not_utf8", "is not UTF-8") from None
    if not text:
        raise BadReadingError("sensor_bad", "is empty")
    if "\0" in text:
        raise BadReadingError("sensor_bad", "has a character that is none of a text")
    fields = _json(text)
    if path is None:
        value = fields if isinstance(fields, int | float) and not isinstance(fields, bool) else text
        return Reading(at, topic, _value(value, text), fields if isinstance(fields, dict | list) else None)
    if not isinstance(fields, dict | list):
        raise BadReadingError("sensor_bad", f"is no JSON with {path} in it")
    return Reading(at, topic, _value(at_path(fields, path), path), fields)


def at_path(fields: Any, path: str) -> Any:
    """The value at a path; raises BadReadingError where there is none."""
    for key in path.split("."):
        if isinstance(fields, dict) and key in fields:
            fields = fields[key]
        elif isinstance(fields, list) and key.isdigit() and len(key) < 6 and int(key) < len(fields):
            fields = fields[int(key)]
        else:
            raise BadReadingError("sensor_bad", f"has no {path} in it")
    return fields


def is_path(text: str) -> bool:
    """Whether a text is a path to a value."""
    return _PATH.fullmatch(text) is not None


def _json(text: str) -> Any:
    if text[0] not in '{["-0123456789':
        return None
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        if text[0] in "{[":
            raise BadReadingError("sensor_bad", "begins as JSON and is none") from None
        return None
    if too_deep(value, MAX_DEPTH):
        raise BadReadingError("sensor_bad", f"is nested more than {MAX_DEPTH} deep")
    return value


def _value(value: Any, what: str) -> float | str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or abs(number) > 1e15:
            raise BadReadingError("sensor_bad", "is a number that is too large")
        return number
    if isinstance(value, str):
        return value[:MAX_VALUE]
    raise BadReadingError("sensor_bad", f"has no number or text at {what[:40]!r}")
