"""A store that is killed at every single step, at random, and that loses power: what was said to be there is there,
what is there is right, and the blob is whole in the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.blobs.errors import MissingBlockError
from fleet.blobs.merkle import BLOCK
from fleet.blobs.store import BlobStore
from tests.blob_files import Sample, fast_folder, sample
from tests.disk_model import Name, Recorder, Sync, after_power_cut

#: Three blocks.
ONE = sample(7, 2 * BLOCK + 77)

#: The calls by which a store changes its disk.
STEPS = ("pwrite", "posix_fallocate", "ftruncate", "fsync", "fdatasync", "rename", "unlink", "link", "open")

Say = Callable[[str], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as made:
        yield made


# --- what a store is killed at ----------------------------------------------------------------------------------------


def fetch(folder: Path, say: Say) -> None:
    with BlobStore(folder / "blobs", keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        for index in (2, 0, 1):
            partial.write(index, ONE.block(index))
            say(str(index))
        partial.finish()
        say("012")


def mend(folder: Path, say: Say) -> None:
    with BlobStore(folder / "blobs", keep_free=0) as store:
        try:
            store.held()[ONE.blob].read(1)
        except MissingBlockError:
            say("02")
        partial = store.begin(ONE.manifest, ONE.leaves)
        partial.write(1, ONE.block(1))
        say("1")
        partial.finish()


def adopt(folder: Path, say: Say) -> None:
    with BlobStore(folder / "blobs", keep_free=0) as store:
        store.begin(ONE.manifest, ONE.leaves).write(0, ONE.block(0))
        say("0")
        store.adopt(folder / "model")
        say("012")


def remove(folder: Path, say: Say) -> None:
    with BlobStore(folder / "blobs", keep_free=0) as store:
        store.remove(ONE.blob)


def whole(folder: Path) -> None:
    with BlobStore(folder / "blobs", keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        partial.finish()


def whole_with_rot(folder: Path) -> None:
    whole(folder)
    path = folder / "blobs" / f"{ONE.manifest.hex}.blob"
    raw = bytearray(path.read_bytes())
    raw[BLOCK + 9] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("prepare", "work", "rotten"),
    [
        (lambda folder: None, fetch, False),
        (whole_with_rot, mend, True),
        (lambda folder: ONE.file(folder / "model"), adopt, False),
        (whole, remove, False),
    ],
    ids=["fetch", "mend", "adopt", "remove"],
)
def test_killed_at_every_step_nothing_is_lost_and_nothing_is_wrong(
    folder: Path, prepare: Callable[[Path], Any], work: Callable[[Path, Say], None], rotten: bool
) -> None:
    start = folder / "start"
    start.mkdir()
    prepare(start)
    step = 0
    while True:
        step += 1
        here = folder / str(step)
        shutil.copytree(start, here)
        ended, said = killed_at(step, lambda say, here=here: work(here, say))
        check(here / "blobs", {int(digit) for digit in said}, rotten=rotten)
        shutil.rmtree(here)
        if ended:
            break
    assert step > 8


def killed_at(step: int, work: Callable[[Say], None]) -> tuple[bool, str]:
    """Do it in a child that kills itself at its n-th change of the disk; whether it came to its end, and what it
    said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            left = step

            def counted(real: Callable[..., Any], *args: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            for name in STEPS:
                real = getattr(os, name)
                setattr(os, name, lambda *args, real=real, **more: counted(real, *args, **more))
            work(lambda text: os.write(writer, text.encode()) and None)  # type: ignore[func-returns-value]
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 1000):
        said += piece
    os.close(reader)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WEXITSTATUS(status) == 0
    return not killed, said.decode()


def check(folder: Path, said: set[int], *, rotten: bool = False, found: Sample = ONE) -> None:
    """What is left is right, holds what was said to be there, and can be completed."""
    with BlobStore(folder, keep_free=0) as store:
        held = store.held().get(found.blob)
        if held is not None and not (rotten and held.verify()):
            assert held.verify() == ()
        else:
            partial = store.begin(found.manifest, found.leaves)
            assert said <= set(partial.have)
            for index in partial.have:
                assert partial.read(index) == found.block(index)
            found.write(partial)
            partial.finish()
        assert store.held()[found.blob].path.read_bytes() == found.data
        assert not store.partials()
        assert not store.orphans()
    assert {path.suffix for path in folder.iterdir()} == {".blob", ".tree"}


