"""Schemas, grammars, functions and truncation with the real model, on the box that holds it and one that borrows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.harness import Agent, agents, holding_smollm2

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
LIMIT = 60.0
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["child", "adult"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Agent]]:
    boxes = {"jetson-1": {**holding_smollm2(), "engine": {"context_tokens": 1024}}, "sensor-1": {}}
    with agents(tmp_path_factory.mktemp("fleet"), boxes) as started:
        yield {box.name: box for box in started}


@pytest.fixture(params=["jetson-1", "sensor-1"])
def client(fleet: dict[str, Agent], request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fleet[request.param].url + "/v1", api_key="none", timeout=LIMIT) as made:
        yield made


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_obeys_its_schema(client: openai.OpenAI, temperature: float) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Describe a person."}], response_format=form,
        temperature=temperature, seed=5, max_tokens=200,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_an_answer_obeys_a_grammar_in_chats_and_completions(client: openai.OpenAI) -> None:
    extra = {"grammar": 'root ::= ("yes" | "no") "!"'}
    chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=extra)
    assert chat.choices[0].message.content in ("yes!", "no!")
    assert chat.choices[0].finish_reason == "stop"
    completion = client.completions.create(model=MODEL, prompt="Once", extra_body=extra)
    assert completion.choices[0].text in ("yes!", "no!")


def test_a_call_that_is_required_is_made_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": MODEL, "messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "temperature": 0,
        "max_tokens": 60,
    }  # fmt: skip
    choice = client.chat.completions.create(**asked).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), TOOL["function"]["parameters"])
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    calls = [one.function for delta in deltas for one in delta.tool_calls or () if one.function is not None]
    assert "".join(one.arguments or "" for one in calls) == call.function.arguments
    named = {**asked, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    assert client.chat.completions.create(**named).choices[0].message.tool_calls


def test_a_result_is_answered_in_words(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    turns: Any = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "c1", "content": "Sunny, 21 degrees."})
    answer = client.chat.completions.create(
        model=MODEL, messages=turns, tools=[TOOL], tool_choice="none", temperature=0, max_tokens=20
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_a_chat_that_is_too_long_is_shortened_only_where_that_was_asked_for(fleet: dict[str, Agent]) -> None:
    turns = [{"role": "system", "content": "Be brief."}]
    for number in range(8):
        turns += [{"role": "user", "content": f"{number}: " + "word " * 200}, {"role": "assistant", "content": "ok"}]
    turns.append({"role": "user", "content": "Say hello."})
    asked: Any = {"model": MODEL, "messages": turns, "max_tokens": 4}
    for box in fleet.values():
        refused = httpx.post(f"{box.url}/v1/chat/completions", json=asked, timeout=LIMIT)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["details"]["prompt_tokens"] > error["details"]["context_tokens"]
    for box, how in zip(fleet.values(), ("oldest", "middle"), strict=True):
        cut = httpx.post(f"{box.url}/v1/chat/completions", json={**asked, "truncate": how}, timeout=LIMIT)
        assert cut.status_code == 200, cut.text
        told = cut.json()["shoal"]["truncated"]
        assert told["messages"] in (8, 10)
        assert told["tokens"] > 500
        assert cut.headers["x-shoal-truncated"] == f"tokens={told['tokens']}; messages={told['messages']}"
