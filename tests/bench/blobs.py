"""The store's own work: hashing again at a start what is on disk, taking files in, and the check of the whole.

Each is set beside SHA-256 of the same bytes in memory, in one thread, measured in turn in the same run.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fleet.blobs.merkle import BLOCK
from fleet.blobs.store import BlobStore
from tests.bench.report import Figure, at_most, publish

BLOCKS = 512
SIZE = BLOCKS * BLOCK
RUNS = 5


def main() -> int:
    """Run it; 1 where a figure is past its limit."""
    with tempfile.TemporaryDirectory() as made:
        return publish("blobs", measure(Path(made)))


def measure(folder: Path) -> list[Figure]:
    """The figures, each with its runs, as multiples of the time that hashing alone takes."""
    block = random.Random(1).randbytes(BLOCK)
    model = folder / "model"
    with model.open("wb") as file:
        for index in range(BLOCKS):
            file.write(index.to_bytes(8, "big") + block[8:])
    hashed: list[float] = []
    taken: dict[str, list[float]] = {"adopt": [], "resume": [], "finish": []}
    for _ in range(RUNS):
        hashed.append(_seconds(lambda: _hash(block)))
        with BlobStore(folder / "from", keep_free=0) as store:
            taken["adopt"].append(_seconds(lambda: store.adopt(model)))
            held = store.held().popitem()[1]
            with BlobStore(folder / "to", keep_free=0) as other:
                partial = other.begin(held.manifest, held.leaves)
                for index in range(BLOCKS):
                    partial.write(index, held.read(index))
        with BlobStore(folder / "to", keep_free=0) as other:
            taken["resume"].append(_seconds(other.resume))
            partial = next(iter(other.resume().values()))
            taken["finish"].append(_seconds(partial.finish))
        shutil.rmtree(folder / "from")
        shutil.rmtree(folder / "to")
    pure = statistics.median(hashed)
    print(f"SHA-256 in memory, one thread: {SIZE / pure / 1e6:.0f} MB/s")
    for name, runs in taken.items():
        print(f"{name}: {SIZE / statistics.median(runs) / 1e6:.0f} MB/s")
    limits = {"adopt": 3.0, "resume": 1.5, "finish": 1.5}
    words = {
        "adopt": "taking a file in (hash and leaves, s)",
        "resume": "hashing again at a start (s)",
        "finish": "check of the whole and its name (s)",
    }
    return [
        at_most(words[name], limits[name], statistics.median(runs), runs, theirs=pure) for name, runs in taken.items()
    ]


def _hash(block: bytes) -> None:
    digest = hashlib.sha256()
    for _ in range(BLOCKS):
        digest.update(block)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
