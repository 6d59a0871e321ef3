"""The grammar that an answer has to obey, from what its request asks for."""

from __future__ import annotations

from typing import Final, Protocol

from agent.engine.structure.automaton import Automaton, TooAmbiguousError, Walk
from agent.engine.structure.gbnf import MAX_GRAMMAR, MAX_PRODUCED
from agent.engine.structure.json_schema import read_schema, rule_of
from agent.engine.structure.notation import Grammar, TooLargeError
from agent.engine.structure.problem import GrammarError, SchemaError
from agent.engine.structure.tools import CallForm, Function, call_rule, read_tools
from agent.errors import BadRequestError

#: Values of `tool_choice` that are no function's name.
CHOICES: Final = ("none", "auto", "required")


class Wishes(Protocol):
    """What a request says about the form of its answer; see `agent.engine.protocol.Submit`."""

    @property
    def output(self) -> str: ...  # noqa: D102
    @property
    def output_text(self) -> str: ...  # noqa: D102
    @property
    def tools(self) -> str: ...  # noqa: D102
    @property
    def tool_choice(self) -> str: ...  # noqa: D102


def grammar_for(wishes: Wishes, form: CallForm = "generic") -> str:
    """GBNF for `Enforcer`; empty where the answer may be anything.

    `form` is how the model writes calls (`ChatTemplate.call_form`). Raises BadRequestError (SchemaError with the JSON
    Pointer, GrammarError with line and column) for what cannot be kept to. Pure; bounded, some milliseconds.
    """
    functions, choice = read_tools(wishes.tools), wishes.tool_choice or "auto"
    if choice == "none" or not functions:
        return _output(wishes)
    if choice == "auto" and not wishes.output:
        return ""
    if wishes.output == "grammar":
        raise BadRequestError(
            "grammar: cannot be combined with tools unless tool_choice is none", details={"param": "grammar"}
        )
    grammar = Grammar()
    try:
        root = call_rule(chosen(functions, choice), form, grammar)
        if choice == "auto":
            root = f"{root} | {_json(wishes, grammar)}"
        return grammar.text(root)
    except TooLargeError:
        raise SchemaError("the functions are too large once they are written out as a grammar", "", "tools") from None


def check(wishes: Wishes) -> None:
    """Refuse early what `grammar_for` or `Enforcer` would refuse; raises BadRequestError as they do."""
    text = grammar_for(wishes)
    if not text:
        return
    own = wishes.output == "grammar"
    param = "response_format" if wishes.output else "tools"
    try:
        automaton = Automaton(text, limit=MAX_PRODUCED)
    except GrammarError as error:
        # The lines of a grammar that was made of a schema or functions say nothing to who sent those.
        raise error if own else SchemaError("too large once it is written out as a grammar", "", param) from None
    try:
        Walk(automaton)
    except TooAmbiguousError:
        message = "too many ways are open at the beginning; give the alternatives different beginnings"
        raise automaton.problem(message) if own else SchemaError(message, "", param) from None
    except GrammarError as error:
        raise error if own else SchemaError("nested too deeply before it begins", "", param) from None


def chosen(functions: tuple[Function, ...], choice: str) -> tuple[Function, ...]:
    """The functions that may be called. Raises BadRequestError where the choice names none of them."""
    if choice in CHOICES:
        return () if choice == "none" else functions
    named = tuple(one for one in functions if one.name == choice)
    if not named:
        raise BadRequestError(
            f"tool_choice: there is no function {choice[:64]!r} in tools", details={"param": "tool_choice"}
        )
    return named


def _output(wishes: Wishes) -> str:
    if not wishes.output:
        return ""
    if wishes.output == "grammar":
        if len(wishes.output_text) > MAX_GRAMMAR or len(wishes.output_text.encode("utf-8", "replace")) > MAX_GRAMMAR:
            raise GrammarError(f"the grammar is larger than {MAX_GRAMMAR} bytes", 1, 1)
        return wishes.output_text
    grammar = Grammar()
    try:
        return grammar.text(_json(wishes, grammar))
    except TooLargeError:
        raise SchemaError("the schema is too large once it is written out as a grammar", "") from None


def _json(wishes: Wishes, grammar: Grammar) -> str:
    if wishes.output == "json":
        return grammar.any_object
    return rule_of(read_schema(wishes.output_text), grammar, "response_format")
