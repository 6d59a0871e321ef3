"""Schemas as grammars: what they accept is valid, and what is valid and written as models write it is accepted."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.structure.automaton import Automaton, State, TooAmbiguousError, Walk
from agent.engine.structure.gbnf import MAX_PRODUCED
from agent.engine.structure.json_schema import grammar_of
from agent.engine.structure.problem import GrammarError, SchemaError


def walk_of(schema: object) -> Walk:
    return Walk(Automaton(grammar_of(schema), limit=MAX_PRODUCED))


def accepts(walk: Walk, text: str) -> bool:
    state = walk.text(walk.begin, text)
    return state is not None and state.complete


def any_answer(walk: Walk, choose: random.Random, *, longest: int = 400) -> str | None:
    """A text that the grammar makes, chosen at random; None where that has no end within the length."""
    state, text = walk.begin, ""
    while len(text) < longest:
        if state.complete and (not state.stacks or choose.random() < 0.5):
            return text
        state, char = one_more(walk, state, choose)
        text += char
    return None


def one_more(walk: Walk, state: State, choose: random.Random) -> tuple[State, str]:
    """One of the ways on, and a character for it."""
    automaton = walk._automaton
    classes = [automaton.char[walk._state[stack]] for stack in state.stacks]
    one = choose.choice(classes)
    assert one is not None
    low, high = choose.choice(one.ranges)
    for code in (choose.randint(low, high), choose.randint(low, max(low, min(high, 0x7F))), low, *range(0x20, 0x80)):
        after = walk.step(state, code) if one.has(code) and not 0xD800 <= code < 0xE000 else None
        if after is not None:
            return after, chr(code)
    raise AssertionError(f"nothing follows, with {len(classes)} ways open")


STRINGS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(-1e6, 1e6).map(lambda x: round(x, 6))
    | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def schemas(draw: Any, depth: int = 3) -> tuple[Any, Any]:
    """A schema and a value that obeys it."""
    kind = draw(
        st.sampled_from(["string", "integer", "number", "boolean", "null", "enum", "array", "object", "any", "anyOf"])
    )
    if kind in ("array", "object", "anyOf") and not depth:
        kind = "string"
    match kind:
        case "string":
            least, more = draw(st.integers(0, 80)), draw(st.integers(0, 80))
            length = draw(st.integers(least, least + more))
            text = draw(st.text(st.characters(exclude_categories=("Cs",)), min_size=length, max_size=length))
            return {"type": "string", "minLength": least, "maxLength": least + more}, text
        case "integer":
            value = draw(st.integers(-(10**9), 10**9))
            low, high = value - draw(st.integers(0, 10**6)), value + draw(st.integers(0, 10**6))
            return {"type": "integer", "minimum": low, "maximum": high}, value
        case "number":
            low, span = draw(st.integers(-1000, 1000)), draw(st.integers(1, 1000))
            value = round(low + span * draw(st.floats(0, 1)), 4)
            return {"type": "number", "minimum": low, "maximum": low + span}, value
        case "boolean":
            return {"type": "boolean"}, draw(st.booleans())
        case "null":
            return {"type": "null"}, None
        case "enum":
            values = draw(st.lists(st.integers() | st.text("abc'x", max_size=5) | st.none(), min_size=1, max_size=9))
            return {"enum": values}, draw(st.sampled_from(values))
        case "any":
            return {}, draw(VALUES)
        case "anyOf":
            one, other = draw(schemas(depth - 1)), draw(schemas(depth - 1))
            return {"anyOf": [one[0], other[0]]}, draw(st.sampled_from([one[1], other[1]]))
        case "array":
            schema, value = draw(schemas(depth - 1))
            count, fewer, more = draw(st.integers(0, 70)), draw(st.integers(0, 70)), draw(st.integers(0, 70))
            return (
                {"type": "array", "items": schema, "minItems": max(0, count - fewer), "maxItems": count + more},
                [value] * count,
            )
        case _:
            # Names are written as they are, not as escapes.
            names = draw(st.lists(st.text('ab "\\', max_size=4), unique=True, max_size=5))
            parts = {name: draw(schemas(depth - 1)) for name in names}
            kept = [name for name in names if draw(st.booleans())]
            required = [name for name in kept if draw(st.booleans())]
            return (
                {"type": "object", "properties": {name: part[0] for name, part in parts.items()}, "required": required},
                {name: parts[name][1] for name in kept},
            )


@settings(max_examples=60, deadline=None)
@given(schemas(), st.booleans())
def test_a_value_that_obeys_a_schema_is_accepted(made: tuple[Any, Any], escaped: bool) -> None:
    schema, value = made
    jsonschema.validate(value, schema)
    text = json.dumps(value, ensure_ascii=escaped)
    if "\x7f" in text:
        return  # DEL is always written as an escape
    walk = walk_of(schema)
    assert accepts(walk, text)
    if len(text) < 200:
        assert accepts(walk, json.dumps(value, ensure_ascii=escaped, indent=2))


@settings(max_examples=60, deadline=None)
@given(schemas(), st.integers(0, 1 << 32))
def test_what_a_grammar_makes_obeys_its_schema(made: tuple[Any, Any], seed: int) -> None:
    text = any_answer(walk_of(made[0]), random.Random(seed))
    if text is not None:
        jsonschema.validate(json.loads(text), made[0])


DEFS = {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}}  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/node", "$defs": DEFS},
         ['{"v": 1, "next": {"v": 2, "next": null}}'], ['{"v": 1}', "{}"]),
        ({"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/a"}],
          "$defs": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/$defs/a"}}}, ["1", "2"], ["3"]),
        ({"allOf": [{"$ref": "#/$defs/a"}, {"required": ["x"]}],
          "$defs": {"a": {"properties": {"x": {"type": "null"}}}}},
         ['{"x": null}'], ["{}", '{"x": 1}']),
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1", "true"]),
        ({"const": {"a": [1, "é\n"]}}, ['{"a": [1, "é\\n"]}'], ['{"a": [1]}']),
        ({"enum": ["a", "ab", "abc", "b", 1, None]}, ['"a"', '"ab"', '"abc"', "1", "null"], ['"abcd"', '""', "2"]),
        ({"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
         ['{"ab": 1, "a": "x", "abc": "y", "b": "z"}', '{"": "x"}', "{}"],
         ['{"ab": "x"}', '{"a": 1}', '{"\\u0061b": "x"}']),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, ['{"a": null}', "{}"],
         ['{"b": null}', '{"a": null,}']),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}, ['{"b": 1}', '{"a": 1, "b": 2}'],
         ['{"a": 1}', "{}", '{"b": 1, "a": 2}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "minItems": 1},
         ['["a"]', '["a", null]', '["a", null, 5]'], ["[]", "[null]"]),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": False}, ["[]", '["a"]'], ['["a", 1]']),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "string", "format": "date-time"}, ['"2024-02-28T23:59:59Z"', '"2024-12-01T00:00:00.5+02:00"'],
         ['"2024-13-01T00:00:00Z"', '"2024-02-28"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
        ({"type": "string", "format": "unheard-of"}, ['"x"'], ["1"]),
        ({"type": "string", "pattern": "^[A-Z]{2}\\d+(-x|y)?$"}, ['"AB1"', '"AB12-x"'], ['"A1"', '"AB1z"']),
        ({"type": "string", "pattern": "^a|b$"}, ['"abc"', '"xb"'], ['"xa"', '"bx"']),
        ({"type": "string", "pattern": '^["\\\\]+$'}, ['"\\"\\\\"'], ['"a"', '"""']),
        ({"type": "string", "pattern": "^[^a-y]\\s\\.$"}, ['"z\\t."', '"\\" ."'], ['"a ."']),
        ({"type": "string", "minLength": 5000, "maxLength": 5001}, ['"' + "x" * 5000 + '"', '"' + "x" * 5001 + '"'],
         ['"' + "x" * 4999 + '"', '"' + "x" * 5002 + '"']),
        ({"type": "string", "maxLength": 2**31 - 1}, ['"x"'], ["x"]),
        ({"type": "string", "minLength": 1, "maxLength": 1}, ['"\\ud83d\\ude00"', '"\U0001f600"', '"\\u00e9"'],
         ['"\\ud83d"', '"ab"', '""']),
        ({"type": "integer", "exclusiveMinimum": -3, "maximum": 12},
         ["-2", "0", "12"], ["-3", "13", "-0", "01", "1.0"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.5", "1", "1.0"], ["0", "0.0", "1.1", "-0.5"]),
        ({"type": "number", "minimum": -1, "exclusiveMaximum": 0}, ["-1", "-0.5"], ["0", "-1.5", "-0.0"]),
        ({"type": "number", "minimum": -2, "maximum": -1}, ["-2", "-1", "-1.5"], ["-0.5", "-2.5", "1"]),
        (True, ["1", "[]", '{"a": [{}]}'], ["", "{"]),
    ],
)  # fmt: skip
def test_keywords(schema: Any, good: list[str], bad: list[str]) -> None:
    walk = walk_of(schema)
    assert [text for text in good if not accepts(walk, text)] == []
    assert [text for text in bad if accepts(walk, text)] == []


