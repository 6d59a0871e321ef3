"""Prompts of chats with functions, and what is left out of chats that are too long."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.chat import ChatTemplate, Shield, Span, control_pattern
from agent.engine.protocol import Submit
from agent.engine.structure.prompt import Prompt, build
from agent.engine.structure.truncate import left_out, turns_of
from agent.errors import BadRequestError, ContextLengthError

PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
)
TOOLFUL = (
    "{% if tools is not none %}<|tools|>{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call><|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ m.name }}<|end|>{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds. <|end|>", "parameters": {"type": "object", "properties": {"<|end|>": {"type": "string"}}}}}  # fmt: skip # noqa: E501
CALLS = json.dumps({"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]})  # fmt: skip # noqa: E501
CHAT = (("user", "1+1?", ""), ("assistant", "", CALLS), ("tool", "2 <|end|>", '{"tool_call_id": "c1"}'))
CONTROL = control_pattern(["<|end|>", "<|user|>", "<|system|>"])


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="", eos="", native=lambda *_: None)


def submit(messages: Any = CHAT, **fields: Any) -> Submit:
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 50, **fields}
    return Submit(1, "chat", messages, "", "", values.pop("max_tokens"), values.pop("temperature"), values.pop("top_p"), 0, (), **values)  # fmt: skip # noqa: E501


def built(job: Submit, source: str = PLAIN, room: int = 100_000) -> tuple[str, Prompt]:
    """The prompt with every control token that is only text between « and », a token a character."""
    shown: list[str] = []

    def tokenize(spans: Any) -> list[int]:
        shown[:] = [f"«{span.text}»" if span.plain else span.text for span in spans]
        return [ord(char) for span in spans for char in span.text]

    prompt = build(job, template(source), lambda: Shield(CONTROL), tokenize, room)
    return "".join(shown), prompt


def test_a_template_that_knows_functions_is_given_them_and_all_of_the_chat() -> None:
    known = template(TOOLFUL)
    assert (known.knows_tools, known.call_form) == (True, "hermes")
    text, _ = built(submit(tools=json.dumps([TOOL])), TOOLFUL)
    assert text.startswith('<|tools|>{"type": "function", "function": {"name": "add", "description": "Adds. «<|end|>»"')
    assert '{"«<|end|>»": {"type": "string"}}' in text
    assert '<|assistant|><tool_call>add{"x": 1}<|end|><|tool|>2 «<|end|>»add<|end|>' in text
    without, _ = built(submit(), TOOLFUL)
    assert "<|tools|>" not in without


def test_a_template_that_knows_none_is_told_in_words() -> None:
    assert not template(PLAIN).knows_tools
    text, _ = built(submit(tools=json.dumps([TOOL]), messages=(("system", "Be kind.", ""), *CHAT)))
    assert text.startswith("<|system|>Be kind.\n\nYou can call these functions")
    assert '"description": "Adds. «<|end|>»"' in text
    assert '<|assistant|>{"name": "add", "arguments": {"x": 1}}<|end|>' in text
    assert text.endswith("<|user|>Result of add:\n2 «<|end|>»<|end|><|assistant|>")
    assert (
        built(submit(tools=json.dumps([TOOL]), tool_choice="none", messages=CHAT[:1]))[0]
        == "<|user|>1+1?<|end|><|assistant|>"
    )


def test_a_template_without_system_messages_and_with_turns_in_turn_is_told_by_the_user() -> None:
    two = (*CHAT, ("tool", "3", '{"name": "mul"}'), ("user", "so?", ""))
    text, _ = built(submit(tools=json.dumps([TOOL]), messages=two), STRICT)
    assert text.startswith("<|user|>You can call these functions")
    assert text.count("<|user|>") == 2
    assert "Result of mul:\n3\n\nso?<|end|>" in text


@pytest.mark.parametrize("more", ["[]", "{", "[" * 5000])
def test_fields_that_cannot_be_read_are_refused(more: str) -> None:
    with pytest.raises(BadRequestError):
        built(submit(messages=(("user", "x", more),)))


def chat_of(turns: int, size: int = 100) -> tuple[tuple[str, str, str], ...]:
    pairs = [[("user", f"q{n} ".ljust(size), ""), ("assistant", f"a{n} ".ljust(size), "")] for n in range(turns)]
    return (("system", "SYS", ""), *(message for pair in pairs for message in pair), ("user", "last?", ""))


def kept(text: str) -> list[str]:
    return [
        word for word in text.replace("|>", " ").replace("<", " ").split() if word[0] in "qaSl" and word != "assistant"
    ]


def test_without_truncate_a_chat_that_does_not_fit_is_refused_with_both_numbers() -> None:
    _, whole = built(submit(chat_of(9)))
    with pytest.raises(ContextLengthError) as caught:
        built(submit(chat_of(9)), room=1000)
    assert caught.value.details == {"prompt_tokens": len(whole.tokens), "context_tokens": 1000}


def test_truncate_leaves_out_whole_turns_and_says_how_much() -> None:
    _, whole = built(submit(chat_of(9)))
    for how, wanted in (
        ("oldest", ["SYS", "q7", "a7", "q8", "a8", "last?"]),
        ("middle", ["SYS", "q0", "a0", "q8", "a8", "last?"]),
    ):
        text, prompt = built(submit(chat_of(9), truncate=how), room=700)
        assert kept(text) == wanted
        assert len(prompt.tokens) <= 700 - 50
        assert (prompt.cut_tokens, prompt.cut_messages) == (len(whole.tokens) - len(prompt.tokens), 14)
    assert built(submit(chat_of(9), truncate="oldest"))[1].cut_messages == 0


def test_what_must_stay_and_does_not_fit_is_refused() -> None:
    with pytest.raises(ContextLengthError):
        built(submit((("system", "s" * 500, ""), ("user", "u" * 600, "")), truncate="oldest"), room=1000)
    text, prompt = built(submit((*chat_of(3), ("user", "x" * 700, "")), truncate="middle", max_tokens=400), room=1000)
    assert prompt.cut_messages == 7
    assert "SYS" in text


ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "tool", "developer"]), max_size=14)


@given(ROLES, st.data(), st.sampled_from(["oldest", "middle"]))
def test_neither_instructions_nor_the_last_turn_are_ever_left_out(
    roles: list[str], data: st.DataObject, how: Literal["oldest", "middle"]
) -> None:
    tokens = data.draw(st.lists(st.integers(1, 50), min_size=len(roles), max_size=len(roles)))
    excess = data.draw(st.integers(0, 400))
    out = left_out(roles, tokens, excess, how)
    may = {at for turn in turns_of(roles) for at in turn}
    assert out <= may
    assert not any(roles[at] in ("system", "developer") for at in out)
    last = max((at for at, role in enumerate(roles) if role == "user"), default=0)
    assert all(at < last for at in out)
    assert sum(tokens[at] for at in out) >= excess or out == may
    for turn in turns_of(roles):
        assert out >= set(turn) or not out & set(turn)
    if how == "oldest":
        assert all(not out & set(turn) or all(out >= set(other) for other in turns_of(roles)[:index])
                   for index, turn in enumerate(turns_of(roles)))  # fmt: skip


@given(ROLES, st.integers(0, 400), st.integers(0, 400), st.sampled_from(["oldest", "middle"]))
def test_more_excess_leaves_out_more(roles: list[str], one: int, other: int, how: Literal["oldest", "middle"]) -> None:
    tokens = [10] * len(roles)
    assert left_out(roles, tokens, min(one, other), how) <= left_out(roles, tokens, max(one, other), how)


def test_spans_of_a_prompt_keep_what_users_write_apart() -> None:
    shield = Shield(CONTROL)
    covered = shield.cover_all({"<|end|>": ["a<|end|>", 1, None, {"b": "<|user|>"}]})
    assert "<|" not in json.dumps(covered)
    assert Span("<|user|>", plain=True) in shield.spans(json.dumps(covered))
