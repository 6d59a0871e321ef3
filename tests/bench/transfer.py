"""Moving one file between boxes, side by side: both of our lanes, a raw copy, and the tools that people use for it.

`python -m tests.bench.transfer [--mib 1024] [--rounds 3]`. Everything goes over loopback within one run, in turn, so
that drift of the machine hits all; what counts are the ratios. A tool that is not installed is left out, with the
reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.report import Figure, at_least, at_most, publish
from tests.bench.transfer_others import Begin, MissingToolError, Run, curl, libtorrent, measured, raw, syncthing
from tests.blob_box import boxes

MIB = 1 << 20
Tool = Callable[[Path, Path, Begin], Run]


def ours(source: Path, target: Path, begin: Begin, *, sources: int, fast: bool) -> Run:
    """From boxes that hold the file, each a process, to one that does not: checked block by block and as a whole."""
    with boxes(target, source, [{}] * sources) as (givers, getter):
        before = sum(giver.stats()["cpu"] for giver in givers)
        getter.start(fast=fast, tell_every=0.5, wait=True).wait("linked")
        begin()
        getter.go()
        done = getter.wait("done", 600)
        cpu = done["cpu"] + sum(giver.stats()["cpu"] for giver in givers) - before
    return measured(done["size"], done["seconds"], cpu)


TOOLS: dict[str, Tool] = {
    "raw sendfile": raw,
    "fast lane": partial(ours, sources=1, fast=True),
    "fast lane, three sources": partial(ours, sources=3, fast=True),
    "link's stream": partial(ours, sources=1, fast=False),
    "link's stream, three sources": partial(ours, sources=3, fast=False),
    "libtorrent": partial(libtorrent, seeds=1),
    "libtorrent, three seeds": partial(libtorrent, seeds=3),
    "curl from nginx": curl,
    "syncthing": syncthing,
}


def compare(source: Path, folder: Path, rounds: int, names: Sequence[str]) -> dict[str, list[Run]]:
    """Runs of each tool, in turn."""
    runs: dict[str, list[Run]] = {}
    for number in range(rounds):
        for name in names:
            work = folder / "work"
            work.mkdir()
            begin = hold_memory(folder / "held", source.stat().st_size)
            try:
                run = TOOLS[name](source, work / "copy", begin)
            except MissingToolError as error:
                if not number:
                    print(f"  {name}: left out, it is not installed ({error})", flush=True)
                continue
            finally:
                begin()
                shutil.rmtree(work)
            runs.setdefault(name, []).append(run)
            print(f"  {name}: {run.speed / 1e6:.0f} MB/s, {run.cpu * 1e9:.2f} CPU s/GB", flush=True)
    return runs


def hold_memory(path: Path, size: int) -> Begin:
    """Have the system take as much memory as a copy takes; what is returned gives it back, and is to be called when the
    copy begins.

    A virtual machine gets its memory page by page, at ten times the cost of writing to it, and gives back what is free
    for two seconds: whoever takes longer to get started would pay for it.
    """
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(bytes(MIB))
    return partial(path.unlink, missing_ok=True)


def show(runs: dict[str, list[Run]]) -> None:
    base = statistics.median(run.speed for run in runs["raw sendfile"])
    print(f"\n{'':32}{'MB/s':>8}{'of raw':>8}{'CPU s/GB':>10}")
    for name, found in runs.items():
        speed = statistics.median(run.speed for run in found)
        cost = statistics.median(run.cpu for run in found)
        print(f"{name:32}{speed / 1e6:8.0f}{speed / base:8.2f}{cost * 1e9:10.2f}")
    print(flush=True)


def ratios(runs: dict[str, list[Run]]) -> list[Figure]:
    """What is held to a limit: ratios of medians."""
    figures = []

    def against(figure: str, limit: float, own: str, other: str) -> None:
        if other in runs and own in runs:
            mine, theirs = [run.speed / 1e6 for run in runs[own]], [run.speed / 1e6 for run in runs[other]]
            figures.append(at_least(figure, limit, statistics.median(mine), mine, statistics.median(theirs)))

    against("fast lane / raw sendfile (MB/s)", 0.6, "fast lane", "raw sendfile")
    against("fast lane / libtorrent (MB/s)", 1.0, "fast lane", "libtorrent")
    against("three sources, fast lane / libtorrent (MB/s)", 1.0, "fast lane, three sources", "libtorrent, three seeds")
    against("fast lane / syncthing (MB/s)", 4.0, "fast lane", "syncthing")
    if "fast lane" in runs:
        costs = [run.cpu * 1e9 for run in runs["fast lane"]]
        figures.append(at_most("CPU of both ends, fast lane (s/GB)", 4.0, statistics.median(costs), costs))
    return figures


# --- faults -----------------------------------------------------------------------------------------------------------


def hash_seconds(path: Path, size: int) -> float:
    """What it takes to hash so much of a file that is in memory, in one thread."""
    began = time.perf_counter()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (data := file.read(MIB)):
            digest.update(data)
            size -= len(data)
    return time.perf_counter() - began


def killed(source: Path, folder: Path) -> list[Figure]:
    """SIGKILL at half the file: what is moved in all, and how long the second start takes to check the first half."""
    with boxes(folder, source, [{}]) as ((giver,), getter):
        getter.start(tell_every=0.005).at(0.5)
        getter.kill()
        getter.start(tell_every=0.005)
        first = getter.wait("progress", state="checking")
        began = time.perf_counter()
        getter.until(lambda said: said["event"] == "progress" and said["state"] != "checking", "the end of the check")
        checking = time.perf_counter() - began
        done = getter.wait("done", 600)
        moved = giver.stats()["given"] / done["size"]
        assert first["moved"] == 0
        alone = hash_seconds(source, done["checked"])
    return [
        at_most("SIGKILL at 50 %: bytes moved in all / file", 1.01, moved, [moved]),
        at_most("SIGKILL at 50 %: check at the start / hashing (s)", 1.5, checking, [checking], alone),
    ]


def dying(source: Path, folder: Path) -> list[Figure]:
    """One of three sources is killed at 30 %."""
    with boxes(folder, source, [{}] * 3) as (givers, getter):
        getter.start(tell_every=0.005).at(0.3)
        givers[1].kill()
        done = getter.wait("done", 600)
    moved = done["moved"] / done["size"]
    return [at_most("one of three sources dies: bytes moved / file", 1.02, moved, [moved])]


def lying(source: Path, folder: Path) -> list[Figure]:
    """One of three sources sends nothing but damaged blocks."""
    with boxes(folder, source, [{}, {"fault": "corrupt"}, {}]) as (_, getter):
        done: dict[str, Any] = getter.start(tell_every=0.5).wait("done", 600)
    wasted = done["wasted"] / done["size"]
    return [at_most("one of three sources lies: bytes wasted / file", 0.02, wasted, [wasted])]


def faults(source: Path, folder: Path) -> list[Figure]:
    """All of them, one after the other."""
    figures = []
    for fault in (killed, dying, lying):
        work = folder / fault.__name__
        work.mkdir()
        figures += fault(source, work)
        shutil.rmtree(work)
    return figures


def main(arguments: Sequence[str] = ()) -> int:
    """Run it; 1 if any figure is past its limit."""
    parser = argparse.ArgumentParser(prog="make bench-transfer ARGS=")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool copies it")
    parser.add_argument("--only", default="", help="tools whose name contains this (and the raw copy)")
    chosen = parser.parse_args(arguments)
    names = [name for name in TOOLS if chosen.only in name or name == "raw sendfile"]
    with tempfile.TemporaryDirectory(prefix="shoal-transfer-") as name:
        folder = Path(name)
        (folder / "source").mkdir()
        source = folder / "source" / "model.gguf"
        with source.open("wb") as file:
            for _ in range(chosen.mib):
                file.write(os.urandom(MIB))
        runs = compare(source, folder, chosen.rounds, names)
        show(runs)
        return publish("transfer", [*ratios(runs), *faults(source, folder)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
