"""Jobs across boxes, on real processes and (where text is made) the real model."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from fleet.net.messages import NOTIFY_PRESENCE, Presence
from fleet.net.rpc import IncomingCall
from tests.command import run_shoal
from tests.harness import Agent, agents, holding_smollm2, peer_id_of
from tests.peer import HASH, fake_model, peer

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "Write a long story about a lighthouse keeper."}]


def ask(
    box: Agent, *, model: str = MODEL, max_tokens: int = 24, headers: Mapping[str, str] | None = None, **fields: Any
) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "max_tokens": max_tokens, "temperature": 0, **fields}
    return httpx.post(f"{box.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


class Stream:
    """A streamed answer, read chunk by chunk."""

    def __init__(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {response.read().decode()}")
        self.response = response
        self.chunks: list[dict[str, Any]] = []
        self.done = False
        self.error: dict[str, Any] | None = None
        self._lines = response.iter_lines()

    @property
    def text(self) -> str:
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in self.chunks if c.get("choices"))

    def next_text(self) -> bool:
        """Read on to the next piece of text; False at the end."""
        for line in self._lines:
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                self.done = True
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                self.error = chunk["error"]
                continue
            self.chunks.append(chunk)
            if chunk.get("choices") and chunk["choices"][0]["delta"].get("content"):
                return True
        return False


def streaming(
    client: httpx.Client, box: Agent, *, max_tokens: int = 1500, headers: Mapping[str, str] | None = None, **fields: Any
) -> Any:
    body = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        **fields,
    }
    return client.stream("POST", f"{box.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """A box without a model, and one that holds it."""
    with agents(tmp_path_factory.mktemp("pair"), {"sensor-1": {}, "jetson-1": holding_smollm2()}) as boxes:
        yield boxes


def wait_until(check: Any, limit: float = 20.0) -> float:
    """Poll an observable of another process; returns the seconds it took."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < limit, "did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def jobs_running(box: Agent) -> int:
    return int(httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()["jobs_running"])


def borrowable(box: Agent) -> list[str]:
    return [m["id"] for m in httpx.get(f"{box.url}/v1/models", timeout=10).json()["data"]]


@pytest.mark.model
def test_b3_b23_a_box_without_the_model_answers_and_says_who_served(pair: list[Agent]) -> None:
    sensor, jetson = pair
    wait_until(lambda: MODEL in borrowable(sensor))
    answer = ask(sensor)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert answer.headers["x-shoal-served-by"] == "jetson-1"
    assert answer.headers["x-shoal-served-by-id"] == jetson.peer_id
    assert answer.headers["x-shoal-model"] == MODEL
    assert answer.headers["x-shoal-route"] == "sensor-1=does not hold the model; jetson-1=served"
    local = ask(jetson)
    assert local.headers["x-shoal-served-by"] == "jetson-1"
    assert local.json()["choices"][0]["message"] == answer.json()["choices"][0]["message"]


@pytest.mark.model
def test_every_line_of_a_job_carries_its_id_on_both_boxes(pair: list[Agent]) -> None:
    sensor, jetson = pair
    job = ask(sensor).headers["x-shoal-job"]

    def events(box: Agent) -> set[str]:
        return {r["event"] for r in box.lines if r.get("job") == job}

    wait_until(lambda: {"job.routed", "job.end"} <= events(sensor))
    wait_until(lambda: {"job.lent", "job.lent_end"} <= events(jetson))


@pytest.mark.model
def test_b21_tokens_arrive_one_by_one_before_the_peer_has_finished(pair: list[Agent]) -> None:
    sensor, jetson = pair
    with httpx.Client() as client, streaming(client, sensor, max_tokens=300) as response:
        stream = Stream(response)
        assert stream.next_text()
        assert jobs_running(jetson) == 1
        count = 1
        while stream.next_text():
            count += 1
    assert stream.done
    assert count > 100


