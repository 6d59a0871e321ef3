"""MQTT against HTTP for the same jobs of one agent, and what a thousand sensor messages a second cost it.

The model is a server that answers at once, so that what is measured is the way there and back. Both ways are asked in
turn, so that drift of the machine hits both.
"""

from __future__ import annotations

import itertools
import json
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt.topics import node_of
from fleet.identity.keys import public_key_from_peer_id
from tests.bench.report import Figure, at_least, at_most, publish
from tests.external_fakes import Fake, serving
from tests.harness import Agent, agents
from tests.mqtt_broker import Broker

PAIRS = 400
SENSORS = 50
PER_SECOND = 1000
SECONDS = 15
MODEL = "tiny:1b"


class Asker:
    """A client of the broker without a thread: what it asks is answered before it returns."""

    def __init__(self, port: int) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._answers: list[MQTTMessage] = []
        self._client.on_message = lambda _client, _data, message: self._answers.append(message)
        self._client.on_socket_open = lambda _client, _data, opened: opened.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        self._numbers = itertools.count()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("reply/#", 1)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            self._client.loop(0.05)

    def ask(self, topic: str, body: dict[str, Any]) -> float:
        """Seconds from publishing a request to having its answer."""
        number = str(next(self._numbers)).encode()
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = "reply/bench", number
        began = time.perf_counter()
        self._client.publish(topic, json.dumps(body), 1, properties=properties)
        while True:
            self._client.loop(5.0)
            for answer in self._answers:
                assert answer.properties is not None
                if answer.properties.CorrelationData == number:
                    took = time.perf_counter() - began
                    assert json.loads(answer.payload)["status"] == "ok", answer.payload
                    self._answers.clear()
                    return took

    def publish(self, topic: str, payload: str) -> None:
        """Publish with QoS 0."""
        self._client.publish(topic, payload)

    def loop(self) -> None:
        """See to the connection."""
        self._client.loop(0.0)


def node(box: Agent) -> str:
    return node_of(public_key_from_peer_id(box.peer_id))


def ask_http(client: httpx.Client, box: Agent, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    answer = client.post(f"{box.url}/v1/chat/completions", json=body)
    took = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    return took


def overhead(box: Agent, port: int) -> list[Figure]:
    """The same question by both ways."""
    question = "Is 82 degrees normal for a fridge compressor?"
    over_http = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 16}
    over_mqtt = {"v": 1, "model": MODEL, "input": {"prompt": question}, "params": {"max_tokens": 16}}
    topic = f"shoal/v1/shops/{node(box)}/infer/request"
    asker = Asker(port)
    by_mqtt, by_http = [], []
    with httpx.Client(timeout=30) as client:
        for number in range(PAIRS + 20):
            pair = (asker.ask(topic, over_mqtt) * 1000, ask_http(client, box, over_http) * 1000)
            if number >= 20:
                by_mqtt.append(pair[0])
                by_http.append(pair[1])
    print(f"  HTTP p50 {at(by_http, 50):.2f} ms, p99 {at(by_http, 99):.2f} ms")
    print(f"  MQTT p50 {at(by_mqtt, 50):.2f} ms, p99 {at(by_mqtt, 99):.2f} ms")
    differences = [a - b for a, b in zip(by_mqtt, by_http, strict=True)]
    print(f"  MQTT less HTTP, pair by pair: p50 {at(differences, 50):.2f} ms, p99 {at(differences, 99):.2f} ms")
    return [
        at_most("MQTT less HTTP for the same job, p50 (ms)", 5, at(by_mqtt, 50) - at(by_http, 50), []),
        at_most("MQTT less HTTP for the same job, p99 (ms)", 20, at(by_mqtt, 99) - at(by_http, 99), []),
    ]


def sensors(box: Agent, port: int) -> list[Figure]:
    """A thousand messages a second of fifty sensors through a pipeline that asks about each every ten seconds."""
    spec = {
        "topics": ["bench/+/temperature"],
        "model": MODEL,
        "prompt": "The sensor {topic.1} reads {value}.",
        "collect": {"mode": "sample", "seconds": 10.0},
        "max_per_minute": 600,
    }
    box.offer(box.fleet.write("cfg", "pipe/bench", spec))
    while not facts(box)["pipelines"]:
        time.sleep(0.05)
    time.sleep(0.5)
    asker, process = Asker(port), psutil.Process(box.pid)
    before, began = process.cpu_times(), time.perf_counter()
    for number in range(PER_SECOND * SECONDS):
        asker.publish(f"bench/s{number % SENSORS}/temperature", f"{20 + number % 7}.5")
        if number % 20 == 19:
            asker.loop()
            time.sleep(max(0.0, began + number / PER_SECOND - time.perf_counter()))
    took = time.perf_counter() - began
    time.sleep(1)
    after = process.cpu_times()
    cpu = (after.user + after.system - before.user - before.system) / took
    memory = process.memory_info().rss / 1e6
    counts = facts(box)["pipelines"][0]["counts"]
    print(f"  {counts}, CPU {cpu:.1%} of one core, RSS {memory:.0f} MB, {PER_SECOND * SECONDS / took:.0f} messages/s")
    return [
        at_least("sensor messages sent (1/s)", 0.95 * PER_SECOND, PER_SECOND * SECONDS / took, []),
        at_least("of them read, percent", 100, counts["messages"] / PER_SECOND / SECONDS * 100, []),
        at_least("answers", SENSORS, counts["answers"], []),
        at_most("CPU of the agent meanwhile, of one core (%)", 80, cpu * 100, []),
        at_most("RSS of the agent (MB)", 200, memory, []),
    ]


def facts(box: Agent) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()["mqtt"]
    return found


def at(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> int:
    """Run it all on one agent and one broker."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, serving(Fake("ollama", models=[MODEL])) as fake:
        broker = Broker(Path(folder)).start()
        try:
            mqtt = {"url": broker.url, "fleet": "shops", "requests_per_second": 10_000.0}
            config = {"engines": [{"url": fake.url}], "mqtt": mqtt}
            with agents(Path(folder), {"till-1": config}) as (box,):
                while facts(box)["state"] != "connected":
                    time.sleep(0.05)
                print(f"{PAIRS} pairs of one job", flush=True)
                figures = overhead(box, broker.port)
                print(f"{PER_SECOND} sensor messages a second for {SECONDS} s", flush=True)
                figures += sensors(box, broker.port)
        finally:
            broker.kill()
    return publish("mqtt", figures)
