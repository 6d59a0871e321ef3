"""What an operator orders of a box's models: nothing is lost unasked, and what takes long is watched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.config import Config
from agent.errors import BadRequestError, LastCopyError, ModelNotFoundError, ModelPlacedError
from agent.model_orders import ModelOrders
from agent.reconcile.execute import Executor
from agent.reconcile.pins import Pins
from agent.reconcile.transfers import Transfers
from fleet.blobs.keeping import Keeping
from fleet.blobs.store import BlobStore
from tests.property.fleet import pk
from tests.unit.test_executor import DATA, MANIFEST, Bench, bench, place

LIMIT = 20.0


@dataclass
class Keeper:
    """Stands for the wiring around the store."""

    store: BlobStore
    executor: Executor
    pins: Pins
    transfers: Transfers
    own: bytes = pk("m1")
    told: int = 0
    missed_: frozenset[bytes] = frozenset()
    #: Whether another box says that it keeps its copy, and whether this one kept its own when that was asked.
    kept: bool = True
    kept_here: bool = True

    def __post_init__(self) -> None:
        self.keeping = Keeping(lambda blob: True, None)  # type: ignore[arg-type]

    async def kept_elsewhere(self, blob: str) -> bool:
        self.kept_here = not self.keeping._leaving[blob]
        await trio.lowlevel.checkpoint()
        return self.kept

    def missed(self) -> frozenset[bytes]:
        return self.missed_

    def note_change(self) -> None:
        self.told += 1


def run(tmp_path: Path, story: Callable[[Bench, ModelOrders], Any]) -> None:
    async def main() -> None:
        with bench(tmp_path) as made:
            made.around.may_come.set()
            keeper = Keeper(made.store, made.executor, made.around.pins, made.transfers)
            orders = ModelOrders(Config(name="m1", state_dir=tmp_path), keeper)  # type: ignore[arg-type]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.executor.run)
                nursery.start_soon(orders.run)
                await made.executor.looked()
                with trio.fail_after(LIMIT):
                    await story(made, orders)
                nursery.cancel_scope.cancel()

    trio.run(main)


def others_hold_it(made: Bench) -> None:
    made.around.paper.fact("m2", f"hold/{MANIFEST.sha256}", {"name": "smol", "size": 1, "complete": 1.0})


async def ended(orders: ModelOrders, transfer: Any) -> dict[str, Any]:
    while True:
        (found,) = (one for one in orders.transfers()["transfers"] if one["id"] == transfer["id"])  # type: ignore[attr-defined]
        if found["state"] != "running":
            result: dict[str, Any] = found
            return result
        await trio.sleep(0.01)


def test_a_model_that_is_pulled_comes_and_stays_until_it_is_removed(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        others_hold_it(made)
        stands = await orders.pull("SMOL.gguf")
        assert stands["state"] in ("fetching", "held")
        await made.until(lambda: made.served)
        assert (await orders.pull(MANIFEST.sha256))["state"] == "held"
        assert orders.catalogue()["models"][0]["here"]["pinned"]  # type: ignore[index]
        assert (await orders.collect(dry_run=False, last=True))["found"] == []
        assert (await orders.remove("smol", last=False))["removed"] is True
        await made.executor.looked()
        assert not made.held
        assert made.around.asked == 1

    run(tmp_path, story)


def test_the_last_copy_is_deleted_only_by_who_says_that_it_may_be_lost(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        await orders.pull("smol")
        await made.until(lambda: made.held)
        with pytest.raises(LastCopyError):
            await orders.remove("smol", last=False)
        # A copy on a box that is gone is none to rely on.
        others_hold_it(made)
        made.around.paper.fact("m1", f"gone/{pk('m2').hex()}", True)
        await made.executor.looked()
        with pytest.raises(LastCopyError):
            await orders.remove("smol", last=False)
        assert made.held
        await orders.remove("smol", last=True)
        assert not made.held

    run(tmp_path, story)


def test_a_copy_is_not_relied_on_that_its_box_does_not_keep(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        await orders.pull("smol")
        await made.until(lambda: made.held)
        others_hold_it(made)
        await made.executor.looked()
        keeper: Any = orders._keeper
        keeper.kept = False
        with pytest.raises(LastCopyError, match="says that it keeps it"):
            await orders.remove("smol", last=False)
        # Who asks this one meanwhile is told that it does not keep its copy either.
        assert not keeper.kept_here
        place(made, "elsewhere")
        keeper.pins.remove(MANIFEST.sha256)
        await made.executor.looked()
        left = await orders.collect(dry_run=False, last=False)
        assert (left["removed"], [one["last"] for one in left["kept"]]) == ([], [True])  # type: ignore[attr-defined]
        assert made.held
        keeper.kept = True
        await orders.remove("smol", last=False)
        assert not made.held
        assert not keeper.keeping._leaving

    run(tmp_path, story)


def test_what_a_placement_wants_here_is_not_removed(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        others_hold_it(made)
        place(made)
        await made.until(lambda: made.served)
        with pytest.raises(ModelPlacedError) as refused:
            await orders.remove("smol", last=True)
        assert refused.value.details == {"placements": ["here"]}
        assert made.held

    run(tmp_path, story)


def test_gc_deletes_what_nothing_wants_and_keeps_the_last_copy(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        place(made)
        await made.until(lambda: made.served)
        assert (await orders.collect(dry_run=False, last=True))["found"] == []
        place(made, "elsewhere")
        await made.executor.looked()
        kept = await orders.collect(dry_run=False, last=False)
        assert [one["hash"] for one in kept["kept"]] == [MANIFEST.sha256]  # type: ignore[attr-defined]
        assert made.held
        others_hold_it(made)
        await made.executor.looked()
        seen = await orders.collect(dry_run=True, last=False)
        assert made.held
        assert [one["last"] for one in seen["found"]] == [False]  # type: ignore[attr-defined]
        assert len((await orders.collect(dry_run=False, last=False))["removed"]) == 1  # type: ignore[arg-type]
        assert not made.held

    run(tmp_path, story)


def test_a_file_that_is_no_model_is_not_kept(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"what nobody is to fetch")
    nearly = tmp_path / "nearly.gguf"
    nearly.write_bytes(b"GGUF" + DATA)

    async def story(made: Bench, orders: ModelOrders) -> None:
        for path in (secret, nearly):
            done = await ended(orders, await orders.add(str(path), "sha256"))
            assert done["state"] == "failed"
            assert str(path) in done["error"]
        assert not made.store.held()
        for source in ("relative.gguf", "http://example.org/x.gguf", "ftp://x/y", ""):
            with pytest.raises(BadRequestError):
                await orders.add(source, "sha256")
        with pytest.raises(BadRequestError):
            await orders.add(str(nearly), "md5")

    run(tmp_path, story)


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        for order in (orders.pull, orders.verify):
            with pytest.raises(ModelNotFoundError, match="it knows: smol"):
                await order("nothing")
        with pytest.raises(ModelNotFoundError, match="store has nothing of smol"):
            await orders.verify("smol")
        with pytest.raises(ModelNotFoundError):
            await orders.remove("sha256:" + hashlib.sha256(b"x").hexdigest(), last=True)

    run(tmp_path, story)


def test_verifying_finds_what_is_damaged_and_has_it_mended(tmp_path: Path) -> None:
    async def story(made: Bench, orders: ModelOrders) -> None:
        place(made)
        await made.until(lambda: made.served)
        sound = await ended(orders, await orders.verify("smol"))
        assert sound["result"] == {"bad_blocks": [], "sound": True}
        with made.store.held()[MANIFEST.sha256].path.open("r+b") as file:
            file.write(b"rot")
        damaged = await ended(orders, await orders.verify("smol"))
        assert damaged["result"]["bad_blocks"] == [0]
        await made.until(lambda: made.held and made.served)

    run(tmp_path, story)
