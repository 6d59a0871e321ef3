"""What a running fetch counts."""

from __future__ import annotations

from fleet.blobs.account import Account
from fleet.blobs.manifest import Manifest

MIB = 1 << 20
MANIFEST = Manifest("sha256:" + "a" * 64, 10 * MIB, b"r" * 32)


def test_progress_says_how_far_and_how_fast() -> None:
    now = 0.0
    account = Account(MANIFEST, clock=lambda: now)
    account.found(4, 4 * MIB)
    assert account.progress().eta is None
    for _ in range(2):
        account.source("a", "sending", "fast")
        account.moved("a", MIB)
        account.written(MIB)
        now += 1.0
    account.moved("a", MIB)
    account.wasted(MIB)
    found = account.progress()
    assert (found.blocks, found.bytes, found.moved, found.wasted) == (6, 6 * MIB, 3 * MIB, MIB)
    assert found.fraction == 0.6
    assert found.rate == 1.5 * MIB
    assert found.eta is not None
    assert abs(found.eta - 4 / 1.5) < 1e-9
    (source,) = found.sources
    assert (source.peer_id, source.lane, source.state, source.bytes) == ("a", "fast", "sending", 3 * MIB)


def test_a_rate_is_of_the_last_seconds() -> None:
    now = 0.0
    account = Account(MANIFEST, clock=lambda: now)
    account.moved("a", MIB)
    now = 60.0
    assert account.progress().rate == 0.0
    assert account.progress().eta is None


def test_who_was_banned_stays_in_sight() -> None:
    account = Account(MANIFEST)
    for peer in ("a", "b"):
        account.source(peer, "sending", "stream")
    account.source("a", "banned")
    account.source("a", "waiting")
    account.gone("a")
    account.gone("b")
    assert [(one.peer_id, one.state) for one in account.progress().sources] == [("a", "banned")]


def test_a_pause_says_why() -> None:
    account = Account(MANIFEST)
    account.enter("paused", "the disk is full")
    assert (account.progress().state, account.progress().reason) == ("paused", "the disk is full")
    account.enter("fetching")
    assert account.progress().reason == ""
