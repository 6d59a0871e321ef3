"""Requests for vectors: what is understood, and what is refused by name."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import embedding_create_params

from agent.errors import BadRequestError
from agent.http import openai_fields
from agent.http.embeddings_schema import AskedVectors, EmbeddingRequest, parse_embedding
from fleet.net.messages import MAX_PROMPT_BYTES, MAX_TEXTS

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def understood(body: Any, **headers: str) -> AskedVectors:
    return parse_embedding(json.dumps(body).encode(), headers.get, "job-1")


def refusal(body: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        understood(body)
    return caught.value


@given(st.lists(st.text(min_size=1), min_size=1, max_size=MAX_TEXTS), st.sampled_from(["", "mean", "cls", "last"]))
def test_texts_become_a_job_in_their_order(texts: list[str], pooling: str) -> None:
    texts = [text.encode("utf-8", "ignore").decode() or "x" for text in texts]
    asked = understood({"model": "m", "input": texts, "pooling": pooling, "user": "u"})
    request = asked.job.request
    assert (request.v, request.kind, request.texts, request.pooling) == (2, "embedding", tuple(texts), pooling)
    assert (asked.encoding, asked.dimensions) == ("float", None)


def test_the_rest_of_a_request_and_its_headers() -> None:
    asked = understood(
        {"model": "m", "input": "one", "encoding_format": "base64", "dimensions": 8},
        **{"x-shoal-offload": "require", "traceparent": TRACE},
    )
    assert asked.job.request.texts == ("one",)
    assert (asked.encoding, asked.dimensions) == ("base64", 8)
    assert (asked.job.policy, asked.job.request.traceparent) == ("require", TRACE)


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"input": None}, "input", "required"),
        ({"input": []}, "input", "is empty"),
        ({"input": ""}, "input", "is empty"),
        ({"input": ["a", ""]}, "input.1", "is empty"),
        ({"input": [1, 2]}, "input", "send the text itself"),
        ({"input": [[1], [2]]}, "input", "send the text itself"),
        ({"input": ["a", 1]}, "input", "send the text itself"),
        ({"input": ["a", None]}, "input.1", "must be a string"),
        ({"input": {"a": 1}}, "input", "a string or a list of strings"),
        ({"input": ["x"] * (MAX_TEXTS + 1)}, "input", f"has {MAX_TEXTS + 1} texts, and one request takes at most 256"),
        ({"input": "é" * (MAX_PROMPT_BYTES // 2 + 1)}, "input", "1 MiB"),
        ({"model": None}, "model", "GET /v1/models"),
        ({"encoding_format": "hex"}, "encoding_format", "float"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"dimensions": "8"}, "dimensions", "must be an integer"),
        ({"pooling": "max"}, "pooling", "mean"),
        ({"messages": []}, "messages", "the texts are in input"),
        ({"inputs": "x"}, "inputs", "did you mean input?"),
        ({"stream": True}, "stream", "unknown field"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], param: str, says: str) -> None:
    error = refusal({"model": "m", "input": "one", **change})
    assert error.details["param"] == param
    assert says in error.message


@given(
    st.dictionaries(
        st.sampled_from([*EmbeddingRequest.model_fields, "user"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_anything_else_is_refused_and_never_fails_otherwise(body: dict[str, Any]) -> None:
    try:
        asked = understood(body)
    except BadRequestError:
        return
    assert all(asked.job.request.texts)


def test_every_field_of_openais_client_is_known() -> None:
    theirs = set(typing.get_type_hints(embedding_create_params.EmbeddingCreateParams))
    assert theirs <= {*EmbeddingRequest.model_fields, *openai_fields.EMBEDDING}
