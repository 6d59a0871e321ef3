"""A transfer in one line, and what an agent is told in the body of an order."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cli.models_store import size_of
from agent.cli.progress import line, seconds
from agent.errors import BadRequestError
from agent.http.orders_api import _read

FETCH: dict[str, Any] = {
    "model": "smol", "state": "running", "error": "", "kind": "fetch",
    "progress": {"phase": "fetching", "reason": "", "bytes": 47_000_000, "size": 94_000_000, "blocks": 45,
                 "blocks_total": 90, "rate": 7.8e6, "eta": 6.0,
                 "sources": [{"state": "sending"}, {"state": "waiting"}]},
}  # fmt: skip


def test_a_fetch_shows_blocks_rate_sources_and_eta() -> None:
    assert line(FETCH) == "smol  [############............]   50%  45/90 blocks  7.8 MB/s  1 source  ETA 6 s"
    waiting = {**FETCH, "progress": {**FETCH["progress"], "phase": "paused", "reason": "the disk is full", "eta": None}}
    assert line(waiting).endswith("1 source  paused: the disk is full")
    assert line({**FETCH, "state": "failed", "error": "it lies"}).endswith("45/90 blocks  failed: it lies")
    assert len(line(FETCH, 30)) == 30
    assert "\x1b" not in line({**FETCH, "model": "a\x1b[2Jb"})


def test_amounts_for_people() -> None:
    assert [seconds(x) for x in (0.4, 59.2, 185, 3723)] == ["0 s", "59 s", "3:05", "1:02:03"]
    assert [size_of(x) for x in (0, 999, 98_362_432, 5e9, 2e15)] == ["0 B", "999 B", "98.4 MB", "5 GB", "2,000.0 TB"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"model": 1}', b'{"model": "a", "more": 1}', b'{"model": "a", "last": 1}', b"[" * 100_000],
)
def test_a_body_that_is_no_order_is_refused_with_what_is_expected(body: bytes) -> None:
    with pytest.raises(BadRequestError, match='"model": str'):
        _read(body, {"model": str, "last": bool}, needed={"model"})


def test_a_body_that_is_one_is_read() -> None:
    assert _read(b'{"model": "a", "last": true}', {"model": str, "last": bool}, needed={"model"}) == {
        "model": "a",
        "last": True,
    }
