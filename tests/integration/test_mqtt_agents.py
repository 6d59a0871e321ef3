"""Real agents and a real mosquitto: a box without a model answers what is published, and no kill loses a job."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.harness import Agent, agents, holding_smollm2
from tests.mqtt_broker import broker, requester

pytestmark = [pytest.mark.mosquitto, pytest.mark.model]

LIMIT = 60.0


#: A pipeline for boxes that are gateways.
DOORS = {
    "topics": ["shop/+/door"],
    "model": "smollm2-135m-instruct",
    "prompt": "The door is {value}. Is it open or shut?",
    "answer": {
        "type": "object",
        "properties": {"state": {"enum": ["open", "shut"]}},
        "required": ["state"],
        "additionalProperties": False,
    },
    "selector": {"labels": {"role": "gateway"}},
}


def knows_a_model(box: Agent) -> bool:
    return bool(httpx.get(f"{box.url}/v1/models", timeout=10).json()["data"])


def test_a_box_without_a_model_delegates_jobs_and_one_that_is_killed_in_mid_job_answers_once(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        till_config = {"mqtt": {"url": one.url, "fleet": "shops"}, "labels": {"role": "gateway"}}
        boxes = {"till-1": till_config, "jetson-1": holding_smollm2()}
        with agents(tmp_path, boxes) as (till, _), requester(one, "shoal/v1/shops/#") as client:
            deadline = time.monotonic() + LIMIT
            while not knows_a_model(till):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            client.publish("shoal/v1/shops/infer/request", "Is 82 degrees normal for a fridge compressor?")
            accepted = client.next("/accepted", LIMIT)
            result = client.next("/result", LIMIT)
            story = {
                "v": 1,
                "job": "story",
                "stream": True,
                "input": {"prompt": "Write a very long story about the sea."},
                "params": {"max_tokens": 64, "temperature": 0},
            }
            client.publish("shoal/v1/shops/infer/request", story)
            client.next("/delta", LIMIT, job="story")
            till.kill()
            till.start()
            again = client.next("/result", LIMIT, job="story")
            assert client.quiet("/result", 1.0)
            # A pipeline of the fleet document, for boxes with this label; the model has to obey the schema.
            till.offer(till.fleet.write("cfg", "pipe/doors", DOORS))
            while client.quiet("/insight/doors", 1.0):
                client.publish("shop/b/door", "open")
                assert time.monotonic() < deadline + 2 * LIMIT
            insight = json.loads(next(m.payload for m in client.seen if m.topic.endswith("/insight/doors")))
            status = [m for m in client.seen if m.topic.endswith("/status")]
            metrics = httpx.get(f"{till.url}/metrics", timeout=10).text
            facts = httpx.get(f"{till.url}/v1/fleet/self", timeout=10).json()["mqtt"]
            audit = httpx.get(f"{till.url}/v1/audit?job=mqtt-story", timeout=10).text
            assert till.stop() == 0
            assert client.next_message("/availability", LIMIT).payload == b"offline"
    assert accepted["job"] == result["job"]
    assert (accepted["by"], result["served_by"]) == ("till-1", "jetson-1")
    assert result["output"]["text"].strip()
    assert again["usage"]["completion_tokens"] > 30
    assert status
    assert 'shoal_mqtt_events_total{event="job_replayed"} 1.0' in metrics
    assert facts["state"] == "connected"
    assert '"outcome":"ok"' in audit
    assert insight["answer"]["state"] in ("open", "shut")
    assert insight["served_by"] == "jetson-1"
