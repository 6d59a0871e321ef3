"""The grammar that an answer has to obey, from what its request asks for."""

from __future__ import annotations

from typing import Final, Protocol

from agent.engine.structure.automaton import Automaton, TooAmbiguousError, Walk
from agent.engine.structure.gbnf import MAX_GRAMMAR, MAX_PRODUCED
from agent.engine.structure.json_schema import read_schema, rule_of
from agent.engine.structure.notation import Grammar, TooLargeError
from agent.engine.structure.problem import GrammarError
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
    if choice == "auto" and wishes.output == "grammar":
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
        raise BadRequestError(
            "tools: the functions are too large once they are written out as a grammar", details={"param": "tools"}
        ) from None


def check(wishes: Wishes) -> None:
    """Refuse early what `grammar_for` or `Enforcer` would refuse; raises BadRequestError as they do."""
    text = grammar_for(wishes)
    if text:
        try:
            Walk(Automaton(text, limit=MAX_PRODUCED))
        except GrammarError:
            # `grammar_for` has looked at a grammar of the client's own: this one was made of a schema or functions.
            param = "response_format" if wishes.output else "tools"
            raise BadRequestError(
                f"{param}: too large once it is written out as a grammar", details={"param": param}
            ) from None
        except TooAmbiguousError:
            param = "grammar" if wishes.output == "grammar" else "response_format" if wishes.output else "tools"
            raise BadRequestError(
                f"{param}: leaves too many ways open at its beginning", details={"param": param}
            ) from None


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
        Automaton(wishes.output_text, limit=MAX_GRAMMAR)
        return wishes.output_text
    grammar = Grammar()
    try:
        return grammar.text(_json(wishes, grammar))
    except TooLargeError:
        raise BadRequestError(
            "response_format: the schema is too large once it is written out as a grammar",
            details={"param": "response_format"},
        ) from None


def _json(wishes: Wishes, grammar: Grammar) -> str:
    if wishes.output == "json":
        return grammar.any_object
    return rule_of(read_schema(wishes.output_text), grammar, "response_format")
