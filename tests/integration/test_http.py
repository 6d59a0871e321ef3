"""The HTTP server over real sockets, with scripted services behind it: shapes, limits, errors, clients that leave."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import HttpConfig
from agent.errors import AgentError, ConfigError, InterruptedJobError, NoCapablePeerError, OverloadedError
from agent.http.server import serve
from agent.http.services import Holder, ModelListing, Readiness
from agent.jobs.job import Emit, Job, Resumed, Routed
from fleet.net.messages import Delta, Finished

HASH = "sha256:" + "2" * 64
ROUTED = Routed("peer-1", "jetson-1", False, "m", HASH, 7, ("sensor-1=does not hold the model", "jetson-1=served"))
FINISHED = Finished(reason="stop", prompt_tokens=7, completion_tokens=2, prefill_ms=3.0, decode_ms=4.0)
Script = Callable[[Job, Emit], Awaitable[None]]


async def answers(job: Job, emit: Emit) -> None:
    await emit(ROUTED)
    await emit(Delta(text="Hel"))
    await emit(Delta(text="lo ☃"))
    await emit(FINISHED)


class Scripted:
    """Services whose jobs a test writes."""

    def __init__(self) -> None:
        self.script: Script = answers
        self.jobs: list[Job] = []
        self.cancelled = Event()

    def models(self) -> Sequence[ModelListing]:
        return [ModelListing("m", HASH, 2048, (Holder("peer-1", "jetson-1", False, "loaded", 50.0),))]

    def self_facts(self) -> dict[str, object]:
        return {"name": "sensor-1"}

    def peer_facts(self) -> list[dict[str, object]]:
        return [{"name": "jetson-1"}]

    def readiness(self) -> Readiness:
        return Readiness(False, ("model m is loading",))

    async def run(self, job: Job, emit: Emit) -> None:
        self.jobs.append(job)
        try:
            await self.script(job, emit)
        except trio.Cancelled:
            self.cancelled.set()
            raise


@contextmanager
def served(config: HttpConfig) -> Iterator[tuple[Scripted, str]]:
    """A server in a thread of its own."""
    services, bound, stop = Scripted(), [], []
    up = Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            stop.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            bound.append(await nursery.start(lambda task_status: serve(services, config, task_status=task_status)))
            up.set()

    thread = Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert up.wait(10)
        yield services, f"http://127.0.0.1:{bound[0][1]}"
    finally:
        token, scope = stop[0]
        token.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Scripted, str]]:
    with served(HttpConfig(listen="127.0.0.1:0")) as running:
        yield running


@pytest.fixture
def box(server: tuple[Scripted, str]) -> tuple[Scripted, str]:
    services, url = server
    services.script = answers
    services.jobs.clear()
    services.cancelled.clear()
    return services, url


def chat(url: str, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", None)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=20)


def events(response: httpx.Response) -> list[Any]:
    return [json.loads(line[6:]) if line != "data: [DONE]" else "DONE" for line in response.text.split("\n\n") if line]


def test_b23_a_whole_answer_names_who_served(box: tuple[Scripted, str]) -> None:
    services, url = box
    response = chat(url)
    assert response.status_code == 200
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "Hello ☃"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert body["model"] == "m"
    assert body["shoal"]["served_by"] == "jetson-1"
    assert response.headers["x-shoal-served-by"] == "jetson-1"
    assert response.headers["x-shoal-served-by-id"] == "peer-1"
    assert response.headers["x-shoal-route"] == "sensor-1=does not hold the model; jetson-1=served"
    assert response.headers["x-shoal-job"] == services.jobs[0].request.job


def test_a_stream_is_openais(box: tuple[Scripted, str]) -> None:
    _, url = box
    response = chat(url, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, usage, done = events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["shoal"]["served_by"] == "jetson-1"
    assert [e["choices"][0]["delta"]["content"] for e in middle] == ["Hel", "lo ☃"]
    assert all(e["usage"] is None for e in (first, *middle, last))
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 9
    assert done == "DONE"
    assert len({e["id"] for e in (first, *middle, last, usage)}) == 1
    assert "usage" not in events(chat(url, stream=True))[0]


def test_text_completions(box: tuple[Scripted, str]) -> None:
    services, url = box
    response = httpx.post(f"{url}/v1/completions", json={"model": "m", "prompt": ["Once"], "stop": "x", "seed": -1})
    assert response.json()["choices"][0]["text"] == "Hello ☃"
    assert response.json()["object"] == "text_completion"
    request = services.jobs[0].request
    assert (request.kind, request.prompt, request.sampling.stop) == ("completion", "Once", ("x",))
    httpx.post(f"{url}/v1/completions", json={"model": "m", "prompt": "Once", "seed": -1})
    assert request.sampling.seed is not None
    assert services.jobs[1].request.sampling.seed == request.sampling.seed


def test_what_is_asked_reaches_the_job(box: tuple[Scripted, str]) -> None:
    services, url = box
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Shoal-Offload": "require", "X-Shoal-On-Interrupt": "resume", "traceparent": trace}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat(
        url,
        messages=[{"role": "user", "content": parts}],
        max_completion_tokens=6,
        temperature=0,
        top_p=0.5,
        stop=["x", "y"],
        headers=headers,
    )
    job = services.jobs[0]
    assert (job.policy, job.on_interrupt, job.request.traceparent) == ("require", "resume", trace)
    assert job.request.messages[0].content == "a\nb"
    sampling = job.request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (6, 0, 0.5, ("x", "y"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"headers": {"X-Shoal-Offload": "maybe"}}, "X-Shoal-Offload"),
        ({"headers": {"X-Shoal-On-Interrupt": "pray"}}, "X-Shoal-On-Interrupt"),
    ],
)
def test_b8_what_is_not_understood_is_400_and_named(box: tuple[Scripted, str], fields: Any, param: str) -> None:
    services, url = box
    response = chat(url, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert error["code"] == "bad_request"
    assert services.jobs == []


def test_a_typo_gets_the_nearest_field_and_what_asks_for_nothing_is_accepted(box: tuple[Scripted, str]) -> None:
    _, url = box
    assert "mean temperature" in chat(url, temprature=1).json()["error"]["message"]
    harmless = {"user": "u", "n": 1, "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}}
    assert chat(url, **harmless, tools=[], metadata={"a": "b"}, store=False).status_code == 200


@pytest.mark.parametrize(
    ("data", "needle"),
    [
        (b"", "line 1 column 0"),
        (b"{", "line 1 column 1"),
        (b'{"model": "m",\n "messages" }', "line 2"),
        (b"[1]", "JSON object"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"model": NaN', "JSON"),
    ],
)
def test_malformed_json_says_where(box: tuple[Scripted, str], data: bytes, needle: str) -> None:
    _, url = box
    response = httpx.post(f"{url}/v1/chat/completions", content=data)
    assert response.status_code == 400
    assert needle in response.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_10_mb_body_is_413_and_the_server_lives(box: tuple[Scripted, str], chunked: bool) -> None:
    services, url = box
    data = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 10_000_000 + b'"}]}'
    content = (data[i : i + 65536] for i in range(0, len(data), 65536)) if chunked else data
    response = httpx.post(f"{url}/v1/chat/completions", content=content, timeout=20)
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == "request_too_large"
    assert str(4 * 1024 * 1024) in error["message"]
    assert chat(url).status_code == 200
    assert len(services.jobs) == 1


def test_a_prompt_past_its_limit_is_400_and_names_it(box: tuple[Scripted, str]) -> None:
    _, url = box
    response = chat(url, messages=[{"role": "user", "content": "x" * 1_100_000}])
    assert response.status_code == 400
    assert "1048576" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (NoCapablePeerError("nobody", details={"candidates": []}, retry_after=30), 503, "30"),
        (OverloadedError("busy", retry_after=4), 429, "4"),
    ],
)
def test_an_error_before_the_first_token_is_a_status(
    box: tuple[Scripted, str], stream: bool, failure: AgentError, status: int, retry_after: str
) -> None:
    services, url = box

    async def fails(job: Job, emit: Emit) -> None:
        raise failure

    services.script = fails
    response = chat(url, stream=stream)
    assert response.status_code == status
    assert response.headers["retry-after"] == retry_after
    assert response.json()["error"]["code"] == failure.code


def test_b18_an_error_after_the_first_token_is_an_event_and_no_done(box: tuple[Scripted, str]) -> None:
    services, url = box

    async def breaks(job: Job, emit: Emit) -> None:
        await emit(ROUTED)
        await emit(Delta(text="Hel"))
        raise InterruptedJobError("jetson-1 failed")

    services.script = breaks
    streamed = events(chat(url, stream=True))
    assert streamed[-1]["error"]["code"] == "interrupted"
    assert "DONE" not in streamed
    whole = chat(url)
    assert whole.status_code == 502
    assert whole.json()["error"]["details"]["partial_text"] == "Hel"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="jetson-1 failed"):
        for _ in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True):
            pass


def test_b18_a_resumed_answer_says_so(box: tuple[Scripted, str]) -> None:
    services, url = box
    second = Routed("peer-2", "jetson-2", False, "m", HASH, 7, ("jetson-2=served",))

    async def resumes(job: Job, emit: Emit) -> None:
        await emit(ROUTED)
        await emit(Delta(text="a"))
        await emit(Resumed("jetson-1", second))
        await emit(Delta(text="b"))
        await emit(FINISHED)

    services.script = resumes
    chunks = [e for e in events(chat(url, stream=True)) if isinstance(e, dict)]
    notes = [e["shoal"] for e in chunks if "served_by" in e.get("shoal", {})]
    assert [(n["served_by"], n.get("resumed_from")) for n in notes] == [("jetson-1", None), ("jetson-2", "jetson-1")]
    whole = chat(url).json()
    assert whole["choices"][0]["message"]["content"] == "ab"
    assert whole["shoal"]["resumed_from"] == ["jetson-1"]


def test_an_unforeseen_error_is_500_and_shows_nothing_inside(box: tuple[Scripted, str]) -> None:
    services, url = box

    async def explodes(job: Job, emit: Emit) -> None:
        raise ValueError("/etc/secret line 3")

    services.script = explodes
    response = chat(url)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-shoal-job"] in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after_first", [False, True])
def test_b19_a_client_that_leaves_cancels_its_job(box: tuple[Scripted, str], stream: bool, after_first: bool) -> None:
    services, url = box
    running = Event()

    async def forever(job: Job, emit: Emit) -> None:
        if after_first:
            await emit(ROUTED)
            await emit(Delta(text="a"))
        running.set()
        await trio.sleep_forever()

    services.script = forever
    host, port = url[7:].split(":")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert running.wait(10)
        left = time.monotonic()
    assert services.cancelled.wait(10)
    assert time.monotonic() - left <= 1.0
    services.script = answers
    assert chat(url).status_code == 200


def test_b21_each_token_is_flushed_at_once(box: tuple[Scripted, str]) -> None:
    services, url = box
    release: list[Event] = [Event(), Event()]

    async def stepwise(job: Job, emit: Emit) -> None:
        await emit(ROUTED)
        for text, event in zip("ab", release, strict=True):
            await emit(Delta(text=text))
            await trio.to_thread.run_sync(event.wait)
        await emit(FINISHED)

    services.script = stepwise
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=10) as response:
        seen = ""
        for line in response.iter_lines():
            if '"content":"a"' in line:
                seen += "a"
                release[0].set()
            if '"content":"b"' in line:
                seen += "b"
                release[1].set()
    assert seen == "ab"


def test_models_fleet_and_health(box: tuple[Scripted, str]) -> None:
    _, url = box
    listed = httpx.get(f"{url}/v1/models").json()
    assert listed["object"] == "list"
    assert listed["data"][0]["id"] == "m"
    assert listed["data"][0]["shoal"]["holders"][0]["name"] == "jetson-1"
    assert httpx.get(f"{url}/v1/models/m").json()["id"] == "m"
    assert httpx.get(f"{url}/v1/models/{HASH}").json()["id"] == "m"
    missing = httpx.get(f"{url}/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.get(f"{url}/v1/fleet/self").json() == {"name": "sensor-1"}
    assert httpx.get(f"{url}/v1/fleet/peers").json() == {"peers": [{"name": "jetson-1"}]}
    assert httpx.get(f"{url}/healthz").status_code == 200
    ready = httpx.get(f"{url}/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["model m is loading"])
    assert httpx.get(f"{url}/nowhere").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{url}/v1/chat/completions").status_code == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8420"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8420"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_a_web_page_cannot_use_this_machines_endpoint(
    box: tuple[Scripted, str], headers: dict[str, str], status: int
) -> None:
    _, url = box
    assert chat(url, headers=headers).status_code == status


def test_b31_an_open_address_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught, served_here(HttpConfig(listen="0.0.0.0:0")):
        pass
    assert "api_key_file" in str(caught.value.exceptions[0])


@contextmanager
def served_here(config: HttpConfig) -> Iterator[None]:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: serve(Scripted(), config, task_status=task_status))
            nursery.cancel_scope.cancel()

    trio.run(main)
    yield


def test_b31_keys_are_checked_and_their_file_must_be_private(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# keys\nsixteen-characters-or-more\n")
    keys.chmod(0o644)
    config = HttpConfig(listen="0.0.0.0:0", api_key_file=keys)
    with pytest.raises(BaseExceptionGroup) as caught, served_here(config):
        pass
    assert isinstance(caught.value.exceptions[0], ConfigError)
    assert f"chmod 600 {keys}" in str(caught.value.exceptions[0])
    keys.chmod(0o600)
    with served(config) as (_, url):
        assert chat(url).status_code == 401
        assert chat(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert chat(url, headers={"Authorization": "Basic sixteen-characters-or-more"}).status_code == 401
        assert httpx.get(f"{url}/v1/fleet/self").status_code == 401
        assert httpx.get(f"{url}/healthz").status_code == 200
        good = {"Authorization": "Bearer sixteen-characters-or-more", "Host": "box.local"}
        assert chat(url, headers=good).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["model", "messages", "stop", "seed", "max_tokens", "temperature", "stream", "stream_options", "n", "tools"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5), st.booleans())
def test_no_body_is_a_500(box: tuple[Scripted, str], fields: dict[str, Any], with_base: bool) -> None:
    _, url = box
    base = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} if with_base else {}
    response = httpx.post(f"{url}/v1/chat/completions", content=json.dumps({**base, **fields}))
    assert response.status_code in (200, 400, 413)


def test_the_openai_sdk_maps_errors(box: tuple[Scripted, str]) -> None:
    services, url = box
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask() -> Any:
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    async def busy(job: Job, emit: Emit) -> None:
        raise OverloadedError("busy", retry_after=4)

    assert ask().choices[0].message.content == "Hello ☃"
    services.script = busy
    with pytest.raises(openai.RateLimitError):
        ask()
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], n=3)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    assert [model.id for model in client.models.list()] == ["m"]


def test_garbage_and_slow_clients_do_not_hurt(box: tuple[Scripted, str]) -> None:
    _, url = box
    host, port = url[7:].split(":")
    garbage = [b"\x00" * 100, b"GET\r\n\r\n", b"\x16\x03\x01" + b"x" * 200, b"A" * 200_000]
    open_ones = []
    for data in itertools.chain(garbage, [b"POST /v1/chat/completions HTTP/1.1\r\nHost: lo"]):
        client = socket.create_connection((host, int(port)))
        try:
            client.sendall(data)
        except OSError:
            pass
        open_ones.append(client)
    assert chat(url).status_code == 200
    for client in open_ones:
        client.close()
