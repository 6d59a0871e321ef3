"""What followers of a blob are told when something may have changed: nothing, unless it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.giving import Follower, Giving, Terms
from fleet.blobs.manifest import Manifest
from fleet.blobs.messages import Shown
from fleet.blobs.store import BlobStore

BLOCKS = 5


class World:
    """A blob on disk, and who follows it."""

    def __init__(self, store: BlobStore, manifest: Manifest) -> None:
        self.store = store
        self.alone = True
        self.closed = False
        self.now = 0.0
        self.posted: list[Callable[[], None]] = []
        blob = manifest.sha256
        self.giving = Giving(
            blob,
            Terms(
                find=lambda blob: store.held().get(blob) or store.partial(blob),
                alone=lambda blob: self.alone,
                closed=lambda: self.closed,
                lost=lambda blob: None,
                post=self.posted.append,
                given=lambda size: None,
                clock=lambda: self.now,
                slots=4,
            ),
        )

    def follow(self, peer: str) -> Follower:
        follower = Follower(peer, near=True)
        self.giving.join(follower, b"")
        return follower

    def told(self, follower: Follower) -> Shown | None:
        """What it is told now; None where that is nothing."""
        posted, self.posted[:] = list(self.posted), []
        for act in posted:
            act()
        found: list[Shown] = []

        async def ask() -> None:
            with trio.move_on_after(1):
                found.append(await follower.next(self.giving.bits))

        trio.run(ask, clock=trio.testing.MockClock(autojump_threshold=0))
        return found[0] if found else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    source = tmp_path / "model"
    source.write_bytes(os.urandom(BLOCKS << 20))
    with BlobStore(tmp_path / "blobs", keep_free=0) as store:
        yield World(store, store.adopt(source).manifest)


def test_a_super_seeder_goes_on_where_nothing_has_changed(world: World) -> None:
    follower = world.follow("a")
    first = world.told(follower)
    assert first is not None
    assert (first.bits, len(first.have)) == (b"", first.turn)
    assert first.have
    world.giving.changed()
    # Told anew that there is nothing, it would ask others for what it was just told of.
    assert world.told(follower) is None
    # And what one was given is not new to the next.
    for index in first.have:
        assert world.giving.asked("a", index)
        world.giving.sent("a", index, 1 << 20)
    world.giving.changed()
    other = world.told(world.follow("b"))
    assert other is not None
    assert not set(other.have) & set(first.have)


def test_one_that_is_not_alone_any_more_shows_everything(world: World) -> None:
    follower = world.follow("a")
    world.told(follower)
    world.alone = False
    world.giving.changed()
    found = world.told(follower)
    assert found is not None
    assert found.bits == Bitfield.full(BLOCKS).to_bytes()


def test_what_has_changed_is_told(world: World) -> None:
    world.alone = False
    follower = world.follow("a")
    shown = world.told(follower)
    assert shown is not None
    assert shown.bits == Bitfield.full(BLOCKS).to_bytes()
    world.giving.changed()
    assert world.told(follower) is None
    world.closed = True
    world.giving.changed()
    shown = world.told(follower)
    assert shown is not None
    assert shown.bits == b""
    world.closed = False
    world.giving.changed()
    shown = world.told(follower)
    assert shown is not None
    assert shown.bits == Bitfield.full(BLOCKS).to_bytes()
    world.store.remove(world.giving.blob)
    world.giving.changed()
    shown = world.told(follower)
    assert shown is not None
    assert shown.bits == b""
