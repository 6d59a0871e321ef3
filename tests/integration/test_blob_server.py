"""What a box gives to its peers, over a link in memory and lanes on loopback: who is cut off, and who waits."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fleet.blobs import messages as wire
from fleet.blobs.account import Account
from fleet.blobs.held import Held
from fleet.blobs.manifest import Manifest
from fleet.blobs.progress import Progress
from fleet.blobs.serve import MAX_FOLLOWED, Server, ServeTerms
from fleet.blobs.store import BlobStore
from fleet.blobs.swarm import fetch
from fleet.errors import FleetError, RemoteError
from fleet.net.link import Link, run_link
from fleet.net.messages import Hello, Presence
from fleet.net.rpc import Router
from tests.sim.streams import MemoryStream, pair

MIB = 1 << 20
SIZE = 6 * MIB + 5


@dataclass
class Box:
    """A box with a store, and its links to others, which are in memory; its lanes are on loopback."""

    name: str
    store: BlobStore
    terms: ServeTerms = field(default_factory=lambda: ServeTerms(host="127.0.0.1"))
    permitted: set[str] = field(default_factory=set)
    refuses: str = ""
    lost: list[str] = field(default_factory=list)
    up: dict[str, Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.router = Router(authorise=lambda peer, scope: peer in self.permitted and scope == "blobs")
        self.changed = trio.Event()
        self.server = Server(
            self.store,
            self.terms,
            permitted=self.permitted.__contains__,
            refuses=lambda: self.refuses,
            lost=self.lost.append,
        )
        self.server.offer_methods(self.router)

    def links(self) -> list[Link]:
        return list(self.up.values())

    async def wait_change(self) -> None:
        await self.changed.wait()

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def run(self, stream: MemoryStream, outbound: bool) -> None:
        # Where a link would come from: the lane is on loopback.
        stream.remote_addr = "127.0.0.1:1"

        def on_up(link: Link) -> None:
            self.up[link.peer_id] = link
            self._change()

        def on_down(link: Link) -> None:
            self.up.pop(link.peer_id)
            self._change()

        await run_link(
            stream,
            outbound=outbound,
            hello=Hello(name=self.name, version="0", presence=Presence(seq=0, name=self.name, version="0")),
            router=self.router,
            on_up=on_up,
            on_down=on_down,
            on_notify=lambda link, topic, body: None,
        )

    async def get(self, manifest: Manifest, account: Account, *, fast: bool = True) -> Path:
        return await fetch(manifest, store=self.store, sources=self, server=self.server, account=account, fast=fast)


@asynccontextmanager
async def pair_of_boxes(folder: Path, **terms: Any) -> AsyncIterator[tuple[Box, Box, Held]]:
    """A giver, a getter that is linked to it, and what the giver holds."""
    source = folder / "model"
    source.write_bytes(os.urandom(SIZE))
    with BlobStore(folder / "giver", keep_free=0) as full, BlobStore(folder / "getter", keep_free=0) as empty:
        held = full.adopt(source)
        giver = Box("giver", full, ServeTerms(**{"host": "127.0.0.1", **terms}))
        getter = Box("getter", empty)
        giver.permitted.add("getter")
        getter.permitted.add("giver")
        left, right = pair("giver", "getter")
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for box in (giver, getter):
                    await nursery.start(box.server.run)
                nursery.start_soon(giver.run, left, False)
                nursery.start_soon(getter.run, right, True)
                while not (giver.up and getter.up):
                    await trio.sleep(0.001)
                yield giver, getter, held
                nursery.cancel_scope.cancel()


async def reach(account: Account, holds: Callable[[Progress], bool]) -> Progress:
    while not holds(found := account.progress()):
        await trio.sleep(0.005)
    return found


async def call(link: Link, method: str, body: Mapping[str, object]) -> object:
    async def no_event(event: object) -> None:
        raise AssertionError(event)

    return await link.call(method, body, no_event)


@pytest.mark.parametrize(("fast", "port"), [(True, 0), (False, 0), (True, None)])
def test_a_blob_comes_over_either_lane(tmp_path: Path, fast: bool, port: int | None) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path, port=port) as (giver, getter, held):
            account = Account(held.manifest)
            path = await getter.get(held.manifest, account, fast=fast)
            assert path.read_bytes() == (tmp_path / "model").read_bytes()
            assert (account.progress().moved, giver.server.given) == (SIZE, SIZE)
            assert not giver.server.refused
            again = Account(held.manifest)
            assert await getter.get(held.manifest, again) == path
            assert (again.progress().state, again.progress().moved) == ("done", 0)

    trio.run(main)


def test_a_peer_that_is_shut_out_in_the_middle_gets_nothing_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path, rate=lambda: 4e6) as (giver, getter, held):
            account = Account(held.manifest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getter.get, held.manifest, account)
                await reach(account, lambda found: found.bytes > 0)
                giver.permitted.clear()
                giver.server.recheck()
                giver.up["getter"].recheck()
                await reach(account, lambda found: not found.sources)
                moved = account.progress().moved
                await trio.sleep(0.5)
                assert account.progress().moved == moved < SIZE
                assert account.progress().state != "done"
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_box_that_drains_sends_no_more_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path, rate=lambda: 8e6) as (giver, getter, held):
            account = Account(held.manifest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getter.get, held.manifest, account)
                await reach(account, lambda found: found.bytes > 0)
                giver.refuses = "it shuts down"
                giver.server.recheck()
                missing = "no box that is connected has the blocks that are missing"
                await reach(account, lambda found: (found.state, found.reason) == ("waiting", missing))
                given = giver.server.given
                await trio.sleep(1.2)  # two of its looks at who could have a turn
                assert giver.server.given == given < SIZE
                giver.refuses = ""
                giver.server.recheck()
            assert account.progress().state == "done"
            assert account.progress().moved == SIZE

    trio.run(main)


def test_cancelling_keeps_what_has_come(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path, rate=lambda: 8e6) as (_, getter, held):
            account = Account(held.manifest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getter.get, held.manifest, account)
                found = await reach(account, lambda found: found.blocks >= 2)
                nursery.cancel_scope.cancel()
            again = Account(held.manifest)
            await getter.get(held.manifest, again)
            assert found.bytes > MIB, "one of the two may be the last block, which is short"
            assert again.progress().moved <= SIZE - found.bytes

    trio.run(main)


def test_rot_at_the_giver_is_not_passed_on_and_is_made_good_from_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path) as (giver, getter, held):
            blob = held.manifest.sha256
            copy = tmp_path / "again"
            copy.write_bytes((tmp_path / "model").read_bytes())
            with held.path.open("r+b") as file:
                file.seek(3 * MIB + 9)
                file.write(b"rot")
            account = Account(held.manifest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getter.get, held.manifest, account)
                await reach(account, lambda found: bool(giver.lost))
                assert giver.lost[0] == blob
                assert blob not in giver.store.held()
                # Whoever reconciles fetches it again: from a copy, here, since the getter lacks that very block.
                await trio.to_thread.run_sync(giver.store.adopt, copy)
                giver.server.note_changed(blob)
            found = account.progress()
            assert (found.state, found.wasted) == ("done", 0)

    trio.run(main)


def test_nothing_is_given_to_whoever_does_not_follow_or_has_no_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path) as (giver, getter, held):
            link, blob = getter.up["giver"], held.manifest.sha256
            for method, body in (
                (wire.METHOD_GET, {"index": 0}),
                (wire.METHOD_TURN, {"want": True}),
                (wire.METHOD_LANE, {"certificate": getter.server.identity.certificate}),
            ):
                with pytest.raises(RemoteError) as caught:
                    await call(link, method, {"blob": blob, **body})
                assert caught.value.remote_code == "not_following"
            async with trio.open_nursery() as nursery:
                heard: list[Any] = []

                async def listen(event: object) -> None:
                    heard.append(event)

                nursery.start_soon(link.call, wire.METHOD_FOLLOW, {"blob": blob}, listen)
                while not heard:
                    await trio.sleep(0.005)
                assert heard == [{"bits": b"\xfe"}]
                with pytest.raises(RemoteError) as caught:
                    await call(link, wire.METHOD_GET, {"blob": blob, "index": 0})
                assert caught.value.remote_code == "no_turn"
                await call(link, wire.METHOD_TURN, {"blob": blob, "want": True})
                while len(heard) < 2:
                    await trio.sleep(0.005)
                assert heard[1]["turn"] > 0
                with pytest.raises(RemoteError) as caught:
                    await call(link, wire.METHOD_GET, {"blob": blob, "index": 4000})
                assert caught.value.remote_code == "missing_block"
                nursery.cancel_scope.cancel()
            assert giver.server.given == 0

    trio.run(main)


def test_one_peer_follows_so_many_blobs_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path) as (giver, getter, _):
            refused: list[str] = []

            async def follow(number: int) -> None:
                async def ignore(event: object) -> None:
                    pass

                try:
                    await getter.up["giver"].call(wire.METHOD_FOLLOW, {"blob": f"sha256:{number:064x}"}, ignore)
                except FleetError as error:
                    refused.append(getattr(error, "remote_code", error.code))

            async with trio.open_nursery() as nursery:
                for number in range(MAX_FOLLOWED + 5):
                    nursery.start_soon(follow, number)
                while len(refused) < 5:
                    await trio.sleep(0.005)
                assert len(giver.server.uploads()) == MAX_FOLLOWED
                assert refused == ["overloaded"] * 5
                nursery.cancel_scope.cancel()
            while giver.server.uploads():
                await trio.sleep(0.005)

    trio.run(main)


def test_a_box_without_the_blob_tells_whoever_follows_once_it_has_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair_of_boxes(tmp_path) as (giver, getter, held):
            manifest = held.manifest
            await trio.to_thread.run_sync(giver.store.remove, manifest.sha256)
            account = Account(manifest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getter.get, manifest, account)
                await reach(account, lambda found: found.state == "waiting")
                await trio.sleep(0.1)
                await trio.to_thread.run_sync(giver.store.adopt, tmp_path / "model")
                giver.server.note_changed(manifest.sha256)
            assert account.progress().state == "done"

    trio.run(main)
