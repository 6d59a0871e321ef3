"""What a client asks of the form of its answer: what is taken, and that every refusal says where and in plain words."""

from __future__ import annotations

import json
import threading
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from agent.engine.structure.automaton import Automaton, Walk
from agent.engine.structure.calls import CallArguments, CallBegin, CallParser, Text
from agent.engine.structure.gbnf import MAX_PRODUCED
from agent.engine.structure.json_schema import grammar_of
from agent.errors import BadRequestError
from agent.http.embeddings_schema import parse_embedding
from agent.http.exchange import Exchange
from agent.http.openai_api import PARSE_APART, PARSED_AT_ONCE, OpenAIApi
from agent.http.openai_schema import Asked, parse_chat
from agent.http.services import Services

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode(), {}.get, "job-1")


def with_schema(schema: Any) -> Asked:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def refusal(call: Any, *args: Any, **fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        call(*args, **fields)
    return caught.value


def accepts(schema: Any, text: str) -> bool:
    walk = Walk(Automaton(grammar_of(schema), limit=MAX_PRODUCED))
    state = walk.text(walk.begin, text)
    return state is not None and state.complete


@pytest.mark.parametrize("schema", [True, {}])
def test_a_schema_that_asks_for_nothing_takes_any_json(schema: Any) -> None:
    asked = with_schema(schema).job.request
    assert (asked.output, json.loads(asked.output_text)) == ("schema", schema)
    for text in ("1", '"a"', '{"a": [null]}', "[]"):
        assert accepts(schema, text)
    assert not accepts(schema, "a")


def test_two_escapes_that_are_a_pair_are_one_character() -> None:
    for pattern, good, bad in (
        (r"^\ud83d\ude00$", "\U0001f600", "\U0001f601"),
        (r"^[\ud83d\ude00-\ud83d\ude4F]$", "\U0001f64f", "\U0001f650"),
        (r"^(?:a|\uD83D\uDE00){2}$", "a\U0001f600", "aa\U0001f600"),
    ):
        assert accepts({"pattern": pattern}, f'"{good}"')
        assert not accepts({"pattern": pattern}, f'"{bad}"')
    for pattern in (r"\ud83d", r"\ude00\ud83d", r"\ud83d\u0041"):
        assert "matches no character" in refusal(grammar_of, {"pattern": pattern}).message


ROW = {"properties": {f"p{i}": {} for i in range(1001)}}


@pytest.mark.parametrize(
    ("fields", "param", "place"),
    [
        ({"grammar": "x ::= [a]\nroot ::= " + " | ".join(f'"a{i}"' for i in range(2000))}, "grammar",
         {"line": 2, "column": 1}),
        ({"grammar": 'root ::= ("a"{0,1000}){0,1000}'}, "grammar", {"line": 1, "column": 1}),
        ({"grammar": r"root ::= [^\x00-\U0010FFFF]"}, "grammar", {"line": 1, "column": 10}),
        ({"schema": {"anyOf": [{"pattern": f"^{i}x*$"} for i in range(1100)]}}, "response_format", {"pointer": ""}),
        ({"schema": {"prefixItems": [{}] * 5000}}, "response_format", {"pointer": "/prefixItems/4095"}),
        ({"schema": {"prefixItems": [{"enum": [f"{i} {'x' * 25}"]} for i in range(1200)], "minItems": 1200}},
         "response_format", {"pointer": ""}),
        ({"schema": {"items": ROW}}, "response_format", {"pointer": "/items/properties"}),
        ({"schema": False}, "response_format", {"pointer": ""}),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": ROW}}], "tool_choice": "required"},
         "tools", {"pointer": "/properties"}),
    ],
)  # fmt: skip
def test_what_is_too_much_is_refused_with_its_place(fields: Any, param: str, place: Any) -> None:
    error = refusal(with_schema, fields["schema"]) if "schema" in fields else refusal(chat, **fields)
    assert error.details == {"param": param, **place}


def test_a_grammar_beside_functions_is_refused_and_a_response_format_is_about_text_alone() -> None:
    for choice in ("auto", "required", {"type": "function", "function": {"name": "add"}}):
        error = refusal(chat, grammar='root ::= "a"', tools=[TOOL], tool_choice=choice)
        assert error.details["param"] == "grammar"
    assert chat(grammar='root ::= "a"', tools=[TOOL], tool_choice="none").job.request.output == "grammar"
    asked = chat(response_format={"type": "json_object"}, tools=[TOOL], tool_choice="required")
    assert (asked.job.request.output, asked.functions) == ("json", ("add",))


