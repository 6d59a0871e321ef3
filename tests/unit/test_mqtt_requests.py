"""Payloads of requests: what is understood, how it becomes a job, and what each refusal names."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import HTTP_STATUS, AgentError, BadRequestError, DeadlineError, OverloadedError
from agent.jobs.job import Routed
from agent.mqtt.rate import Rate
from agent.mqtt.replies import CODES, Answer, codes, failed, problem_of
from agent.mqtt.request import MAX_PAYLOAD, NotUtf8Error, TooLargeError, job_of, too_deep, understand
from fleet.errors import RemoteError
from fleet.net.messages import Finished


def asked(**fields: Any) -> bytes:
    return json.dumps({"v": 1, "input": {"prompt": "x"}, **fields}).encode()


def test_a_text_is_a_question_with_defaults() -> None:
    found = understand("Ist 82 °C normal?\n".encode())
    request = found.to_run("mqtt-1", "smol", 5000, None).request
    assert (found.job, found.model, found.kind, found.priority, found.stream) == ("", "", "chat", "normal", False)
    assert request.messages[0].content == "Ist 82 °C normal?\n"
    assert (request.model, request.deadline_ms, request.sampling.max_tokens) == ("smol", 5000, 256)


def test_everything_that_can_be_said_reaches_the_job() -> None:
    found = understand(
        asked(
            job="till-1.7",
            kind="chat",
            model={"ref": "gemma", "substitute": "family"},
            input={"system": "Be short.", "prompt": "Hello"},
            params={
                "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["."],
                "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
            },
            deadline_ms=8000,
            priority="interactive",
            stream=True,
        )
    )  # fmt: skip
    job = found.to_run("mqtt-till-1.7", found.model, 7000, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    request = job.request
    assert [(turn.role, turn.content) for turn in request.messages] == [("system", "Be short."), ("user", "Hello")]
    assert (request.sampling.top_k, request.sampling.seed, request.sampling.stop) == (3, 7, (".",))
    assert (request.output, json.loads(request.output_text)["required"]) == ("schema", ["ok"])
    assert (request.v, request.deadline_ms, request.priority, job.substitution) == (2, 7000, "interactive", "family")
    assert request.traceparent is not None


@pytest.mark.parametrize(
    ("kind", "given"), [("completion", {"prompt": "Once"}), ("embedding", {"texts": ["a", "b"]}),
                        ("chat", {"messages": [{"role": "user", "content": "x"}]})]
)  # fmt: skip
def test_every_kind_becomes_a_job_of_that_kind(kind: str, given: dict[str, Any]) -> None:
    request = understand(asked(kind=kind, input=given)).to_run("mqtt-1", "m", 1000, None).request
    assert request.kind == kind
    assert request.prompt or request.texts or request.messages


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"v": 2}, "v"),
        ({"v": True}, "v"),
        ({"jb": "x"}, "jb"),
        ({"job": ""}, "job"),
        ({"job": "a/b"}, "job"),
        ({"job": "x" * 49}, "job"),
        ({"kind": "image"}, "kind"),
        ({"model": ""}, "model"),
        ({"model": {"ref": "x" * 257}}, "model.ref"),
        ({"model": {"substitute": "any"}}, "model.substitute"),
        ({"input": {}}, "input"),
        ({"input": "x"}, "input"),
        ({"input": {"prompt": ""}}, "input.prompt"),
        ({"input": {"messages": [{"role": "tool", "content": "x"}]}}, "input.messages.0.role"),
        ({"input": {"messages": [{"role": "user", "content": "x"}], "system": "y"}}, "input.system"),
        ({"kind": "embedding", "input": {"texts": ["a"]}, "stream": True}, "stream"),
        ({"kind": "embedding", "input": {"texts": ["a"]}, "params": {"schema": {}}}, "params.schema"),
        ({"params": {"max_tokens": 0}}, "params.max_tokens"),
        ({"params": {"temperature": "hot"}}, "params.temperature"),
        ({"params": {"schema": {"type": 7}}}, "params.schema"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 1.5}, "deadline_ms"),
        ({"priority": "urgent"}, "priority"),
        ({"stream": 1}, "stream"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        understand(asked(**fields))
    assert caught.value.message.startswith(f"{named}:") or caught.value.message.startswith(f"{named}.")


def test_limits_come_first_and_are_told_apart() -> None:
    with pytest.raises(TooLargeError):
        understand(b"x" * (MAX_PAYLOAD + 1))
    with pytest.raises(NotUtf8Error):
        understand(b"caf\xe9")
    for text in ("", " \n", "\ufeff", "{", '{"v":1', '{"v":1}trailing', '{"v":1,"input":{"prompt":NaN}}'):
        with pytest.raises(BadRequestError):
            understand(text.encode())
    assert understand(b"x" * MAX_PAYLOAD).kind == "chat"


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: ("{" + text).encode("utf-8", "surrogatepass")))
def test_no_payload_does_anything_but_be_understood_or_refused(payload: bytes) -> None:
    job_of(payload)
    with contextlib.suppress(BadRequestError):
        understand(payload).to_run("mqtt-1", "m", 1000, None)


def test_the_id_of_a_request_that_is_refused_is_found_where_it_is_one() -> None:
    assert job_of(asked(job="till-1", v=9)) == "till-1"
    assert [job_of(payload) for payload in (b"{", b"[]", asked(job=7), asked(job="a b"), b"x" * (MAX_PAYLOAD + 1))] == [
        ""
    ] * 5


def test_depth_is_counted() -> None:
    nested: object = 1
    for _ in range(5):
        nested = {"a": [nested]}
    assert not too_deep(nested, 10)
    assert too_deep(nested, 9)


def test_every_code_of_this_project_has_one_of_mqtt() -> None:
    assert set(CODES.values()) | {"engine"} == set(codes())
    assert set(CODES) - {"cancelled"} <= set(HTTP_STATUS)
    for code in HTTP_STATUS:
        error = type("AnError", (AgentError,), {"code": code})("words")
        found = problem_of(error)
        assert (found is None) == (code == "internal")


def test_errors_say_whether_and_when_to_come_back() -> None:
    busy, late = problem_of(OverloadedError("full", retry_after=7)), problem_of(DeadlineError("late"))
    assert busy is not None
    assert late is not None
    assert json.loads(failed("j", busy)) == {
        "v": 1, "job": "j", "code": "overloaded", "message": "full", "retryable": True, "retry_after_ms": 7000,
    }  # fmt: skip
    assert json.loads(failed("j", late, 41))["last_seq"] == 41
    remote = problem_of(RemoteError("denied", "not you"))
    assert remote is not None
    assert (remote.code, remote.retryable) == ("denied", False)
    assert problem_of(ValueError("inside")) is None


def test_a_result_says_who_served_and_why() -> None:
    answer = Answer(10.0)
    answer.route(Routed("12D3KooWx", "jetson-1", False, "smol", "sha256:x", 3, ("till=no model", "jetson-1=served")))
    answer.texts += ["Y", "es"]
    answer.first_at = 10.5
    answer.finished = Finished(reason="stop", prompt_tokens=3, completion_tokens=2, prefill_ms=1.0, decode_ms=2.0)
    found = answer.result("j", "chat", 11.0)
    assert found is not None
    assert found.startswith(b'{"v":1,"job":"j","status":"ok","served_by":"jetson-1"')
    body = json.loads(found)
    assert body["route"] == [{"peer": "till", "verdict": "no model"}, {"peer": "jetson-1", "verdict": "served"}]
    assert body["timing_ms"] == {"first_token": 500.0, "prefill": 1.0, "decode": 2.0, "total": 1000.0}
    answer.texts.append("x" * MAX_PAYLOAD)
    assert answer.result("j", "chat", 11.0) is None


def test_a_rate_lets_some_through_at_once_and_the_rest_in_time() -> None:
    rate = Rate(2.0, 3)
    assert [rate.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rate.take(0.4) > 0
    assert rate.take(0.5) == 0.0
    assert rate.take(0.0) > 0
