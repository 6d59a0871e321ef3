"""Jobs over a real mosquitto: asked by others' clients, sent twice, too large, too many, and through every outage."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.jobs.job import Emit, Job
from agent.mqtt import intake, room
from agent.mqtt.granted import WINDOW
from agent.mqtt.journal import FOLDER, Journal
from agent.mqtt.leases import claim_payload
from agent.mqtt.replies import MAX_RESULT
from agent.mqtt.request import MAX_PAYLOAD
from agent.mqtt.topics import Topics
from fleet.net.messages import Delta, Embedded, Finished
from tests.harness import free_port
from tests.mqtt_box import MqttBox, hello, routed, running
from tests.mqtt_broker import LIMIT, Broker, Requester, broker, requester

pytestmark = pytest.mark.mosquitto

ANSWERS = "shoal/v1/+/+/infer/#"


class Gate:
    """A job that begins, and goes on when it is let. Threads and trio runs may come and go around it."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.let = threading.Event()

    async def __call__(self, job: Job, emit: Emit) -> None:
        await emit(routed(job))
        await emit(Delta(text="slow "))
        self.began.release()
        while not self.let.is_set():
            await trio.sleep(0.01)
        await emit(Delta(text="answer"))
        await emit(Finished(reason="stop", prompt_tokens=7, completion_tokens=2, prefill_ms=1.5, decode_ms=4.0))

    def wait_begun(self) -> None:
        assert self.began.acquire(timeout=LIMIT)


def ask(**fields: object) -> dict[str, object]:
    return {"v": 1, "input": {"prompt": "Is 82 degrees normal for a fridge compressor?"}, **fields}


def facts_of(box: MqttBox) -> Mapping[str, Any]:
    """What a box says of its MQTT side."""
    assert box.room is not None
    facts = box.room.facts()
    assert facts is not None
    return facts


def until(check: object, limit: float = LIMIT) -> None:
    began = time.monotonic()
    while not check():  # type: ignore[operator]
        assert time.monotonic() - began < limit, "it did not happen"
        time.sleep(0.01)


def send_until_accepted(client: Requester, job: str) -> None:
    """As a requester does that is told nothing: it sends the same again."""
    for _ in range(20):
        client.publish("shoal/v1/shops/infer/request", ask(job=job))
        try:
            client.next("/accepted", limit=1.0, job=job)
        except AssertionError:
            continue
        return
    raise AssertionError("nobody takes the job")


def test_a_question_in_words_is_accepted_and_answered_as_in_the_documentation(tmp_path: Path) -> None:
    pub, sub = shutil.which("mosquitto_pub"), shutil.which("mosquitto_sub")
    if pub is None or sub is None:
        pytest.skip("mosquitto_pub and mosquitto_sub are not installed: apt-get install mosquitto-clients")
    with broker(tmp_path) as one, running(MqttBox("till-1", one.url, tmp_path)):
        port = str(one.port)
        with subprocess.Popen(
            [sub, "-p", port, "-t", ANSWERS, "-v", "-C", "2", "-W", "20"], stdout=subprocess.PIPE, text=True
        ) as listening:
            time.sleep(0.3)  # it says nothing when it has subscribed
            question = "Is 82 degrees normal for a fridge compressor?"
            subprocess.run([pub, "-p", port, "-t", "shoal/v1/shops/infer/request", "-m", question], check=True)
            text = listening.communicate(timeout=LIMIT)[0]
    (first, accepted), (second, result) = (line.split(" ", 1) for line in text.splitlines())
    assert (first.rsplit("/", 1)[1], second.rsplit("/", 1)[1]) == ("accepted", "result")
    assert json.loads(accepted)["by"] == "till-1"
    assert json.loads(result)["output"] == {"text": "Yes, it is.", "finish": "stop"}


