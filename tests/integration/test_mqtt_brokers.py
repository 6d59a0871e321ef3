"""Brokers as this project describes them: access rules, TLS, a bridge. Pipelines and Home Assistant on a real one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from paho.mqtt.client import Client

from agent.jobs.job import Emit, Job
from agent.manifests.kinds import PipelineSpec
from agent.mqtt.pipeline import Wish
from fleet.net.messages import Delta, Finished
from tests.harness import free_port
from tests.mqtt_box import MqttBox, routed, running
from tests.mqtt_broker import LIMIT, Broker, Requester, broker, requester

pytestmark = pytest.mark.mosquitto

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docker" / "mosquitto"
EXAMPLES = ROOT / "manifests" / "examples"


def until(check: Callable[[], bool], limit: float = LIMIT) -> None:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < limit, "it did not happen"
        time.sleep(0.01)


class Site(Broker):
    """The sample configuration, on free ports and in a folder of the test's."""

    def __init__(self, folder: Path, nodes: list[str]) -> None:
        if shutil.which("openssl") is None or shutil.which("mosquitto_passwd") is None:
            pytest.skip("openssl or mosquitto_passwd is not installed")
        super().__init__(folder)
        self.app_port = free_port()
        config = self.folder / "config"
        subprocess.run([SAMPLES / "make-certs", config, "127.0.0.1", *nodes], check=True, capture_output=True)
        shutil.copy(SAMPLES / "acl", config)
        passwords = config / "passwords"
        passwords.touch(mode=0o600)
        for user in ("till-app", "sensors", "homeassistant"):
            subprocess.run(
                ["mosquitto_passwd", "-b", passwords, user, f"{user}-secret"], check=True, capture_output=True
            )
        user = re.search(r"^user .*$", self._config.read_text(), re.MULTILINE)
        assert user is not None
        text = (SAMPLES / "mosquitto.conf").read_text()
        for before, after in (
            ("/mosquitto/config", str(config)),
            ("/mosquitto/data", str(self.folder)),
            ("listener 8883", f"listener {self.port} 127.0.0.1"),
            ("listener 8884", f"listener {self.app_port} 127.0.0.1"),
            ("autosave_interval 60", "autosave_interval 600"),
        ):
            assert before in text
            text = text.replace(before, after)
        self._config.write_text(f"{user[0]}\n{text}")
        self.config = config
        self.url = f"mqtts://127.0.0.1:{self.port}"

    def box_config(self, node: str) -> dict[str, Any]:
        """What a box needs to come in."""
        files = {"ca_file": "ca.crt", "cert_file": f"{node}.crt", "key_file": f"{node}.key"}
        return {key: self.config / name for key, name in files.items()}

    def as_app(self, user: str, *topics: str) -> Requester:
        """A client with a password."""
        setup = lambda client: client.tls_set(str(self.config / "ca.crt"))  # noqa: E731
        return Requester(self.app_port, *topics, user=user, password=f"{user}-secret", setup=setup)

    def as_box(self, node: str, *topics: str) -> Requester:
        """A client with a box's certificate."""

        def setup(client: Client) -> None:
            client.tls_set(
                str(self.config / "ca.crt"), str(self.config / f"{node}.crt"), str(self.config / f"{node}.key")
            )

        return Requester(self.port, *topics, setup=setup)


def test_with_the_sample_rules_a_box_works_and_speaks_as_no_other(tmp_path: Path) -> None:
    box, other = MqttBox("till-1", "", tmp_path), MqttBox("till-2", "", tmp_path)
    site = Site(tmp_path, [box.node, other.node])
    box.broker_url, box.config = site.url, site.box_config(box.node)
    clients: list[Requester] = []
    try:
        site.start()
        with running(box):
            app = site.as_app("till-app", "shoal/v1/+/+/infer/#", "reply/till-app/#")
            watcher = site.as_app("homeassistant", "shoal/v1/#", "homeassistant/#")
            stolen = site.as_box(other.node)
            clients += [app, watcher, stolen]
            app.publish("shoal/v1/shops/infer/request", "hello?", reply_to="reply/till-app/1", correlation=b"7")
            app.next("/accepted")
            assert json.loads(app.next_message("reply/till-app/1").payload)["status"] == "ok"
            assert json.loads(watcher.next_message("/config").payload)["device"]["name"] == "till-1"
            # What the other box's key may not say: the first box's words, and jobs.
            said = [
                box.topics.availability, box.topics.status, box.topics.lease("x"), box.topics.job("x", "result"),
                box.topics.insight("x"), box.topics.own_request, box.topics.fleet_request,
                f"homeassistant/device/shoal_{box.node}/config",
            ]  # fmt: skip
            for topic in said:
                stolen.publish(topic, "stolen")
            stolen.publish(other.topics.availability, "mine")
            assert watcher.next_message(f"{other.node}/availability").payload == b"mine"
            app.publish(box.topics.job("x", "result"), "stolen")
            app.publish("shoal/v1/shops/infer/request", "and now?")
            app.next("/result")
            assert all(b"stolen" not in one.payload for one in (*watcher.seen, *app.seen))
            assert not [topic for _, topic in ((0, one.topic) for one in watcher.seen) if "/lease/x" in topic]
            facts = box.room.facts() if box.room is not None else None
            assert facts is not None
            assert facts["refused_topics"] == {}
    finally:
        for client in clients:
            client.close()
        site.kill()
    assert len(box.jobs) == 2