# --- a process that is killed from outside ----------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tests.blob_files import sample
from fleet.blobs.store import BlobStore
found = sample(8, 24 << 20)
with BlobStore(Path(sys.argv[1]), keep_free=0) as store:
    partial = store.resume().get(found.blob) or store.begin(found.manifest, found.leaves)
    print(*partial.have, flush=True)
    for index in partial.have.missing():
        if sys.stdin.readline():
            partial.write(index, found.block(index))
            print(index, flush=True)
    print(partial.finish(), flush=True)
"""


def test_killed_five_times_while_it_writes_no_block_is_fetched_twice(tmp_path: Path) -> None:
    found, rng = sample(8, 24 << 20), random.Random(5)
    folder, written = tmp_path / "blobs", set[int]()
    sent = 0
    for kills_at in (4, 5, 3, 6, 2, None):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            there = set(map(int, child.stdout.readline().split()))
            assert written <= there
            assert len(there - written) <= 1  # what it wrote and was killed before it said so
            sent -= len(there - written)
            for _ in range(24 - len(there) if kills_at is None else kills_at):
                child.stdin.write("\n")
                sent += 1
                written = there = there | {int(child.stdout.readline())}
            if kills_at is None:
                assert Path(child.stdout.readline().strip()).read_bytes() == found.data
                child.stdin.close()
                assert child.wait(30) == 0
            else:
                if rng.random() < 0.7:
                    child.stdin.write("\n")  # one more is on its way
                    sent += 1
                child.kill()
                child.wait(30)
    assert sent <= 24 + 5  # at most the block in hand at each kill


# --- power cuts -------------------------------------------------------------------------------------------------------


def durable(calls: list[Any]) -> set[int]:
    """The blocks that were last said to be durable."""
    said = [call for call in calls if isinstance(call, str)]
    return {int(digit) for digit in said[-1]} if said else set()


def record(folder: Path) -> Recorder:
    """A fetch with a flush in its middle, rot, and its mending; then the same blob taken in as a file."""
    disk = Recorder(folder / "blobs")
    with disk.recording(), BlobStore(disk.folder, keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial, 0, 2)
        partial.flush()
        disk.note("02")
        ONE.write(partial, 1)
        partial.finish()
        disk.note("012")
        held = store.held()[ONE.blob]
        disk.note("02")
        store.withdraw(held, (1,))
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial, 1)
        partial.finish()
        disk.note("012")
        disk.note("")
        store.remove(ONE.blob)
        store.begin(ONE.manifest, ONE.leaves)
        source = os.open(folder / "model", os.O_RDWR | os.O_CREAT)
        os.pwrite(source, ONE.data, 0)
        os.close(source)
        store.adopt(folder / "model", move=True)
        disk.note("012")
    return disk


@pytest.fixture(scope="module")
def disk() -> Recorder:
    with fast_folder() as made:
        return record(made)


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), seed=st.integers(0, 1 << 32))
def test_after_a_power_cut_what_was_durable_is_there_and_what_is_complete_is_right(
    disk: Recorder, cut: float, seed: int
) -> None:
    until = disk.calls[: round(cut * len(disk.calls))]
    with fast_folder() as made:
        after_power_cut(until, random.Random(seed), made / "blobs")
        check(made / "blobs", durable(until))


def test_a_store_that_did_not_sync_before_it_gives_the_name_would_be_found_out(disk: Recorder, tmp_path: Path) -> None:
    """The model of the disk is no mere formality: without the syncs of the data some cuts leave a wrong blob."""
    part, whole = (f"{ONE.manifest.hex}.{kind}" for kind in ("part", "blob"))
    data = next(call.inode for call in disk.calls if isinstance(call, Name) and call.new == part)
    named = next(at for at, call in enumerate(disk.calls) if isinstance(call, Name) and call.new == whole)
    calls = [call for call in disk.calls[: named + 2] if call != Sync(data)]
    wrong = 0
    for seed in range(12):
        after_power_cut(calls, random.Random(seed), tmp_path / str(seed))
        try:
            check(tmp_path / str(seed), set())
        except AssertionError:
            wrong += 1
    assert wrong
