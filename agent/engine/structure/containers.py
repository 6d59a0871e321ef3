"""Grammars for arrays and objects, out of the rules of their parts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from agent.engine.structure.notation import Grammar, json_text, literal
from agent.engine.structure.scalars import Problem, count_of

#: The name of the rule for a part: a schema, and its place.
Rule = Callable[[object, str], str]

#: Properties in a row that may be left out: each is a way that is open at the same time (`automaton.MAX_STACKS`).
MAX_OPTIONAL: Final = 1000


def array_rule(schema: Mapping[str, Any], where: str, rule: Rule, grammar: Grammar, problem: Problem) -> str:
    """The rule for an array of these items."""
    least, most = count_of(schema, "minItems", where, problem) or 0, count_of(schema, "maxItems", where, problem)
    items, prefix, key = schema.get("items", True), schema.get("prefixItems", []), "prefixItems"
    if isinstance(items, list):  # as it was before 2020
        items, prefix, key = schema.get("additionalItems", True), items, "items"
    if not isinstance(prefix, list):
        raise problem("prefixItems is a list of schemas", f"{where}/prefixItems")
    if items is False:
        most = len(prefix) if most is None else min(most, len(prefix))
    if most is not None and most < least:
        raise problem("fewer items are allowed than are needed", where)
    fixed = [
        rule(part, f"{where}/{key}/{index}")
        for index, part in enumerate(prefix[: len(prefix) if most is None else most])
    ]
    tail = ""
    if most is None or most > len(fixed):
        item = rule(items, f"{where}/items")
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


def object_rule(schema: Mapping[str, Any], where: str, rule: Rule, grammar: Grammar, problem: Problem) -> str:
    """The rule for an object of these properties."""
    named, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(named, dict):
        raise problem("properties is an object of schemas", f"{where}/properties")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise problem("required is a list of names", f"{where}/required")
    # Many schemas say nothing of other properties and mean none.
    others = schema.get("additionalProperties", not named and "properties" not in schema)
    extra = [name for name in required if name not in named]
    if extra and others is False and "additionalProperties" in schema:
        raise problem(f"{extra[0][:64]!r} is required and not allowed", f"{where}/required")
    named = {**named, **dict.fromkeys(extra, others if others is not False else True)}
    needed = frozenset(required)
    if not named and others is True:
        return grammar.any_object
    if _longest_run(named, needed) > MAX_OPTIONAL:
        message = f"more than {MAX_OPTIONAL} properties in a row that may be left out leave too many ways open"
        raise problem(message, f"{where}/properties")
    pairs = []
    for name, part in named.items():
        at = f"{where}/properties/{name.replace('~', '~0').replace('/', '~1')}"
        if any(0xD800 <= ord(char) < 0xE000 for char in name):
            raise problem("a name has half of a character", at)
        if part is False and name not in needed:
            continue
        value = rule(part, at)
        pairs.append((grammar.rule(f'{literal(json_text(name) + ":")} " "? {value}'), name in needed))
    more = ""
    if others is not False:
        value = rule(others, f"{where}/additionalProperties")
        more = grammar.rule(f'{grammar.string_but(named)} ":" " "? {value}')
    members = _members(pairs, more, grammar)
    if members is None:
        return grammar.rule(f'"{{" {grammar.ws} "}}"')
    filled = f'"{{" {grammar.ws} {members} {grammar.ws} "}}"'
    if needed:
        return grammar.rule(filled)
    return grammar.rule(f'"{{" {grammar.ws} ( {members} {grammar.ws} )? "}}"')


def _longest_run(named: Mapping[str, object], needed: Collection[str]) -> int:
    """How many properties there may be in a row that need not be there."""
    longest = run = 0
    for name, part in named.items():
        run = 0 if name in needed else run + (part is not False)
        longest = max(longest, run)
    return longest


def _members(pairs: list[tuple[str, bool]], more: str, grammar: Grammar) -> str | None:
    """At least one of these, in this order and with commas between; None where there is nothing."""
    # One comma for all that may come next: the ways that are open stay as many as there are names.
    needs = False
    first = grammar.rule(f'{more} ( "," {grammar.ws} {more} )*') if more else None
    for pair, needed in reversed(pairs):
        begin = pair
        if first is not None:
            follow = f'"," {grammar.ws} {first}'
            begin = f"{pair} {grammar.rule(follow if needs else f'( {follow} )?')}"
        first = grammar.rule(begin if needed or first is None else f"{begin} | {first}")
        needs = needs or needed
    return first