@pytest.mark.parametrize("missing", ["ca_file", "certificate", "name"])
def test_tls_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, missing: str) -> None:
    box = MqttBox("till-1", "", tmp_path)
    site = Site(tmp_path, [box.node])
    box.config = site.box_config(box.node)
    box.broker_url = site.url
    said = ("certificate",)
    if missing == "ca_file":
        box.config.pop("ca_file")
    elif missing == "certificate":
        box.config = {"ca_file": box.config["ca_file"]}
        said = ("closed", "alert", "broke", "reset", "certificate", "EOF")
    else:
        box.broker_url = site.url.replace("127.0.0.1", "localhost")
    try:
        site.start()
        with running(box, connected=False):
            until(lambda: box.room is not None and (box.room.facts() or {}).get("state") == "connecting")
            until(lambda: box.room is not None and bool((box.room.facts() or {}).get("problem")))
            assert box.room is not None
            facts = box.room.facts()
            assert not box.room.gauges.connected
    finally:
        site.kill()
    assert facts is not None
    assert any(word in str(facts["problem"]) for word in said), facts["problem"]


def test_over_a_bridge_jobs_wait_for_a_broker_that_is_away_and_answers_come_back(tmp_path: Path) -> None:
    far = Broker(tmp_path, keep=True)
    bridge = (SAMPLES / "bridge.conf").read_text()
    for before, after in (
        ("headquarters.example:1883", f"127.0.0.1:{far.port}"),
        ("restart_timeout 2 30", "restart_timeout 1"),
    ):
        assert before in bridge
        bridge = bridge.replace(before, after)
    # A bridge belongs to no listener, and comes after all of them.
    near = Broker(tmp_path, listener=f"allow_anonymous true\n{bridge}", keep=True)
    try:
        far.start()
        near.start()
        box = MqttBox("jetson-1", far.url, tmp_path)
        with running(box), requester(near, "reply/#", "shoal/v1/+/+/infer/#") as app:
            until(lambda: "Connected" in near.log() or crosses(app))
            app.publish("shoal/v1/shops/infer/request", "one?", reply_to="reply/a", correlation=b"0")
            assert app.next_message("reply/a").properties.CorrelationData == b"0"  # type: ignore[union-attr]
            far.kill()
            for number in b"123":
                app.publish("shoal/v1/shops/infer/request", "more?", reply_to="reply/a", correlation=bytes([number]))
            far.start()
            answers = {app.next_message("reply/a").properties.CorrelationData for _ in range(3)}  # type: ignore[union-attr]
            assert app.quiet("reply/a")
    finally:
        near.kill()
        far.kill()
    assert answers == {b"1", b"2", b"3"}
    assert len([job for job in box.jobs if job.request.job != "mqtt-probe"]) == 4


def crosses(app: Requester) -> bool:
    """Whether a job gets an answer over the bridge yet."""
    app.publish(
        "shoal/v1/shops/infer/request", {"v": 1, "job": "probe", "input": {"prompt": "x"}}, reply_to="reply/probe"
    )
    return not app.quiet("reply/probe", 0.5)


async def by_the_schema(job: Job, emit: Emit) -> None:
    """An answer as the schema of the fridges has it, by the numbers in the prompt."""
    highest = float(re.findall(r"highest (-?[\d.]+)", job.request.messages[-1].content)[0])
    status = "alarm" if highest > 95 else "ok"
    await emit(routed(job))
    await emit(Delta(text=json.dumps({"status": status, "reason": f"{highest:g} degrees"})))
    await emit(Finished(reason="stop", prompt_tokens=9, completion_tokens=9, prefill_ms=1.0, decode_ms=1.0))


def fridges(**changes: Any) -> Wish:
    """The example, as the fleet document has it."""
    spec = yaml.safe_load((EXAMPLES / "fridge-compressor.yaml").read_text())["spec"]
    return Wish("fridge-compressor", PipelineSpec.model_validate({**spec, **changes}))


