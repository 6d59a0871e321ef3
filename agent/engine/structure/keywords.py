"""The keywords of JSON Schema: which say what of which type, and which cannot be kept to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
OBJECT: Final = frozenset({"properties", "required", "additionalProperties"})
ARRAY: Final = frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems"})
STRING: Final = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
MEANT: Final = {"object": OBJECT, "array": ARRAY, "string": STRING, "number": NUMBER}
ASSERTIONS: Final = OBJECT | ARRAY | STRING | NUMBER | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
#: What is known and cannot be kept to, and the values of it that ask for nothing.
REFUSED: Final[Mapping[str, tuple[object, ...]]] = {
    "not": (),
    "if": (),
    "then": (),
    "else": (),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "patternProperties": ({},),
    "propertyNames": (True, {}),
    "minProperties": (0,),
    "maxProperties": (),
    "unevaluatedProperties": (True,),
    "unevaluatedItems": (True,),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "uniqueItems": (False,),
    "multipleOf": (),
    "$dynamicRef": (),
    "$recursiveRef": (),
}

_DATE: Final = '[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | "1" [0-9] | "2" [0-8] )'
_TIME: Final = (
    '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,6} )?'
    ' ( "Z" | [-+] ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )'
)
_HEX: Final = "[0-9a-f]"
_UUID: Final = f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}'
#: Formats that are kept to. A day past the 28th is left out: not every month has it.
FORMATS: Final = {
    "date": f'"\\"" {_DATE} "\\""',
    "time": f'"\\"" {_TIME} "\\""',
    "date-time": f'"\\"" {_DATE} "T" {_TIME} "\\""',
    "uuid": f'"\\"" {_UUID} "\\""',
}


def is_of(value: object, kind: str) -> bool:
    """Whether a value is of a type."""
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (kind == "number" or float(value).is_integer())  # type: ignore[arg-type]
