"""The frame codec: what goes in comes out, and nothing a peer can send does more than raise FrameError."""

from __future__ import annotations

import datetime
import fractions

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import FrameError
from fleet.net.frames import (
    MAX_FRAME,
    Call,
    Cancel,
    End,
    Event,
    Failure,
    Frame,
    FrameDecoder,
    Goodbye,
    HelloFrame,
    Notify,
    Ping,
    Pong,
    decode,
    encode,
)

FRAMES: list[Frame] = [
    HelloFrame({"name": "a"}),
    Call(1, "infer", {"x": [1, 2]}),
    Event(7, {"type": "delta", "text": "né"}),
    End(7, {}),
    Failure(7, "overloaded", "busy", True, {"retry_after": 3}),
    Cancel(7),
    Ping(9),
    Pong(9),
    Notify("presence", {"seq": 1}),
    Goodbye("bye"),
]

bodies = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


def test_every_frame_survives_the_wire_in_any_split() -> None:
    wire = b"".join(encode(frame) for frame in FRAMES)
    for step in (1, 3, 7, len(wire)):
        decoder = FrameDecoder()
        got = [f for i in range(0, len(wire), step) for f in decoder.feed(wire[i : i + step])]
        assert got == FRAMES
        assert not decoder.partial


@given(bodies)
def test_bodies_survive_the_wire(body: object) -> None:
    data = encode(Event(1, body))
    assert decode(data[4:]) == Event(1, body)


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_frame_errors(data: bytes) -> None:
    try:
        frame = decode(data)
    except FrameError:
        return
    assert isinstance(frame, Frame)


@given(st.integers(0, len(FRAMES) - 1), st.data())
def test_mutated_frames_raise_only_frame_errors(index: int, data: st.DataObject) -> None:
    wire = bytearray(encode(FRAMES[index])[4:])
    position = data.draw(st.integers(0, len(wire) - 1))
    wire[position] = data.draw(st.integers(0, 255))
    try:
        frame = decode(bytes(wire))
    except FrameError:
        return
    assert isinstance(frame, Frame)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x82\x06",
        cbor2.dumps([]),
        cbor2.dumps({"a": 1}),
        cbor2.dumps([99, 1]),
        cbor2.dumps([True, 1]),
        cbor2.dumps([6, -1]),
        cbor2.dumps([6, 1 << 60]),
        cbor2.dumps([6, 1.5]),
        cbor2.dumps([6, 1, 2]),
        cbor2.dumps([1, 1, "m" * 65, {}]),
        cbor2.dumps([4, 1, "c", "m", 1, {}]),
        cbor2.dumps([4, 1, "c", "m", True, {1: 2}]),
        cbor2.dumps([8, "t", 1 << 80]),
        cbor2.dumps([8, "t", fractions.Fraction(1, 3)]),
        cbor2.dumps([8, "t", datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)]),
        cbor2.dumps([8, "t", cbor2.CBORTag(9999, 1)]),
        cbor2.dumps([8, "t", [[[[[[[[1]]]]]]]]]),
        cbor2.dumps([6, 1]) + b"\x00",
        b"\x9f\x06\x01\xff",
        b"\x9a\xff\xff\xff\xff\x01",
        b"\x82\x08\xa2\x61a\x01\x61a\x02",
    ],
)
def test_what_is_not_a_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode(payload)


def test_a_frame_past_the_limit_is_refused_before_its_body_arrives() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameError, match=str(MAX_FRAME)):
        list(decoder.feed((MAX_FRAME + 1).to_bytes(4, "big")))
    with pytest.raises(FrameError, match=str(MAX_FRAME)):
        encode(Event(1, "x" * (MAX_FRAME + 1)))


def test_missing_never_reaches_past_the_current_frame() -> None:
    wire = encode(FRAMES[1]) + encode(FRAMES[2])
    decoder, position, got = FrameDecoder(), 0, []
    while not got:
        step = decoder.missing
        got = list(decoder.feed(wire[position : position + step]))
        position += step
    assert got == [FRAMES[1]]
    assert position == len(encode(FRAMES[1]))
    assert not decoder.partial
