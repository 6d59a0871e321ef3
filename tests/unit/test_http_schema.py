"""Requests of the OpenAI API: what is accepted, what is refused by name, and what becomes of the rest."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from agent.errors import BadRequestError
from agent.http import openai_fields
from agent.http.openai_schema import (
    SEEDS,
    Asked,
    ChatRequest,
    CompletionRequest,
    parse_chat,
    parse_completion,
    seed_of,
    traceparent_of,
)
from fleet.net.messages import MAX_PROMPT_BYTES, Sampling

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "once"}
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL: Any = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def chat(headers: Mapping[str, str] | None = None, **fields: Any) -> Asked:
    return parse_chat(json.dumps({**CHAT, **fields}).encode(), (headers or {}).get, "job-1")


def completion(**fields: Any) -> Asked:
    return parse_completion(json.dumps({**COMPLETION, **fields}).encode(), {}.get, "job-1")


def refusal(call: Any, *args: Any, **fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        call(*args, **fields)
    return caught.value


def test_a_plain_chat_takes_the_defaults_of_the_box() -> None:
    asked = chat()
    assert asked.job.request.sampling == Sampling()
    assert (asked.job.policy, asked.job.substitution, asked.job.on_interrupt) == (None, None, "error")
    assert (asked.kind, asked.stream, asked.include_usage) == ("chat", False, False)
    assert asked.job.request.job == "job-1"


@pytest.mark.parametrize(
    ("value", "allowed"), [(None, None), ("none", "none"), ("Quant", "quant"), (" family", "family")]
)
def test_a_client_says_what_may_stand_in_for_its_model(value: str | None, allowed: str | None) -> None:
    assert chat({"x-shoal-substitution": value} if value else {}).job.substitution == allowed


def test_a_substitution_that_does_not_exist_is_refused_with_those_that_do() -> None:
    error = refusal(chat, {"x-shoal-substitution": "quants\u00fc"})
    assert error.details == {"param": "X-Shoal-Substitution", "allowed": ["none", "quant", "family"]}
    assert "none, quant, family" in error.message


def test_sampling_fields_are_passed_on() -> None:
    asked = chat(temperature=0, top_p=0, seed=7, stop=["a", "b"], max_tokens=5)
    sampling = asked.job.request.sampling
    assert sampling == Sampling(max_tokens=5, temperature=0, top_p=1e-6, seed=7, stop=("a", "b"))
    assert chat(stop="x").job.request.sampling.stop == ("x",)
    assert chat(max_completion_tokens=9).job.request.sampling.max_tokens == 9
    assert chat(max_completion_tokens=9, max_tokens=9).job.request.sampling.max_tokens == 9


def test_what_the_first_version_of_jobs_does_not_know_makes_a_job_of_the_second() -> None:
    assert chat(temperature=0, stop="x", seed=4).job.request.v == 1
    for fields in (
        {"top_k": 5}, {"logprobs": True}, {"logit_bias": {"5": 1}}, {"grammar": 'root ::= "a"'}, {"tools": [TOOL]},
        {"truncate": "oldest"}, {"messages": [{"role": "user", "content": "x", "name": "eve"}]},
    ):  # fmt: skip
        assert chat(**fields).job.request.v == 2, fields
    assert completion(min_p=0).job.request.v == 2


def test_the_form_of_an_answer_is_passed_on() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "string"}}}
    openai_form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for form in (openai_form, {"type": "json_object", "schema": schema}):
        request = chat(response_format=form).job.request
        assert (request.output, json.loads(request.output_text)) == ("schema", schema)
        assert list(json.loads(request.output_text)["properties"]) == ["b", "a"]
    assert chat(response_format={"type": "json_object"}).job.request.output == "json"
    request = completion(grammar='root ::= "a"').job.request
    assert (request.output, request.output_text) == ("grammar", 'root ::= "a"')
    asked = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "add"}}, parallel_tool_calls=False)
    assert (asked.functions, asked.job.request.tool_choice) == (("add",), "add")
    assert json.loads(asked.job.request.tools)[0]["function"]["name"] == "add"
    assert chat(tools=[TOOL], tool_choice="none").functions == ()
    assert chat(tools=[TOOL]).functions == ("add",)
    assert chat(truncate="middle").job.request.truncate == "middle"


def test_calls_and_their_results_are_passed_on() -> None:
    turns = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    turns += [{"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}]
    call, result = chat(messages=turns).job.request.messages
    assert call.tool_calls[0].model_dump() == {"id": "c1", "name": "add", "arguments": "{}"}
    assert (result.content, result.tool_call_id, result.name) == ("3", "c1", "add")


def test_the_sampling_of_llama_server_is_passed_on() -> None:
    sampling = chat(
        top_k=-1, min_p=0, repeat_penalty=1.1, presence_penalty=-2, frequency_penalty=2, logit_bias={"7": -100},
        logprobs=True, top_logprobs=3,
    ).job.request.sampling  # fmt: skip
    assert (sampling.top_k, sampling.min_p, sampling.repeat_penalty) == (0, 0, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 2)
    assert (sampling.logit_bias, sampling.logprobs) == (((7, -100.0),), 3)
    assert chat(logprobs=True).job.request.sampling.logprobs == 0
    assert completion(logprobs=0).job.request.sampling.logprobs == 0


def test_null_is_the_same_as_absent() -> None:
    fields = dict.fromkeys(sorted({*ChatRequest.model_fields, *openai_fields.CHAT} - {"model", "messages"}))
    assert chat(**fields) == chat()
    fields = dict.fromkeys(sorted({*CompletionRequest.model_fields, *openai_fields.COMPLETION} - {"model", "prompt"}))
    assert completion(**fields) == completion()


def test_a_completion_without_max_tokens_ends_after_16_as_with_openai() -> None:
    assert completion().job.request.sampling.max_tokens == 16
    assert completion(prompt=["once"]).job.request.prompt == "once"


def test_text_parts_are_joined_by_a_line_break() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).job.request.messages[0].content == "a\nb"


def test_an_answer_of_the_api_can_be_sent_back_as_history() -> None:
    answer = {"role": "assistant", "content": "yes", "refusal": None, "annotations": [], "tool_calls": None}
    assert [m.content for m in chat(messages=[*CHAT["messages"], answer]).job.request.messages] == ["hi", "yes"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages.0.tool_calls.0"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": 5}]}]}, "messages.0.tool_calls.0.id"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "e" * 65}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour"),
        ({"messages": [CHAT["messages"][0]] * 1025}, "messages"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"seed": 1.5}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": [{**TOOL, "type": "code"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "colour": 1}}]}, "tools.0.function.colour"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": "x" * 140_000}}]}, "tools"),
        ({"tools": [TOOL], "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [TOOL], "grammar": 'root ::= "a"'}, "grammar"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": []}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_object", "schema": {"description": "x" * 66_000}}},
            "response_format.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"grammar": 'root ::= "' + "x" * 66_000 + '"'}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"truncate": "newest"}, "truncate"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_is_wrong_or_unsupported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(chat, **fields)
    assert error.details["param"] == param
    assert param.rpartition(".")[2] in error.message or param in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "n": 1, "service_tier": "auto"},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"response_format": {"type": "text"}, "parallel_tool_calls": True, "tools": [], "tool_choice": "none"},
        {"top_k": 40, "min_p": 0.05, "repeat_penalty": 1, "truncate": "none", "top_logprobs": 0, "grammar": ""},
        {"modalities": ["text"], "safety_identifier": "s", "prompt_cache_key": None},
    ],
)
def test_known_fields_that_ask_for_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


def test_a_cache_key_names_the_conversation_whatever_it_says() -> None:
    assert chat().job.request.session == ""
    one, same, other = (
        chat(prompt_cache_key=key).job.request.session for key in ("a/../b \N{SNOWMAN}" * 9, "k", "other")
    )
    assert all(len(session) == 64 for session in (one, same, other))
    assert len({one, same, other}) == 3
    assert chat(prompt_cache_key="k").job.request.session == same
    assert refusal(chat, prompt_cache_key="x" * 5000).details["param"] == "prompt_cache_key"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": []}, "tools"),
        ({"grammar": "root = 5"}, "grammar"),
        ({"suffix": "end"}, "suffix"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_completions_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(completion, **fields).details["param"] == param


def test_an_unknown_field_is_named_with_the_nearest_known() -> None:
    error = refusal(chat, temprature=1)
    assert "temprature" in error.message
    assert "did you mean temperature?" in error.message


@pytest.mark.parametrize(
    ("params", "supported", "unsupported"),
    [
        (chat_create_params.CompletionCreateParamsStreaming, ChatRequest, openai_fields.CHAT),
        (completion_create_params.CompletionCreateParamsStreaming, CompletionRequest, openai_fields.COMPLETION),
    ],
)
def test_every_field_of_the_openai_client_is_known(params: Any, supported: Any, unsupported: Any) -> None:
    fields = set(typing.get_type_hints(params, include_extras=True))
    assert fields - set(supported.model_fields) - set(unsupported) == set()


def test_a_prompt_past_1_mib_is_refused_with_the_limit() -> None:
    half = {"role": "user", "content": "x" * (MAX_PROMPT_BYTES // 2)}
    assert chat(messages=[half, half])
    error = refusal(chat, messages=[half, half, {"role": "user", "content": "é"}])
    assert error.details["limit_bytes"] == MAX_PROMPT_BYTES
    assert str(MAX_PROMPT_BYTES) in error.message
    assert refusal(completion, prompt="é" * (MAX_PROMPT_BYTES // 2 + 1)).details["param"] == "prompt"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{\n "a" 1}', "line 2 column 6"),
        (b'{"a": "\xff"}', "byte 7"),
        (b"[" * 5000, "recursion limit"),
        (b"[]", "object"),
        (b"", "line 1 column 0"),
        (b'{"model": NaN}', "line 1"),
        (b'{"seed": ' + b"9" * 100_000 + b"}", "out of range"),
        (b'{"model": "\\ud800"}', "line 1"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(body: bytes, said: str) -> None:
    assert said in refusal(parse_chat, body, {}.get, "job-1").message


def test_b8_an_invalid_policy_names_the_values() -> None:
    error = refusal(chat, {"x-shoal-offload": "always"})
    assert "never, prefer, require" in error.message
    assert chat({"x-shoal-offload": "Never"}).job.policy == "never"
    error = refusal(chat, {"x-shoal-on-interrupt": "retry"})
    assert "error, resume" in error.message
    assert chat({"x-shoal-on-interrupt": "resume"}).job.on_interrupt == "resume"


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_any_seed_becomes_one_of_the_sampler(seed: int) -> None:
    assert 0 <= seed_of(seed) < SEEDS
    assert seed_of(seed) == seed_of(seed)
    assert seed_of(seed) == seed or not 0 <= seed < SEEDS


def test_a_traceparent_is_passed_on_only_in_its_standard_form() -> None:
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert traceparent_of(good) == good
    for bad in (None, "", "x", good.upper(), good + "-x", "ff" + good[2:], "00-" + "0" * 32 + good[35:]):
        assert traceparent_of(bad) is None


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({*ChatRequest.model_fields, *openai_fields.CHAT, *openai_fields.COMPLETION, "prompt"})


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), ANY_JSON, max_size=8))
def test_no_body_fails_but_by_a_clear_refusal(fields: dict[str, Any]) -> None:
    for parse, base in ((parse_chat, CHAT), (parse_completion, COMPLETION)):
        for body in (fields, {**base, **fields}, {**fields, **base}):
            try:
                parse(json.dumps(body).encode("utf-8", "surrogatepass"), {}.get, "job-1")
            except BadRequestError:
                continue


@given(st.binary(max_size=200))
def test_no_bytes_fail_but_by_a_clear_refusal(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_chat(body, {}.get, "job-1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": 5}, "messages: must be an array"),
        ({"messages": ["x"]}, "messages.0: must be an object"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: must be a string"),
        ({"model": 5}, "model: must be a string"),
        ({"stream": "yes"}, "stream: must be true or false"),
        ({"max_tokens": "9"}, "max_tokens: must be an integer"),
        ({"temperature": "hot"}, "temperature: must be a number"),
        ({"stream": True, "stream_options": []}, "stream_options: must be an object"),
    ],
)
def test_a_wrong_type_is_named_in_the_words_of_json(fields: dict[str, Any], message: str) -> None:
    assert refusal(chat, **fields).message == message


def test_a_field_of_the_other_endpoint_is_answered_with_the_way_there() -> None:
    assert refusal(chat, prompt="x").message == (
        "unknown field 'prompt'; send messages, or the prompt to /v1/completions"
    )
    assert "/v1/chat/completions" in refusal(completion, messages=[]).message
    assert refusal(completion, max_completion_tokens=5).message.endswith("it is max_tokens here")


def test_a_byte_order_mark_is_passed_over() -> None:
    body = b"\xef\xbb\xbf" + json.dumps(CHAT).encode()
    assert parse_chat(body, {}.get, "job-1").job.request.model == "m"
