"""Grammars for the values that have no parts: strings, numbers, and those that a schema lists. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.engine.structure.combine import both
from agent.engine.structure.keywords import ASSERTIONS, FORMATS, NUMBER, TYPES, is_of
from agent.engine.structure.notation import Grammar, json_text
from agent.engine.structure.numbers import integers, numbers
from agent.engine.structure.pattern import PatternError, string_of

#: Makes the error for a message and a place in the schema.
Problem = Callable[[str, str], Exception]

#: Counts of items and characters past this cannot be reached: an answer has at most so many characters.
UNREACHABLE: Final = 1 << 24


def kinds_of(schema: Mapping[str, Any], where: str, problem: Problem) -> list[str] | None:
    """The types that a schema names; None where it names none."""
    kinds = schema.get("type")
    if kinds is None:
        return None
    listed = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(listed, list) or not listed or any(kind not in TYPES for kind in listed):
        raise problem(f"a type is one of {', '.join(TYPES)}, or a list of them", f"{where}/type")
    return listed


def listed(schema: Mapping[str, Any], where: str, problem: Problem) -> tuple[str, list[Any]]:
    """The keyword that lists values, `const` or `enum`, and those values."""
    key = "const" if "const" in schema else "enum"
    values = [schema["const"]] if key == "const" else schema["enum"]
    if not isinstance(values, list) or not values:
        raise problem("enum is a list of at least one value", f"{where}/{key}")
    return key, values


def one_of(schema: Mapping[str, Any], where: str, grammar: Grammar, problem: Problem) -> str:
    """The rule for one of the values that are listed, as far as the rest of the schema lets them."""
    key, values = listed(schema, where, problem)
    kinds = kinds_of(schema, where, problem)
    kept = [value for value in values if kinds is None or any(is_of(value, kind) for kind in kinds)]
    if key == "const" and "enum" in schema:
        kept = both("enum", schema["enum"], kept, lambda message: problem(message, where))
    others = [name for name in schema if name in ASSERTIONS - {"const", "enum", "type"}]
    if others:
        raise problem(f"{others[0]} cannot be combined with {key}", f"{where}/{others[0]}")
    if not kept:
        raise problem("no value obeys this", f"{where}/{key}")
    try:
        texts = [json_text(value) for value in kept]
    except ValueError:
        raise problem("a value is no JSON", f"{where}/{key}") from None
    if any(0xD800 <= ord(char) < 0xE000 for text in texts for char in text):
        raise problem("a value has half of a character", f"{where}/{key}")
    return grammar.rule(grammar.one_of(texts))


def string_rule(schema: Mapping[str, Any], where: str, grammar: Grammar, problem: Problem) -> str:
    """The rule for a string with a length, a pattern or a format."""
    least = count_of(schema, "minLength", where, problem) or 0
    most = count_of(schema, "maxLength", where, problem)
    pattern, form = schema.get("pattern"), schema.get("format")
    if form is not None and not isinstance(form, str):
        raise problem("a format is a string", f"{where}/format")
    kept = form in FORMATS
    if (pattern is not None) + kept + (least > 0 or most is not None) > 1:
        keys = [key for key in ("pattern", "minLength", "maxLength", "format") if key in schema]
        raise problem(f"{' and '.join(keys)} cannot be kept to together", f"{where}/{keys[0]}")
    if pattern is not None:
        if not isinstance(pattern, str):
            raise problem("a pattern is a string", f"{where}/pattern")
        try:
            return grammar.once(("pattern", pattern), lambda: string_of(pattern, grammar))
        except PatternError as error:
            raise problem(str(error), f"{where}/pattern") from None
    if kept:
        return grammar.rule(FORMATS[str(form)])
    if not least and most is None:
        return grammar.string
    if most is not None and most < least:
        raise problem("maxLength is below minLength", f"{where}/maxLength")
    return grammar.rule(f'"\\"" {grammar.times(grammar.char, least, most)} "\\""')


def number_rule(kind: str, schema: Mapping[str, Any], where: str, grammar: Grammar, problem: Problem) -> str:
    """The rule for a number, or a whole one, within bounds."""
    low, high = _bound(schema, "minimum", where, problem), _bound(schema, "maximum", where, problem)
    above, below = (
        _bound(schema, "exclusiveMinimum", where, problem),
        _bound(schema, "exclusiveMaximum", where, problem),
    )
    if (low, high, above, below) == (None, None, None, None):
        return grammar.integer if kind == "integer" else grammar.number
    # An option for each digit of the bounds.
    grammar.spend(sum(8 * len(str(bound)) for bound in (low, high, above, below) if bound is not None))
    if kind == "integer":
        lows = [math.ceil(low)] if low is not None else []
        lows += [math.floor(above) + 1] if above is not None else []
        highs = [math.floor(high)] if high is not None else []
        highs += [math.ceil(below) - 1] if below is not None else []
        options = integers(max(lows, default=None), min(highs, default=None))
    else:
        for key in sorted(NUMBER & schema.keys()):
            bound = _bound(schema, key, where, problem)
            if bound is not None and bound != int(bound):
                raise problem("a bound of a number that is not whole cannot be kept to", f"{where}/{key}")
        out_low = above is not None and (low is None or above >= low)
        out_high = below is not None and (high is None or below <= high)
        start, end = above if out_low else low, below if out_high else high
        options = numbers(
            None if start is None else int(start), None if end is None else int(end), above=out_low, below=out_high
        )
    if not options:
        raise problem("no number is within these bounds", where)
    return grammar.rule(" | ".join(options))


def count_of(schema: Mapping[str, Any], key: str, where: str, problem: Problem) -> int | None:
    """A keyword that counts; None where it is not there, or is a bound that no answer reaches."""
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise problem(f"{key} is a whole number from 0", f"{where}/{key}")
    if value >= UNREACHABLE:
        if key.startswith("max"):
            return None
        raise problem(f"no answer can have {UNREACHABLE} of anything", f"{where}/{key}")
    return value


def _bound(schema: Mapping[str, Any], key: str, where: str, problem: Problem) -> int | float | None:
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 10**30:
        raise problem(f"{key} is a number below 1e30", f"{where}/{key}")
    return value
