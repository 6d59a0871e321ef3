"""The real `openai` client asks running agents for vectors: one that holds the real model, one that borrows it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.harness import Agent, agents, holding_smollm2

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
TEXTS = ["A dog runs in the park.", "A puppy is running in the garden.", "The bank raised its interest rates."]
LIMIT = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Agent]]:
    boxes = {"jetson-1": holding_smollm2(), "sensor-1": {}}
    with agents(tmp_path_factory.mktemp("fleet"), boxes) as started:
        yield {box.name: box for box in started}


@pytest.fixture(params=["jetson-1", "sensor-1"])
def client(fleet: dict[str, Agent], request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fleet[request.param].url + "/v1", api_key="none", max_retries=0, timeout=LIMIT) as made:
        yield made


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_vectors_as_the_client_asks_for_them_by_itself(client: openai.OpenAI) -> None:
    # Without an encoding_format it asks for base64, and decodes it.
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert [one.index for one in answer.data] == [0, 1, 2]
    dog, puppy, bank = (one.embedding for one in answer.data)
    assert cosine(dog, puppy) > max(cosine(dog, bank), cosine(puppy, bank))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert answer.model == MODEL
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    for one, other in zip(answer.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-3)


def test_the_async_client_and_pooling(client: openai.OpenAI) -> None:
    async def main() -> list[float]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", timeout=LIMIT) as own:
            answer = await own.embeddings.create(
                model=MODEL, input=TEXTS[0], user="somebody", extra_body={"pooling": "last"}
            )
        return answer.data[0].embedding

    last = asyncio.run(main())
    mean = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    assert len(last) == len(mean)
    assert cosine(last, mean) < 0.999


def test_refusals_as_the_client_raises_them(client: openai.OpenAI) -> None:
    asked: list[dict[str, Any]] = [
        {"input": [[1, 2]]},
        {"input": ""},
        {"input": "x", "dimensions": 3},
    ]
    for one in asked:
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, **one)
        assert refused.value.param in ("input", "dimensions")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.embeddings.create(model=MODEL, input="word " * 3000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no-such-model", input="x")
