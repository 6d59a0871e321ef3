"""Functions and calls: how they are read, told to a model, kept to by a grammar, and found in what it writes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.structure.automaton import Automaton, Walk
from agent.engine.structure.calls import CallArguments, CallBegin, CallParser, Text
from agent.engine.structure.gbnf import MAX_PRODUCED
from agent.engine.structure.grammar import check, grammar_for
from agent.engine.structure.tools import CallForm, call_text, instructions, read_tools, tools_text
from agent.errors import BadRequestError

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {"type": "function", "function": {"name": "add"}}
TOOLS = json.dumps([WEATHER, ADD])
NAMES = ("get_weather", "add")
FORMS: tuple[CallForm, ...] = ("hermes", "llama", "generic")


def wishes(choice: str = "", *, output: str = "", text: str = "", tools: str = TOOLS) -> Any:
    return SimpleNamespace(output=output, output_text=text, tools=tools, tool_choice=choice)


def accepts(grammar: str, text: str) -> bool:
    walk = Walk(Automaton(grammar, limit=MAX_PRODUCED))
    state = walk.text(walk.begin, text)
    return state is not None and state.complete


def parsed(text: str, size: int = 1, names: tuple[str, ...] = NAMES) -> tuple[str, str | None, str]:
    """Text, name and arguments found when the text comes in pieces of a size."""
    parser = CallParser(names)
    pieces = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
    pieces += parser.finish()
    found = [piece.name for piece in pieces if isinstance(piece, CallBegin)]
    assert len(found) <= 1
    assert parser.called == bool(found)
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, Text)),
        found[0] if found else None,
        "".join(piece.text for piece in pieces if isinstance(piece, CallArguments)),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_forced_call_is_of_a_function_that_was_offered_with_arguments_that_obey_its_schema(form: CallForm) -> None:
    any_of_them = grammar_for(wishes("required"), form)
    assert accepts(any_of_them, call_text("get_weather", '{"city": "Oslo"}', form))
    assert accepts(any_of_them, call_text("add", '{"x": [1]}', form))
    for name, arguments in (("get_weather", "{}"), ("get_weather", '{"city": 5}'), ("sub", "{}"), ("add", "[]")):
        assert not accepts(any_of_them, call_text(name, arguments, form))
    one = grammar_for(wishes("add"), form)
    assert accepts(one, call_text("add", "{}", form))
    assert not accepts(one, call_text("get_weather", '{"city": "Oslo"}', form))
    for other in FORMS:
        assert accepts(one, call_text("add", "{}", other)) == (other == form)


def test_what_is_not_forced_has_no_grammar_but_that_of_its_output() -> None:
    assert grammar_for(wishes()) == grammar_for(wishes("auto")) == grammar_for(wishes("none")) == ""
    either = grammar_for(wishes("auto", output="schema", text='{"type": "integer"}'))
    assert accepts(either, "5")
    assert accepts(either, call_text("add", "{}"))
    assert not accepts(either, "five")
    assert not accepts(grammar_for(wishes("none", output="json")), call_text("add", "{}") + "x")
    assert accepts(grammar_for(wishes(tools="", output="json")), '{"a": 1}')
    assert grammar_for(wishes(tools="", output="grammar", text='root ::= "a"')) == 'root ::= "a"'


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (wishes("sub"), "tool_choice"),
        (wishes(output="grammar", text='root ::= "a"'), "grammar"),
        (wishes(tools="", output="grammar", text="root ::= a"), "grammar"),
        (wishes(tools="", output="schema", text="{"), "response_format"),
        (wishes(tools="", output="schema", text='{"not": {}}'), "response_format"),
        (wishes(tools="", output="schema", text=json.dumps({"prefixItems": [{"minimum": n} for n in range(1500)]})),
         "response_format"),
        (wishes(tools="{}"), "tools"),
        (wishes(tools="["), "tools"),
        (wishes(tools="[" * 5000), "tools"),
        (wishes(tools=json.dumps([WEATHER] * 2)), "tools.1.function.name"),
        (wishes(tools="x" * 140_000), "tools"),
        (wishes(tools='[{"type": "function", "function": {"name": "a", "parameters": ' + '{"a":' * 80 + "1" + "}" * 83),
         "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_name(asked: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check(asked)
    assert caught.value.details["param"] == param


def test_the_parameters_of_a_function_are_refused_only_where_they_are_to_be_kept_to() -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"n": {"multipleOf": 2}}}}}
    assert grammar_for(wishes("auto", tools=json.dumps([odd]))) == ""
    with pytest.raises(BadRequestError, match=r"parameters of odd: at /properties/n/multipleOf"):
        grammar_for(wishes("required", tools=json.dumps([odd])))


def test_functions_are_read_as_they_are_written() -> None:
    functions = read_tools(TOOLS)
    assert read_tools(tools_text(functions))[0] == functions[0]
    assert '"city"' in instructions(functions, "auto")
    assert "otherwise answer in plain words" in instructions(functions, "auto")
    assert "Answer with a call of add, which" in instructions(functions, "add")


CALLS = [
    '<tool_call>\n{"name": "add", "arguments": {"x": "}{\\"", "y": [1]}}\n</tool_call>',
    '{"name": "add", "parameters": {"x": "}{\\"", "y": [1]}}',
    ' \n{"name":"add","arguments":{"x": "}{\\"", "y": [1]}}',
    '{"arguments": {"x": "}{\\"", "y": [1]}, "name": "add"}',
    '{"type": "function", "function": {"name": "add", "arguments": {"x": "}{\\"", "y": [1]}}}',
    '{"name": "add", "id": 7, "arguments": {"x": "}{\\"", "y": [1]}}',
    '{"name": "add", "arguments": ' + json.dumps('{"x": "}{\\"", "y": [1]}') + "}",
    '[TOOL_CALLS][{"name": "add", "arguments": {"x": "}{\\"", "y": [1]}}]',
    '[{"name": "add", "arguments": {"x": "}{\\"", "y": [1]}}]',
    '<|python_tag|>{"name": "add", "parameters": {"x": "}{\\"", "y": [1]}}',
    '```json\n{"name": "add", "arguments": {"x": "}{\\"", "y": [1]}}\n```',
]


@pytest.mark.parametrize("text", CALLS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_call_is_found_in_every_form(text: str, size: int) -> None:
    assert parsed(text, size) == ("", "add", '{"x": "}{\\"", "y": [1]}')


def test_text_before_a_call_is_text_and_what_follows_is_dropped() -> None:
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert parsed(f"Let me see. {call} And {call}") == ("Let me see. ", "add", "{}")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "Hello <b>there</b>, 1 < 2", "<tool", "<tool_call> add", '{"city": 3}', '{"name": "sub", "arguments": {}}',
        '{"name": "addx", "arguments": {}}', '{"name": "add"}', '{"name": "add", "colour": 1}', "```python\nadd()\n```",
        "[1, 2]", "", "  ", '{"arguments": {"a": 1}}', '{"arguments": 5, "name": "sub"}', '{"type": "function"',
        'I would say {"name": "add", "arguments": {}}', "<tool_call><tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_is_text_to_the_letter(text: str, size: int) -> None:
    assert parsed(text, size) == (text, None, "")


def test_text_is_held_back_only_as_long_as_it_may_be_a_call() -> None:
    parser = CallParser(NAMES)
    assert parser.push("Hi") == [Text("Hi")]
    assert parser.push(" <") == [Text(" ")]
    assert parser.push("to") == []
    assert parser.push("p>") == [Text("<top>")]
    parser = CallParser(NAMES)
    assert parser.push('{"na') == []
    assert parser.push('me": "gex') == [Text('{"name": "gex')]
    parser = CallParser(NAMES)
    assert parser.push('{"name": "add", "arguments": {"a"') == [CallBegin("add"), CallArguments('{"a"')]
    assert parser.push(": 1") == [CallArguments(": 1")]
    assert parser.push("}} and more") == [CallArguments("}")]
    parser = CallParser(NAMES)
    assert parser.push('{"type": "' + "x" * 70_000) != []


WORDS = ["<tool_call>", "</tool_call>", "name", '"name"', '"add"', '"arguments"', '"type"', "```", *'{}":, \\[]x1\n']


@given(st.lists(st.sampled_from(WORDS), max_size=25), st.integers(1, 9))
def test_the_same_is_found_however_the_text_is_cut(words: list[str], size: int) -> None:
    text = "".join(words)
    assert parsed(text, size) == parsed(text, 1000)
    before, name, _ = parsed(text)
    assert name is not None or before == text


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3), st.sampled_from(FORMS))
def test_what_was_called_is_what_was_written(arguments: dict[str, Any], form: CallForm) -> None:
    text, name, found = parsed(call_text("get_weather", json.dumps(arguments), form), 3)
    assert (text, name, json.loads(found)) == ("", "get_weather", arguments)
