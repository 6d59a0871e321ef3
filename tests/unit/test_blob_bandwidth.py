"""The cap on what a box gives."""

from __future__ import annotations

from fleet.blobs.bandwidth import SLICE, Bandwidth


def test_without_a_cap_nothing_waits_and_nothing_is_cut_up() -> None:
    bandwidth = Bandwidth(lambda: None)
    assert bandwidth.slice(1 << 20) == 1 << 20
    assert [bandwidth.take(1 << 20) for _ in range(9)] == [0.0] * 9


def test_all_who_send_share_the_cap() -> None:
    now = 10.0
    bandwidth = Bandwidth(lambda: 1000.0, clock=lambda: now)
    assert bandwidth.slice(1 << 20) == SLICE
    assert [bandwidth.take(500) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    now = 12.0
    assert bandwidth.take(500) == 0.0


def test_the_cap_can_change_at_any_moment() -> None:
    cap: float | None = 100.0
    bandwidth = Bandwidth(lambda: cap, clock=lambda: 0.0)
    bandwidth.take(1000)
    assert bandwidth.take(1000) == 10.0
    cap = None
    assert bandwidth.take(1000) == 0.0
