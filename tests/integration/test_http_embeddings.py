"""Vectors over real sockets and scripted jobs: the body, its errors, a client that leaves."""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode
from typing import Any

import httpx
import pytest
import trio

from agent.errors import NoVectorsError
from agent.jobs.job import Emit, Job
from fleet.net.messages import Embedded, Finished
from tests.http_agent import HASH, LIMIT, Running, Script, ScriptedServices, routed, serving


def part(first: int, *rows: list[float]) -> Embedded:
    numbers = [number for row in rows for number in row]
    return Embedded(first=first, dimensions=len(rows[0]), data=struct.pack(f"<{len(numbers)}f", *numbers))


def gives(*parts: Embedded, where: str = "jetson-1") -> Script:
    async def script(job: Job, emit: Emit) -> None:
        await emit(routed(where))
        for one in parts:
            await emit(one)
        await emit(Finished(reason="stop", prompt_tokens=9, completion_tokens=0, prefill_ms=1.25, decode_ms=0.0))

    return script


def ask(server: Running, **fields: Any) -> httpx.Response:
    body = {"model": "smol", "input": ["a", "b", "c"], **fields}
    return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=LIMIT)


THIRD = math.sqrt(1 / 3)
ROWS = [[1.0, 0.0, 0.0], [THIRD, -THIRD, THIRD], [1e-12, 0.0, -1.0]]
PARTS = (part(0, ROWS[0]), part(1, ROWS[1], ROWS[2]))


def test_the_body_and_headers_of_an_answer() -> None:
    with serving(ScriptedServices(gives(*PARTS))) as server:
        answer = ask(server)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert [one["index"] for one in body["data"]] == [0, 1, 2]
    exact = [struct.unpack("<3f", struct.pack("<3f", *row)) for row in ROWS]
    # Nine digits are enough for each 32-bit float to be read as itself.
    assert [struct.unpack("<3f", struct.pack("<3f", *one["embedding"])) for one in body["data"]] == exact
    assert (body["object"], body["model"]) == ("list", "smol")
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert body["shoal"] == {
        "served_by": "jetson-1",
        "peer_id": "12D3KooWpeer",
        "local": False,
        "model_hash": HASH,
        "route": ["sensor-1=no model", "jetson-1=served"],
        "prefill_ms": 1.25,
    }
    assert answer.headers["x-shoal-served-by"] == "jetson-1"
    assert answer.headers["x-shoal-model"] == "smol"
    assert answer.headers["x-shoal-route"] == "sensor-1=no model; jetson-1=served"


def test_base64_is_the_floats_as_they_came() -> None:
    with serving(ScriptedServices(gives(*PARTS))) as server:
        data = ask(server, encoding_format="base64").json()["data"]
    assert b"".join(b64decode(one["embedding"]) for one in data) == b"".join(one.data for one in PARTS)


def test_the_largest_answer_there_may_be_comes_whole() -> None:
    row = [1.0] + [0.0] * (16 * 1024 - 1)
    parts = [part(first, *[row] * 16) for first in range(0, 256, 16)]
    with serving(ScriptedServices(gives(*parts))) as server:
        data = json.loads(ask(server, input=["x"] * 256).content)["data"]
    assert len(data) == 256
    assert all(one["embedding"] == row for one in data)


def test_other_dimensions_are_refused_with_both_numbers() -> None:
    with serving(ScriptedServices(gives(*PARTS))) as server:
        answer = ask(server, dimensions=4)
        assert ask(server, dimensions=3).status_code == 200
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["details"]) == ("dimensions", {"dimensions": 3, "asked": 4})
    assert "3, not 4" in error["message"]


def test_a_failure_is_an_error_of_the_usual_shape() -> None:
    async def script(job: Job, emit: Emit) -> None:
        raise NoVectorsError("smol is run by a server")

    with serving(ScriptedServices(script)) as server:
        answer = ask(server)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_vectors"
    assert answer.headers["x-shoal-job"].startswith("job-")


def test_a_request_that_is_refused_runs_nothing() -> None:
    services = ScriptedServices(gives(*PARTS))
    with serving(services) as server:
        assert ask(server, input=[1, 2]).status_code == 400
        assert httpx.get(f"{server.url}/v1/embeddings", timeout=LIMIT).status_code == 405
    assert services.jobs == []


def test_a_client_that_leaves_cancels_its_job() -> None:
    async def script(job: Job, emit: Emit) -> None:
        await trio.sleep_forever()

    services = ScriptedServices(script)
    with serving(services) as server:
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/embeddings", json={"model": "smol", "input": "a"})
        assert services.cancelled.wait(LIMIT)
