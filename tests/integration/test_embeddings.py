"""Vectors of texts with the real model: on the box that holds it, and on one that borrows it."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
import trio.testing

from fleet.net.messages import Delta, Embedded, InferRequest
from tests.engine_box import completion, engine_box
from tests.external_fakes import Fake
from tests.external_fakes import serving as serving_fake
from tests.harness import Agent, agents, holding_smollm2, model_path
from tests.integration.test_external_agents import models_of, until

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
DIMENSIONS = 576
LIMIT = 60.0
CAT, KITTEN, TAX = (
    "The cat sleeps on the sofa.",
    "A kitten is sleeping on the couch.",
    "Quarterly tax returns must be filed by the end of April.",
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Agent]]:
    boxes = {"jetson-1": {**holding_smollm2(), "engine": {"context_tokens": 4096}}, "sensor-1": {}}
    with agents(tmp_path_factory.mktemp("fleet"), boxes) as started:
        yield {box.name: box for box in started}


@pytest.fixture(params=["jetson-1", "sensor-1"])
def box(fleet: dict[str, Agent], request: pytest.FixtureRequest) -> Agent:
    found: Agent = fleet[request.param]
    return found


def ask(box: Agent, texts: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{box.url}/v1/embeddings", json={"model": MODEL, "input": texts, **fields}, timeout=LIMIT)


def vectors_of(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [(one["object"], one["index"]) for one in data] == [("embedding", index) for index in range(len(data))]
    return [one["embedding"] for one in data]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def engine_of(box: Agent) -> list[int]:
    """The processes that run its model: another one means that the last was ended."""
    every = psutil.Process(box.pid).children(recursive=True)
    return [child.pid for child in every if "agent.engine.worker" in child.cmdline()]


def test_texts_that_mean_the_same_are_nearer_than_others(box: Agent) -> None:
    answer = ask(box, [CAT, KITTEN, TAX])
    cat, kitten, tax = vectors_of(answer)
    assert {len(cat), len(kitten), len(tax)} == {DIMENSIONS}
    assert all(math.isclose(cosine(one, one), 1, abs_tol=1e-4) for one in (cat, kitten, tax))
    assert cosine(cat, kitten) > max(cosine(cat, tax), cosine(kitten, tax))
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 20
    assert body["shoal"]["served_by"] == answer.headers["x-shoal-served-by"] == "jetson-1"
    assert body["shoal"]["local"] is (box.name == "jetson-1")
    assert answer.headers["x-shoal-route"].endswith("jetson-1=served")
    assert answer.headers["x-shoal-job"].startswith("job-")


def test_borrowed_vectors_are_those_of_the_box_that_lends(fleet: dict[str, Agent]) -> None:
    # More than one step of the engine, and so more than one event: texts must not change places.
    texts = [f"{'word ' * (index % 7)}number {index}" for index in range(40)]
    own, borrowed = (vectors_of(ask(fleet[name], texts)) for name in ("jetson-1", "sensor-1"))
    assert len(own) == len(borrowed) == len(texts)
    for one, other in zip(own, borrowed, strict=True):
        # How many tokens a step reads depends on how fast steps are, and moves the numbers a little (ADR 21).
        assert cosine(one, other) > 0.999
    for index in (0, 17, 39):
        (alone,) = vectors_of(ask(fleet["sensor-1"], texts[index]))
        nearest = max(range(len(own)), key=lambda other: cosine(alone, own[other]))
        assert nearest == index


def test_base64_has_the_same_numbers(box: Agent) -> None:
    (plain,) = vectors_of(ask(box, CAT))
    (coded,) = vectors_of(ask(box, CAT, encoding_format="base64", dimensions=DIMENSIONS))
    assert isinstance(coded, str)
    assert struct.unpack(f"<{DIMENSIONS}f", b64decode(coded)) == pytest.approx(plain, abs=1e-3)


def test_pooling_chooses_which_tokens_count(box: Agent) -> None:
    mean, cls, last = (vectors_of(ask(box, CAT, pooling=one))[0] for one in ("mean", "cls", "last"))
    assert max(cosine(mean, cls), cosine(mean, last), cosine(cls, last)) < 0.999


def test_other_dimensions_are_refused_with_both_numbers(box: Agent) -> None:
    answer = ask(box, CAT, dimensions=256)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("bad_request", "dimensions")
    assert error["details"] == {"dimensions": DIMENSIONS, "asked": 256}


def test_a_text_that_is_too_long_is_refused_with_both_numbers(box: Agent) -> None:
    answer = ask(box, [CAT, "word " * 3000])
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["details"]["context_tokens"] == 2048
    assert error["details"]["prompt_tokens"] >= 3000


def test_what_is_asked_for_in_other_words_is_refused_before_anything_runs(box: Agent) -> None:
    for texts, says in (
        ([], "empty"),
        ("", "empty"),
        ([CAT, ""], "input.1"),
        ([1, 2, 3], "send the text itself"),
        ([[1, 2], [3]], "send the text itself"),
        ([CAT] * 257, "257"),
        (7, "string"),
        ("x" * (1024 * 1024 + 1), "1 MiB"),
    ):
        answer = ask(box, texts)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "bad_request"
        assert error["param"].startswith("input")
        assert says in error["message"]


def test_a_client_that_leaves_ends_its_job_and_nothing_else(fleet: dict[str, Agent], box: Agent) -> None:
    lender = fleet["jetson-1"]
    vectors_of(ask(box, CAT))
    engine = engine_of(lender)
    # Some fifty steps: more than are done before the client is gone.
    texts = ["word " * 600] * 150
    with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{box.url}/v1/embeddings", json={"model": MODEL, "input": texts})

    def running() -> int:
        (model,) = httpx.get(f"{lender.url}/v1/fleet/self", timeout=LIMIT).json()["models"]
        return int(model["running"] + model["queued"])

    until(lambda: running() == 0)
    assert vectors_of(ask(box, CAT))
    assert engine_of(lender) == engine


def test_a_server_beside_a_box_gives_no_vectors(tmp_path: Path) -> None:
    with (
        serving_fake(Fake("ollama", models=["tiny:1b"])) as fake,
        agents(tmp_path, {"owner": {"engines": [{"url": fake.url}]}, "asker": {}}) as (owner, asker),
    ):
        until(lambda: "tiny:1b" in models_of(asker))
        for box in (owner, asker):
            answer = ask(box, CAT, model="tiny:1b")
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["code"] == "no_vectors"
            assert "ollama" in error["message"]
        assert not fake.jobs()


def test_a_chat_that_is_cancelled_waits_for_no_step_of_long_texts(tmp_path: Path) -> None:
    vectors: list[Embedded] = []

    async def main() -> None:
        async with engine_box(model_path(), tmp_path, threads=1) as box, trio.open_nursery() as nursery:
            pid, scope = box.pid, trio.CancelScope()

            async def embed() -> None:
                request = InferRequest(v=2, job="e", kind="embedding", model="m", texts=("word " * 600,) * 2)
                await box.pool.generate(box.held.hash, request, take)

            async def take(event: object) -> None:
                if isinstance(event, Embedded):
                    vectors.append(event)

            async def leave(event: object) -> None:
                # Between this step of the chat and its next one there is one of the texts.
                if isinstance(event, Delta):
                    scope.cancel()

            nursery.start_soon(embed)
            await trio.testing.wait_all_tasks_blocked()
            with scope:
                await box.pool.generate(box.held.hash, completion("Once upon a time", max_tokens=500), leave)
            assert scope.cancelled_caught
            await box.idle(LIMIT)
            assert box.pid == pid

    trio.run(main)
    assert sum(len(one.data) for one in vectors) == 2 * 4 * DIMENSIONS
