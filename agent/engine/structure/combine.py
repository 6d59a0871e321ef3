"""Two schemas as one, for `allOf` and for keywords beside `$ref` and `anyOf`. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from agent.engine.structure.keywords import ASSERTIONS

#: Makes the error for a message.
Problem = Callable[[str], Exception]


def merged_of(one: Mapping[str, Any], other: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """A schema that is obeyed where both are. Raises what `problem` makes where that cannot be said as one schema."""
    merged = {key: value for key, value in one.items() if key in ASSERTIONS}
    for key, value in other.items():
        if key not in ASSERTIONS:
            continue
        if key not in merged or merged[key] == value:
            merged[key] = value
        else:
            merged[key] = both(key, merged[key], value, problem)
    closed = [part for part in (one, other) if part.get("additionalProperties") is False]
    named = merged.get("properties", {})
    if closed and isinstance(named, dict):
        # What one part closes is closed for the properties that another part adds, too.
        allowed = [set(part["properties"]) for part in closed if isinstance(part.get("properties"), dict)]
        allowed += [set()] * (len(closed) - len(allowed))
        merged["properties"] = {name: value for name, value in named.items() if all(name in part for part in allowed)}
    return merged


def both(key: str, one: Any, other: Any, problem: Problem) -> Any:
    """One value of a keyword that says what two values of it say."""
    match key:
        case "properties" if isinstance(one, dict) and isinstance(other, dict):
            both = {name: {"allOf": [one[name], other[name]]} for name in one if name in other}
            return {**one, **other, **both}
        case "required" if isinstance(one, list) and isinstance(other, list):
            return [*one, *other]
        case "items" | "additionalProperties" if False not in (one, other):
            return {"allOf": [one, other]}
        case "items" | "additionalProperties":
            return False
        case "allOf" if isinstance(one, list) and isinstance(other, list):
            return [*one, *other]
        case "type":
            ones, others = ([kind] if isinstance(kind, str) else kind for kind in (one, other))
            if isinstance(ones, list) and isinstance(others, list):
                common = [kind for kind in ones if kind in others or (kind == "integer" and "number" in others)]
                common += [kind for kind in others if kind == "integer" and "number" in ones and kind not in common]
                if common:
                    return common
                raise problem("no value is of all these types")
        case "minimum" | "exclusiveMinimum" | "minLength" | "minItems" if _are_numbers(one, other):
            return max(one, other)
        case "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" if _are_numbers(one, other):
            return min(one, other)
        case "enum" if isinstance(one, list) and isinstance(other, list):
            wanted = {json.dumps(value, sort_keys=True) for value in other}
            return [value for value in one if json.dumps(value, sort_keys=True) in wanted]
    raise problem(f"two values of {key} cannot be combined")


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
