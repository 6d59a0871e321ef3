"""What a model's process tells about its disk, among whatever else it writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.telling import Listener, told, without

FULL = told("No space left on device").encode()


def heard(*pieces: bytes) -> list[str | None]:
    listener = Listener()
    return [listener.feed(piece) for piece in pieces]


def test_a_reason_is_heard_and_its_end_too() -> None:
    assert heard(FULL, b"llama.cpp says\n", told("").encode()) == ["No space left on device", None, ""]
    assert heard(b"ggml: half a li" + FULL + b"more\n") == ["No space left on device"]
    assert heard(FULL + told("").encode()) == [""]


@pytest.mark.parametrize("cut", range(1, len(FULL)))
def test_a_line_in_two_pieces_is_one(cut: int) -> None:
    assert heard(FULL[:cut], FULL[cut:]) == [None, "No space left on device"]


def test_what_it_tells_is_bounded_and_printable() -> None:
    (reason,) = heard(b"shoal: conversations: \x1b[2J" + "ö".encode() * 5000 + b"\xff\n")
    assert reason is None, "the beginning of a line that is too long is gone"
    (reason,) = heard(b"shoal: conversations: \x1b[2J\xff" + b"x" * 1000 + b"\n")
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) == 200
    assert heard(told("a\nshoal: conversations: b").encode()) == ["b"]


@given(st.lists(st.binary(max_size=9000), max_size=4))
def test_nothing_that_is_written_makes_it_fail_or_grow(pieces: list[bytes]) -> None:
    listener = Listener()
    for piece in pieces:
        listener.feed(piece)
        assert len(listener._line) <= 4096


def test_it_says_nothing_of_how_a_process_ended() -> None:
    assert without(f"first\n{FULL.decode()}GGML_ASSERT(x) failed\n{FULL.decode()}").strip() == (
        "first\nGGML_ASSERT(x) failed"
    )
