"""Tables in a terminal's width: nothing wraps, and what says most is kept."""

from __future__ import annotations

import pytest

from agent.cli.columns import aligned, cells, shortened

HEADER = ("NAME", "WHAT IT SAID", "KEY")
ROWS = [
    ("jetson-1", "a long value that no narrow terminal has room for, whatever one does", "12D3KooWabcdefghijklmnop"),
    ("a", "short", "12D3KooWzzz"),
]


@pytest.mark.parametrize(
    ("text", "wide"), [("abc", 3), ("…", 1), ("日本", 4), ("e\u0301", 1), ("a\u200db", 2), ("", 0)]
)
def test_text_is_measured_as_a_terminal_shows_it(text: str, wide: int) -> None:
    assert cells(text) == wide


@pytest.mark.parametrize(
    ("text", "width", "keep_end", "expected"),
    [
        ("abcdef", 6, False, "abcdef"),
        ("abcdef", 4, False, "abc…"),
        ("abcdef", 4, True, "…def"),
        ("ab cdef", 4, False, "ab…"),
        ("日本語", 4, False, "日…"),
        ("日本語", 4, True, "…語"),
        ("…cdef", 4, True, "…def"),
        ("ab", 1, False, "…"),
    ],
)
def test_text_is_shortened_with_an_ellipsis(text: str, width: int, keep_end: bool, expected: str) -> None:
    assert shortened(text, width, keep_end=keep_end) == expected


def test_without_a_width_nothing_is_cut() -> None:
    text = aligned(HEADER, ROWS)
    assert all(cell in text for row in ROWS for cell in row)
    assert "…" not in text


@pytest.mark.parametrize("width", [*range(5, 120, 7), 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    rows = [*ROWS, ("日本語の名前" * 3, "日本" * 30, "x")]
    lines = aligned(HEADER, rows, width, rigid=("NAME",), keep_end=("KEY",), spare=("WHAT IT SAID",)).splitlines()
    assert max(map(cells, lines)) <= width
    assert len(lines) >= 4


def test_columns_stay_aligned_and_keys_keep_their_ends() -> None:
    header, first, second = aligned(HEADER, ROWS, 50, rigid=("NAME",), keep_end=("KEY",)).splitlines()
    assert first.startswith("jetson-1  a long")
    assert first.endswith("mnop")
    assert header.index("KEY") == first.index("…", first.index("…") + 1) == second.index("12D3")


def test_what_matters_least_is_left_out_and_named() -> None:
    text = aligned(HEADER, ROWS, 25, rigid=("NAME",), spare=("KEY",))
    header, *_, last = text.splitlines()
    assert "KEY" not in header
    assert last.startswith("(no room for KEY")


def test_a_table_that_fits_is_left_alone() -> None:
    assert aligned(HEADER, ROWS, 300, spare=HEADER) == aligned(HEADER, ROWS)
