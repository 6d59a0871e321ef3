"""Calls, probabilities and truncation as the real `openai` client sees them, over real sockets and scripted jobs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from agent.jobs.job import Emit, Job, Routed
from fleet.net.messages import Delta, Likely, TokenLogprob
from tests.http_agent import HASH, LIMIT, Running, Script, ScriptedServices, finished, routed, serving

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}


def sdk(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=LIMIT)


def says(*texts: str, reason: str = "stop", likely: bool = False, where: Routed | None = None) -> Script:
    async def script(job: Job, emit: Emit) -> None:
        await emit(where or routed())
        for text in texts:
            top = (Likely(token="x", logprob=-2.0, bytes=(120,)),)
            entry = TokenLogprob(token=text, logprob=-0.5, bytes=tuple(text.encode()), top_logprobs=top)
            await emit(Delta(text=text, logprobs=(entry,) if likely else ()))
        await emit(finished(len(texts), reason))

    return script


CALL = ("<tool_", "call>", '\n{"name": "a', 'dd", "arguments": ', '{"x"', ": 5", "}}", "\n</tool_call>")


def test_a_call_in_a_whole_answer() -> None:
    with serving(ScriptedServices(says("Well. ", *CALL))) as server, sdk(server) as client:
        answer = client.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Well. ")
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"x": 5})
    assert call.id.startswith("call_")


def test_a_call_in_a_stream_comes_as_it_is_written() -> None:
    with serving(ScriptedServices(says(*CALL))) as server, sdk(server) as client:
        chunks = list(client.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL], stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == ""
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert calls[0].id is not None
    assert all(call.id is None and call.function is not None and call.function.name is None for call in calls[1:])
    pieces = [call.function.arguments or "" for call in calls if call.function is not None]
    assert json.loads("".join(pieces)) == {"x": 5}
    assert len(pieces) == 4
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]


def test_an_answer_in_words_streams_as_ever_with_functions_on_offer() -> None:
    with serving(ScriptedServices(says("1 ", "<", " 2", " <tool"))) as server, sdk(server) as client:
        chunks = list(client.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL], stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert texts == ["1 ", "< 2", " ", "<tool"]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_call_that_was_cut_off_says_so_and_without_functions_nothing_is_a_call() -> None:
    services = ScriptedServices(says(*CALL[:5], reason="length"))
    with serving(services) as server, sdk(server) as client:
        cut = client.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL]).choices[0]
        assert cut.finish_reason == "length"
        assert cut.message.tool_calls
        plain = client.chat.completions.create(model="smol", messages=MESSAGES).choices[0]
        assert plain.message.content == "".join(CALL[:5])
        off = client.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL], tool_choice="none").choices[
            0
        ]
        assert off.message.content == "".join(CALL[:5])
    assert [job.request.tool_choice for job in services.jobs] == ["", "", "none"]


def test_a_call_that_must_come_and_was_cut_before_its_arguments_is_no_content() -> None:
    asked: Any = {"model": "smol", "messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}
    with serving(ScriptedServices(says(*CALL[:3], reason="length"))) as server, sdk(server) as client:
        cut = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert (cut.finish_reason, cut.message.content, cut.message.tool_calls) == ("length", None, None)
    assert not any(chunk.choices[0].delta.content or chunk.choices[0].delta.tool_calls for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_probabilities_of_a_chat() -> None:
    with serving(ScriptedServices(says("a", "é", likely=True))) as server, sdk(server) as client:
        asked: Any = {"model": "smol", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
        whole = client.chat.completions.create(**asked).choices[0].logprobs
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole is not None
    assert whole.content is not None
    assert [(one.token, one.logprob, one.bytes) for one in whole.content] == [
        ("a", -0.5, [97]),
        ("é", -0.5, [195, 169]),
    ]
    assert whole.content[0].top_logprobs[0].token == "x"
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [[one.token for one in some.content or ()] for some in streamed] == [["a"], ["é"]]


def test_probabilities_of_a_completion() -> None:
    with serving(ScriptedServices(says("ab", "é", likely=True))) as server, sdk(server) as client:
        whole = client.completions.create(model="smol", prompt="once", logprobs=1).choices[0].logprobs
        chunks = list(client.completions.create(model="smol", prompt="once", logprobs=1, stream=True))
    assert whole is not None
    assert (whole.tokens, whole.token_logprobs, whole.text_offset) == (["ab", "é"], [-0.5, -0.5], [0, 2])
    assert whole.top_logprobs == [{"x": -2.0}, {"x": -2.0}]
    offsets = [chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs]
    assert offsets == [[0], [2]]


def test_what_was_left_out_is_told_in_a_header_and_in_the_body() -> None:
    where = Routed("12D3KooWpeer", "jetson-1", False, "smol", HASH, 7, ("jetson-1=served",), 120, 4)
    with serving(ScriptedServices(says("ok", where=where))) as server:
        asked: Any = {"model": "smol", "messages": MESSAGES, "truncate": "oldest"}
        whole = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=LIMIT)
        stream = httpx.post(f"{server.url}/v1/chat/completions", json={**asked, "stream": True}, timeout=LIMIT)
    assert whole.headers["x-shoal-truncated"] == stream.headers["x-shoal-truncated"] == "tokens=120; messages=4"
    assert whole.json()["shoal"]["truncated"] == {"tokens": 120, "messages": 4}
    first = json.loads(stream.text.split("\n\n")[0].removeprefix("data: "))
    assert first["shoal"]["truncated"] == {"tokens": 120, "messages": 4}
    with serving(ScriptedServices()) as server:
        whole = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=LIMIT)
    assert "x-shoal-truncated" not in whole.headers
    assert "truncated" not in whole.json()["shoal"]


@pytest.mark.parametrize(
    ("fields", "param", "details"),
    [
        ({"grammar": 'root ::= "a"\nb ::= ('}, "grammar", {"line": 2, "column": 8}),
        ({"grammar": "root ::= root"}, "grammar", {"line": 1, "column": 1}),
        ({"response_format": {"type": "json_object", "schema": {"items": {"uniqueItems": True}}}}, "response_format",
         {"pointer": "/items/uniqueItems"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
         "response_format", {"pointer": "/$ref"}),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice", None),
        ({"tools": [TOOL], "parallel_tool_calls": True}, "parallel_tool_calls", None),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_before_it_is_run(fields: Any, param: str, details: Any) -> None:
    services = ScriptedServices()
    with serving(services) as server:
        body = {"model": "smol", "messages": MESSAGES, "metadata": {"filler": "x" * 5000}, **fields}
        for sent in (body, {**body, "metadata": {}}):
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=sent, timeout=LIMIT)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("bad_request", param)
            assert error.get("details") == details
    assert not services.jobs
