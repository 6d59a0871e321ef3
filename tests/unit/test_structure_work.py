"""Grammars and schemas made to keep whoever matches or converts them busy. What is counted is lines run, not time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.structure import enforce
from agent.engine.structure.automaton import MAX_STACKS, MAX_STEPS, Automaton, TooAmbiguousError, Walk
from agent.engine.structure.enforce import Enforcer, Vocabulary
from agent.engine.structure.gbnf import CharClass, class_of
from agent.engine.structure.grammar import check
from agent.engine.structure.problem import GrammarError, SchemaError
from agent.errors import BadRequestError
from agent.http.openai_structure import Form

PIECES = [b"</s>", *(bytes([byte]) for byte in range(256)), b"aa", b"a" * 16, b"zz", b"z1", "é".encode(), b"\xf0\x9f"]
VOCABULARY = Vocabulary(len(PIECES), lambda token: PIECES[token] if token else b"", lambda token: not token)

#: Work that one token may cost: a look at what was chosen, the three stages of a search, and the step that is taken;
#: each ends with a step that was begun within the limit.
TOKEN = 3 * enforce._SEARCH_WORK + 2 * enforce._TOKEN_WORK + 5 * (MAX_STEPS + MAX_STACKS)
#: Lines of Python for a unit of work, at most, and beside it: sorting tokens, looking each one up.
LINES, BESIDE = 12, 50_000
#: Lines for understanding 64 KiB of grammar or schema, which is done once.
ONCE = 3_000_000


class TooMuchError(Exception):
    """More lines were run than are allowed."""


def lines_of(run: Callable[[], object], most: int) -> int:
    """Lines, and turns of loops, that are run. Raises TooMuchError past `most`."""
    count = 0

    def each(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count > most:
                raise TooMuchError(f"{count} lines")
        return each

    before = sys.gettrace()
    sys.settrace(each)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


ways = " | ".join
GRAMMARS = {
    "a huge class in many places": f"x ::= [{'z' * 50_000}]\nroot ::= " + ways(f'x "{i}"' for i in range(700)),
    "a huge class of ranges": f"x ::= [{''.join(chr(0x800 + 2 * i) for i in range(9000))}]+\nroot ::= "
    + ways(f'x "{i}"' for i in range(700)),
    "many classes that are all but one": "root ::= " + ways(f'[^{chr(0x4E00 + i)}] "{i}"' for i in range(1000)),
    "alternatives with a common beginning": "root ::= " + ways(f'"aaaaaaaa{i}"' for i in range(1020)),
    "thousands of alternatives": "root ::= " + ways(f'"a{i}"' for i in range(5000)),
    "alternatives that may be left out, in a row": f"e ::= {ways(['[a]', '[b]'] * 1000)} | {chr(34) * 2}\nroot ::= "
    + "e " * 2000,
    "deep nesting": "root ::= " + "(" * 64 + '"a"' + ")*" * 64,
    "repetitions of repetitions": "root ::= " + '"a"' + "*" * 5000,
    "repetitions that are counted twice": 'root ::= ("a"{0,1000}){0,1000}',
    "repetitions that just fit": 'root ::= ("a"{0,60}){0,60}',
    "nothing many times": f"root ::= ({'|' * 10_000}){{1000}}",
    "a bound without an end": 'root ::= "a"{1' + " " * 60_000,
    "a long literal": f'root ::= "{"a" * 30_000}"',
    "all beginnings of a literal": "root ::= " + ways(f'"{"a" * i}"' for i in range(1, 240)),
    "calls that double": "".join(f'a{i} ::= a{i + 1} "x" | a{i + 1} "y"\n' for i in range(24))
    + f'a24 ::= "a"\nroot ::= a0 | {ways(["a0 [z]"] * 400)}',
    "a stack that grows in many ways": 'root ::= "a" root "b" | "a" root "c" | "a"',
    "deep stacks": 'root ::= "a" root "b" | "a"',
    "a chain of rules": "".join(f'a{i}::=a{i + 1} "x"\n' for i in range(2000)) + 'a2000 ::= "a"\nroot ::= a0',
    "half a character, and many ways on": "root ::= "
    + ways(f'[\\U0001F{i % 4096:03X}-\\U0001FFFF] "{i}"' for i in range(700)),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_no_grammar_costs_a_token_more_than_is_promised(name: str) -> None:
    made: list[Enforcer] = []
    try:
        lines_of(lambda: made.append(Enforcer(GRAMMARS[name], VOCABULARY)), ONCE)
    except BadRequestError:
        return
    (enforcer,) = made
    logits = np.zeros(len(PIECES), dtype=np.float32)
    logits[-6:] = 1  # those of more than one byte come first
    for _ in range(4):
        before = enforcer._walk.work
        tokens: list[int] = []

        def one_token(enforcer: Enforcer = enforcer, tokens: list[int] = tokens) -> None:
            try:
                enforcer.takes(len(PIECES) - 1)
                tokens += enforcer.allowed(logits)
                enforcer.accept(tokens[0])
            except BadRequestError:
                tokens.clear()

        lines = lines_of(one_token, LINES * TOKEN)
        worked = enforcer._walk.work - before
        assert worked <= TOKEN
        assert lines <= LINES * worked + BESIDE
        if not tokens or not tokens[0]:
            return


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.sampled_from(['"a"', '""', "[a-z]", "[^a]", ".", '"aaaa"', "x", "y"]),
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=4).map(" ".join),
            st.lists(inner, min_size=2, max_size=4).map(lambda ones: f"( {ways(ones)} )"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,40}", "{30}", "{0,1000}"])).map(
                lambda two: f"( {two[0]} ){two[1]}"
            ),
        ),
        max_leaves=12,
    ),
    st.integers(1, 300),
)
def test_no_step_of_any_grammar_costs_more_than_its_limit(body: str, times: int) -> None:
    text = f'root ::= {body}\nx ::= {ways(f"[a-z] {chr(34)}{i}{chr(34)}" for i in range(times))} | y\ny ::= "a" y | "a"'
    try:
        walk = Walk(Automaton(text))
        assert walk.work <= MAX_STEPS
        state = walk.begin
        for char in "aaaa0a1a":
            before = walk.work
            after = walk.step(state, ord(char))
            assert walk.work - before <= MAX_STACKS + MAX_STEPS
            if after is None:
                return
            assert len(after.stacks) <= MAX_STACKS
            state = after
    except (GrammarError, TooAmbiguousError):
        return


def _deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


SCHEMAS = {
    "properties that may be left out": {"properties": {f"p{i}": {"const": 1} for i in range(2500)}},
    "properties that must be there": {"required": [f"{i}" for i in range(9000)]},
    "names that may not be": {"properties": {f"{i}": False for i in range(3000)}, "anyOf": [{}] * 4000},
    "values against values": {"enum": list(range(5000)), "anyOf": [{"enum": [1]}] * 2000},
    "a long value, many times": {"enum": ["x" * 40_000, "y"], "anyOf": [{"enum": ["y"]}] * 1000},
    "a pattern, many times": {"pattern": "a{0,4095}" * 100, "type": "string", "anyOf": [{}] * 4000},
    "a number with digits, many times": {"minimum": -3 * 10**28, "maximum": 10**29, "anyOf": [{}] * 4000},
    "properties part by part": {"allOf": [{"properties": {f"a{i}": {}}} for i in range(2200)]},
    "names that must not be, many times": {
        "properties": {f"{i}" * 5: False for i in range(2000)}, "additionalProperties": {"type": "integer"},
        "anyOf": [{}] * 2000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_schema_costs_more_than_is_promised(name: str) -> None:
    text = json.dumps(SCHEMAS[name], separators=(",", ":"))
    assert len(text) <= 65_536

    def run() -> None:
        with pytest.raises(SchemaError) as caught:
            check(Form("schema", text))
        assert isinstance(caught.value.details["pointer"], str)

    lines_of(run, ONCE)


def test_deep_values_that_are_compared_are_refused() -> None:
    text = json.dumps({"const": _deep(1, 400), "allOf": [{"const": _deep(1, 400)}, {"const": _deep(2, 400)}]})
    with pytest.raises(SchemaError):
        check(Form("schema", text))


@given(
    st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 40)), max_size=8),
    st.booleans(),
    st.integers(0, 0x10FFFF),
    st.integers(0, 60),
)
def test_a_class_has_what_its_ranges_say(starts: list[tuple[int, int]], negated: bool, code: int, more: int) -> None:
    ranges = [(low, min(low + size, 0x10FFFF)) for low, size in starts]
    near = [max(0, low - 1) for low, _ in ranges] + [high for _, high in ranges] + [code]
    one = class_of(ranges, negated=negated)

    def expected(code: int) -> bool:
        return any(low <= code <= high for low, high in ranges) is not negated and not 0xD800 <= code < 0xE000

    for code in near:
        assert one.has(code) is expected(code)
        high = min(code + more, 0x10FFFF)
        assert one.meets(code, high) is any(expected(each) for each in range(code, high + 1))
        if expected(code):
            assert one.leads >> chr(code).encode()[0] & 1


def test_ranges_of_a_class_are_kept_once_and_in_order() -> None:
    assert class_of([(0x62, 0x62), (0x61, 0x61), (0x61, 0x61), (0x64, 0x66)]) == CharClass(((0x61, 0x62), (0x64, 0x66)))
    assert class_of([(0, 0x10FFFF)]) == class_of([], negated=True) == CharClass(((0, 0xD7FF), (0xE000, 0x10FFFF)))