def test_request_and_response_of_mqtt_5_with_deltas_and_the_trace_of_the_requester(tmp_path: Path) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box), requester(one, ANSWERS, "reply/#") as client:
            request = ask(job="till-4711", stream=True, model={"ref": "smol", "substitute": "quant"}, priority="bulk")
            client.publish(
                box.topics.own_request,
                request,
                reply_to="reply/me",
                correlation=b"\x00\x01",
                user=[("traceparent", trace)],
            )
            message = client.next_message("reply/me")
            result = json.loads(message.payload)
        deltas = [json.loads(m.payload) for m in client.seen if m.topic.endswith("/delta")]
        accepted = [m.topic for m in client.seen if m.topic.endswith("/accepted")]
    assert message.properties is not None
    assert message.properties.CorrelationData == b"\x00\x01"
    assert dict(message.properties.UserProperty) == {"job": "till-4711", "type": "result"}
    assert accepted == [box.topics.job("till-4711", "accepted")]
    assert [(d["seq"], d["text"]) for d in deltas] == [(0, "Yes"), (1, ", it "), (2, "is.")]
    assert result["served_by"] == "jetson-1"
    assert result["route"][0] == {"peer": "till-1", "verdict": "no model"}
    request_run = box.jobs[0].request
    assert (request_run.job, request_run.model, request_run.priority) == ("mqtt-till-4711", "smol", "bulk")
    assert request_run.traceparent == trace
    assert box.jobs[0].substitution == "quant"


def test_a_client_of_3_1_1_asks_a_box_that_speaks_3_1_1(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, config={"protocol": "3.1.1"})
        with running(box), requester(one, ANSWERS, version=4) as client:
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            assert client.next("/result")["job"] == "a"
        assert facts_of(box)["version"] == "3.1.1"


@contextmanager
def older_broker(real: Broker) -> Iterator[int]:
    """What a broker does that knows 3.1.1 alone: it answers MQTT 5 with code 1 of 3.1.1, and closes."""
    listening = socket.create_server(("127.0.0.1", free_port()))

    def relay(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            first = client.recv(65536)
            if first[first.index(b"MQTT") + 4] == 5:
                client.sendall(b"\x20\x02\x00\x01")
                client.close()
                continue
            upstream = socket.create_connection(("127.0.0.1", real.port))
            upstream.sendall(first)
            for ends in ((client, upstream), (upstream, client)):
                threading.Thread(target=relay, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()


def test_a_broker_that_does_not_know_mqtt_5_is_spoken_to_in_3_1_1(tmp_path: Path) -> None:
    with broker(tmp_path) as one, older_broker(one) as port:
        box = MqttBox("till-1", f"mqtt://127.0.0.1:{port}", tmp_path)
        with running(box), requester(one, ANSWERS) as client:
            client.publish(box.topics.own_request, "hello?")
            client.next("/result")
        assert box.counts["fell_back_to_3_1_1"] == 1


def test_what_is_sent_twice_runs_once_and_is_answered_twice_with_the_same_bytes(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box), requester(one, "reply/#") as client:
            answers = []
            for _ in range(2):
                client.publish(box.topics.own_request, ask(job="a"), reply_to="reply/a", correlation=b"1")
                answers.append(client.next_message("reply/a"))
            client.publish(box.topics.own_request, ask(job="a", priority="bulk"), reply_to="reply/a")
            other = client.next("reply/a")
        with running(box), requester(one, "reply/#") as client:
            client.publish(box.topics.own_request, ask(job="a"), reply_to="reply/a", correlation=b"1")
            answers.append(client.next_message("reply/a"))
    assert len(box.jobs) == 1
    assert len({one.payload for one in answers}) == 1
    assert all(one.properties is not None and one.properties.CorrelationData == b"1" for one in answers)
    assert other["code"] == "bad_request"


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_what_cannot_be_a_request_is_answered_with_an_error_and_harms_nobody(tmp_path: Path, version: str) -> None:
    bad: dict[str, object] = {
        "empty": " ",
        "not_utf8": b"\xff\xfe question",
        "ten_megabytes": b"x" * 10_000_000,
        "just_too_large": b"y" * (MAX_PAYLOAD + 1),
        "not_json": '{"v":1,',
        "an_unknown_field": {"v": 1, "input": {"prompt": "x"}, "jb": "x"},
        "a_version_to_come": {"v": 2, "input": {"prompt": "x"}},
        "two_inputs": {"v": 1, "input": {"prompt": "x", "texts": ["y"]}},
        "deep": '{"v":1,"input":{"prompt":"x"},"params":{"schema":' + '{"a":' * 40 + "1" + "}" * 42,
        "deeper": '{"v":1,"input":' + "[" * 5000 + "]" * 5000 + "}",
        "a_bad_schema": {"v": 1, "input": {"prompt": "x"}, "params": {"schema": {"type": "nonsense"}}},
        "an_id_that_is_none": {"v": 1, "job": "a/b", "input": {"prompt": "x"}},
    }
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, config={"protocol": version})
        with running(box), requester(one, ANSWERS) as client:
            for name, payload in bad.items():
                client.publish(box.topics.own_request, payload)  # type: ignore[arg-type]
                assert client.next("/error")["code"] == "bad_request", name
            client.publish(box.topics.own_request, "and now?")
            client.next("/result")
        counts = box.counts
    assert (counts["request_not_utf8"], counts["request_too_large"]) == (1, 2)
    assert [code for _, code in box.refused] == ["bad_request"] * len(bad)
    assert len(box.jobs) == 1


@pytest.mark.parametrize(
    "reply_to", ["shoal/v1/shops/0123456789abcdef/infer/request", "homeassistant/device/x/config", "$SYS/x"]
)
def test_nobody_makes_a_box_speak_where_it_must_not(tmp_path: Path, reply_to: str) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box), requester(one, "#") as client:
            client.publish(box.topics.own_request, ask(job="a"), reply_to=reply_to)
            error = client.next("/error")
    assert error["code"] == "bad_request"
    assert "ResponseTopic" in error["message"]
    assert not box.jobs
    assert all(message.topic != reply_to for message in client.seen)


