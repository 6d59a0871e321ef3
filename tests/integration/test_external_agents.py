"""Agents whose models are in servers beside them: used over HTTP, borrowed by other boxes, cancelled, reported."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.external_fakes import PIECES, Fake, serving
from tests.harness import Agent, agents, free_port

_LIMIT = 30.0


def until(condition: Callable[[], Any]) -> Any:
    """What another process is about to do."""
    deadline = time.monotonic() + _LIMIT
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found


def models_of(box: Agent) -> dict[str, dict[str, Any]]:
    return {model["id"]: model["shoal"] for model in httpx.get(f"{box.url}/v1/models", timeout=10).json()["data"]}


def facts_of(box: Agent) -> dict[str, Any]:
    facts: dict[str, Any] = httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()
    return facts


def ask(box: Agent, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "a story"}], **more}
    return httpx.post(f"{box.url}/v1/chat/completions", json=body, timeout=30)


def test_a_box_serves_and_lends_what_a_server_beside_it_has(tmp_path: Path) -> None:
    with serving(Fake("ollama", models=["tiny:1b"])) as shared, serving(Fake("vllm", models=["secret"])) as own:
        engines = [{"url": shared.url}, {"url": own.url, "lend": False}]
        with agents(tmp_path, {"owner": {"engines": engines}, "asker": {}}) as (owner, asker):
            held = models_of(owner)
            assert set(held) == {"tiny:1b", "secret"}
            (holder,) = held["tiny:1b"]["holders"]
            assert (holder["engine"], holder["url"], holder["local"]) == ("ollama", shared.url, True)
            for model in held:
                answer = ask(owner, model)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == "".join(PIECES)
                assert answer.json()["usage"]["completion_tokens"] == len(PIECES)

            borrowed = until(lambda: models_of(asker).get("tiny:1b"))
            assert borrowed["hash"] == held["tiny:1b"]["hash"]
            assert "url" not in borrowed["holders"][0]
            for model in ("tiny:1b", borrowed["hash"]):
                answer = ask(asker, model)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == "".join(PIECES)
                assert answer.headers["x-shoal-served-by"] == "owner"

            # What is not lent is neither told to others nor run for them, by whatever reference they know it.
            assert "secret" not in models_of(asker)
            jobs = len(own.jobs())
            for model in ("secret", held["secret"]["hash"]):
                assert ask(asker, model).status_code == 404
            assert len(own.jobs()) == jobs

            facts = facts_of(owner)
            assert [(one["kind"], one["url"], one["error"]) for one in facts["engines"]] == [
                ("ollama", shared.url, None),
                ("vllm", own.url, None),
            ]
            assert {model["engine"] for model in facts["models"]} == {"ollama", "vllm"}
            # It has models and no llama.cpp of its own is needed for them.
            assert not [
                one for one in facts["warnings"] if one["code"] in ("engine_missing", "model_failed", "engine_unusable")
            ]


def test_a_borrower_gets_each_piece_as_it_comes_and_its_leaving_ends_the_job_at_the_server(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    with (
        serving(Fake("openai", models=["tiny"], gate=gate)) as fake,
        agents(tmp_path, {"owner": {"engines": [{"url": fake.url}]}, "asker": {}}) as (_, asker),
    ):
        until(lambda: "tiny" in models_of(asker))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
        gate.release()
        with httpx.stream("POST", f"{asker.url}/v1/chat/completions", json=body, timeout=30) as answer:
            got = ""
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    got += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    if got == PIECES[0]:
                        break
            assert got == PIECES[0]
            assert not fake.left.is_set()
        assert fake.left.wait(_LIMIT)
        until(lambda: fake.busy == 0)


def test_a_server_that_stops_is_reported_and_its_return_needs_nobody(tmp_path: Path) -> None:
    port = free_port()
    fake = Fake("llama-server", models=["tiny"])
    entry = {"url": f"http://127.0.0.1:{port}"}
    with agents(tmp_path, {"owner": {"engines": [entry]}}) as (owner,):
        (warning,) = [one for one in facts_of(owner)["warnings"] if one["code"] == "engine_unusable"]
        assert entry["url"] in warning["title"]
        assert "connection refused" in warning["text"]
        with serving(fake, port):
            until(lambda: "tiny" in models_of(owner))
            assert ask(owner, "tiny").status_code == 200
        answer = ask(owner, "tiny")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "model_load"
        assert facts_of(owner)["models"][0]["state"] == "failed"
        with serving(fake, port):
            until(lambda: facts_of(owner)["models"][0]["state"] == "loaded")
            assert ask(owner, "tiny").json()["choices"][0]["message"]["content"] == "".join(PIECES)


def test_an_agent_as_the_engine_of_another_is_refused(tmp_path: Path) -> None:
    with (
        serving(Fake("vllm")) as fake,
        agents(tmp_path, {"owner": {"engines": [{"url": fake.url}]}}) as (owner,),
        agents(tmp_path / "other", {"user": {"engines": [{"url": owner.url}]}}) as (user,),
    ):
        (engine,) = facts_of(user)["engines"]
        assert "is a Shoal agent" in engine["error"]
        assert models_of(user) == {}


def test_servers_are_spoken_to_without_another_http_client_in_memory() -> None:
    code = (
        "import sys, agent.engine.external.engines; sys.exit(bool({'httpx', 'httpcore', 'anyio'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
