"""Tokens under a grammar, over a vocabulary that a test makes up: whole words, single bytes, halves of characters."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.structure.enforce import Enforcer, Vocabulary
from agent.engine.structure.json_schema import grammar_of
from agent.errors import BadRequestError

WORDS = [
    b"",
    b"</s>",
    *(bytes([byte]) for byte in range(256)),
    b'{"',
    b'": ',
    b"true",
    b"fal",
    b"se",
    b'"}',
    b"ab",
    b"a" * 40,
]
END = 1
VOCABULARY = Vocabulary(len(WORDS), lambda token: b"" if token == END else WORDS[token], lambda token: token == END)


def token_of(piece: bytes) -> int:
    return WORDS.index(piece)


def take(enforcer: Enforcer, *pieces: bytes) -> list[bool]:
    """Which of these are taken, one after another; those that are not are passed by."""
    taken = []
    for piece in pieces:
        taken.append(enforcer.takes(token_of(piece)))
        if taken[-1]:
            enforcer.accept(token_of(piece))
    return taken


def test_tokens_are_taken_as_far_as_the_grammar_goes() -> None:
    enforcer = Enforcer('root ::= "true" | "false"', VOCABULARY)
    assert not enforcer.takes(0)
    assert not enforcer.takes(END)
    assert take(enforcer, b"x", b"fal", b"true", b"se") == [False, True, False, True]
    assert enforcer.finished
    assert enforcer.takes(END)
    assert not enforcer.takes(token_of(b"a"))


def test_a_character_may_come_in_halves() -> None:
    for text, good in (("é", True), ("ê", False), ("\U0001f600", False), ("a", False)):
        enforcer = Enforcer('root ::= "é" "x"', VOCABULARY)
        assert all(take(enforcer, *(bytes([byte]) for byte in text.encode()))) is good
        if good:
            assert not enforcer.finished
            assert take(enforcer, b"x") == [True]
    enforcer = Enforcer('root ::= [^"]*', VOCABULARY)
    assert take(enforcer, b"\xf0", b"a", b"\x9f", b"\x98", b"\xff", b"\x80") == [True, False, True, True, False, True]
    half = Enforcer('root ::= "é"*', VOCABULARY)
    assert take(half, b"\xc3") == [True]
    assert not half.takes(END)
    assert half.allowed(np.zeros(len(WORDS), dtype=np.float32)) == [token_of(b"\xa9")]


def test_the_likeliest_that_fit_are_found_wherever_they_are() -> None:
    logits = np.linspace(10, 0, len(WORDS)).astype(np.float32)
    enforcer = Enforcer('root ::= "ab" | "aba"', VOCABULARY)
    assert enforcer.allowed(logits) == [token_of(b"a")]  # "ab" is not among the likeliest 256
    logits[token_of(b"ab")] = 20
    assert enforcer.allowed(logits)[0] == token_of(b"ab")
    enforcer.accept(token_of(b"ab"))
    assert set(enforcer.allowed(logits)) == {token_of(b"a"), END}
    size = 4000
    many = Vocabulary(size, lambda token: b"zz" if token else b"q", lambda _: False)
    assert Enforcer('root ::= "q"', many).allowed(np.arange(size, dtype=np.float32)) == [0]
    with pytest.raises(BadRequestError, match="no token for what it wants"):
        Enforcer('root ::= "y"', many).allowed(np.arange(size, dtype=np.float32))


def test_an_answer_that_exists_is_gone_on_with() -> None:
    grammar = grammar_of({"type": "array", "items": {"type": "integer"}, "maxItems": 2})
    enforcer = Enforcer(grammar, VOCABULARY, "[1, 2")
    assert take(enforcer, b",", b"3", b"]") == [False, True, True]
    with pytest.raises(BadRequestError):
        Enforcer(grammar, VOCABULARY, "[x")


def test_a_grammar_with_too_many_ways_ends_its_sequence_alone() -> None:
    enforcer = Enforcer('root ::= "a" root "b" | "a" root "c" | "a"', VOCABULARY)
    with pytest.raises(BadRequestError) as caught:
        for _ in range(100):
            enforcer.accept(token_of(b"a"))
    assert caught.value.details["param"] == "grammar"
    assert not Enforcer('root ::= "a" root "b" | "a" root "c" | "a"', VOCABULARY).takes(token_of(b"a" * 40))


def test_a_long_answer_does_not_gather_what_it_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.engine.structure.enforce._MAX_KEPT", 300)
    enforcer = Enforcer(grammar_of({"type": "array", "items": {"type": "array"}}), VOCABULARY)
    value = [[n, [{"k": [n]}]] for n in range(60)]
    for char in json.dumps(value)[:-1]:
        assert take(enforcer, char.encode()) == [True]
        assert enforcer._walk.kept < 600
    assert not enforcer.finished
    assert take(enforcer, b"]") == [True]
    assert enforcer.takes(END)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_whatever_a_model_prefers_its_answer_obeys(seed: int) -> None:
    choose = random.Random(seed)
    schema = {"type": "object", "properties": {"ab": {"type": "boolean"}, "n": {"type": "integer", "maximum": 99}}, "required": ["ab"]}  # fmt: skip # noqa: E501
    enforcer, text = Enforcer(grammar_of(schema), VOCABULARY), b""
    logits = np.array([choose.random() for _ in WORDS], dtype=np.float32)
    for _ in range(200):
        choose.shuffle(logits)  # type: ignore[arg-type]
        token = enforcer.allowed(logits)[0]
        if token == END:
            break
        assert enforcer.takes(token)
        enforcer.accept(token)
        text += WORDS[token]
    value = json.loads(text)
    assert isinstance(value["ab"], bool)
    assert set(value) <= {"ab", "n"}