@pytest.mark.parametrize("text", ['{"name": "add", "arguments', "<tool_call>\n{", '{"arguments": {"x"', "<to", "  "])
def test_a_call_that_is_certain_and_cut_before_its_arguments_is_no_text(text: str) -> None:
    certain, open_ = CallParser(("add",), certain=True), CallParser(("add",))
    assert [*certain.push(text), *certain.finish()] == []
    assert [*open_.push(text), *open_.finish()] == [Text(text)]
    begun = CallParser(("add",), certain=True)
    pieces = [*begun.push('{"name": "add", "arguments": {"x"'), *begun.finish()]
    assert pieces == [CallBegin("add"), CallArguments('{"x"')]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["a"] * 17}, "stop: has more than 16 entries"),
        ({"stop": ["a" * 257]}, "stop.0: has more than 256 characters"),
        ({"stop": [""]}, "stop.0: must not be empty"),
        ({"messages": []}, "messages: must not be empty"),
        ({"temperature": 3}, "temperature: must be at most 2.0"),
        ({"min_p": -1}, "min_p: must be at least 0.0"),
        ({"truncate": "left"}, "truncate: must be 'none', 'oldest' or 'middle'"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "stream_options.include_obfuscation: must be false"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x: there is no such field"),
        ({"tools": [TOOL], "tool_choice": 5},
         'tool_choice: must look like {"type": "function", "function": {"name": NAME}}'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_words_of_this_api(fields: Any, message: str) -> None:
    error = refusal(chat, **fields)
    assert error.message == message
    assert error.details == {"param": message.partition(":")[0]}


def test_what_stands_for_a_field_that_is_not_sent_is_no_value_to_send() -> None:
    body = b'{"model": "m", "input": "x", "pooling": "max"}'
    assert refusal(parse_embedding, body, {}.get, "job-1").message == "pooling: must be 'mean', 'cls' or 'last'"


class _Sent:
    """A request with a large body, as far as it is looked at before it is understood."""

    def __init__(self, body: bytes = b" " * (PARSE_APART + 1)) -> None:
        self.job = ""
        self.headers: list[tuple[str, str]] = []
        self._body = body

    async def body(self) -> bytes:
        return self._body

    def header(self, name: str) -> str | None:
        return None


@pytest.mark.parametrize(
    ("body", "apart"),
    [
        (b'{"prompt": "x", "grammar": "root ::= \\"a\\"{65536}"}', True),
        (b'{"prompt": "x", "\\u0067rammar": "root ::= [a]{65536}"}', True),
        (b'{"prompt": "x", "response_format": {"type": "json_object"}}', True),
        (b'{"prompt": "x", "tools": []}', True),
        (b'{"prompt": "x", "max_tokens": 4}', False),
    ],
)
def test_what_may_be_costly_to_understand_is_understood_in_a_thread_of_its_own(body: bytes, apart: bool) -> None:
    def parse(body: bytes, header: object, job: str) -> bool:
        return threading.current_thread() is not threading.main_thread()

    async def main() -> bool:
        return await OpenAIApi(cast(Services, None))._understood(cast(Exchange, _Sent(body)), parse)

    assert trio.run(main) is apart


def test_no_more_than_two_large_bodies_are_looked_at_at_a_time() -> None:
    go, lock = threading.Event(), threading.Lock()
    running: list[int] = [0, 0]

    def parse(body: bytes, header: object, job: str) -> int:
        with lock:
            running[0] += 1
            running[1] = max(running)
        go.wait()
        with lock:
            running[0] -= 1
        return len(body)

    async def main() -> None:
        api = OpenAIApi(cast(Services, None))
        async with trio.open_nursery() as nursery:
            for _ in range(3 * PARSED_AT_ONCE):
                nursery.start_soon(api._understood, cast(Exchange, _Sent()), parse)
            await wait_all_tasks_blocked()
            try:
                assert api._parsing.statistics().tasks_waiting == 2 * PARSED_AT_ONCE
            finally:
                go.set()

    trio.run(main)
    assert running[0] == 0
    assert 1 <= running[1] <= PARSED_AT_ONCE