@pytest.mark.model
def test_b19_a_client_that_goes_away_stops_the_peer_within_a_second(pair: list[Agent]) -> None:
    sensor, jetson = pair
    with httpx.Client() as client, streaming(client, sensor) as response:
        stream = Stream(response)
        for _ in range(3):
            assert stream.next_text()
        assert jobs_running(jetson) == 1
    assert wait_until(lambda: jobs_running(jetson) == 0) <= 1.0
    outcome = [r["outcome"] for r in jetson.lines if r["event"] == "job.lent_end"][-1]
    assert outcome == "cancelled"


@pytest.mark.model
def test_a_repetition_with_the_same_key_gets_the_job_that_runs(pair: list[Agent]) -> None:
    sensor, jetson = pair
    key = {"Idempotency-Key": "a-receipt-of-today"}
    with httpx.Client() as client:
        with streaming(client, sensor, max_tokens=40, headers=key) as response:
            stream = Stream(response)
            assert stream.next_text()
            job = response.headers["x-shoal-job"]
            begun = stream.text
        with streaming(client, sensor, max_tokens=40, headers=key) as response:
            stream = Stream(response)
            while stream.next_text():
                pass
            assert response.headers["x-shoal-repeats"] == job
            assert stream.done
            assert stream.text.startswith(begun)
    whole = ask(sensor, max_tokens=41, headers=key)
    assert (whole.status_code, whole.json()["error"]["code"]) == (422, "idempotency_conflict")
    lent = [line for line in jetson.log().splitlines() if '"event": "job.lent"' in line and job in line]
    assert len(lent) == 1


@pytest.mark.model
def test_b45_no_history_is_shared_between_requests(pair: list[Agent]) -> None:
    sensor, _ = pair
    first = ask(sensor).json()["choices"][0]["message"]["content"]
    ask(sensor, messages=[{"role": "user", "content": "The secret word is xylophone. Repeat the secret word."}])
    assert ask(sensor).json()["choices"][0]["message"]["content"] == first


@pytest.mark.model
def test_a_prompt_past_the_context_is_400_with_both_numbers_also_through_a_peer(pair: list[Agent]) -> None:
    for box in pair:
        answer = ask(box, messages=[{"role": "user", "content": "word " * 5000}])
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["details"]["context_tokens"] == 4096
        assert error["details"]["prompt_tokens"] > 5000
        assert "4096" in error["message"]


@pytest.mark.model
def test_b18_b24_a_killed_provider_is_an_error_in_the_stream_and_its_return_needs_nothing(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}) as (sensor, jetson):
        wait_until(lambda: MODEL in borrowable(sensor))
        with httpx.Client() as client, streaming(client, sensor) as response:
            stream = Stream(response)
            for _ in range(3):
                assert stream.next_text()
            killed = time.monotonic()
            jetson.kill()
            while stream.next_text():
                pass
            assert time.monotonic() - killed <= 3.0
        assert stream.error is not None
        assert stream.error["code"] == "interrupted"
        assert not stream.done
        refused = ask(sensor)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "30"
        assert refused.json()["error"]["code"] == "no_capable_peer"
        jetson.start()
        answer = ask(sensor)
        assert answer.status_code == 200
        assert answer.headers["x-shoal-served-by"] == "jetson-1"


@pytest.mark.model
def test_b18_b33_a_frozen_provider_is_noticed_within_three_seconds_and_comes_back(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}) as (sensor, jetson):
        wait_until(lambda: MODEL in borrowable(sensor))
        with httpx.Client() as client, streaming(client, sensor) as response:
            stream = Stream(response)
            assert stream.next_text()
            frozen = time.monotonic()
            jetson.send(signal.SIGSTOP)
            while stream.next_text():
                pass
            assert time.monotonic() - frozen <= 3.5
        assert stream.error is not None
        assert not stream.done
        jetson.send(signal.SIGCONT)
        # A dial that was under way when the box froze may come up first, and end at once.
        wait_until(lambda: ask(sensor).status_code == 200)


