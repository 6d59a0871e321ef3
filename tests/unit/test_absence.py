"""Which boxes one tells the fleet are gone: those that matter, once, after long enough."""

from __future__ import annotations

from typing import Any

import pytest

from agent.reconcile.absence import to_tell

A, B, OWN = b"a" * 32, b"b" * 32, b"o" * 32


def tell(silent: dict[bytes, float], **more: Any) -> frozenset[bytes]:
    given: dict[str, Any] = {"relevant": {A, B}, "told": (), "own_word": (), "own": OWN, "after": 10.0, "now": 100.0}
    return to_tell(silent, **{**given, **more})


@pytest.mark.parametrize(
    ("silent", "more", "expected"),
    [
        ({}, {}, set()),
        ({A: 80.0}, {}, {A}),
        ({A: 95.0}, {}, set()),
        ({A: 80.0, B: 99.0}, {}, {A}),
        ({A: 80.0}, {"relevant": {B}}, set()),
        ({A: 80.0}, {"told": {A}}, set()),  # somebody else has said so
        ({A: 80.0}, {"told": {A}, "own_word": {A}}, {A}),  # this box has, and stands by it
        ({A: 99.0}, {"own_word": {A}}, {A}),
        ({}, {"told": {A}, "own_word": {A}}, set()),  # it is back
        ({A: 80.0}, {"relevant": (), "own_word": {A}}, set()),
    ],
)  # fmt: skip
def test_what_is_told(silent: dict[bytes, float], more: dict[str, Any], expected: set[bytes]) -> None:
    assert tell(silent, **more) == expected


def test_witnesses_take_turns_so_that_one_word_is_enough() -> None:
    first = {
        witness: next(now for now in range(100, 200) if to_tell(
            {A: 100.0}, relevant={A}, told=(), own_word=(), own=bytes([witness]) * 32, after=60.0, now=float(now)
        ))
        for witness in range(12)
    }  # fmt: skip
    assert min(first.values()) >= 160
    assert max(first.values()) <= 190
    assert len(set(first.values())) > 6
