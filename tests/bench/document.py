"""The fleet document at fleet size: taking ops in, opening 10,000 boxes, and what they weigh in memory."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import trio
import trio.lowlevel

from fleet.document.facts import Node
from fleet.document.op import Kind, Op, read_op, signature_holds, write_op
from fleet.document.replica import Replica
from fleet.document.store import OpStore
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity
from tests.bench.report import Figure, at_least, at_most, publish

BOXES = 10_000
RUNS = 5
ADMIN = Identity.from_seed(b"\x01" * 32)
GENESIS = Genesis("bench", (), (ADMIN.public_key,), b"\0" * 16)


def box_ops(number: int) -> list[Op]:
    """What a box of the fleet has in the document: its certificate, itself, its addresses, and a model it holds."""
    box = Identity.from_seed(hashlib.sha256(b"box %d" % number).digest())
    model = hashlib.sha256(b"model %d" % (number % 20)).hexdigest()

    def fact(seq: int, path: str, body: object) -> Op:
        return _op(box, seq, "node", path, body)

    node = Node(
        name=f"pos-{number}",
        version="0.1.0",
        labels=(("role", "pos"), ("site", f"shop-{number // 8}")),
        arch="aarch64",
        cpus=4,
        memory=4 << 30,
        disk=64 << 30,
        instance=f"{number:032x}",
    )
    return [
        _op(ADMIN, number + 1, "cert", box.public_key.hex(), "member"),
        fact(1, "node", node.body()),
        fact(2, "addr", [f"/ip4/10.{number >> 8 & 255}.{number & 255}.1/tcp/4210"]),
        fact(3, f"hold/{model}", {"name": "smollm2-135m-instruct", "size": 98_000_000, "complete": 1.0}),
    ]


def _op(author: Identity, seq: int, kind: Kind, path: str, body: object) -> Op:
    return write_op(author, GENESIS.fleet_id, seq=seq, hlc=(1 << 58) + seq, kind=kind, path=path, body=body)


def admit_rates(raws: Sequence[bytes]) -> list[Figure]:
    """Ops from a peer: limits, signature, acceptance, commit to disk; beside the signatures that one core checks."""

    async def take_in(folder: Path) -> float:
        store = OpStore(folder)
        store.found(GENESIS)
        replica = Replica(GENESIS, store.open().ops, store)
        began = time.perf_counter()
        for start in range(0, len(raws), 256):
            outcomes = await replica.offer(raws[start : start + 256])
            assert all(outcome.state == "new" for outcome in outcomes)
        took = time.perf_counter() - began
        store.close()
        return len(raws) / took

    def check_signatures(ops: Sequence[Op]) -> float:
        began = time.perf_counter()
        assert all(map(signature_holds, ops))
        return len(ops) / (time.perf_counter() - began)

    some = [read_op(raw) for raw in raws[:4000]]
    rates, floor = [], []
    for _ in range(RUNS):
        floor.append(check_signatures(some))
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            rates.append(trio.run(take_in, Path(folder)))
        print(f"  {rates[-1]:.0f} ops/s; one core checks {floor[-1]:.0f} signatures/s", flush=True)
    rate = statistics.median(rates)
    return [
        at_least("ops admitted (ops/s)", 10_000, rate, rates),
        at_least("ops admitted / signatures that one core checks (1/s)", 0.75, rate, rates, statistics.median(floor)),
    ]


def _open_fleet(folder: str) -> dict[str, Any]:
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    store = OpStore(Path(folder))
    genesis = store.genesis()
    assert genesis is not None
    replica = Replica(genesis, store.open().ops, store)
    view = replica.view
    took = time.perf_counter() - began
    assert len(view.authority.members) == BOXES
    gc.collect()
    rss = psutil.Process().memory_info().rss
    return {"s": took, "rss": rss / 1e6, "grown": (rss - before) / 1e6}


def anti_entropy() -> list[Figure]:
    """Bytes on the wire of one comparison over a link, both ways, frames included."""
    # Here, because the processes whose memory is measured import this module too, and have no use for a network.
    from tests.sim.gossip_box import connect, fact, members, plain_fact, two

    author = members(1)[0]
    crowd = [plain_fact(bytes([number]) * 32, seq) for number in range(100) for seq in range(200)]

    async def compare(nursery: trio.Nursery, ops: list[Op], news: list[Op]) -> int:
        a, b = two(ops, [*ops, *news])
        wire = await connect(nursery, a, b)
        await trio.lowlevel.checkpoint()
        before = wire.sent
        report = await a.sync.exchange(a.neighbours()[0])
        assert report.error == ""
        assert len(a.replica.ops) == len(b.replica.ops)
        return wire.sent - before

    async def both() -> tuple[list[float], list[float]]:
        equal, one = [], []
        for number in range(RUNS):
            async with trio.open_nursery() as nursery:
                news = [fact(author, number + 1, f"hold/{number}", size=300)]
                equal.append(float(await compare(nursery, crowd, [])))
                one.append(float(await compare(nursery, crowd, news)))
                nursery.cancel_scope.cancel()
        return equal, one

    equal, one = trio.run(both)
    return [
        at_most("comparing 20,000 equal ops (bytes)", 128, statistics.median(equal), equal),
        at_most("comparing 20,000 ops of which one differs (bytes)", 4096, statistics.median(one), one),
    ]


def in_new_process(work: Callable[[str], dict[str, Any]], folder: str) -> dict[str, Any]:
    """Run it where nothing else has used memory before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder,))


def main() -> int:
    """Run it all."""
    print(f"making the ops of {BOXES} boxes", flush=True)
    raws = [op.raw for number in range(BOXES) for op in box_ops(number)]
    figures = admit_rates(raws[:20_000])
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:

        async def fill() -> None:
            store = OpStore(Path(folder))
            store.found(GENESIS)
            await Replica(GENESIS, store.open().ops, store).offer(raws)
            store.close()

        trio.run(fill)
        print(f"opening {BOXES} boxes, {len(raws)} ops, {RUNS} times", flush=True)
        found = [in_new_process(_open_fleet, folder) for _ in range(RUNS)]
    opened, rss = [one["s"] for one in found], [one["rss"] for one in found]
    print("comparing documents over a link", flush=True)
    figures += anti_entropy()
    figures += [
        at_most(f"open {BOXES} boxes (s)", 0.5, statistics.median(opened), opened),
        at_most(f"memory of a process with {BOXES} boxes, RSS (MB)", 100, statistics.median(rss), rss),
    ]
    print(json.dumps({"bench": "document", "figures": len(figures)}))
    return publish("document", figures)
