"""The demo as a newcomer runs it: real agents, the real model, a kill and a return."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.harness import model_path

KEYS = {
    "asked",
    "served_by",
    "model",
    "text",
    "ttft_ms",
    "tok_s",
    "local_ttft_ms",
    "local_tok_s",
    "interrupted_after_ms",
    "recovered_after_ms",
}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "demo", *arguments], capture_output=True, text=True, timeout=240
    )


@pytest.mark.model
def test_the_demo_does_all_it_says_and_ends_with_one_json_object() -> None:
    done = run_demo("--json", "--model", str(model_path()))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == KEYS
    assert (result["asked"], result["served_by"]) == ("sensor-1", "jetson-1")
    assert result["text"].strip()
    assert all(result[key] > 0 for key in KEYS - {"asked", "served_by", "model", "text"})
    assert result["interrupted_after_ms"] <= 3000
    assert "[6/6]" in done.stderr


@pytest.mark.model
@pytest.mark.mosquitto
@pytest.mark.skipif("SHOAL_SOAK_MQTT" not in os.environ, reason="takes half a minute; make soak-mqtt runs it")
def test_the_demo_of_mqtt_does_all_it_says() -> None:
    done = run_demo("--mqtt", "--json", "--model", str(model_path()))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["asked"], result["accepted_by"], result["served_by"]) == ("till-1", "till-1", "jetson-1")
    assert (result["job"], bool(result["text"].strip())) == ("demo-1", True)
    assert "[4/4]" in done.stderr


def test_a_model_that_is_not_there_is_said_so() -> None:
    done = run_demo("--json", "--model", "/nowhere/model.gguf")
    assert done.returncode == 1
    assert "/nowhere/model.gguf" in done.stderr
    assert "error" in json.loads(done.stdout.splitlines()[-1])
