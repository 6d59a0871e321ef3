"""The form of a traceparent, and what a hop does to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trace import Span, begin, child, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        (GOOD, Span(TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00", Span(TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-ff", Span(TRACE, SPAN, 3)),  # flags that are not known are not passed on
        (f"cc-{TRACE}-{SPAN}-01", Span(TRACE, SPAN, 1)),
        (f"01-{TRACE}-{SPAN}-01-what-the-future-holds", Span(TRACE, SPAN, 1)),
    ],
)
def test_what_is_read(text: str, span: Span) -> None:
    assert parse(text) == span


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        GOOD.upper(),
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        GOOD + "-extra",  # version 00 has no more fields
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN[:-1]}g-01",
        f"00-{TRACE[:-1]}\u0661-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"01-{TRACE}-{SPAN}-01extra",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 300,
    ],
)
def test_what_is_malformed_counts_as_absent(text: str | None) -> None:
    assert parse(text) is None


def test_a_hop_keeps_the_trace_and_its_flags_and_changes_the_span() -> None:
    parent = Span(TRACE, SPAN, 0)
    hops = [child(parent) for _ in range(8)]
    assert {(hop.trace_id, hop.flags) for hop in hops} == {(TRACE, 0)}
    assert len({hop.span_id for hop in hops} | {SPAN}) == 9


def test_without_a_parent_a_trace_begins() -> None:
    first, second = child(None), begin()
    assert first.trace_id != second.trace_id
    assert parse(str(first)) == first


@given(st.builds(Span, st.from_regex("[0-9a-f]{31}1", fullmatch=True), st.from_regex("1[0-9a-f]{15}", fullmatch=True)))
def test_what_is_written_is_read(span: Span) -> None:
    assert parse(str(span)) == span


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    assert parse(text) is None or text.isascii()
