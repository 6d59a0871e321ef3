"""`shoal models`: the rows it prints, and what unload and retry ask of an agent, whose answers are made up here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.client import AgentClient, ClientError
from agent.cli.models import models

HELD = {"peer_id": "p", "name": "pos-1", "local": True, "state": "loaded", "decode_rate": 71.6}
LISTED = {
    "data": [
        {
            "id": "own",
            "shoal": {
                "hash": "sha256:" + "ab" * 32,
                "context_tokens": 2048,
                "holders": [{**HELD, "memory_bytes": 362 << 20, "rss_bytes": 353 << 20}],
            },
        },
        {
            "id": "theirs",
            "shoal": {
                "hash": "sha256:" + "cd" * 32,
                "context_tokens": 4096,
                "holders": [{**HELD, "engine": "ollama", "url": "http://127.0.0.1:11434"}],
            },
        },
    ]
}


class Agent:
    """Answers as scripted, and remembers what was posted."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []
        self.answer: dict[str, Any] | ClientError = {}

    def get(self, _: AgentClient, path: str) -> dict[str, Any]:
        assert path == "/v1/models"
        return LISTED

    def post(self, _: AgentClient, path: str, body: Any, **__: Any) -> dict[str, Any]:
        self.posted.append((path, body))
        if isinstance(self.answer, ClientError):
            raise self.answer
        return self.answer


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    scripted = Agent()
    monkeypatch.setattr(AgentClient, "get", lambda *args: scripted.get(*args))
    monkeypatch.setattr(AgentClient, "post", lambda *args, **more: scripted.post(*args, **more))
    return scripted


def shoal(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(models, [*args, "--url", "http://127.0.0.1:1"])
    return done.exit_code, done.output


@pytest.mark.usefixtures("agent")
def test_models_say_what_runs_them_and_what_they_take() -> None:
    code, out = shoal()
    assert code == 0
    header, own, theirs = out.splitlines()
    assert header.split() == ["MODEL", "CONTEXT", "MEMORY", "HASH", "HELD", "BY"]
    assert "353 of 362 MiB" in own
    assert "[loaded, 72 tok/s]" in own
    assert "ollama at http://127.0.0.1:11434" in theirs
    assert "MiB" not in theirs
    assert json.loads(shoal("-o", "json")[1])["models"][1]["holders"][0]["engine"] == "ollama"


@pytest.mark.parametrize(
    ("command", "answer", "said"),
    [
        ("unload", {"model": "own", "unloaded": True}, "own is unloaded until it is asked for"),
        ("unload", {"model": "own", "unloaded": False}, "own was not loaded"),
        ("retry", {"model": "own", "retried": True}, "own is tried again"),
        ("retry", {"model": "own", "retried": False}, "own has not failed"),
    ],
)
def test_unload_and_retry_are_asked_of_the_agent(agent: Agent, command: str, answer: Any, said: str) -> None:
    agent.answer = answer
    code, out = shoal(command, "own")
    assert (code, agent.posted) == (0, [(f"/v1/fleet/models/{command}", {"model": "own"})])
    assert said in out
    assert json.loads(shoal(command, "own", "-o", "json")[1]) == answer


def test_a_refusal_is_an_error_with_its_reason(agent: Agent) -> None:
    agent.answer = ClientError("model_busy", "own has requests, 1 running and 0 waiting", {"running": 1})
    code, out = shoal("unload", "own", "-o", "json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "model_busy"