def test_a_retained_request_is_refused_and_never_runs_again(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box), requester(one, ANSWERS) as client:
            client.publish(box.topics.own_request, "hello?", retain=True)
            assert "retain" in client.next("/error")["message"]
        with running(box), requester(one, ANSWERS) as client:
            client.publish(box.topics.own_request, "hello again?")
            client.next("/result")
    assert len(box.jobs) == 1


def test_a_flood_is_bounded_and_every_request_of_it_is_answered_or_refused_once(tmp_path: Path) -> None:
    count = int(os.environ.get("SHOAL_SOAK_MQTT", "1500"))
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, config={"waiting": 50, "running": 4, "requests_per_second": 100.0})
        with running(box), requester(one, "reply/#") as client:
            for number in range(count):
                client.publish(box.topics.own_request, ask(job=f"j{number}"), reply_to="reply/f", wait=False)
            answers = [client.next("reply/f", limit=60) for _ in range(count)]
            assert box.room is not None
            assert box.room.gauges.waiting <= 54
            assert client.quiet("reply/f")
    said = Counter(answer.get("code", "ok") for answer in answers)
    assert set(said) == {"ok", "overloaded"}
    assert said["ok"] >= 100
    assert {answer["job"] for answer in answers} == {f"j{number}" for number in range(count)}
    assert len(box.jobs) == said["ok"]
    assert box.counts["request_overloaded"] == said["overloaded"]
    assert all(answer["retryable"] and answer["retry_after_ms"] > 0 for answer in answers if "code" in answer)


def test_a_broker_that_is_killed_in_mid_job_and_comes_back_delivers_the_answer_once(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path, keep=True) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate)
        with running(box), requester(one, ANSWERS, keep="asker") as client:
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            client.next("/accepted")
            gate.wait_begun()
            one.kill()
            gate.let.set()
            until(lambda: box.room is not None and not box.room.gauges.connected)
            until(lambda: box.room is not None and box.room.gauges.outbox == 1)
            one.start()
            result = client.next("/result", job="a")
            assert client.quiet("/result")
    assert result["output"]["text"] == "slow answer"
    assert len(box.jobs) == 1