@given(st.integers(-(10**7), 10**7), st.integers(0, 10**5), st.data())
@settings(deadline=None)
def test_a_range_has_its_integers_and_no_others(low: int, span: int, data: st.DataObject) -> None:
    walk = walk_of({"type": "integer", "minimum": low, "maximum": low + span})
    for value in (low, low + span, data.draw(st.integers(low, low + span))):
        assert accepts(walk, str(value))
    for value in (low - 1, low + span + 1, data.draw(st.integers(max_value=low - 1))):
        assert not accepts(walk, str(value))


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "enum",
     "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "minLength", "maxLength", "pattern", "format", "minimum",
     "maximum", "exclusiveMinimum", "exclusiveMaximum", "not", "multipleOf", "additionalItems", "title"]
)  # fmt: skip
WORDS = st.sampled_from(["string", "object", "array", "integer", "#", "#/$defs/a", "#/items", "date", "^a+$", "a"])
HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=14,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYWORDS, HOSTILE, max_size=5))
def test_any_json_is_a_grammar_or_a_clear_refusal(schema: dict[str, Any]) -> None:
    try:
        text = grammar_of(schema)
    except SchemaError:
        return
    try:
        Walk(Automaton(text, limit=MAX_PRODUCED))
    except TooAmbiguousError:
        return
    except GrammarError as error:
        if "written out" not in error.message:
            raise


def test_choices_in_each_other_are_refused_before_they_grow() -> None:
    schema: Any = {"type": "string", "pattern": "ab"}
    for _ in range(30):
        schema = {"anyOf": [schema, schema]}
    with pytest.raises(SchemaError, match="too large"):
        grammar_of(schema)
