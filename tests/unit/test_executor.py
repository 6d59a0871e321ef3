"""What the executor does with a real store: fetch, serve, stop, delete; the fleet and the engine are made up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.config import ModelConfig
from agent.reconcile.desired import FleetModel
from agent.reconcile.execute import Executor
from agent.reconcile.look import Rules
from agent.reconcile.pins import Pins
from agent.reconcile.schedule import Window
from agent.reconcile.situation import Situation, situation_of
from agent.reconcile.transfers import Transfers
from fleet.blobs.errors import BlobError
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK, leaf_hash
from fleet.blobs.merkle import root_of as fold_leaves
from fleet.blobs.store import BlobStore
from tests.property.fleet import Fleet, pk

LIMIT = 20.0
DATA = bytes(range(256)) * 6000  # 1.5 MB: two blocks


def leaves_of(data: bytes) -> list[bytes]:
    return [leaf_hash(data[at : at + BLOCK], "sha256") for at in range(0, len(data), BLOCK)]


MANIFEST = Manifest("sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA), fold_leaves(leaves_of(DATA), "sha256"))


@dataclass
class Pool:
    """Stands for the engine: what it runs, and what it was told."""

    running: dict[str, ModelConfig] = field(default_factory=dict)
    hashed: list[str] = field(default_factory=list)
    memory: int = 1 << 40
    #: Whether it has read another file than it was told of.
    alien: bool = False

    def added(self) -> frozenset[str]:
        return frozenset(self.running)

    def aliens(self) -> frozenset[str]:
        return self.added() if self.alien else frozenset()

    def models(self) -> tuple[Any, ...]:
        return ()

    def capacity(self) -> int:
        return self.memory

    def add(self, model: ModelConfig, model_hash: str) -> None:
        self.running[model_hash] = model

    async def remove(self, model_hash: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.alien = False
        return self.running.pop(model_hash, None) is not None

    def note_hash(self, path: Path, model_hash: str) -> None:
        self.hashed.append(model_hash)


@dataclass
class Around:
    """Stands for the fleet: a document that tests write, and a fetch that waits for what they let come."""

    paper: Fleet
    pins: Pins
    store: BlobStore
    window_: Window = field(default_factory=Window)
    may_come: trio.Event = field(default_factory=trio.Event)
    fails: str = ""
    asked: int = 0
    told: int = 0
    missed_: frozenset[bytes] = frozenset()

    async def situation(self) -> Situation:
        await trio.lowlevel.checkpoint()
        return situation_of(self.paper.view(), pk("m1"), self.pins.all())

    def window(self, situation: Situation) -> Window:
        return self.window_

    async def fetch(self, manifest: Manifest, account: Any) -> Path:
        self.asked += 1
        await self.may_come.wait()
        if self.fails:
            raise BlobError(self.fails)
        partial_ = await trio.to_thread.run_sync(self.store.begin, manifest, leaves_of(DATA))
        for index in range(manifest.blocks):
            await trio.to_thread.run_sync(partial_.write, index, DATA[index * BLOCK : (index + 1) * BLOCK])
            account.moved("peer", manifest.block_size(index))
        return await trio.to_thread.run_sync(partial_.finish)

    def name_of(self, peer_id: str) -> str:
        return peer_id

    def missed(self) -> frozenset[bytes]:
        return self.missed_

    def note_change(self) -> None:
        self.told += 1


@dataclass
class Bench:
    around: Around
    pool: Pool
    store: BlobStore
    transfers: Transfers
    executor: Executor

    async def until(self, true: Callable[[], bool]) -> None:
        with trio.fail_after(LIMIT):
            while not true():
                await self.executor.looked()

    @property
    def held(self) -> bool:
        return MANIFEST.sha256 in self.store.held()

    @property
    def served(self) -> bool:
        return MANIFEST.sha256 in self.pool.running


@contextmanager
def bench(tmp_path: Path, **rules: float) -> Iterator[Bench]:
    paper = Fleet()
    for name in ("m1", "m2"):
        paper.cert("a1", name)
        paper.fact(name, "node", {"name": name, "memory": 1 << 33, "labels": {"site": name}})
    paper.set("a1", "model/smol", {
        "hash": MANIFEST.sha256, "size_bytes": MANIFEST.size, "root": MANIFEST.root.hex(), "algorithm": "sha256",
    })  # fmt: skip
    with BlobStore(tmp_path / "blobs", keep_free=0) as store:
        pins, pool, transfers = Pins(tmp_path / "pins.json"), Pool(), Transfers()
        around = Around(paper, pins, store)
        terms = Rules(**{"surplus_after": 3600.0, "settle": 0.0, **rules})
        executor = Executor(store, pool, around, pins, transfers, terms)  # type: ignore[arg-type]
        yield Bench(around, pool, store, transfers, executor)


def run(tmp_path: Path, story: Callable[[Bench], Any], **rules: float) -> None:
    async def main() -> None:
        with bench(tmp_path, **rules) as made:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.executor.run)
                await story(made)
                nursery.cancel_scope.cancel()

    trio.run(main)


def place(made: Bench, site: str = "m1") -> None:
    paper = made.around.paper
    before = [op for op in paper.ops if op.path == "place/here"]
    paper.set("a1", "place/here", {"model": "smol", "selector": {"where": f"site={site}"}}, before)


def test_what_is_placed_here_is_fetched_served_and_told_of(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        assert made.held
        assert made.pool.hashed == [MANIFEST.sha256]  # not hashed again to be loaded
        assert made.pool.running[MANIFEST.sha256].name == "smol"
        assert made.around.told >= 2
        (transfer,) = made.transfers.all()
        plain = transfer.plain()
        assert plain["state"] == "done"
        assert plain["progress"]["sources"][0]["bytes"] == MANIFEST.size  # type: ignore[index]
        ended = made.executor.ended
        assert (ended.received, ended.wasted, ended.fetches) == (MANIFEST.size, 0, {"done": 1})

    run(tmp_path, story)


def test_a_fetch_is_stopped_when_it_is_wanted_no_more_or_not_now(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        await made.until(lambda: made.around.asked == 1)
        place(made, "elsewhere")
        await made.until(lambda: not made.executor.actual.fetching and made.transfers.find("t1").state == "stopped")  # type: ignore[union-attr]
        place(made)
        await made.until(lambda: made.around.asked == 2)
        made.around.window_ = Window(metered=True)
        await made.until(lambda: made.transfers.find("t2").state == "stopped")  # type: ignore[union-attr]
        assert not made.executor.actual.fetching

    run(tmp_path, story)


def test_a_fetch_that_fails_is_not_tried_at_once_but_when_somebody_asks(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.fails = "it is not what the manifest says"
        made.around.may_come.set()
        await made.until(lambda: bool(made.executor.actual.failed))
        for _ in range(3):
            await made.executor.looked()
        assert made.around.asked == 1
        assert "it is not what the manifest says" in made.executor.actual.failed[MANIFEST.sha256]
        made.around.fails = ""
        made.executor.forgive(MANIFEST.sha256)
        await made.until(lambda: made.served)

    run(tmp_path, story)


def test_a_model_that_nobody_vouches_for_any_more_is_withdrawn_and_kept(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        paper = made.around.paper
        paper.set("a1", "model/smol", None, [op for op in paper.ops if op.path == "model/smol"])
        await made.until(lambda: not made.served)
        assert made.held

    run(tmp_path, story)


def test_a_surplus_copy_goes_once_another_box_is_to_keep_one_and_never_before(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        place(made, "m2")
        for _ in range(4):
            await made.executor.looked()
        assert made.held  # m2 has none yet
        made.around.paper.fact("m2", f"hold/{MANIFEST.sha256}", {"name": "smol", "size": 1, "complete": 1.0})
        made.around.missed_ = frozenset({pk("m2")})
        for _ in range(4):
            await made.executor.looked()
        assert made.held  # m2 does not answer
        made.around.missed_ = frozenset()
        await made.until(lambda: not made.held)
        assert not made.served

    run(tmp_path, story, surplus_after=0.05)


def test_a_damaged_file_is_withdrawn_and_mended(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        held = made.store.held()[MANIFEST.sha256]
        with held.path.open("r+b") as file:
            file.write(b"rot")
        assert await trio.to_thread.run_sync(partial(held.verify)) == (0,)
        await made.until(lambda: made.held and made.served)
        assert made.around.asked == 2

    run(tmp_path, story)


@pytest.mark.parametrize("rot", [True, False])
def test_a_file_that_the_engine_finds_to_be_another_is_checked_unasked(tmp_path: Path, rot: bool) -> None:
    async def story(made: Bench) -> None:
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        if rot:
            with made.store.held()[MANIFEST.sha256].path.open("r+b") as file:
                file.write(b"rot")
        made.pool.hashed.clear()
        made.pool.alien = True
        made.executor.note_change()
        # Whichever of the two was wrong, it is run anew.
        await made.until(lambda: made.pool.hashed == [MANIFEST.sha256] and made.held and made.served)
        assert made.around.asked == (2 if rot else 1)  # what is sound is not fetched again
        (checked,) = (one for one in made.transfers.all() if one.kind == "verify")
        assert checked.result["sound"] is not rot

    run(tmp_path, story)


def test_a_stand_in_waits_a_moment_before_it_acts(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        paper = made.around.paper
        paper.set("a1", "place/here", {"model": "smol", "min": 1, "max": 1})
        paper.fact("m2", f"hold/{MANIFEST.sha256}", {"name": "smol", "size": 1, "complete": 1.0})
        paper.fact("m1", f"gone/{pk('m2').hex()}", True)
        made.around.may_come.set()
        await made.executor.looked()
        await made.executor.looked()
        assert "given a moment" in made.executor.actual.failed[MANIFEST.sha256]
        assert made.around.asked == 0
        made.executor._look._rules = replace(made.executor._look._rules, settle=0.0)
        await made.until(lambda: made.served)

    run(tmp_path, story, settle=3600.0)


def test_a_box_without_an_engine_stores_what_is_pulled_and_serves_nothing(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        made.pool.memory = 0
        made.around.may_come.set()
        await trio.to_thread.run_sync(made.around.pins.add, MANIFEST.sha256)
        await made.until(lambda: made.held)
        await made.executor.looked()
        assert not made.served
        assert MANIFEST.sha256 in Pins(tmp_path / "pins.json")

    run(tmp_path, story)


@pytest.mark.parametrize("context", [None, 2048])
def test_a_model_runs_with_the_context_that_its_manifest_says(tmp_path: Path, context: int | None) -> None:
    async def story(made: Bench) -> None:
        if context is not None:
            paper = made.around.paper
            (op,) = (op for op in paper.ops if op.path == "model/smol")
            body = {
                "hash": MANIFEST.sha256, "size_bytes": MANIFEST.size, "root": MANIFEST.root.hex(),
                "context_tokens": context,
            }  # fmt: skip
            paper.set("a1", "model/smol", body, [op])
        place(made)
        made.around.may_come.set()
        await made.until(lambda: made.served)
        assert made.pool.running[MANIFEST.sha256].context_tokens == context
        assert isinstance(made.executor.situation.wishes.by_name("smol"), FleetModel)  # type: ignore[union-attr]

    run(tmp_path, story)
