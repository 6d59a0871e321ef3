"""Grammars and schemas that cannot be used: each is refused where it is wrong, and none keeps anybody busy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.engine.structure.automaton import MAX_STATES, Automaton, TooAmbiguousError, Walk
from agent.engine.structure.gbnf import MAX_PRODUCED
from agent.engine.structure.json_schema import grammar_of
from agent.engine.structure.problem import GrammarError, SchemaError

FOLDER = Path(__file__).parents[1] / "corpus" / "grammars"


def corpus(name: str) -> list[Any]:
    return [pytest.param(one, id=one["name"]) for one in json.loads((FOLDER / name).read_text())]


def written_out(text: str | list[Any]) -> str:
    if isinstance(text, str):
        return text
    return "".join(piece if isinstance(piece, str) else piece["repeat"][0] * piece["repeat"][1] for piece in text)


@pytest.mark.parametrize("case", corpus("bad_gbnf.json"))
def test_a_bad_grammar_is_refused_at_its_place(case: dict[str, Any]) -> None:
    with pytest.raises(GrammarError) as caught:
        Automaton(written_out(case["grammar"]))
    assert (caught.value.details["line"], caught.value.details["column"]) == (case["line"], case["column"])
    assert case["says"] in caught.value.message
    assert caught.value.details["param"] == "grammar"


@pytest.mark.parametrize("case", corpus("bad_schemas.json"))
def test_a_bad_schema_is_refused_at_its_place(case: dict[str, Any]) -> None:
    with pytest.raises(SchemaError) as caught:
        grammar_of(case["schema"])
    assert caught.value.pointer == case["pointer"]
    assert case["says"] in caught.value.reason
    assert caught.value.details["param"] == "response_format"


@pytest.mark.parametrize("case", corpus("hostile.json"))
def test_a_grammar_made_to_keep_a_matcher_busy_does_not(case: dict[str, Any]) -> None:
    try:
        walk = Walk(Automaton(case["grammar"], limit=MAX_PRODUCED))
        walk.text(walk.begin, case["text"])
    except TooAmbiguousError:
        return
    assert walk.kept < 2 * MAX_STATES


def test_the_corpus_has_a_hundred_of_each_kind_together() -> None:
    assert len(corpus("bad_gbnf.json")) + len(corpus("bad_schemas.json")) >= 150
