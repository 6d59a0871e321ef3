"""One blob from box to box, as real processes: kills, lies, crawlers, full disks and blocked ports."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.blob_box import BlobBox, boxes

MIB = 1 << 20
SIZE = 64 * MIB + 12_345
#: What 1 % of a blob of 1 GiB is: what may be on its way, or not yet written, when a box is killed.
SLACK = 10 * MIB
#: Bytes a second of a source that is to be killed, or looked at, in the middle.
SLOWLY = 48e6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blob") / "model.gguf"
    with path.open("wb") as file:
        left = SIZE
        while left:
            left -= file.write(os.urandom(min(MIB, left)))
    return path


@pytest.fixture(scope="module")
def digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def check(done: dict[str, Any], digest: str) -> None:
    path = Path(done["path"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.name == f"{digest}.blob"
    assert (done["state"], done["bytes"], done["blocks"]) == ("done", SIZE, done["blocks_total"])


def note(what: str, moved: int, wasted: int = 0) -> None:
    print(f"{what}: {moved / SIZE:.3f}x moved, {wasted} bytes wasted")


@pytest.mark.parametrize("lane", ["fast", "stream"])
def test_both_lanes_bring_the_same_file_once(tmp_path: Path, source: Path, digest: str, lane: str) -> None:
    with boxes(tmp_path, source, [{}]) as ((giver,), getter):
        done = getter.start(fast=lane == "fast").wait("done")
        check(done, digest)
        assert (done["moved"], done["wasted"]) == (SIZE, 0)
        assert {one["lane"] for said in getter.said for one in said.get("sources", ())} <= {"", lane}
        assert giver.stats()["given"] == SIZE


def test_a_port_that_cannot_be_reached_is_got_around(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{}]) as ((giver,), getter):
        done = getter.start(fault="blocked").wait("done")
        check(done, digest)
        lanes = {one["lane"] for said in getter.said for one in said.get("sources", ())}
        assert "stream" in lanes
        assert "fast" not in lanes
        assert done["moved"] == giver.stats()["given"] == SIZE


def test_a_box_killed_half_way_fetches_the_other_half(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{"rate": SLOWLY}]) as ((giver,), getter):
        getter.start().at(0.5)
        getter.kill()
        done = getter.start().wait("done")
        check(done, digest)
        given = giver.stats()["given"]
        note("killed half way", given)
        assert given <= SIZE + SLACK
        assert done["checked"] >= 0.5 * SIZE - MIB


def test_five_kills_at_random_lose_next_to_nothing(tmp_path: Path, source: Path, digest: str) -> None:
    rng = random.Random(6)
    with boxes(tmp_path, source, [{"rate": SLOWLY}]) as ((giver,), getter):
        for fraction in sorted(rng.uniform(0.05, 0.95) for _ in range(5)):
            getter.start().at(fraction)
            getter.kill()
        check(getter.start().wait("done"), digest)
        given = giver.stats()["given"]
        note("five kills", given)
        assert given <= SIZE + 5 * SLACK


def test_a_journal_that_lies_is_found_out(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{"rate": SLOWLY}]) as ((giver,), getter):
        getter.start().at(0.3)
        getter.kill()
        before = giver.stats()["given"]
        (journal,) = getter.folder.glob("*.journal")
        raw = bytearray(journal.read_bytes())
        (part,) = getter.folder.glob("*.part")
        with part.open("r+b") as file:  # blocks that the journal truly claims, and that are so no more
            for index in range(0, 64, 2):
                file.seek(index * MIB + 77)
                file.write(b"rot")
        raw[-2] |= 0xFF  # and some that never came
        journal.write_bytes(raw)
        done = getter.start().wait("done")
        check(done, digest)
        note("a lying journal", giver.stats()["given"] - before, done["wasted"])


def test_a_source_that_dies_costs_next_to_nothing(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{"rate": SLOWLY / 3}] * 3) as (givers, getter):
        getter.start().at(0.3)
        givers[1].kill()
        done = getter.wait("done")
        check(done, digest)
        note("one of three died", done["moved"], done["wasted"])
        assert done["moved"] <= 1.02 * SIZE + MIB


def test_a_source_that_lies_is_banned_at_its_first_block(tmp_path: Path, source: Path, digest: str) -> None:
    orders = [{"rate": SLOWLY}, {"rate": SLOWLY, "fault": "corrupt"}, {"rate": SLOWLY}]
    with boxes(tmp_path, source, orders) as (givers, getter):
        done = getter.start().wait("done")
        check(done, digest)
        note("one of three lied", done["moved"], done["wasted"])
        (banned,) = [one for one in done["sources"] if one["state"] == "banned"]
        assert banned["peer_id"] == givers[1].peer_id
        assert 0 < banned["bytes"] <= MIB <= 0.02 * SIZE
        assert done["wasted"] <= 2 * MIB  # that block, and perhaps one that came twice at the end


def test_a_source_that_crawls_holds_nobody_up(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{"rate": SLOWLY}, {"rate": 50e3}, {"rate": SLOWLY}]) as (givers, getter):
        done = getter.start().wait("done")
        check(done, digest)
        note("one of three crawled", done["moved"], done["wasted"])
        # At its own pace it would have needed five minutes for its third, and twenty seconds for a single block.
        assert done["seconds"] < 20
        assert givers[1].stats()["given"] <= 2 * MIB


def test_the_first_holder_super_seeds_and_two_pass_it_on(tmp_path: Path, source: Path, digest: str) -> None:
    with boxes(tmp_path, source, [{"alone": True, "rate": SLOWLY}]) as ((giver,), one):
        other = BlobBox(tmp_path / "other", "other", {"fetch": one.orders["fetch"]})
        try:
            # Both know the first holder, and one of them the other.
            peers = one.orders["peers"]
            one.start(peers=peers | {other.peer_id: [other.addr]})
            other.start(peers=peers | {one.peer_id: [one.addr]})
            for box in (one, other):
                check(box.wait("done"), digest)
            given = giver.stats()["given"]
            print(f"two boxes got it from one that sent it {given / SIZE:.2f} times")
            assert given <= 1.6 * SIZE
        finally:
            other.kill()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_pauses_and_goes_on_where_it_was(tmp_path: Path, source: Path, digest: str) -> None:
    with small_disk(tmp_path / "small", SIZE + 4 * MIB) as disk, boxes(tmp_path, source, [{}]) as ((giver,), getter):
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(SIZE // 2))
        getter.folder = disk / "blobs"
        getter.orders["folder"] = str(getter.folder)
        paused = getter.start().wait("progress", state="paused")
        assert "MiB" in paused["reason"] or "bytes" in paused["reason"]
        assert giver.stats()["given"] == 0
        ballast.unlink()
        done = getter.wait("done")
        check(done, digest)
        assert done["moved"] == SIZE
