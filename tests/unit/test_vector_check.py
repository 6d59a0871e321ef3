"""What is taken of a box that says it has turned texts into vectors, and what is not."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.jobs.answer import BadAnswerError
from agent.jobs.vectors import VectorCheck, rows_of
from fleet.errors import MessageError
from fleet.net.messages import (
    MAX_DIMENSIONS,
    MAX_TEXTS,
    MAX_VECTOR_BYTES,
    Embedded,
    Finished,
    InferRequest,
    Started,
    parse,
    parse_infer_event,
)

HASH = "sha256:" + "1" * 64


def request_for(count: int, model: str = "m") -> InferRequest:
    return InferRequest(v=2, job="j", kind="embedding", model=model, texts=("some text",) * count)


def started(**fields: Any) -> Started:
    return Started(**{"model": "m", "hash": HASH, "prompt_tokens": 0, **fields})


def finished(tokens: int) -> Finished:
    return Finished(reason="stop", prompt_tokens=tokens, completion_tokens=0, prefill_ms=5.0, decode_ms=0.0)


def unit(dimensions: int, axis: int = 0) -> list[float]:
    return [1.0 if index == axis % dimensions else 0.0 for index in range(dimensions)]


def packed(*vectors: list[float], first: int = 0) -> Embedded:
    numbers = [number for vector in vectors for number in vector]
    return Embedded(first=first, dimensions=len(vectors[0]), data=struct.pack(f"<{len(numbers)}f", *numbers))


def checking(count: int) -> VectorCheck:
    check = VectorCheck(request_for(count))
    check.start(started())
    return check


@given(st.data())
def test_every_way_to_cut_an_answer_into_events_gives_the_same_vectors(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    dimensions = data.draw(st.integers(1, 9))
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count)))})
    check = checking(count)
    for one, next_one in pairwise(cuts):
        check.take(packed(*(unit(dimensions, axis) for axis in range(one, next_one)), first=one))
    last = check.finish(finished(count * 2), elapsed_ms=2.0)
    check.end()
    rows = [list(row) for part in check.parts for row in rows_of(part)]
    assert rows == [unit(dimensions, axis) for axis in range(count)]
    assert (last.prompt_tokens, last.completion_tokens, last.prefill_ms) == (count * 2, 0, 2.0)


@given(st.data())
def test_an_answer_that_lacks_doubles_or_moves_a_text_is_none(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    order = data.draw(st.lists(st.integers(0, count), max_size=count + 2).filter(lambda own: own != [*range(count)]))
    check = checking(count)

    def play() -> None:
        for index in order:
            check.take(packed(unit(3, index), first=index))
        check.finish(finished(count), 1.0)

    with pytest.raises(BadAnswerError):
        play()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.0, 0.5, 2.0, 3e38])
def test_a_vector_that_does_not_have_length_1_is_refused(number: float) -> None:
    with pytest.raises(BadAnswerError, match="length 1"):
        checking(2).take(packed(unit(4), [number, 0.0, 0.0, 0.0]))


def test_vectors_of_two_sizes_are_refused() -> None:
    check = checking(2)
    check.take(packed(unit(4)))
    with pytest.raises(BadAnswerError, match="4 and of 5"):
        check.take(packed(unit(5), first=1))


def test_bytes_that_are_no_whole_vectors_are_refused() -> None:
    with pytest.raises(BadAnswerError, match="no vectors"):
        checking(1).take(Embedded(first=0, dimensions=4, data=b"\0" * 20))


def test_more_vectors_than_texts_are_refused() -> None:
    with pytest.raises(BadAnswerError, match="more than the 1"):
        checking(1).take(packed(unit(4), unit(4)))


@pytest.mark.parametrize("tokens", [0, 1, 1 << 40])
def test_tokens_that_the_texts_cannot_have_are_not_told_on(tokens: int) -> None:
    check = checking(2)
    check.take(packed(unit(4), unit(4)))
    with pytest.raises(BadAnswerError, match="cannot have"):
        check.finish(finished(tokens), 1.0)


def test_the_order_of_events_is_kept_to() -> None:
    check = VectorCheck(request_for(1, model=HASH))
    with pytest.raises(BadAnswerError, match="before"):
        check.take(packed(unit(4)))
    with pytest.raises(BadAnswerError, match="another model"):
        check.start(started(hash="sha256:" + "2" * 64))
    with pytest.raises(BadAnswerError, match="left messages out"):
        check.start(started(cut_tokens=1))
    check.start(started())
    with pytest.raises(BadAnswerError, match="twice"):
        check.start(started())
    with pytest.raises(BadAnswerError, match="ended"):
        check.end()


@pytest.mark.parametrize(
    "change",
    [
        {"first": -1},
        {"first": MAX_TEXTS},
        {"dimensions": 0},
        {"dimensions": MAX_DIMENSIONS + 1},
        {"data": b""},
        {"data": b"\0" * (MAX_VECTOR_BYTES + 1)},
        {"data": "text"},
        {"data": [1, 2]},
    ],
)
def test_an_event_past_its_limits_is_no_message(change: dict[str, Any]) -> None:
    body = {"type": "embedded", "first": 0, "dimensions": 1, "data": b"\0\0\x80?"}
    assert isinstance(parse_infer_event(body), Embedded)
    with pytest.raises(MessageError):
        parse_infer_event({**body, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"texts": []},
        {"texts": ["x"] * (MAX_TEXTS + 1)},
        {"texts": [1]},
        {"kind": "chat"},
        {"kind": "completion"},
        {"pooling": "max"},
    ],
)
def test_a_request_whose_texts_do_not_fit_its_kind_is_no_message(change: dict[str, Any]) -> None:
    body = request_for(2).model_dump(mode="json")
    assert parse(InferRequest, body) == request_for(2)
    with pytest.raises(MessageError):
        parse(InferRequest, {**body, **change})
