"""A JSON Schema as a grammar of the answers that obey it.

The subset is in docs/api.md. Two rules decide about every keyword: what an answer says is valid against the schema,
and what cannot be kept to is refused with its place and never left out in silence. llama-cpp-python's own converter
(0.3.36) leaves out `not`, `patternProperties`, `minProperties` and `multipleOf`, fails with KeyError or MemoryError on
other schemas, and makes 26 MB of grammar in 6.6 s out of 18 nested `anyOf`; so this one is used in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from agent.engine.structure.combine import both, merged_of
from agent.engine.structure.keywords import (
    ASSERTIONS,
    FORMATS,
    MEANT,
    NUMBER,
    REFUSED,
    TYPES,
    is_of,
)
from agent.engine.structure.notation import Grammar, TooLargeError, json_text, literal
from agent.engine.structure.numbers import integers, numbers
from agent.engine.structure.pattern import PatternError, string_of
from agent.engine.structure.problem import SchemaError

#: Bytes of a schema's text, schemas and values looked at in it, and how deep they may be nested.
MAX_SCHEMA: Final = 64 * 1024
MAX_VISITS: Final = 4096
MAX_NESTING: Final = 48
MAX_VALUES: Final = 8192
#: Counts of items and characters past this cannot be reached: an answer has at most so many characters.
UNREACHABLE: Final = 1 << 24


def read_schema(text: str, param: str = "response_format") -> object:
    """The schema in a text. Raises SchemaError."""
    if len(text) > MAX_SCHEMA or len(text.encode("utf-8", "surrogatepass")) > MAX_SCHEMA:
        raise SchemaError(f"the schema is larger than {MAX_SCHEMA} bytes", "", param)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise SchemaError("this is no JSON", "", param) from None
    return value


def grammar_of(schema: object, param: str = "response_format") -> str:
    """GBNF for the answers that obey a schema. Raises SchemaError; takes milliseconds."""
    grammar = Grammar()
    body = rule_of(schema, grammar, param)
    try:
        return grammar.text(body)
    except TooLargeError:
        raise _too_large("", param) from None


def rule_of(schema: object, grammar: Grammar, param: str) -> str:
    """The name of a rule for a schema, in a grammar that may have others. Raises SchemaError."""
    try:
        return _Converter(schema, grammar, param).whole()
    except TooLargeError:
        raise _too_large("", param) from None


def _too_large(where: str, param: str) -> SchemaError:
    return SchemaError("the schema is too large once it is written out as a grammar", where, param)


class _Converter:
    def __init__(self, root: object, grammar: Grammar, param: str) -> None:
        self._root = root
        self._grammar = grammar
        self._param = param
        self._refs: dict[str, str] = {}
        self._visits = 0
        self._values = 0

    def whole(self) -> str:
        return self._rule(self._root, "", 0, ())

    def _rule(self, schema: object, where: str, depth: int, direct: tuple[str, ...]) -> str:
        """The name of a rule. `direct` are the references that lead here without a character between."""
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise _too_large(where, self._param)
        if depth > MAX_NESTING:
            raise self._problem(f"schemas are nested more than {MAX_NESTING} deep", where)
        if schema is True:
            return self._grammar.value
        if schema is False:
            raise self._problem("no value obeys this", where)
        if not isinstance(schema, dict):
            raise self._problem("a schema is an object, true or false", where)
        self._refuse(schema, where)
        if "$ref" in schema:
            return self._reference(schema, where, depth, direct)
        if "allOf" in schema:
            return self._all_of(schema, where, depth, direct)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._any_of(key, schema, where, depth, direct)
        if "const" in schema or "enum" in schema:
            return self._one_of(schema, where)
        return self._typed(schema, where, depth, direct)

    def _refuse(self, schema: Mapping[str, Any], where: str) -> None:
        for key, neutral in REFUSED.items():
            if key in schema and not any(
                schema[key] == value and isinstance(schema[key], bool) == isinstance(value, bool) for value in neutral
            ):
                raise self._problem(f"{key} cannot be kept to", f"{where}/{key}")

    # --- combinations -----------------------------------------------------------------------------------------------

    def _reference(self, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        pointer, target = self._resolve(schema["$ref"], f"{where}/$ref")
        if pointer in direct:
            raise self._problem("this reference comes back to itself", f"{where}/$ref")
        rest = {key: value for key, value in schema.items() if key in ASSERTIONS and key != "$ref"}
        if rest:
            merged = self._merge(self._plain(target, f"{where}/$ref"), rest, where)
            return self._rule(merged, where, depth + 1, (*direct, pointer))
        if pointer not in self._refs:
            name = self._refs[pointer] = self._grammar.reserve()
            self._grammar.define(name, self._rule(target, pointer, depth + 1, (*direct, pointer)))
        elif self._visits > MAX_VISITS:
            raise _too_large(where, self._param)
        return self._refs[pointer]

    def _resolve(self, ref: object, where: str) -> tuple[str, object]:
        if not isinstance(ref, str):
            raise self._problem("a reference is a string", where)
        if not ref.startswith("#"):
            raise self._problem("only references into the schema itself are followed; put it into $defs", where)
        pointer = unquote(ref[1:])
        if pointer and not pointer.startswith("/"):
            raise self._problem("only references by JSON Pointer are followed, like #/$defs/NAME", where)
        found = self._root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif (
                isinstance(found, list)
                and part.isascii()
                and part.isdigit()
                and len(part) < 6
                and int(part) < len(found)
            ):
                found = found[int(part)]
            else:
                raise self._problem("there is nothing at this reference", where)
        return pointer, found

    def _plain(self, schema: object, where: str) -> dict[str, Any]:
        """A schema that is to be merged, as an object."""
        if schema is True:
            return {}
        if schema is False:
            raise self._problem("no value obeys this", where)
        if not isinstance(schema, dict):
            raise self._problem("a schema is an object, true or false", where)
        return schema

    def _all_of(self, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts:
            raise self._problem("allOf is a list of at least one schema", f"{where}/allOf")
        merged = {key: value for key, value in schema.items() if key in ASSERTIONS and key != "allOf"}
        for index, part in enumerate(parts):
            at = f"{where}/allOf/{index}"
            plain = self._plain(part, at)
            self._refuse(plain, at)
            seen: tuple[str, ...] = direct
            while "$ref" in plain:
                self._visits += 1
                pointer, target = self._resolve(plain["$ref"], f"{at}/$ref")
                if pointer in seen or self._visits > MAX_VISITS:
                    raise self._problem("this reference comes back to itself", f"{at}/$ref")
                seen = (*seen, pointer)
                rest = {key: value for key, value in plain.items() if key in ASSERTIONS and key != "$ref"}
                target = self._plain(target, at)
                self._refuse(target, at)
                plain = self._merge(target, rest, at) if rest else target
            merged = self._merge(merged, plain, at)
            direct = (*direct, *seen[len(direct) :])
        return self._rule(merged, where, depth + 1, direct)

    def _any_of(self, key: str, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        options = schema[key]
        if not isinstance(options, list) or not options:
            raise self._problem(f"{key} is a list of at least one schema", f"{where}/{key}")
        base = {name: value for name, value in schema.items() if name in ASSERTIONS and name != key}
        names = []
        for index, option in enumerate(options):
            at = f"{where}/{key}/{index}"
            if base:
                option = self._merge(base, self._plain(option, at), at)
            names.append(self._rule(option, at, depth + 1, direct))
        return self._grammar.rule(" | ".join(dict.fromkeys(names)))

    def _merge(self, one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._refuse(one, where)
        self._refuse(other, where)
        self._visits += 1
        return merged_of(one, other, lambda message: self._problem(message, where))

    # --- values -----------------------------------------------------------------------------------------------------

    def _one_of(self, schema: Mapping[str, Any], where: str) -> str:
        key = "const" if "const" in schema else "enum"
        values = [schema["const"]] if key == "const" else schema["enum"]
        if not isinstance(values, list) or not values:
            raise self._problem("enum is a list of at least one value", f"{where}/{key}")
        self._values += len(values)
        if self._values > MAX_VALUES:
            raise self._problem(f"there are more than {MAX_VALUES} values", f"{where}/{key}")
        kinds = self._kinds(schema, where)
        kept = [value for value in values if kinds is None or any(is_of(value, kind) for kind in kinds)]
        if key == "const" and "enum" in schema:
            kept = both("enum", schema["enum"], kept, lambda message: self._problem(message, where))
        others = [name for name in schema if name in ASSERTIONS - {"const", "enum", "type"}]
        if others:
            raise self._problem(f"{others[0]} cannot be combined with {key}", f"{where}/{others[0]}")
        if not kept:
            raise self._problem("no value obeys this", f"{where}/{key}")
        try:
            texts = [json_text(value) for value in kept]
        except ValueError:
            raise self._problem("a value is no JSON", f"{where}/{key}") from None
        if any(0xD800 <= ord(char) < 0xE000 for text in texts for char in text):
            raise self._problem("a value has half of a character", f"{where}/{key}")
        return self._grammar.rule(self._grammar.one_of(texts))

    def _kinds(self, schema: Mapping[str, Any], where: str) -> list[str] | None:
        kinds = schema.get("type")
        if kinds is None:
            return None
        listed = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(listed, list) or not listed or any(kind not in TYPES for kind in listed):
            raise self._problem(f"a type is one of {', '.join(TYPES)}, or a list of them", f"{where}/type")
        return listed

    def _typed(self, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        kinds = self._kinds(schema, where)
        if kinds is None:
            # Without a type, a keyword says which type is meant: the answers then are those that it was written for.
            kinds = [kind for kind, keys in MEANT.items() if keys & schema.keys()]
            if not kinds:
                return self._grammar.value
        if "number" in kinds:
            kinds = [kind for kind in kinds if kind != "integer"]
        names = [self._of_kind(kind, schema, where, depth) for kind in dict.fromkeys(kinds)]
        return names[0] if len(names) == 1 else self._grammar.rule(" | ".join(names))

    def _of_kind(self, kind: str, schema: dict[str, Any], where: str, depth: int) -> str:
        match kind:
            case "object":
                return self._object(schema, where, depth)
            case "array":
                return self._array(schema, where, depth)
            case "string":
                return self._string(schema, where)
            case "integer" | "number":
                return self._number(kind, schema, where)
            case "boolean":
                return self._grammar.rule('"true" | "false"')
            case _:
                return self._grammar.rule('"null"')

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        least = self._count(schema, "minLength", where) or 0
        most = self._count(schema, "maxLength", where)
        pattern, form = schema.get("pattern"), schema.get("format")
        if form is not None and not isinstance(form, str):
            raise self._problem("a format is a string", f"{where}/format")
        kept = form in FORMATS
        if (pattern is not None) + kept + (least > 0 or most is not None) > 1:
            keys = [key for key in ("pattern", "minLength", "maxLength", "format") if key in schema]
            raise self._problem(f"{' and '.join(keys)} cannot be kept to together", f"{where}/{keys[0]}")
        if pattern is not None:
            if not isinstance(pattern, str):
                raise self._problem("a pattern is a string", f"{where}/pattern")
            try:
                return string_of(pattern, self._grammar)
            except PatternError as error:
                raise self._problem(str(error), f"{where}/pattern") from None
        if kept:
            return self._grammar.rule(FORMATS[str(form)])
        if not least and most is None:
            return self._grammar.string
        if most is not None and most < least:
            raise self._problem("maxLength is below minLength", f"{where}/maxLength")
        return self._grammar.rule(f'"\\"" {self._grammar.times(self._grammar.char, least, most)} "\\""')

    def _count(self, schema: Mapping[str, Any], key: str, where: str) -> int | None:
        value = schema.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._problem(f"{key} is a whole number from 0", f"{where}/{key}")
        if value >= UNREACHABLE:
            if key.startswith("max"):
                return None
            raise self._problem(f"no answer can have {UNREACHABLE} of anything", f"{where}/{key}")
        return value

    def _number(self, kind: str, schema: Mapping[str, Any], where: str) -> str:
        low, high = self._bound(schema, "minimum", where), self._bound(schema, "maximum", where)
        above, below = self._bound(schema, "exclusiveMinimum", where), self._bound(schema, "exclusiveMaximum", where)
        if (low, high, above, below) == (None, None, None, None):
            return self._grammar.integer if kind == "integer" else self._grammar.number
        if kind == "integer":
            lows = [math.ceil(low)] if low is not None else []
            lows += [math.floor(above) + 1] if above is not None else []
            highs = [math.floor(high)] if high is not None else []
            highs += [math.ceil(below) - 1] if below is not None else []
            options = integers(max(lows, default=None), min(highs, default=None))
        else:
            for key in sorted(NUMBER & schema.keys()):
                bound = self._bound(schema, key, where)
                if bound is not None and bound != int(bound):
                    raise self._problem("a bound of a number that is not whole cannot be kept to", f"{where}/{key}")
            out_low = above is not None and (low is None or above >= low)
            out_high = below is not None and (high is None or below <= high)
            start, end = above if out_low else low, below if out_high else high
            options = numbers(
                None if start is None else int(start), None if end is None else int(end), above=out_low, below=out_high
            )
        if not options:
            raise self._problem("no number is within these bounds", where)
        return self._grammar.rule(" | ".join(options))

    def _bound(self, schema: Mapping[str, Any], key: str, where: str) -> int | float | None:
        value = schema.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 10**30:
            raise self._problem(f"{key} is a number below 1e30", f"{where}/{key}")
        return value

    # --- arrays and objects -----------------------------------------------------------------------------------------

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        least, most = self._count(schema, "minItems", where) or 0, self._count(schema, "maxItems", where)
        items, prefix, key = schema.get("items", True), schema.get("prefixItems", []), "prefixItems"
        if isinstance(items, list):  # as it was before 2020
            items, prefix, key = schema.get("additionalItems", True), items, "items"
        if not isinstance(prefix, list):
            raise self._problem("prefixItems is a list of schemas", f"{where}/prefixItems")
        if items is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and most < least:
            raise self._problem("fewer items are allowed than are needed", where)
        grammar = self._grammar
        fixed = [
            self._rule(part, f"{where}/{key}/{index}", depth + 1, ())
            for index, part in enumerate(prefix[: len(prefix) if most is None else most])
        ]
        tail = ""
        if most is None or most > len(fixed):
            item = self._rule(items, f"{where}/items", depth + 1, ())
            more = grammar.rule(f'"," {grammar.ws} {item}')
            count = (max(0, least - len(fixed)), None if most is None else most - len(fixed))
            if fixed:
                tail = grammar.times(more, *count)
            else:
                rest = grammar.times(more, max(0, count[0] - 1), None if count[1] is None else count[1] - 1)
                fixed, tail = [item], rest
        body = tail
        for index in range(len(fixed) - 1, 0, -1):
            body = grammar.rule(f'"," {grammar.ws} {fixed[index]} {body}')
            body = body if index < least else f"{body}?"
        if not fixed:
            return grammar.rule(f'"[" {grammar.ws} "]"')
        filled = f"{fixed[0]} {body} {grammar.ws}"
        return grammar.rule(f'"[" {grammar.ws} {filled} "]"' if least else f'"[" {grammar.ws} ( {filled} )? "]"')

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        named, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(named, dict):
            raise self._problem("properties is an object of schemas", f"{where}/properties")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._problem("required is a list of names", f"{where}/required")
        # Many schemas say nothing of other properties and mean none.
        others = schema.get("additionalProperties", not named and "properties" not in schema)
        for name in required:
            if name not in named:
                if others is False and "additionalProperties" in schema:
                    raise self._problem(f"{name[:64]!r} is required and not allowed", f"{where}/required")
                named = {**named, name: others if others is not False else True}
        grammar = self._grammar
        if not named and others is True:
            return grammar.any_object
        pairs = []
        for name, part in named.items():
            at = f"{where}/properties/{name.replace('~', '~0').replace('/', '~1')}"
            if any(0xD800 <= ord(char) < 0xE000 for char in name):
                raise self._problem("a name has half of a character", at)
            if part is False and name not in required:
                continue
            value = self._rule(part, at, depth + 1, ())
            pairs.append((grammar.rule(f'{literal(json_text(name) + ":")} " "? {value}'), name in required))
        more = ""
        if others is not False:
            value = self._rule(others, f"{where}/additionalProperties", depth + 1, ())
            more = grammar.rule(f'{grammar.string_but(named)} ":" " "? {value}')
        members = self._members(pairs, more)
        if members is None:
            return grammar.rule(f'"{{" {grammar.ws} "}}"')
        filled = f'"{{" {grammar.ws} {members} {grammar.ws} "}}"'
        if any(needed for _, needed in pairs):
            return grammar.rule(filled)
        return grammar.rule(f'"{{" {grammar.ws} ( {members} {grammar.ws} )? "}}"')

    def _members(self, pairs: list[tuple[str, bool]], more: str) -> str | None:
        """At least one of these, in this order and with commas between; None where there is nothing."""
        # One comma for all that may come next: the ways that are open stay as many as there are names.
        grammar, needs = self._grammar, False
        first = grammar.rule(f'{more} ( "," {grammar.ws} {more} )*') if more else None
        for pair, needed in reversed(pairs):
            begin = pair
            if first is not None:
                follow = f'"," {grammar.ws} {first}'
                begin = f"{pair} {grammar.rule(follow if needs else f'( {follow} )?')}"
            first = grammar.rule(begin if needed or first is None else f"{begin} | {first}")
            needs = needs or needed
        return first

    def _problem(self, message: str, where: str) -> SchemaError:
        return SchemaError(message, where, self._param)