@pytest.mark.model
def test_b18_resume_goes_on_on_another_box_and_says_so(tmp_path: Path) -> None:
    boxes = {"sensor-1": {}, "jetson-1": holding_smollm2(), "jetson-2": holding_smollm2()}
    with agents(tmp_path, boxes) as (sensor, one, two):
        for box in (one, two):
            ask(box, max_tokens=2)
        wait_until(lambda: sum(p["connected"] for p in peers(sensor)) == 2)
        headers = {"X-Shoal-On-Interrupt": "resume"}
        with httpx.Client() as client, streaming(client, sensor, max_tokens=120, headers=headers) as response:
            first = response.headers["x-shoal-served-by"]
            stream = Stream(response)
            for _ in range(3):
                assert stream.next_text()
            (one if first == "jetson-1" else two).kill()
            while stream.next_text():
                pass
        assert stream.error is None
        assert stream.done
        resumed = [c["shoal"] for c in stream.chunks if "resumed_from" in c.get("shoal", {})]
        assert [(r["resumed_from"], r["served_by"]) for r in resumed] == [
            (first, "jetson-2" if first == "jetson-1" else "jetson-1")
        ]


def peers(box: Agent) -> list[dict[str, Any]]:
    return list(httpx.get(f"{box.url}/v1/fleet/peers", timeout=10).json()["peers"])


def test_b5_no_model_and_no_peer(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}}) as (sensor,):
        answer = ask(sensor)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "30"
        error = answer.json()["error"]
        assert error["code"] == "no_capable_peer"
        assert error["details"]["candidates"][0]["reason"] == "does not hold the model"
        streamed = ask(sensor, stream=True)
        assert streamed.status_code == 503


