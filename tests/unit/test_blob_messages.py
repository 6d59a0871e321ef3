"""What peers say about blobs: limits, and strangers' bytes."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.blobs import messages as wire
from fleet.blobs.manifest import MAX_BLOCKS
from fleet.errors import MessageError
from fleet.net.messages import parse

BLOB = "sha256:" + "0" * 64
OFFER = {"port": 4000, "offer": b"o" * 16, "fingerprint": b"f" * 32, "token": b"t" * 32}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (wire.LeavesAsked, {"blob": BLOB}),
        (wire.LeavesAsked, {"blob": BLOB, "first": 5, "later": "key"}),
        (wire.Leaves, {"leaves": b"x" * 64}),
        (wire.Follow, {"blob": BLOB, "have": b"\xff"}),
        (wire.Shown, {"bits": b"", "have": [1, 2], "turn": 8}),
        (wire.Turn, {"blob": BLOB, "want": False}),
        (wire.Get, {"blob": BLOB, "index": 0}),
        (wire.Piece, {"data": b"x"}),
        (wire.LaneAsked, {"blob": BLOB, "certificate": b"x" * 300}),
        (wire.LaneOffer, OFFER),
    ],
)
def test_what_boxes_say_is_understood(kind: Any, body: dict[str, Any]) -> None:
    parse(kind, body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (wire.LeavesAsked, {"blob": "sha256:../../etc/passwd"}),
        (wire.LeavesAsked, {"blob": BLOB.upper()}),
        (wire.LeavesAsked, None),
        (wire.LeavesAsked, {"blob": BLOB, "first": -1}),
        (wire.LeavesAsked, {"blob": BLOB, "first": MAX_BLOCKS}),
        (wire.Leaves, {"leaves": b"x" * 33}),
        (wire.Leaves, {"leaves": b""}),
        (wire.Leaves, {"leaves": b"x" * 32 * (wire.LEAVES_A_PAGE + 1)}),
        (wire.Leaves, {"leaves": "x" * 32}),
        (wire.Follow, {"blob": BLOB, "have": b"x" * (MAX_BLOCKS // 8 + 1)}),
        (wire.Shown, {"have": [MAX_BLOCKS]}),
        (wire.Shown, {"have": list(range(wire.MAX_INDEXES + 1))}),
        (wire.Shown, {"turn": -1}),
        (wire.Shown, {"turn": 1 << 40}),
        (wire.Turn, {"blob": BLOB, "want": 1}),
        (wire.Get, {"blob": BLOB, "index": True}),
        (wire.Piece, {"data": b""}),
        (wire.Piece, {"data": b"x" * (wire.PIECE + 1)}),
        (wire.LaneAsked, {"blob": BLOB, "certificate": b"x" * (wire.MAX_CERTIFICATE + 1)}),
        (wire.LaneOffer, OFFER | {"port": 0}),
        (wire.LaneOffer, OFFER | {"token": b"t" * 31}),
        (wire.LaneOffer, OFFER | {"fingerprint": "f" * 32}),
    ],
)
def test_what_is_past_a_limit_is_refused(kind: Any, body: object) -> None:
    with pytest.raises(MessageError) as caught:
        parse(kind, body)
    assert len(caught.value.message) < 300


def test_asks_are_read_as_far_as_they_are_whole() -> None:
    ask, cancel = wire.ASKED.pack(wire.ASK, 7), wire.ASKED.pack(wire.CANCEL, 1)
    assert wire.read_asks(ask + cancel + ask[:3]) == [(wire.ASK, 7), (wire.CANCEL, 1)]
    with pytest.raises(MessageError):
        wire.read_asks(ask + b"\x09\0\0\0\1")


def test_the_largest_messages_fit_into_a_frame() -> None:
    from fleet.net.frames import MAX_FRAME

    assert wire.LEAVES_A_PAGE * 32 < MAX_FRAME
    assert MAX_BLOCKS // 8 < MAX_FRAME
    assert wire.PIECE < MAX_FRAME
