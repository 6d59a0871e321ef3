"""The real `openai` client against running agents: one that holds the real model, one that borrows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.harness import Agent, agents, holding_smollm2

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
LIMIT = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Agent]]:
    boxes = {"jetson-1": holding_smollm2(), "sensor-1": {}}
    with agents(tmp_path_factory.mktemp("fleet"), boxes) as started:
        yield {box.name: box for box in started}


@pytest.fixture(params=["jetson-1", "sensor-1"])
def client(fleet: dict[str, Agent], request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fleet[request.param].url + "/v1", api_key="none", timeout=LIMIT) as made:
        yield made


def shoal_of(answer: Any) -> dict[str, Any]:
    extra = answer.model_extra["shoal"]
    assert isinstance(extra, dict)
    return extra


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=12, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert shoal_of(answer)["served_by"] == "jetson-1"


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert (body[0].choices[0].delta.role, body[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in body if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_ends_after_16_tokens_unless_told_otherwise(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0)
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    stream = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_the_same_seed_gives_the_same_answer_whatever_its_sign(client: openai.OpenAI) -> None:
    for seed in (7, -7, 1 << 40):
        texts = {
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=12, temperature=1, seed=seed)
            .choices[0]
            .message.content
            for _ in range(2)
        }
        assert len(texts) == 1


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "one two three four", "temperature": 0, "max_tokens": 24}
    text = client.completions.create(**asked).choices[0].text
    word = next(word for word in text.split() if len(word) > 2)
    stopped = client.completions.create(**asked, stop=[word])
    assert stopped.choices[0].text == text[: text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"


def test_models_are_listed_on_both_boxes(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert [holder["name"] for holder in shoal_of(listed[MODEL])["holders"]] == ["jetson-1"]
    by_hash = client.models.retrieve(shoal_of(listed[MODEL])["hash"])
    assert by_hash.id == MODEL


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        client.chat.completions.create(model="gpt-none", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_a_prompt_past_the_context_names_both_numbers(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert isinstance(caught.value.body, dict)
        details = caught.value.body["details"]
        assert details["prompt_tokens"] > details["context_tokens"] > 0
        assert str(details["prompt_tokens"]) in caught.value.message
        assert str(details["context_tokens"]) in caught.value.message


def test_what_is_not_supported_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2)
    assert caught.value.param == "n"


def test_the_async_client_with_several_requests_at_once(fleet: dict[str, Agent]) -> None:
    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=LIMIT) as client:
            texts = await asyncio.gather(*(ask(client) for _ in range(3)))
            # In company the last digits of sums differ, and with them which of two words that are as likely comes.
            assert len({text.split()[0] for text in texts}) == 1
            models = [model.id async for model in client.models.list()]
            assert models == [MODEL]

    asyncio.run(main(fleet["sensor-1"].url))


def test_closing_a_stream_leaves_the_box_free_for_the_next(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=400, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].message.content is not None