def test_a_pipeline_reads_sensors_asks_and_publishes_what_obeys_its_schema(tmp_path: Path) -> None:
    recording = [
        json.loads(line) for line in (EXAMPLES / "messages" / "fridge-compressor.jsonl").read_text().splitlines()
    ]
    with broker(tmp_path) as one:
        box = MqttBox("gateway-1", one.url, tmp_path, script=by_the_schema)
        # By count: the recording's quarter of an hour is sent in a second.
        box.wishes = [
            fridges(collect={"mode": "window", "count": 15}, max_per_minute=600),
            Wish("broken", None, problem="topics: no"),
        ]
        with running(box), requester(one, "shoal/v1/+/+/insight/#", "homeassistant/#") as client:
            description = json.loads(client.next_message("/config").payload)
            until(lambda: box.room is not None and len(box.room.facts()["pipelines"]) == 2)  # type: ignore[index,arg-type]
            time.sleep(0.2)  # the subscription of the pipeline is on its way
            insights = []
            for third in range(3):
                for message in recording:
                    if (message["at"] - recording[0]["at"]) // 300 == third:
                        payload = message["payload"]
                        data = payload if isinstance(payload, str) else json.dumps(payload)
                        client.publish(message["topic"], data, wait=False)
                insights += [client.next("/insight/fridge-compressor") for _ in range(2)]
            # Home Assistant has started again: it is told again, though nothing has changed.
            client.publish("homeassistant/status", "online")
            assert json.loads(client.next_message("/config").payload) == description
            facts = box.room.facts() if box.room is not None else {}
    assert {one["answer"]["status"] for one in insights} == {"ok", "alarm"}
    assert all(one["of"]["count"] == 15 and one["v"] == 1 for one in insights)
    request = box.jobs[0].request
    assert (request.output, request.priority, request.model) == ("schema", "bulk", "smollm2-135m-instruct")
    assert "fridge_compressor_status" in description["components"]
    mine, broken = sorted(facts["pipelines"], key=lambda one: not one["here"])  # type: ignore[index]
    assert mine["counts"] == {"messages": len(recording), "bad": 2, "prompts": 6, "answers": 6}
    assert broken["why"] == "topics: no"
    assert box.counts["sensor_bad"] == 2


def test_insights_wait_for_a_broker_that_is_away_and_a_time_window_ends_by_itself(tmp_path: Path) -> None:
    with broker(tmp_path, keep=True) as one:
        box = MqttBox("gateway-1", one.url, tmp_path, script=by_the_schema)
        box.wishes = [fridges(collect={"mode": "window", "seconds": 1.0})]
        with running(box), requester(one, "shoal/v1/+/+/insight/#", keep="watcher") as client:
            time.sleep(0.3)
            client.publish("shop/b/fridge/f/compressor", {"temperature": 99.0, "door": "open"})
            until(lambda: box.counts["sensor"] == 1)
            one.kill()
            until(lambda: box.room is not None and box.room.gauges.outbox == 1)
            one.start()
            insight = client.next("/insight/fridge-compressor")
    assert insight["answer"] == {"status": "alarm", "reason": "99 degrees"}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_message_that_several_filters_mean_is_taken_once_by_each_pipeline(tmp_path: Path, version: str) -> None:
    """mosquitto sends it once for each of them."""
    spec = {"model": "smol", "prompt": "{values}", "collect": {"mode": "window", "count": 3}}
    filters = {"all": ["shop/#", "shop/+/door"], "doors": ["shop/+/door"]}
    with broker(tmp_path) as one:
        box = MqttBox("gateway-1", one.url, tmp_path, config={"protocol": version})
        box.wishes = [Wish(name, PipelineSpec.model_validate({**spec, "topics": t})) for name, t in filters.items()]
        with running(box), requester(one, "shoal/v1/+/+/insight/#") as client:
            until(lambda: box.room is not None and len(box.room.facts()["pipelines"]) == 2)  # type: ignore[index,arg-type]
            time.sleep(0.2)  # the subscriptions are on their way
            for value in "123":
                client.publish("shop/b/door", value)
            until(lambda: len(box.jobs) == 2)
            assert box.counts["sensor"] == 6
    assert [job.request.messages[-1].content for job in box.jobs] == ["1, 2, 3"] * 2


def test_a_pipeline_that_is_not_this_boxs_or_any_more_is_not_run(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("gateway-1", one.url, tmp_path, script=by_the_schema)
        box.wishes = [fridges(collect={"mode": "every"})]
        box.why_not = lambda wish: "role=gateway: it has no label role"
        with running(box), requester(one, "shoal/v1/+/+/insight/#") as client:
            client.publish("shop/b/fridge/f/compressor", {"temperature": 60, "door": "shut"})
            assert client.quiet("/insight/fridge-compressor")
            facts = box.room.facts() if box.room is not None else {}
    assert facts["pipelines"] == [
        {"name": "fridge-compressor", "here": False, "why": "role=gateway: it has no label role"}
    ]  # type: ignore[index]
    assert not box.jobs
