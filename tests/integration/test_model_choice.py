"""Which model answers across boxes: by content, by what names say, by what may stand in, and what clients are told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
import trio

from fleet.errors import RemoteError
from fleet.net.messages import ModelPresence
from fleet.net.rpc import IncomingCall
from tests.harness import Agent, agents, model_path, peer_id_of
from tests.peer import peer

pytestmark = pytest.mark.model

#: What the file of the model is called: nobody has given it a name.
OWN = "smollm2-135m-instruct.q4_1"
BETTER = ModelPresence(
    hash="sha256:" + "8" * 64,
    name="smollm2-135m-instruct.q8_0",
    reads="smollm-2-135m-instruct-q8_0",
    state="loaded",
    context_tokens=2048,
    decode_rate=5.0,
)
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """A box without a model, and one that holds a file under no name but its own."""
    path = model_path()
    if path.stem.lower() != OWN:
        pytest.skip(f"the model of the tests is another one than {OWN}")
    routing = {"threshold": 0.0, "borrow_only_below": 0.0, "max_cpu": 1.0, "max_memory": 1.0, "substitution": "quant"}
    boxes: dict[str, dict[str, Any]] = {
        "sensor-1": {},
        "jetson-1": {"models": [{"path": str(path)}], "routing": routing},
    }
    with agents(tmp_path_factory.mktemp("pair"), boxes) as made:
        limit = time.monotonic() + 20
        while not httpx.get(f"{made[0].url}/v1/models", timeout=10).json()["data"]:
            assert time.monotonic() < limit, "the boxes did not meet"
            time.sleep(0.02)
        yield made


def ask(box: Agent, model: str, substitution: str | None = None) -> httpx.Response:
    headers = {"X-Shoal-Substitution": substitution} if substitution else {}
    return httpx.post(f"{box.url}/v1/chat/completions", json={"model": model, **BODY}, headers=headers, timeout=60)


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 404, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "model_not_found"
    return error


@pytest.mark.parametrize("asked", ["HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1", "smollm2:135m-instruct", "hash"])
def test_b35_content_and_every_spelling_of_a_name_find_the_model_on_another_box(pair: list[Agent], asked: str) -> None:
    sensor, jetson = pair
    (held,) = httpx.get(f"{jetson.url}/v1/fleet/self", timeout=30).json()["models"]
    assert held["reads"] == "smollm-2-135m-instruct-q4_1"
    answer = ask(sensor, held["hash"] if asked == "hash" else asked)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.headers["x-shoal-model"]) == (OWN, OWN)
    assert answer.headers["x-shoal-served-by"] == "jetson-1"
    assert "x-shoal-substituted" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("llama2-135m-instruct", "family"),
        ("smollm-135m-instruct", "version"),
        ("smollm2-360m-instruct", "size"),
        ("smollm2-135m-base", "type"),
        ("till-assistant-135m", "unknown_family"),
    ],
)
def test_b36_b37_another_model_is_refused_with_the_reason(pair: list[Agent], asked: str, reason: str) -> None:
    error = problem(ask(pair[0], asked, "quant"))
    assert error["details"]["reason"] == reason
    assert OWN in error["message"]
    assert error["details"]["known"] == [OWN]


def test_b38_a_box_allows_by_its_configuration_what_a_request_does_not_forbid(pair: list[Agent]) -> None:
    _, jetson = pair
    answer = ask(jetson, "smollm2-135m-instruct-q5_k_m")
    assert (answer.status_code, answer.headers["x-shoal-model"]) == (200, OWN)
    assert answer.headers["x-shoal-substituted"] == "quantisation Q4_1 instead of Q5_K_M"
    assert answer.headers["x-shoal-served-by"] == "jetson-1"
    refused = problem(ask(jetson, "smollm2-135m-instruct-q5_k_m", "none"))
    assert refused["details"]["possible"] == {"quant": [OWN]}


def test_a_setting_that_does_not_exist_is_refused_with_those_that_do(pair: list[Agent]) -> None:
    answer = ask(pair[0], OWN, "any")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Shoal-Substitution")
    assert "none, quant, family" in answer.json()["error"]["message"]


def test_an_alias_of_the_fleet_means_the_same_on_every_box(pair: list[Agent]) -> None:
    sensor, jetson = pair
    alias = sensor.fleet.write("cfg", "alias/till-assistant", {"model": "smollm2-135m-instruct"})
    for box in pair:
        box.offer(alias)
        assert ask(box, "Till-Assistant").headers["x-shoal-model"] == OWN
        assert httpx.get(f"{box.url}/v1/models/Till-Assistant").json()["id"] == OWN
    assert sensor.fleet is jetson.fleet


def test_a_fleet_says_what_may_stand_in_where_neither_request_nor_box_does(pair: list[Agent]) -> None:
    sensor, _ = pair
    other = OWN.replace("q4_1", "q8_0")
    assert ask(sensor, other).status_code == 404
    policy = sensor.fleet.write("cfg", "policy/routing", {"substitution": "quant", "offload": "prefer"})
    for box in pair:
        box.offer(policy)
    allowed = ask(sensor, other)
    assert (allowed.status_code, allowed.headers["x-shoal-model"]) == (200, OWN)
    assert ask(sensor, other, "none").status_code == 404
    for box in pair:
        box.offer(sensor.fleet.write("cfg", "policy/routing", None))


def test_b38_another_quantisation_is_refused_with_what_there_is_and_where_allowed_the_better_goes_first(
    pair: list[Agent],
) -> None:
    sensor, _ = pair
    asked: list[str] = []
    full = False

    async def infer(call: IncomingCall) -> Mapping[str, object]:
        assert isinstance(call.body, dict)
        asked.append(call.body["model"])
        if full:
            raise RemoteError("overloaded", "the queue is full", retryable=True)
        await call.send({"type": "started", "model": BETTER.name, "hash": BETTER.hash, "prompt_tokens": 3})
        await call.send({"type": "delta", "text": "hello", "tokens": 1})
        end = {"reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "prefill_ms": 1.0, "decode_ms": 1.0}
        await call.send({"type": "finished", **end})
        return {}

    async def scenario() -> None:
        nonlocal full
        async with peer("pos-1", [sensor], models=[BETTER], infer=infer) as me:
            await me.link_to(sensor)
            wanted = "smollm2-135m-instruct-q5_k_m"
            refused = problem(await trio.to_thread.run_sync(ask, sensor, wanted))
            assert refused["details"]["possible"] == {"quant": [BETTER.name, OWN]}
            assert f"there is {BETTER.name}, {OWN}" in refused["message"]
            assert asked == []

            answer = await trio.to_thread.run_sync(ask, sensor, wanted, "quant")
            assert (answer.status_code, asked) == (200, [BETTER.hash])
            assert answer.headers["x-shoal-served-by"] == "pos-1"
            assert answer.headers["x-shoal-substituted"] == "quantisation Q8_0 instead of Q5_K_M"
            told = answer.json()["shoal"]["substituted"]
            assert told == {
                "asked": wanted,
                "ran": BETTER.name,
                "differs": ["quantisation Q8_0 instead of Q5_K_M"],
            }

            full = True
            answer = await trio.to_thread.run_sync(ask, sensor, wanted, "quant")
            assert (answer.status_code, asked) == (200, [BETTER.hash] * 2)
            assert answer.headers["x-shoal-model"] == OWN
            assert answer.headers["x-shoal-substituted"] == "quantisation Q4_1 instead of Q5_K_M"

    sensor.allow(peer_id_of("pos-1"))
    trio.run(scenario)


def test_a_lender_substitutes_nothing_by_itself(pair: list[Agent]) -> None:
    """Not even where its own clients may have a substitute."""
    _, jetson = pair
    asker = peer_id_of("pos-2")
    body = {"v": 1, "job": "job-1", "kind": "completion", "prompt": "Once", "route": [asker]}

    async def scenario() -> None:
        async with peer("pos-2", [jetson]) as me:
            for model in ("smollm2:135m-instruct", "smollm2-135m-instruct-q5_k_m"):
                events, error = await me.infer(jetson, {**body, "model": model})
                assert events == []
                assert error is not None
                assert error.remote_code == "model_not_held"
            events, error = await me.infer(jetson, {**body, "model": OWN, "sampling": {"max_tokens": 1}})
            assert error is None
            assert events[0]["model"] == OWN

    jetson.allow(asker)
    trio.run(scenario)
