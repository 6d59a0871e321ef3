"""The OpenAI API as the real `openai` client sees it, over real sockets and scripted jobs."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from typing import Any

import httpx
import openai
import pytest
import trio
from openai.types.chat import ChatCompletionChunk

from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    EngineError,
    InterruptedJobError,
    LoopDetectedError,
    ModelNotFoundError,
    NoCapablePeerError,
    OverloadedError,
)
from agent.jobs.job import Emit, Job, Resumed, Routed
from fleet.errors import CallTimeoutError, FleetError
from fleet.net.messages import Delta
from tests.http_agent import HASH, LIMIT, Running, Script, ScriptedServices, finished, hello, routed, serving

MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHAT = {"model": "smol", "messages": MESSAGES}


def sdk(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=LIMIT)


def http(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=LIMIT)


def data_of(text: str) -> list[Any]:
    """The events of a stream; [DONE] stays as text."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def fails_with(error: Exception, after: int | None = None) -> Script:
    """A job that fails, before it is routed or after that many tokens."""

    async def script(job: Job, emit: Emit) -> None:
        if after is not None:
            await emit(routed())
            for number in range(after):
                await emit(Delta(text=f"{number} "))
        raise error

    return script


def test_chat_with_the_sync_client() -> None:
    services = ScriptedServices()
    with serving(services) as server, sdk(server) as client:
        answer = client.chat.completions.create(
            model="smol", messages=MESSAGES, seed=-1, stop="x", max_completion_tokens=9, temperature=0, user="u"
        )
        assert answer.choices[0].message.content == "Hello wörld"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.object == "chat.completion"
        assert answer.model == "smol"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
        assert answer.model_extra is not None
        assert answer.model_extra["shoal"]["served_by"] == "jetson-1"
        completion = client.completions.create(model="smol", prompt="once")
        assert completion.choices[0].text == "Hello wörld"
        assert completion.object == "text_completion"
    chat, complete = services.jobs
    assert (chat.request.kind, complete.request.kind) == ("chat", "completion")
    assert chat.request.sampling.stop == ("x",)
    assert complete.request.prompt == "once"
    assert chat.request.job != complete.request.job


def test_streams_with_the_sync_client() -> None:
    with serving(ScriptedServices()) as server, sdk(server) as client:
        chunks = list(client.chat.completions.create(model="smol", messages=MESSAGES, stream=True))
        assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
        assert [c.choices[0].delta.content for c in chunks[1:-1]] == ["Hel", "lo", " ", "wörld"]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert all(chunk.usage is None for chunk in chunks)
        assert len({chunk.id for chunk in chunks}) == 1
        completion = list(client.completions.create(model="smol", prompt="once", stream=True))
        assert "".join(chunk.choices[0].text for chunk in completion) == "Hello wörld"
        with client.chat.completions.stream(model="smol", messages=MESSAGES) as stream:
            assert stream.get_final_completion().choices[0].message.content == "Hello wörld"


def test_the_async_client() -> None:
    async def main(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=LIMIT) as client:
            answer = await client.chat.completions.create(model="smol", messages=MESSAGES)
            assert answer.choices[0].message.content == "Hello wörld"
            stream = await client.chat.completions.create(model="smol", messages=MESSAGES, stream=True)
            chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello wörld"
            assert [model.id async for model in client.models.list()] == ["smol", "org/other"]
            several = await asyncio.gather(
                *(client.chat.completions.create(model="smol", messages=MESSAGES) for _ in range(8))
            )
            assert len({answer.id for answer in several}) == 8

    with serving(ScriptedServices()) as server:
        asyncio.run(main(server.url))


def test_include_usage_is_null_until_a_last_chunk_without_choices() -> None:
    with serving(ScriptedServices()) as server, http(server) as client:
        for path, body in (("chat/completions", CHAT), ("completions", {"model": "smol", "prompt": "x"})):
            asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
            *chunks, last, done = data_of(client.post(f"/v1/{path}", json=asked).text)
            assert done == "[DONE]"
            assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
            assert last["choices"] == []
            assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
            *chunks, done = data_of(client.post(f"/v1/{path}", json={**body, "stream": True}).text)
            assert all("usage" not in chunk for chunk in chunks)