def test_a_box_that_is_killed_in_mid_job_runs_it_at_its_next_start_and_answers_once(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one, requester(one, ANSWERS) as client:
        box = MqttBox("till-1", one.url, tmp_path, script=gate)
        with pytest.raises(ZeroDivisionError), running(box):
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            client.publish(box.topics.own_request, "and this?")
            gate.wait_begun()
            gate.wait_begun()
            raise ZeroDivisionError
        assert client.quiet("/result")
        gate.let.set()
        with running(box):
            texts = [client.next("/result")["output"]["text"] for _ in range(2)]
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            client.next("/result", job="a")
            assert client.quiet("/result")
    assert texts == ["slow answer", "slow answer"]
    assert box.counts["job_replayed"] == 2
    assert len(box.jobs) == 4


def test_a_job_during_which_the_box_ends_each_time_is_given_up(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one, requester(one, ANSWERS) as client:
        box = MqttBox("till-1", one.url, tmp_path, script=gate)
        for attempt in range(3):
            with pytest.raises(ZeroDivisionError), running(box):
                if not attempt:
                    client.publish(box.topics.own_request, ask(job="a"))
                gate.wait_begun()
                raise ZeroDivisionError
        with running(box):
            error = client.next("/error")
    assert (error["job"], error["code"], error["retryable"]) == ("a", "interrupted", False)


def test_where_every_box_is_sent_every_job_one_of_them_runs_it(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        # In 3.1.1 nobody knows whether the broker has shared subscriptions.
        boxes = [MqttBox(name, one.url, tmp_path, config={"protocol": "3.1.1"}) for name in ("till-1", "till-2")]
        with running(*boxes), requester(one, ANSWERS) as client:
            for number in range(20):
                client.publish("shoal/v1/shops/infer/request", ask(job=f"j{number}"), wait=False)
            answered = [client.next("/result")["job"] for _ in range(20)]
            until(lambda: sum(box.counts["lease_given_way"] for box in boxes) == 20)
            assert client.quiet("/result")
    assert set(answered) == {f"j{number}" for number in range(20)}
    assert sum(len(box.jobs) for box in boxes) == 20


def test_of_two_boxes_on_one_broker_one_runs_a_job_whoever_it_is_sent_to(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        boxes = [MqttBox(name, one.url, tmp_path) for name in ("till-1", "till-2")]
        with running(*boxes), requester(one, ANSWERS) as client:
            for number in range(20):
                client.publish("shoal/v1/shops/infer/request", ask(job=f"j{number}"), wait=False)
            for _ in range(20):
                client.next("/result")
            ran = [len(box.jobs) for box in boxes]
            # The broker gives them out in turn: after one more, all reach the box that did not run them. It gives way,
            # and the one that has the answer says it again.
            client.publish("shoal/v1/shops/infer/request", ask(job="one-more"))
            client.next("/result", job="one-more")
            for number in range(20):
                client.publish("shoal/v1/shops/infer/request", ask(job=f"j{number}"), wait=False)
            again = {client.next("/result")["job"] for _ in range(20)}
        assert sum(box.counts["lease_given_way"] for box in boxes) == 20
    assert sum(ran) == 20
    assert min(ran) > 0
    assert again == {f"j{number}" for number in range(20)}
    assert sum(len(box.jobs) for box in boxes) == 21


def test_the_job_of_a_box_that_has_gone_is_taken_by_the_one_it_is_sent_to_next(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one, requester(one, ANSWERS, "shoal/v1/+/+/availability") as client:
        lost = MqttBox("till-1", one.url, tmp_path, script=gate)
        with pytest.raises(ZeroDivisionError), running(lost):
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            gate.wait_begun()
            raise ZeroDivisionError
        while client.next_message("/availability").payload != b"offline":
            pass
        other = MqttBox("till-2", one.url, tmp_path)
        with running(other):
            send_until_accepted(client, "a")
            client.next("/result", job="a")
            gate.let.set()
            # The first one comes back, finds that its job is another's, and lets it be.
            with running(lost):
                until(lambda: lost.counts["lease_given_way"] == 1)
                assert client.quiet("/result")
    assert (len(lost.jobs), len(other.jobs)) == (1, 1)


def test_a_job_is_called_off_where_it_waits_and_where_it_runs(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate, config={"running": 1})
        with running(box), requester(one, ANSWERS) as client:
            for job in ("runs", "waits"):
                client.publish(box.topics.own_request, ask(job=job, stream=True))
                client.next("/accepted", job=job)
            gate.wait_begun()
            for job in ("waits", "runs"):
                client.publish(f"{box.topics.own}/infer/{job}/cancel", "")
                error = client.next("/error", job=job)
                assert (error["code"], error.get("last_seq")) == ("cancelled", 0 if job == "runs" else None)
        assert box.cancelled.wait(LIMIT)
    assert len(box.jobs) == 1


def test_what_is_urgent_goes_before_bulk_and_takes_its_place(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate, config={"running": 1, "waiting": 2})
        with running(box), requester(one, ANSWERS) as client:
            for job, priority in (("first", "normal"), ("bulk-1", "bulk"), ("bulk-2", "bulk")):
                client.publish(box.topics.own_request, ask(job=job, priority=priority))
                client.next("/accepted", job=job)
            client.publish(box.topics.own_request, ask(job="urgent", priority="interactive"))
            displaced = client.next("/error", job="bulk-1")
            client.publish(box.topics.own_request, ask(job="bulk-3", priority="bulk"))
            refused = client.next("/error", job="bulk-3")
            gate.let.set()
            for _ in range(3):
                client.next("/result")
    assert [job.request.job for job in box.jobs] == ["mqtt-first", "mqtt-urgent", "mqtt-bulk-2"]
    assert (displaced["code"], refused["code"]) == ("overloaded", "overloaded")


def test_requests_that_are_large_are_bounded_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_HELD", 250_000)
    gate = Gate()
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate, config={"running": 1})
        with running(box), requester(one, ANSWERS) as client:
            for job, priority in (("first", "normal"), ("bulk", "bulk")):
                client.publish(box.topics.own_request, ask(job=job, priority=priority, input={"prompt": "x" * 100_000}))
                client.next("/accepted", job=job)
            urgent = ask(job="urgent", priority="interactive", input={"prompt": "x" * 100_000})
            client.publish(box.topics.own_request, urgent)
            displaced = client.next("/error", job="bulk")
            client.publish(box.topics.own_request, ask(job="late", input={"prompt": "x" * 100_000}))
            refused = client.next("/error", job="late")
            client.publish(box.topics.own_request, ask(job="small"))
            client.next("/accepted", job="small")
            gate.let.set()
            assert {client.next("/result")["job"] for _ in range(3)} == {"first", "urgent", "small"}
    assert (displaced["code"], refused["code"]) == ("overloaded", "overloaded")
    assert "MiB" in refused["message"]


def test_a_job_that_is_not_its_turn_in_time_is_told_so(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate, config={"running": 1})
        with running(box), requester(one, ANSWERS) as client:
            client.publish(box.topics.own_request, ask(job="first"))
            gate.wait_begun()
            client.publish(box.topics.own_request, ask(job="late", deadline_ms=50))
            error = client.next("/error", job="late")
            gate.let.set()
            client.next("/result", job="first")
    assert (error["code"], error["retryable"]) == ("deadline", True)


def test_a_disk_that_is_full_is_said_and_no_job_is_lost_for_it(tmp_path: Path) -> None:
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box), requester(one, ANSWERS) as client:
            client.publish(box.topics.own_request, "hello?")
            client.next("/result")
            (database,) = (tmp_path / "till-1").rglob("journal.db")
            other = sqlite3.connect(database, isolation_level=None)
            other.execute("begin exclusive")  # whatever keeps a disk from taking what is written, takes its time
            assert box.room is not None
            connection = box.room._desk._journal._connection  # type: ignore[union-attr]
            connection.execute("pragma busy_timeout = 50")  # type: ignore[union-attr]
            client.publish(box.topics.own_request, ask(job="a"))
            client.next("/result", job="a")
            other.execute("rollback")
            until(lambda: box.room is not None and not box.room.gauges.outbox)
            other.close()
        with running(box), requester(one, ANSWERS) as client:
            # It was acknowledged when it was answered: the broker does not send it again.
            assert client.quiet("/result")
    assert len(box.jobs) == 2
    assert box.counts["job_replayed"] == 0


def test_a_journal_that_cannot_be_opened_is_said_and_is_opened_as_soon_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_OPEN_AGAIN", 0.05)
    in_the_way = tmp_path / "till-1" / FOLDER
    in_the_way.parent.mkdir()
    in_the_way.write_text("not a folder")
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box, connected=False), requester(one, ANSWERS) as client:
            until(lambda: str(in_the_way) in facts_of(box)["problem"])
            assert facts_of(box)["state"] == "waiting"
            in_the_way.unlink()
            until(lambda: box.room is not None and box.room.gauges.connected)
            assert not facts_of(box)["problem"]
            client.publish(box.topics.own_request, ask(job="a"))
            client.next("/result", job="a")


def test_a_disk_that_does_not_sync_costs_no_request_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than the broker lets be on their way at a time: each has to be acknowledged all the same."""
    bad = threading.Event()
    sync = Journal._sync_log
    monkeypatch.setattr(Journal, "_sync_log", lambda self: "Input/output error" if bad.is_set() else sync(self))
    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, config={"requests_per_second": 1000.0})
        with running(box), requester(one, "reply/#") as client:
            bad.set()
            for number in range(WINDOW + 6):
                client.publish(box.topics.own_request, ask(job=f"j{number}"), reply_to="reply/a", wait=False)
            answered = {client.next("reply/a")["job"] for _ in range(WINDOW + 6)}
    assert len(answered) == WINDOW + 6


@pytest.mark.parametrize("seconds", ["9" * 400, '"soon"', "[" * 300])
def test_what_anybody_keeps_on_a_lease_topic_stops_nobody(tmp_path: Path, seconds: str) -> None:
    with broker(tmp_path) as one, requester(one, ANSWERS) as client:
        lease = Topics("shops", "b" * 16).lease("j")
        client.publish(lease, f'{{"v":1,"job":"j","seconds":{seconds}}}', retain=True)
        box = MqttBox("till-1", one.url, tmp_path)
        with running(box):
            client.publish("shoal/v1/shops/infer/request", "hello?")
            client.next("/result")
            assert box.counts["connection_lost"] == 0


def test_a_box_that_was_away_lets_go_of_a_job_that_another_one_has_claimed(tmp_path: Path) -> None:
    gate = Gate()
    with broker(tmp_path, keep=True) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=gate)
        with running(box), requester(one, ANSWERS, keep="asker") as client:
            client.publish("shoal/v1/shops/infer/request", ask(job="a"))
            client.next("/accepted")
            gate.wait_begun()
            # Behind this box's own claim, which counts as long as it is there.
            client.publish(Topics("shops", "b" * 16).lease("a"), claim_payload("a", 60.0, True), retain=True)
            one.kill()
            one.start()
            assert box.cancelled.wait(LIMIT)
            gate.let.set()
            until(lambda: box.counts["lease_given_way"] == 1)
            assert client.quiet("/result")


def test_vectors_come_as_numbers_and_too_many_of_them_as_an_error(tmp_path: Path) -> None:
    dimensions = 2

    async def embed(job: Job, emit: Emit) -> None:
        await emit(routed(job))
        texts = len(job.request.texts)
        if texts == 2:
            await emit(Embedded(first=0, dimensions=dimensions, data=base64.b64decode("AACAPwAAAAAAAAAAAACAPw==")))
        else:
            await emit(Embedded(first=0, dimensions=1024, data=b"\0" * (MAX_RESULT - MAX_RESULT % 4096)))
        await emit(Finished(reason="stop", prompt_tokens=4, completion_tokens=0, prefill_ms=1.0, decode_ms=0.0))

    with broker(tmp_path) as one:
        box = MqttBox("till-1", one.url, tmp_path, script=embed)
        with running(box), requester(one, ANSWERS) as client:
            request = {"v": 1, "kind": "embedding", "input": {"texts": ["a", "b"]}}
            client.publish(box.topics.own_request, request)
            assert client.next("/result")["output"] == {"vectors": [[1.0, 0.0], [0.0, 1.0]]}
            client.publish(box.topics.own_request, {**request, "input": {"texts": ["a"]}})
            assert client.next("/error")["code"] == "bad_request"


def test_a_wrong_password_is_said_and_the_right_one_gets_in(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed")
    subprocess.run([tool, "-b", str(passwords), "till", "right"], check=True, capture_output=True)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for file, text in ((right, "right\n"), (wrong, "wrong\n")):
        file.write_text(text)
        file.chmod(0o600)
    listener = f"allow_anonymous false\npassword_file {passwords}"
    with broker(tmp_path, listener=listener) as one:
        box = MqttBox("till-1", one.url, tmp_path, config={"user": "till", "password_file": wrong})
        with running(box, connected=False):
            until(lambda: facts_of(box).get("state") == "denied")
        assert facts_of(box)["problem"] == "Not authorized"
        box = MqttBox("till-1", one.url, tmp_path, config={"user": "till", "password_file": right})
        with running(box), requester(one, ANSWERS, user="till", password="right") as client:
            client.publish(box.topics.own_request, "hello?")
            client.next("/result")


def test_a_broker_that_is_not_there_yet_is_found_when_it_comes(tmp_path: Path) -> None:
    late = Broker(tmp_path)
    box = MqttBox("till-1", late.url, tmp_path, script=hello)
    starting = threading.Timer(0.5, late.start)
    starting.start()
    try:
        with running(box):
            starting.join()
            client = Requester(late.port, ANSWERS)
            client.publish(box.topics.own_request, "hello?")
            client.next("/result")
            client.close()
    finally:
        starting.join()
        late.kill()
    assert box.counts["connection_failed"] >= 1
