"""A JSON Schema as a grammar of the answers that obey it.

The subset is in docs/api.md. Two rules decide about every keyword: what an answer says is valid against the schema,
and what cannot be kept to is refused with its place and never left out in silence. llama-cpp-python's own converter
(0.3.36) leaves out `not`, `patternProperties`, `minProperties` and `multipleOf`, fails with KeyError or MemoryError on
other schemas, and makes 26 MB of grammar in 6.6 s out of 18 nested `anyOf`; so this one is used in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agent.engine.structure.combine import merged_of
from agent.engine.structure.containers import array_rule, object_rule
from agent.engine.structure.keywords import ASSERTIONS, MEANT, REFUSED
from agent.engine.structure.notation import MAX_WORK, Grammar, TooLargeError
from agent.engine.structure.problem import SchemaError
from agent.engine.structure.references import resolve
from agent.engine.structure.scalars import kinds_of, listed, number_rule, one_of, string_rule

#: Bytes of a schema's text, schemas and values looked at in it, and how deep they may be nested.
MAX_SCHEMA: Final = 64 * 1024
MAX_VISITS: Final = 4096
MAX_NESTING: Final = 48
MAX_VALUES: Final = 8192


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
    converter = _Converter(schema, grammar, param)
    try:
        return converter.whole()
    except TooLargeError:
        raise _too_large(converter.at, param) from None
    except RecursionError:  # comparing values that are nested as deep as a parser of JSON lets them
        raise SchemaError("values are nested too deeply", converter.at, param) from None


def _weight(value: object, most: int) -> int:
    """Names, letters and values in a value; as much as has been counted once that is more than `most`."""
    weight, pending = 0, [value]
    while pending and weight <= most:
        one = pending.pop()
        weight += 3 + (len(one) if isinstance(one, str | list | dict) else 0)
        if isinstance(one, dict):
            weight += sum(map(len, one))
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    return weight


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
        #: The place that is being looked at.
        self.at = ""

    def whole(self) -> str:
        return self._rule(self._root, "", 0, ())

    def _rule(self, schema: object, where: str, depth: int, direct: tuple[str, ...]) -> str:
        """The name of a rule. `direct` are the references that lead here without a character between."""
        self._visits += 1
        self.at = where
        self._grammar.spend(8)
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

    def _spend(self, work: int, *values: object) -> None:
        self._grammar.spend(work + sum(_weight(value, MAX_WORK) for value in values))

    def _refuse(self, schema: Mapping[str, Any], where: str) -> None:
        for key, neutral in REFUSED.items():
            if key in schema and not any(
                schema[key] == value and isinstance(schema[key], bool) == isinstance(value, bool) for value in neutral
            ):
                raise self._problem(f"{key} cannot be kept to", f"{where}/{key}")

    # --- combinations -----------------------------------------------------------------------------------------------

    def _reference(self, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        pointer, target = resolve(self._root, schema["$ref"], f"{where}/$ref", self._problem)
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
        followed = direct
        for index, part in enumerate(parts):
            at = f"{where}/allOf/{index}"
            plain = self._plain(part, at)
            self._refuse(plain, at)
            seen: tuple[str, ...] = direct
            while "$ref" in plain:
                self._visits += 1
                pointer, target = resolve(self._root, plain["$ref"], f"{at}/$ref", self._problem)
                if pointer in seen or self._visits > MAX_VISITS:
                    raise self._problem("this reference comes back to itself", f"{at}/$ref")
                seen = (*seen, pointer)
                rest = {key: value for key, value in plain.items() if key in ASSERTIONS and key != "$ref"}
                target = self._plain(target, at)
                self._refuse(target, at)
                plain = self._merge(target, rest, at) if rest else target
            merged = self._merge(merged, plain, at)
            followed = (*followed, *seen[len(direct) :])
        return self._rule(merged, where, depth + 1, followed)

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
        self.at = where
        # What both have is compared or put together; the rest is passed on.
        shared = one.keys() & other.keys()
        named = sum(len(part["properties"]) for part in (one, other) if isinstance(part.get("properties"), dict))
        self._spend(len(one) + len(other) + named, *(part[key] for part in (one, other) for key in shared))
        if "enum" in shared:  # each value is written as JSON
            self._spend(sum(8 * len(part["enum"]) for part in (one, other) if isinstance(part["enum"], list)))
        return merged_of(one, other, lambda message: self._problem(message, where))

    # --- values -----------------------------------------------------------------------------------------------------

    def _one_of(self, schema: Mapping[str, Any], where: str) -> str:
        key, values = listed(schema, where, self._problem)
        self._values += len(values)
        self._spend(len(schema), values)
        if self._values > MAX_VALUES:
            raise self._problem(f"there are more than {MAX_VALUES} values", f"{where}/{key}")
        return one_of(schema, where, self._grammar, self._problem)

    def _typed(self, schema: dict[str, Any], where: str, depth: int, direct: tuple[str, ...]) -> str:
        kinds = kinds_of(schema, where, self._problem)
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
        self._spend(len(schema), *(sorted(schema["properties"]) if isinstance(schema.get("properties"), dict) else ()))
        self._spend(0, schema.get("required"), schema.get("pattern"))
        if isinstance(schema.get("prefixItems"), list):
            self._spend(len(schema["prefixItems"]))
        match kind:
            case "object" | "array":
                write = object_rule if kind == "object" else array_rule

                def part(schema: object, where: str) -> str:
                    return self._rule(schema, where, depth + 1, ())

                return write(schema, where, part, self._grammar, self._problem)
            case "string":
                return string_rule(schema, where, self._grammar, self._problem)
            case "integer" | "number":
                return number_rule(kind, schema, where, self._grammar, self._problem)
            case "boolean":
                return self._grammar.rule('"true" | "false"')
            case _:
                return self._grammar.rule('"null"')

    def _problem(self, message: str, where: str) -> SchemaError:
        return SchemaError(message, where, self._param)