@pytest.mark.parametrize("file", ["text", "missing"])
def test_a_model_that_cannot_be_loaded_is_said_so(tmp_path: Path, file: str) -> None:
    path = tmp_path / "broken.gguf"
    if file == "text":
        path.write_text("not a model")
    boxes = {"jetson-1": {"models": [{"path": str(path), "name": "Broken"}]}}
    with agents(tmp_path, boxes) as (jetson,):
        for headers in ({}, {"X-Shoal-Offload": "never"}):
            answer = ask(jetson, model="broken", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_load")
            assert path.name in answer.json()["error"]["message"]
            assert str(tmp_path) not in answer.text, "clients need not know where files are"


def test_b25_a_refused_key_is_told_to_the_asker_at_once(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": {}}, members=["jetson-1"]) as (sensor, _):
        wait_until(lambda: [p["state"] for p in peers(sensor)] == ["refused"])
        began = time.monotonic()
        answer = ask(sensor)
        assert time.monotonic() - began < 2.0
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "refused")
        assert sensor.peer_id in answer.json()["error"]["message"]
        for more in ([], ["--model", MODEL]):
            chat = run_shoal(["chat", "hi", "--url", sensor.url, *more])
            assert chat.code == 4, chat.err
            assert "key" in chat.err


def request_body(asker: str, **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "job": "job-test",
        "kind": "chat",
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "sampling": {"max_tokens": 3, "temperature": 0},
        "route": [peer_id_of(asker)],
        **changes,
    }


@pytest.mark.model
def test_b16_b27_what_a_peer_may_not_send(tmp_path: Path) -> None:
    async def scenario(box: Agent) -> None:
        async with peer("stranger", [box]) as me:
            cases = {
                "loop_detected": request_body("stranger", route=[peer_id_of("stranger"), box.peer_id]),
                "model_not_held": request_body("stranger", model="/etc/passwd"),
                "bad_request": request_body("stranger", route=[peer_id_of("somebody-else")]),
            }
            for code, body in cases.items():
                events, error = await me.infer(box, body)
                assert events == []
                assert error is not None
                assert error.remote_code == code
            for broken in ({}, {"job": "x"}, request_body("stranger", kind="shell"), request_body("stranger", model=7)):
                _, error = await me.infer(box, broken)
                assert error is not None
                assert error.remote_code == "bad_request"
                assert "Traceback" not in error.message
            events, error = await me.infer(box, request_body("stranger"))
            assert error is None
            assert events[0]["type"] == "started"
            assert events[-1]["type"] == "finished"

    with agents(tmp_path, {"jetson-1": holding_smollm2()}) as (box,):
        box.allow(peer_id_of("stranger"))
        trio.run(scenario, box)


def test_b22_the_clients_authorization_never_leaves_the_box(tmp_path: Path) -> None:
    seen: list[object] = []

    async def infer(call: IncomingCall) -> Mapping[str, object]:
        seen.append(call.body)
        await call.send({"type": "started", "model": "fake-model", "hash": HASH, "prompt_tokens": 3})
        await call.send({"type": "delta", "text": "hello", "tokens": 1})
        await call.send(
            {
                "type": "finished",
                "reason": "stop",
                "prompt_tokens": 3,
                "completion_tokens": 1,
                "prefill_ms": 1.0,
                "decode_ms": 1.0,
            }
        )
        return {}

    async def scenario(box: Agent) -> None:
        async with peer("provider", [box], models=[fake_model()], infer=infer) as me:
            await me.link_to(box)
            answer = await trio.to_thread.run_sync(
                lambda: ask(
                    box,
                    model="fake-model",
                    headers={
                        "Authorization": "Bearer sk-secret-key",
                        "Cookie": "session=secret-cookie",
                        "X-Custom": "secret-x",
                    },
                )
            )
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"] == "hello"
        assert len(seen) == 1
        assert "secret" not in repr(seen)

    with agents(tmp_path, {"sensor-1": {}}) as (box,):
        box.allow(peer_id_of("provider"))
        trio.run(scenario, box)


def test_b33_a_peer_that_says_nothing_is_asked_no_more_until_it_speaks_again(tmp_path: Path) -> None:
    async def infer(call: IncomingCall) -> Mapping[str, object]:
        await call.send({"type": "started", "model": "fake-model", "hash": HASH, "prompt_tokens": 3})
        await call.send({"type": "delta", "text": "here"})
        ended = {"reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "prefill_ms": 1.0, "decode_ms": 1.0}
        await call.send({"type": "finished", **ended})
        return {}

    async def scenario(box: Agent) -> None:
        async def asked() -> httpx.Response:
            return await trio.to_thread.run_sync(lambda: ask(box, model="fake-model"))

        async with peer("quiet", [box], models=[fake_model()], infer=infer) as quiet:
            link = await quiet.link_to(box)
            assert (await asked()).status_code == 200
            with trio.fail_after(20):
                while (answer := await asked()).status_code == 200:
                    await trio.sleep(0.1)
            assert answer.json()["error"]["code"] == "no_capable_peer"
            (reason,) = [
                one["reason"] for one in answer.json()["error"]["details"]["candidates"] if "quiet" in str(one)
            ]
            assert reason == "silent for 3 s"
            assert quiet.downs == []
            said = Presence(seq=2, name="quiet", version="test", models=(fake_model(),))
            link.notify(NOTIFY_PRESENCE, said.model_dump(mode="json"))
            with trio.fail_after(20):
                while (await asked()).status_code != 200:
                    await trio.sleep(0.1)

    routing = {"threshold": 0.0, "max_cpu": 1.0, "max_memory": 1.0, "silent_after": 3.0}
    with agents(tmp_path, {"sensor-1": {"routing": routing}}) as (box,):
        box.allow(peer_id_of("quiet"))
        trio.run(scenario, box)


def test_b17_b20_providers_that_die_or_hang_before_their_first_token(tmp_path: Path) -> None:
    asked: list[str] = []

    def provider(name: str) -> Any:
        async def infer(call: IncomingCall) -> Mapping[str, object]:
            asked.append(name)
            await call.send({"type": "started", "model": "fake-model", "hash": HASH, "prompt_tokens": 3})
            await trio.sleep_forever()
            return {}

        return infer

    async def scenario(box: Agent) -> None:
        async with (
            peer("p1", [box], models=[fake_model(rate=300)], infer=provider("p1")) as one,
            peer("p2", [box], models=[fake_model(rate=200)], infer=provider("p2")) as two,
            peer("p3", [box], models=[fake_model(rate=100)], infer=provider("p3")) as three,
            peer("p4", [box], models=[fake_model(rate=50)], infer=provider("p4")) as four,
        ):
            for each in (one, two, three, four):
                await each.link_to(box)
            answer = await trio.to_thread.run_sync(lambda: ask(box, model="fake-model"))
            assert answer.status_code == 502
            error = answer.json()["error"]
            assert error["code"] == "peer_unreachable"
            assert [t["peer_id"] for t in error["details"]["tried"]] == [peer_id_of(p) for p in ("p1", "p2", "p3")]
            assert asked == ["p1", "p2", "p3"]

    with agents(tmp_path, {"sensor-1": {"timeouts": {"first_token": 0.5}}}) as (box,):
        box.allow(*(peer_id_of(p) for p in ("p1", "p2", "p3", "p4")))
        trio.run(scenario, box)


@pytest.mark.model
def test_sigterm_drains_and_leaves_no_orphan(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": holding_smollm2()}, fresh=True) as (sensor, jetson):
        wait_until(lambda: MODEL in borrowable(sensor))
        children = children_of(jetson.pid)
        assert len(children) == 1
        with httpx.Client() as client, streaming(client, sensor, max_tokens=150) as response:
            stream = Stream(response)
            assert stream.next_text()
            jetson.send(signal.SIGTERM)
            wait_until(lambda: any(r["event"] == "agent.draining" for r in jetson.lines))
            refused = ask(jetson)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            while stream.next_text():
                pass
            assert stream.error is None
            assert stream.done
        assert jetson.wait() == 0
        for child in children:
            assert not Path(f"/proc/{child}").exists()


@pytest.mark.model
def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with agents(tmp_path, {"jetson-1": holding_smollm2()}) as (jetson,):
        children = children_of(jetson.pid)
        with httpx.Client() as client, streaming(client, jetson) as response:
            stream = Stream(response)
            assert stream.next_text()
            jetson.send(signal.SIGTERM)
            wait_until(lambda: any(r["event"] == "agent.draining" for r in jetson.lines))
            jetson.send(signal.SIGTERM)
            assert jetson.wait(10) == 0
        for child in children:
            assert not Path(f"/proc/{child}").exists()


@pytest.mark.model
@pytest.mark.parametrize("how", ["the time is over", "a second signal"])
def test_clients_are_told_when_a_box_stops_before_their_jobs_are_done(tmp_path: Path, how: str) -> None:
    config = {**holding_smollm2(), "timeouts": {"drain": 0.5 if how == "the time is over" else 60}}
    with (
        agents(tmp_path, {"jetson-1": config}) as (jetson,),
        ThreadPoolExecutor(1) as pool,
        httpx.Client() as client,
    ):
        with streaming(client, jetson, max_tokens=3000) as own:
            stream = Stream(own)
            assert stream.next_text()
            waiting = pool.submit(ask, jetson, max_tokens=3000)
            wait_until(lambda: jobs_running(jetson) == 2)
            jetson.send(signal.SIGTERM)
            if how == "a second signal":
                wait_until(lambda: any(r["event"] == "agent.draining" for r in jetson.lines))
                jetson.send(signal.SIGTERM)
            while stream.next_text():
                pass
        assert stream.error is not None
        assert stream.error["code"] == "draining"
        assert not stream.done
        refused = waiting.result(10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "5"
        assert jetson.wait(10) == 0


@pytest.mark.model
def test_b18_a_borrowers_client_is_told_when_the_lender_stops(tmp_path: Path) -> None:
    config = {**holding_smollm2(), "timeouts": {"drain": 0.3}}
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": config}) as (sensor, jetson), httpx.Client() as client:
        wait_until(lambda: MODEL in borrowable(sensor))
        with streaming(client, sensor, max_tokens=3000) as response:
            stream = Stream(response)
            assert stream.next_text()
            jetson.send(signal.SIGTERM)
            while stream.next_text():
                pass
        assert stream.error is not None
        assert stream.error["code"] == "interrupted"
        assert "draining" in stream.error["message"]
        assert not stream.done


@pytest.mark.model
def test_a_killed_agent_leaves_no_orphan(tmp_path: Path) -> None:
    with agents(tmp_path, {"jetson-1": holding_smollm2()}, fresh=True) as (jetson,):
        children = children_of(jetson.pid)
        assert len(children) == 1
        jetson.kill()
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 10)


def children_of(pid: int) -> list[int]:
    """Live child processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found
