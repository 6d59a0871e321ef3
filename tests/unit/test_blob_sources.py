"""Whom a fetch asks: sources that answer slowly, and the one that has what all others lack."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing

from fleet.blobs import messages as wire
from fleet.blobs.account import Account
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK, leaf_hash, root_of
from fleet.blobs.nearness import NEIGHBOURS
from fleet.blobs.serve import Server, ServeTerms
from fleet.blobs.store import BlobStore
from fleet.blobs.swarm import PAGE_LIMIT, _leaves, fetch

DATA = os.urandom(BLOCK + 5)
LEAVES = (leaf_hash(DATA[:BLOCK], "sha256"), leaf_hash(DATA[BLOCK:], "sha256"))
MANIFEST = Manifest("sha256:" + "ab" * 32, len(DATA), root_of(LEAVES, "sha256"))


@dataclass
class Peer:
    """Stands for a link: `leaves` answers a call for leaves; it has no block."""

    peer_id: str
    leaves: Callable[[int], Awaitable[bytes]]
    followed: bool = False
    rtt: float = 0.001
    remote_addr: str = ""
    closed: trio.Event = field(default_factory=trio.Event)

    async def call(self, method: str, body: dict[str, Any], on_event: Callable[[object], Awaitable[None]]) -> object:
        if method == wire.METHOD_LEAVES:
            return {"leaves": await self.leaves(body["first"])}
        if method == wire.METHOD_FOLLOW:
            self.followed = True
            await on_event({"bits": b""})
        await trio.sleep_forever()


@dataclass
class Peers:
    all: list[Peer]

    def links(self) -> list[Any]:
        return list(self.all)

    async def wait_change(self) -> None:
        await trio.sleep(0.1)


async def whole_page(first: int) -> bytes:
    await trio.lowlevel.checkpoint()
    return b"".join(LEAVES[first:])


def test_one_that_gives_leaves_one_by_one_or_not_at_all_keeps_nobody_waiting_for_long() -> None:
    asked: list[str] = []

    async def drop_by_drop(first: int) -> bytes:
        asked.append("drops")
        await trio.sleep(PAGE_LIMIT - 1)
        return LEAVES[first]

    async def silent(first: int) -> bytes:
        asked.append("silent")
        await trio.sleep_forever()
        return b""

    async def main() -> float:
        peers = Peers([Peer("drops", drop_by_drop), Peer("silent", silent)])
        account = Account(MANIFEST)
        async with trio.open_nursery() as nursery:

            async def come_later() -> None:
                await trio.sleep(2.5 * PAGE_LIMIT)
                peers.all.append(Peer("good", whole_page))

            nursery.start_soon(come_later)
            assert await _leaves(MANIFEST, peers, account) == LEAVES
            return trio.current_time()

    began = trio.testing.MockClock(autojump_threshold=0)
    start = began.current_time()
    took = trio.run(main, clock=began) - start
    # Once round for each that is slow, and from then on after all others.
    assert took < 5 * PAGE_LIMIT
    assert asked[:2] == ["drops", "silent"]


def test_one_that_holds_all_is_followed_where_those_that_are_lack_something(tmp_path: Path) -> None:
    async def main() -> None:
        others = [Peer(f"peer-{number}", whole_page) for number in range(NEIGHBOURS + 1)]
        peers, holder = Peers(list(others)), Peer("holder", whole_page)
        with BlobStore(tmp_path, keep_free=0) as store:
            server = Server(store, ServeTerms(port=None), permitted=lambda peer: True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: fetch(
                        MANIFEST,
                        store=store,
                        sources=peers,
                        server=server,
                        account=Account(MANIFEST),
                        fast=False,
                        whole=lambda: {"holder"},
                    )
                )
                with trio.fail_after(10):
                    while sum(one.followed for one in others) < NEIGHBOURS:
                        await trio.sleep(0.01)
                    peers.all.append(holder)
                    while not holder.followed:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