def test_b23_the_response_names_the_box_and_model_that_served_and_why() -> None:
    with serving(ScriptedServices()) as server, http(server) as client:
        for stream in (False, True):
            response = client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert response.headers["x-shoal-served-by"] == "jetson-1"
            assert response.headers["x-shoal-served-by-id"] == "12D3KooWpeer"
            assert response.headers["x-shoal-model"] == "smol"
            assert response.headers["x-shoal-route"] == "sensor-1=no model; jetson-1=served"
            assert response.headers["x-shoal-job"].startswith("job-")
            first = data_of(response.text)[0] if stream else response.json()
            assert first["shoal"]["served_by"] == "jetson-1"
            assert first["shoal"]["peer_id"] == "12D3KooWpeer"
            assert first["shoal"]["local"] is False
            assert first["shoal"]["route"] == ["sensor-1=no model", "jetson-1=served"]


def test_names_of_boxes_cannot_break_a_header() -> None:
    async def script(job: Job, emit: Emit) -> None:
        await emit(Routed("id", "a\r\nx-evil: 1", False, "m\x00ö", HASH, 1, ("y" * 4000,) * 16))
        await emit(finished(0))

    with serving(ScriptedServices(script)) as server, http(server) as client:
        response = client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 200
        assert "x-evil" not in response.headers
        assert response.headers["x-shoal-served-by"] == "a??x-evil: 1"
        assert len(response.headers["x-shoal-route"]) <= 1024


def test_headers_of_the_request_reach_the_job() -> None:
    services = ScriptedServices()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "X-Shoal-Offload": "require",
        "X-Shoal-On-Interrupt": "resume",
        "traceparent": trace,
        "X-Request-Id": "mine",
    }
    with serving(services) as server, http(server) as client:
        response = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["x-shoal-job"] == services.jobs[0].request.job
    job = services.jobs[0]
    assert (job.policy, job.on_interrupt, job.request.traceparent) == ("require", "resume", trace)


