"""What external servers send, read without a server: streams, lists, ids, errors."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.external import failure, listing
from agent.engine.external.answer import AnswerReader, ServerRefusal
from agent.engine.external.derived import digest_in, id_at_place, id_of_digest
from agent.engine.external.dialect import body_of
from agent.engine.external.sse import MAX_EVENT, EventStream
from agent.engine.external.trouble import ServerTroubleError, quoted
from agent.engine.structure.calls import CallArguments, CallBegin, CallParser
from agent.errors import BadRequestError, ContextLengthError, EngineError, OverloadedError
from agent.jobs.answer import AnswerCheck
from fleet.models.reference import is_hash
from fleet.net.messages import ChatMessage, Delta, Finished, InferRequest, Sampling, Started, ToolCall

HASH = "sha256:" + "a" * 64
KNOWN_MANIFEST = "sha256:046e722a35e4220fe3d935f5766072e37a8e6ff6e8015cc66195f3ac8f8e7a26"
KNOWN_PLACE = "sha256:4abae495839320fded60aca22302f613bfb37c712116395dbb433b532e15e8b4"


# --- event streams ---------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), max_size=20), st.booleans()),
        max_size=8,
    ),
    st.lists(st.integers(0, 400), max_size=10),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_stream_means_the_same_however_it_is_cut(events: list[tuple[str, bool]], cuts: list[int], end: str) -> None:
    whole = "".join(f"{': note' + end if noted else ''}data: {data}{end}{end}" for data, noted in events).encode()
    stream, found = EventStream(), []
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    for begin, until in itertools.pairwise(places):
        found += stream.feed(whole[begin:until])
    assert found == [data for data, _ in events]


def test_lines_of_one_event_are_joined_and_other_fields_skipped() -> None:
    stream = EventStream()
    assert list(stream.feed(b"event: x\nid: 1\ndata: a\ndata:b\nretry: 5\n\n\n\ndata\n\n")) == ["a\nb", ""]
    assert list(stream.feed(b"data: \xff\n\n")) == ["\ufffd"]


def test_lines_and_events_are_bounded() -> None:
    for piece in (b"data: " + b"x" * MAX_EVENT, b"data: " + b"x" * 1000 + b"\n"):
        stream = EventStream()
        with pytest.raises(ServerTroubleError, match="more than"):
            for _ in range(MAX_EVENT // 1000 + 1):
                list(stream.feed(piece))
    stream = EventStream()
    for _ in range(50):  # an event starts the count of such lines anew
        assert list(stream.feed(b": x\n" * 500 + b"data: 1\n\n")) == ["1"]
    with pytest.raises(ServerTroubleError, match="say nothing"):
        list(stream.feed(b": x\n" * 1001))


# --- answers ---------------------------------------------------------------------------------------------------------


def request_of(max_tokens: int | None = None, kind: str = "chat") -> InferRequest:
    return InferRequest.model_validate(
        {"job": "j", "kind": kind, "model": HASH, "prompt": "x" * 40, "sampling": Sampling(max_tokens=max_tokens)}
        | ({"messages": (ChatMessage(role="user", content="y" * 400),), "prompt": ""} if kind == "chat" else {})
    )


def reader_of(request: InferRequest, context: int = 100) -> AnswerReader:
    return AnswerReader(request, name="m", hash=HASH, context_tokens=context, asked=10.0)


def piece(text: Any = "a", **more: Any) -> str:
    return json.dumps(
        {
            "choices": [{"index": 0, "delta": {"content": text, **more.pop("delta", {})}, **more.pop("choice", {})}],
            **more,
        }
    )


def end(reason: str = "stop", **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more})


def read(reader: AnswerReader, *events: str) -> list[Started | Delta | Finished]:
    """All events of an answer, held against what the rest of the box checks."""
    found: list[Started | Delta | Finished] = []
    for number, event in enumerate(events):
        found += reader.take(event, 11.0 + number)
    found += reader.finish()
    check = AnswerCheck(reader._request, reader._context)
    for event in found:
        if isinstance(event, Started):
            check.start(event)
        elif isinstance(event, Delta):
            check.delta(event)
        else:
            check.finish(event, 1e9)
    assert check.finished
    return found


def text_of(events: list[Started | Delta | Finished]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_an_answer_in_pieces() -> None:
    events = read(
        reader_of(request_of()), piece("", delta={"role": "assistant"}), piece("a"), piece("b"), end(), "[DONE]"
    )
    assert events == [
        Started(model="m", hash=HASH, prompt_tokens=100),
        Delta(text="a"),
        Delta(text="b"),
        Finished(reason="stop", prompt_tokens=100, completion_tokens=2, prefill_ms=2000.0, decode_ms=1000.0),
    ]


def test_counts_of_the_server_are_taken_where_they_can_be_true() -> None:
    usage = {"prompt_tokens": 33, "completion_tokens": 3}
    events = read(reader_of(request_of()), piece("abc", usage=usage), end())
    assert isinstance(events[0], Started)
    assert events[0].prompt_tokens == 33
    assert events[1] == Delta(text="abc", tokens=3)
    timings = {"cache_n": 5, "prompt_n": 6, "predicted_n": 2}
    events = read(reader_of(request_of()), piece("ab", timings=timings), end())
    assert events[0] == Started(model="m", hash=HASH, prompt_tokens=11)
    assert events[1] == Delta(text="ab", tokens=2)
    for lie in (-1, 0, True, 1e99, "9", None, 1 << 70):
        usage = {"prompt_tokens": lie, "completion_tokens": lie}
        for event in read(reader_of(request_of(max_tokens=7)), piece("ab", usage=usage), end(usage=usage)):
            if isinstance(event, Started):
                assert 0 < event.prompt_tokens <= 100
            elif isinstance(event, Delta):
                assert 1 <= event.tokens <= 7


def test_thoughts_count_and_are_not_shown() -> None:
    events = read(reader_of(request_of()), piece(None, delta={"reasoning_content": "hm"}), piece("a"), end())
    assert events[1:3] == [Delta(text="", tokens=1), Delta(text="a")]
    thinking = [piece(None, delta={"reasoning": "hm"})] * 50
    last = read(reader_of(request_of(max_tokens=5)), *thinking)[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.completion_tokens) == ("length", 5)


def test_an_answer_that_is_too_long_is_ended() -> None:
    events = read(reader_of(request_of(max_tokens=3)), *[piece("ab")] * 5000)
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.completion_tokens) == ("length", 3)
    assert len(text_of(events)) <= 3 * 2 + 8 * 1024


def test_a_long_piece_counts_as_several_tokens() -> None:
    long = "x" * 100_000
    events = read(reader_of(request_of(), context=4096), piece(long), end())
    assert text_of(events) == long
    assert sum(event.tokens for event in events if isinstance(event, Delta)) > 300


def test_halves_of_characters_are_put_together_or_replaced() -> None:
    assert text_of(read(reader_of(request_of()), piece("a\ud83d"), piece("\ude00b"), end())) == "a😀b"
    assert text_of(read(reader_of(request_of()), piece("a\ud83d"), piece("b\ude00"), end())) == "a\ufffdb\ufffd"
    assert text_of(read(reader_of(request_of()), piece("a\ud83d"), end())) == "a\ufffd"


def test_the_call_of_a_function_comes_as_the_text_that_models_write() -> None:
    request = request_of().model_copy(update={"tools": '[{"type": "function", "function": {"name": "find"}}]'})

    def call(name: str | None, arguments: str, index: int = 0) -> str:
        function = {"name": name, "arguments": arguments}
        return piece(None, delta={"tool_calls": [{"index": index, "id": "x", "function": function}]})

    events = read(
        reader_of(request),
        call("find", ""),
        call(None, '{"a"'),
        call(None, ": 1}"),
        call("b", "{}", 1),
        end("tool_calls"),
    )
    calls = CallParser(["find"])
    found = [*calls.push(text_of(events)), *calls.finish()]
    assert found[0] == CallBegin("find")
    assert "".join(one.text for one in found if isinstance(one, CallArguments)) == '{"a": 1}'
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.completion_tokens) == ("stop", 4)
    # Nobody asked for it, or it is no name: then it is nothing.
    assert text_of(read(reader_of(request_of()), call("find", "{}"), end())) == ""
    assert text_of(read(reader_of(request), call("</tool_call>", "{}"), end())) == ""
    with pytest.raises(ServerTroubleError, match="calls a function with more than"):
        read(reader_of(request, 4096), *[call("find", "x" * 10_000)] * 10)
    # One call in one piece, as Ollama sends it.
    assert len(text_of(read(reader_of(request, 4096), call("find", json.dumps({"a": "x" * 30_000})), end()))) > 30_000


def test_logprobs_are_passed_on_where_they_were_asked_for() -> None:
    request = request_of().model_copy(update={"sampling": Sampling(logprobs=1)})
    entry = {
        "token": "a",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
    }
    said = piece("ab", choice={"logprobs": {"content": [entry, entry]}})
    delta = read(reader_of(request), said, end())[1]
    assert isinstance(delta, Delta)
    assert delta.tokens == len(delta.logprobs) == 2
    assert delta.logprobs[0].top_logprobs[0].bytes == (97,)
    entry["top_logprobs"] *= 3
    delta = read(reader_of(request), piece("ab", choice={"logprobs": {"content": [entry, entry]}}), end())[1]
    assert isinstance(delta, Delta)
    assert [len(one.top_logprobs) for one in delta.logprobs] == [1, 1]
    for bad in (
        None,
        [],
        {"content": None},
        {"content": [1]},
        {"content": [{**entry, "logprob": "x"}]},
        {"content": [entry] * 70},
    ):
        delta = read(reader_of(request), piece("ab", choice={"logprobs": bad}), end())[1]
        assert isinstance(delta, Delta)
        assert delta.logprobs == ()
    delta = read(reader_of(request_of()), said, end())[1]
    assert isinstance(delta, Delta)
    assert delta.logprobs == ()


# --- requests --------------------------------------------------------------------------------------------------------


def sent(kind: Any, request: InferRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(body_of(request, kind=kind, model="theirs", context_tokens=100))
    return body


def test_a_request_says_no_more_than_it_has_to() -> None:
    assert sent("openai", request_of()) == {
        "model": "theirs",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.8,
        "top_p": 0.95,
        "messages": [{"role": "user", "content": "y" * 400}],
    }


def test_fields_that_only_some_servers_have() -> None:
    sampling = Sampling(
        top_k=0, min_p=0.1, repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((7, -3.0),)
    )
    request = request_of().model_copy(update={"sampling": sampling})
    standard = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"7": -3.0}}
    for kind, more in {
        "openai": {},
        "ollama": {},
        "lmstudio": {"top_k": 0, "repeat_penalty": 1.1},
        "llama-server": {"top_k": 0, "min_p": 0.1, "repeat_penalty": 1.1},
        "vllm": {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
    }.items():
        body = sent(kind, request)
        fields = ("top_k", "min_p", "repeat_penalty", "repetition_penalty", *standard)
        assert {key: body[key] for key in fields if key in body} == {**standard, **more}


def test_what_an_answer_must_look_like() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    in_schema = {"output": "schema", "output_text": json.dumps(schema)}
    for kind in ("openai", "ollama", "lmstudio", "llama-server", "vllm"):
        assert sent(kind, request_of().model_copy(update=in_schema))["response_format"] == named
        as_json = sent(kind, request_of().model_copy(update={"output": "json"}))["response_format"]
        assert as_json["type"] == ("json_schema" if kind == "lmstudio" else "json_object")
        completion = request_of(kind="completion").model_copy(update=in_schema)
        grammar = request_of().model_copy(update={"output": "grammar", "output_text": 'root ::= "a"'})
        if kind == "llama-server":
            assert sent(kind, completion)["json_schema"] == schema
            assert sent(kind, grammar)["grammar"] == 'root ::= "a"'
        else:
            with pytest.raises(EngineError, match="grammar"):
                sent(kind, grammar)
            if kind == "vllm":
                assert sent(kind, completion)["response_format"] == named
            else:
                with pytest.raises(EngineError, match="schema"):
                    sent(kind, completion)
    for bad in ("{", "[" * 60_000, "NaN"):
        with pytest.raises(BadRequestError):
            sent("openai", request_of().model_copy(update={"output": "schema", "output_text": bad}))


def test_functions_calls_and_their_results() -> None:
    messages = (
        ChatMessage(role="user", content="x", name="ann"),
        ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="1", name="find", arguments="{}"),)),
        ChatMessage(role="tool", content="found", tool_call_id="1"),
    )
    tools = [{"type": "function", "function": {"name": "find"}}]
    for choice, said in {
        "": "auto",
        "none": "none",
        "required": "required",
        "find": {"type": "function", "function": {"name": "find"}},
    }.items():
        body = sent(
            "openai",
            request_of().model_copy(update={"messages": messages, "tools": json.dumps(tools), "tool_choice": choice}),
        )
        assert (body["tools"], body["tool_choice"]) == (tools, said)
        assert body["messages"] == [
            {"role": "user", "content": "x", "name": "ann"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "found", "tool_call_id": "1"},
        ]
    with pytest.raises(BadRequestError):
        sent("openai", request_of().model_copy(update={"tools": "{}"}))


def test_text_that_is_no_unicode_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadRequestError, match="surrogate"):
        sent("openai", request_of(kind="completion").model_copy(update={"prompt": "\ud800"}))


@pytest.mark.parametrize("bad", ["", "{", "[]", "1", "null", '"x"', "[" * 100_000, '{"choices": [' * 2])
def test_garbage_is_refused(bad: str) -> None:
    with pytest.raises(ServerTroubleError):
        list(reader_of(request_of()).take(bad, 11.0))


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [1]},
        {"choices": [{}]},
        {"choices": [{"delta": 1}]},
        {"choices": 7},
        {"choices": [{"delta": {"content": 7}}]},
        {"choices": [{"index": 1, "delta": {"content": "x"}}]},
        {"usage": 1},
        {"usage": {"prompt_tokens": []}},
        {"timings": {"cache_n": "x"}},
        {"choices": [{"delta": {"content": None}}], "error": None},
    ],
)
def test_events_that_say_nothing_are_passed_over(odd: Any) -> None:
    events = read(reader_of(request_of()), json.dumps(odd), piece("a"), end())
    assert text_of(events) == "a"


def test_a_stream_without_an_end_is_no_answer() -> None:
    reader = reader_of(request_of())
    list(reader.take(piece("a"), 11.0))
    with pytest.raises(ServerTroubleError, match="half-way"):
        list(reader.finish())
    with pytest.raises(ServerRefusal):
        list(reader.take('{"error": "x"}', 12.0))
    empty = reader_of(request_of())
    with pytest.raises(ServerTroubleError, match="bring nothing"):
        for _ in range(1001):
            list(empty.take("{}", 11.0))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "text",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "index",
                    "timings",
                    "cache_n",
                    "prompt_n",
                    "predicted_n",
                    "finish_reason",
                    "error",
                    "message",
                    "code",
                    "id",
                    "name",
                    "digest",
                    "models",
                    "data",
                    "meta",
                    "details",
                    "status",
                    "state",
                    "capabilities",
                    "model_info",
                    "parameters",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=5), st.sampled_from(["chat", "completion"]))
def test_no_stream_breaks_the_reader(events: list[Any], kind: str) -> None:
    reader = reader_of(request_of(kind=kind))
    with contextlib.suppress(ServerTroubleError, ServerRefusal):
        read(reader, *(json.dumps(event) for event in events), end())


@given(json_values)
def test_no_list_breaks_its_reader(found: Any) -> None:
    for parse in (listing.from_openai, listing.from_ollama, listing.from_lmstudio):
        try:
            models = listing.bounded(parse(found))
        except ServerTroubleError:
            continue
        assert len(models) <= listing.MAX_MODELS
        assert all(0 < len(model.name) <= 256 and 0 <= model.context_tokens <= 1 << 20 for model in models)
    for describe in (listing.shown, listing.props):
        try:
            describe(found)
        except ServerTroubleError:
            continue
    assert listing.is_ollama(found) in (True, False)
    assert listing.is_lmstudio(found) in (True, False)


@given(json_values, st.sampled_from([400, 401, 404, 413, 418, 422, 429, 500, 502, 503, 302, 600, 204]), st.booleans())
def test_no_refusal_breaks_its_reader(body: Any, status: int, local: bool) -> None:
    data = json.dumps(body).encode()
    error = failure.of_status(status, {"retry-after": "x"}, data, name="m", local=local, context_tokens=9)
    assert error.message
    assert failure.of_event(body, name="m", local=local, context_tokens=9).message


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_have_the_form_of_a_hash_and_differ_with_all_that_is_known() -> None:
    ids = [
        id_of_digest("a" * 64),
        id_of_digest("b" * 64),
        id_at_place("box", "http://a", "m", ""),
        id_at_place("other", "http://a", "m", ""),
        id_at_place("box", "http://b", "m", ""),
        id_at_place("box", "http://a", "n", ""),
        id_at_place("box", "http://a", "m", "7b"),
        id_at_place("boxh", "ttp://a", "m", ""),
    ]
    assert len(set(ids)) == len(ids)
    assert all(is_hash(one) for one in ids)
    # Written down: another value would give every external model another id with the next version.
    assert id_of_digest("a" * 64) == KNOWN_MANIFEST
    assert id_at_place("box", "http://a", "m", "") == KNOWN_PLACE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a" * 64, "a" * 64),
        ("sha256:" + "0" * 64, "0" * 64),
        ("A" * 64, ""),
        ("a" * 63, ""),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_digests(value: object, expected: str) -> None:
    assert digest_in(value) == expected


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("num_ctx    8192", 5000),
        ("stop x\nnum_ctx 2048\n", 2048),
        ("num_ctx many", 4096),
        ("xnum_ctx 2048", 4096),
        ("", 4096),
        ("num_ctx 999999999", 5000),
    ],
)
def test_the_context_that_ollama_gives_a_model(text: str, context: int) -> None:
    info = {"general.architecture": "llama", "llama.context_length": 5000}
    assert listing.shown({"parameters": text, "model_info": info}).context_tokens == context


# --- errors ----------------------------------------------------------------------------------------------------------


def of(status: int, body: Any, *, local: bool = True, **headers: str) -> Any:
    return failure.of_status(status, headers, json.dumps(body).encode(), name="m", local=local, context_tokens=4096)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such thing", "code": 400}},
        {"error": "no such thing"},
        {"detail": "no such thing"},
        {"message": "no such thing", "code": 400},
        {"error": {"message": "no such\n\tthing"}},
    ],
)
def test_the_words_of_every_shape_are_found(body: Any) -> None:
    error = of(400, body)
    assert type(error) is BadRequestError
    assert error.message.endswith(": no such thing")
    assert "thing" not in of(400, body, local=False).message


def test_retry_after_is_believed_within_reason() -> None:
    for value, expected in [
        ("3", 3),
        ("0", 1),
        ("86400", 86400),
        ("99999999", 5),
        ("-1", 5),
        ("Wed, 21 Oct", 5),
        ("١", 5),
        ("", 5),
    ]:
        error = failure.of_status(429, {"retry-after": value}, b"", name="m", local=True, context_tokens=1)
        assert isinstance(error, OverloadedError)
        assert error.retry_after == expected


def test_a_context_that_is_too_small() -> None:
    for words in ("This model's maximum context length is 10 tokens", "Context length exceeded", "context overflows"):
        assert isinstance(of(400, {"error": {"message": words}}), ContextLengthError)
    assert not isinstance(of(400, {"error": {"message": "unknown field context"}}), ContextLengthError)
    assert isinstance(of(500, {"error": {"message": "x"}}), EngineError)
    error = of(400, {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 1 << 80}})
    assert error.details["prompt_tokens"] <= 1 << 30


def test_what_a_server_says_is_shown_as_one_short_line() -> None:
    assert quoted("a\n\x1b[31mb\u202e" + "x" * 10_000) == "a [31mb " + "x" * 191 + "…"
    assert quoted(7) == ""
