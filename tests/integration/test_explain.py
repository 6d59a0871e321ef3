"""Why a job ran where it ran: decided on real boxes, and told by the API and by `shoal explain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from fleet.errors import RemoteError
from fleet.net.messages import ModelPresence
from fleet.net.rpc import IncomingCall
from tests.command import run_shoal
from tests.harness import Agent, agents, holding_smollm2, peer_id_of
from tests.http_agent import ScriptedServices, serving
from tests.peer import peer

MODEL = "smollm2-135m-instruct"


def explain(url: str, *args: str) -> tuple[int, str, str]:
    done = run_shoal(["explain", *args, "--url", url])
    assert "Traceback" not in done.err
    return done.code, done.out, done.err


def test_a_job_that_is_not_remembered_is_said_so() -> None:
    with serving(ScriptedServices()) as server:
        assert httpx.get(f"{server.url}/v1/fleet/jobs/job-1/route").json()["job"] == "job-1"
        answer = httpx.get(f"{server.url}/v1/fleet/jobs/job-2/route")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        code, out, err = explain(server.url, "job 2")
        assert (code, out) == (1, "")
        assert "nothing is known of a job" in err


@pytest.mark.model
def test_b1_b3_b40_a_slow_box_asks_a_faster_one_unless_told_not_to_and_tries_another_where_that_is_full(
    tmp_path: Path,
) -> None:
    asked: list[str] = []
    full = False

    async def infer(call: IncomingCall) -> Mapping[str, object]:
        asked.append(call.peer_id)
        if full:
            raise RemoteError("overloaded", "the queue is full", retryable=True, details={"retry_after": 7})
        await call.send({"type": "started", "model": MODEL, "hash": held.hash, "prompt_tokens": 3})
        await call.send({"type": "delta", "text": "hello", "tokens": 1})
        end = {"reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "prefill_ms": 1.0, "decode_ms": 1.0}
        await call.send({"type": "finished", **end})
        return {}

    async def ask(box: Agent, **headers: str) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{box.url}/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    async def told(box: Agent, answer: httpx.Response) -> dict[str, Any]:
        job = answer.headers["x-shoal-job"]
        code, out, _ = await trio.to_thread.run_sync(explain, box.url, job, "-o", "json")
        assert code == 0
        code, text, _ = await trio.to_thread.run_sync(explain, box.url, job)
        assert (code, job in text, "VERDICT" in text) == (0, True, True)
        route: dict[str, Any] = json.loads(out)
        return route

    async def scenario(box: Agent) -> None:
        nonlocal full
        async with peer("jetson", [box], models=[held], infer=infer) as me:
            await me.link_to(box)
            answer = await ask(box)
            assert answer.headers["x-shoal-served-by"] == "jetson"
            route = await told(box, answer)
            (decision,) = route["decisions"]
            assert route["served_by"] == peer_id_of("jetson")
            assert decision["order"] == [peer_id_of("jetson"), box.peer_id]
            assert [one["name"] for one in decision["candidates"]] == ["till-1", "jetson"]
            assert all(one["decode_rate"] and one["score"] > 0 for one in decision["candidates"])

            answer = await ask(box, **{"X-Shoal-Offload": "never"})
            assert answer.headers["x-shoal-route"] == "till-1=served"
            assert asked == [box.peer_id]

            full = True
            answer = await ask(box)
            assert answer.headers["x-shoal-served-by"] == "till-1"
            assert answer.headers["x-shoal-route"] == "jetson=overloaded: the queue is full; till-1=served"
            assert len((await told(box, answer))["decisions"]) == 2
            assert len(asked) == 2

    config = {**holding_smollm2(), "routing": {"threshold": 1e6, "max_cpu": 1.0, "max_memory": 1.0}}
    with agents(tmp_path, {"till-1": config}) as (box,):
        box.allow(peer_id_of("jetson"))
        box.wait_line("engine.loaded")
        facts = httpx.get(f"{box.url}/v1/fleet/self", timeout=30).json()
        assert 0 < facts["health"]["memory"] <= 1
        assert facts["health"]["refuses"] == ""
        (own,) = facts["models"]
        assert own["decode_rate"] > 0
        held = ModelPresence(
            hash=own["hash"], name=MODEL, state="loaded", context_tokens=own["context_tokens"], decode_rate=1e6
        )
        trio.run(scenario, box)