def test_b22_the_authorization_of_the_client_is_no_part_of_the_job() -> None:
    services = ScriptedServices()
    with serving(services) as server, http(server) as client:
        client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer s3cret"})
    assert "s3cret" not in repr(services.jobs[0])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "expected", "status"),
    [
        (BadRequestError("no"), openai.BadRequestError, 400),
        (ContextLengthError("9 tokens do not fit 8"), openai.BadRequestError, 400),
        (ModelNotFoundError("no such model"), openai.NotFoundError, 404),
        (OverloadedError("busy", retry_after=2), openai.RateLimitError, 429),
        (EngineError("child died"), openai.InternalServerError, 500),
        (InterruptedJobError("gone"), openai.InternalServerError, 502),
        (NoCapablePeerError("nobody", retry_after=30), openai.InternalServerError, 503),
        (CallTimeoutError("silent"), openai.InternalServerError, 504),
        (LoopDetectedError("again"), openai.InternalServerError, 508),
    ],
)
def test_errors_before_the_first_event_have_their_status_also_in_a_stream(
    error: AgentError | FleetError, expected: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    with serving(ScriptedServices(fails_with(error))) as server, sdk(server) as client:
        with pytest.raises(expected) as caught:
            client.chat.completions.create(model="smol", messages=MESSAGES, stream=stream)
        assert caught.value.status_code == status
        assert caught.value.code == error.code
        assert error.message in caught.value.message
        after = getattr(error, "retry_after", None)
        assert caught.value.response.headers.get("retry-after") == (str(after) if after else None)
        assert caught.value.response.headers["x-shoal-job"]


def test_an_overlong_prompt_names_both_numbers() -> None:
    error = ContextLengthError("9 > 8", details={"prompt_tokens": 9, "context_tokens": 8})
    with serving(ScriptedServices(fails_with(error))) as server, http(server) as client:
        body = client.post("/v1/chat/completions", json=CHAT).json()["error"]
    assert body["code"] == "context_length_exceeded"
    assert body["details"] == {"prompt_tokens": 9, "context_tokens": 8}


def test_b18_a_box_that_dies_in_mid_stream_is_an_error_event_and_no_done() -> None:
    script = fails_with(InterruptedJobError("jetson-1 failed after 2 tokens"), after=2)
    with serving(ScriptedServices(script)) as server:
        with http(server) as client:
            response = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
            *chunks, last = data_of(response.text)
            assert response.status_code == 200
            assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["", "0 ", "1 "]
            assert last["error"]["code"] == "interrupted"
            assert "choices" not in last
            assert "[DONE]" not in response.text
        with sdk(server) as sync:
            seen = []
            with pytest.raises(openai.APIError, match="failed after 2 tokens") as caught:
                for chunk in sync.chat.completions.create(model="smol", messages=MESSAGES, stream=True):
                    seen.append(chunk.choices[0].delta.content)
            assert caught.value.code == "interrupted"
            assert seen == ["", "0 ", "1 "]


def test_b18_without_streaming_the_text_so_far_goes_along_with_the_error() -> None:
    script = fails_with(InterruptedJobError("gone"), after=2)
    with serving(ScriptedServices(script)) as server, http(server) as client:
        response = client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 502
        assert response.json()["error"]["details"]["partial_text"] == "0 1 "
        assert response.headers["x-shoal-served-by"] == "jetson-1"


def test_b18_a_resumed_stream_says_so() -> None:
    async def script(job: Job, emit: Emit) -> None:
        await emit(routed("jetson-1"))
        await emit(Delta(text=""))
        await emit(Delta(text="a"))
        await emit(Resumed("jetson-1", routed("jetson-2")))
        await emit(Delta(text="b"))
        await emit(finished(2, "length"))

    with serving(ScriptedServices(script)) as server:
        with http(server) as client:
            chunks = data_of(client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
            assert chunks[2]["choices"][0]["delta"] == {}
            assert chunks[2]["shoal"]["resumed_from"] == "jetson-1"
            assert chunks[2]["shoal"]["served_by"] == "jetson-2"
            whole = client.post("/v1/chat/completions", json=CHAT)
            assert whole.json()["shoal"]["resumed_from"] == ["jetson-1"]
            assert whole.headers["x-shoal-served-by"] == "jetson-2"
        with sdk(server) as sync:
            stream = sync.chat.completions.create(model="smol", messages=MESSAGES, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [None, 1])
def test_b27_an_unexpected_error_shows_nothing_of_the_inside(stream: bool, after: int | None) -> None:
    script = fails_with(ValueError("/var/lib/shoal/secret"), after=after)
    with serving(ScriptedServices(script)) as server, http(server) as client:
        response = client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert response.status_code == (200 if stream and after else 500)
        assert "secret" not in response.text
        assert "Traceback" not in response.text
        assert '"internal"' in response.text
        assert response.headers["x-shoal-job"] in response.text
        assert "[DONE]" not in response.text
        assert client.get("/healthz").status_code == 200


def test_a_job_that_ends_without_its_last_event_is_an_error() -> None:
    async def script(job: Job, emit: Emit) -> None:
        await emit(routed())

    with serving(ScriptedServices(script)) as server, http(server) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 500
        text = client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
        assert '"error"' in text
        assert "[DONE]" not in text


def test_a_job_that_still_cleans_up_after_its_last_event_is_not_cancelled_by_the_end_of_its_answer() -> None:
    answered = threading.Event()
    cleaned: queue.Queue[Job] = queue.Queue()

    async def script(job: Job, emit: Emit) -> None:
        await hello(job, emit)
        await trio.to_thread.run_sync(answered.wait, LIMIT)
        await trio.lowlevel.checkpoint()
        cleaned.put(job)

    services = ScriptedServices(script)
    with serving(services) as server, http(server) as client:
        for stream in (False, True):
            assert client.post("/v1/chat/completions", json={**CHAT, "stream": stream}).status_code == 200
        assert client.get("/healthz").status_code == 200
        answered.set()
        for _ in range(2):
            cleaned.get(timeout=LIMIT)
    assert not services.cancelled.is_set()


def test_models_are_listed_with_who_holds_them() -> None:
    with serving(ScriptedServices()) as server, sdk(server) as client:
        models = {model.id: model for model in client.models.list()}
        extra = models["smol"].model_extra
        assert extra is not None
        assert extra["shoal"]["hash"] == HASH
        assert extra["shoal"]["context_tokens"] == 2048
        assert [(h["name"], h["local"], h["decode_rate"]) for h in extra["shoal"]["holders"]] == [
            ("sensor-1", True, 12.0),
            ("jetson-1", False, None),
        ]
        assert client.models.retrieve("smol").id == "smol"
        assert client.models.retrieve(HASH).id == "smol"
        assert client.models.retrieve("fast").id == "smol", "an alias of the fleet"
        assert client.models.retrieve("org/other").id == "org/other"
        with pytest.raises(openai.NotFoundError, match="smol"):
            client.models.retrieve("none")
