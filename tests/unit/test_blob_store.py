"""The store: what is checked before it is written, what is found again after a stop, and what edits of it do."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.errors import (
    AlreadyHeldError,
    BadBlockError,
    BadManifestError,
    BlobBusyError,
    BlobFileError,
    BlobGoneError,
    MissingBlockError,
    NoSpaceError,
)
from fleet.blobs.held import Held
from fleet.blobs.manifest import MAX_SIZE, Manifest
from fleet.blobs.merkle import BLOCK
from fleet.blobs.partial import Partial
from fleet.blobs.store import BlobStore
from tests.blob_files import SIZE, fast_folder, sample

ONE = sample()
TWO = sample(1)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with fast_folder() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(folder: Path) -> Iterator[BlobStore]:
    with BlobStore(folder, keep_free=0) as found:
        yield found


def names(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def path_of(folder: Path, kind: str) -> Path:
    return folder / f"{ONE.manifest.hex}.{kind}"


def flip(path: Path, at: int) -> None:
    """Damage a byte, later than what was done before: the kernel's times have steps of some milliseconds."""
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before, before + 1_000_000_000))


def part_of(folder: Path, *indexes: int) -> None:
    """A partial with these blocks, left by a store that was closed."""
    with BlobStore(folder, keep_free=0) as made:
        ONE.write(made.begin(ONE.manifest, ONE.leaves), *indexes)


def whole(folder: Path) -> None:
    with BlobStore(folder, keep_free=0) as made:
        partial = made.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        partial.finish()


def test_a_blob_comes_block_by_block_in_any_order_and_is_whole_in_the_end(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    assert path_of(folder, "part").stat().st_size == SIZE
    for index in (3, 0, 2):
        assert partial.write(index, memoryview(bytearray(ONE.block(index))))
        assert partial.read(index) == ONE.block(index)
    assert list(partial.have) == [0, 2, 3]
    assert not partial.write(0, ONE.block(0))
    with pytest.raises(MissingBlockError) as caught:
        partial.finish()
    assert caught.value.index == 1
    partial.write(1, ONE.block(1))
    path = partial.finish()
    assert path.read_bytes() == ONE.data
    assert names(folder) == {".blob", ".tree"}
    assert not store.partials()
    held = store.held()[ONE.blob]
    assert (held.path, held.manifest, held.leaves) == (path, ONE.manifest, ONE.leaves)
    assert [held.read(index) for index in range(4)] == [ONE.block(index) for index in range(4)]
    with pytest.raises(AlreadyHeldError):
        store.begin(ONE.manifest, ONE.leaves)


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_either_algorithm_will_do(store: BlobStore, folder: Path, algorithm: str) -> None:
    if algorithm == "blake3":
        pytest.importorskip("blake3")
    found = sample(0, SIZE, algorithm)  # type: ignore[arg-type]
    partial = store.begin(found.manifest, found.leaves)
    with pytest.raises(BadBlockError):
        partial.write(0, found.block(1))
    found.write(partial)
    assert partial.finish().read_bytes() == found.data
    assert store.held()[found.blob].verify() == ()


def test_a_bad_block_is_not_written_and_not_said_to_be_here(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    bad = bytearray(ONE.block(1))
    bad[500_000] ^= 1
    for index, data in [
        (1, bytes(bad)),
        (1, ONE.block(0)),
        (1, ONE.block(1)[:-1]),
        (1, ONE.block(1) + b"\0"),
        (1, b""),
        (3, ONE.block(1)),
        (4, ONE.block(1)),
        (-1, ONE.block(3)),
        (2**63, ONE.block(1)),
    ]:
        with pytest.raises(BadBlockError) as caught:
            partial.write(index, data)
        assert caught.value.index == index
    assert partial.have.count == 0
    assert not any(path_of(folder, "part").read_bytes())
    for index in (0, 4, -1):
        assert not partial.has(index)
        with pytest.raises(MissingBlockError):
            partial.read(index)


def test_what_was_written_is_here_after_a_stop_and_is_hashed_before_it_counts(folder: Path) -> None:
    part_of(folder, 0, 3)
    with BlobStore(folder, keep_free=0) as store:
        state = store.partials()[ONE.blob]
        assert (state.blocks, state.checked) == (2, False)
        assert store.partial(ONE.blob) is None
        told: list[tuple[int, int]] = []
        partial = store.resume(lambda *step: told.append(step))[ONE.blob]
        assert told[-1] == (BLOCK + 77, BLOCK + 77)
        assert list(partial.have) == [0, 3]
        assert store.partials()[ONE.blob].checked
        assert store.begin(ONE.manifest, ONE.leaves) is partial is store.partial(ONE.blob)
        ONE.write(partial, 1, 2)
        assert partial.finish().read_bytes() == ONE.data


def test_one_partial_is_reopened_and_the_others_are_not_hashed(folder: Path) -> None:
    part_of(folder, 0)
    with BlobStore(folder, keep_free=0) as store:
        TWO.write(store.begin(TWO.manifest, TWO.leaves), 0)
    with BlobStore(folder, keep_free=0) as store:
        told: list[tuple[int, int]] = []
        partial = store.reopen(ONE.blob, lambda *step: told.append(step))
        assert partial is not None
        assert list(partial.have) == [0]
        assert told[-1] == (BLOCK, BLOCK)
        assert not store.partials()[TWO.blob].checked
        assert store.reopen(ONE.blob) is partial
        assert store.reopen("sha256:" + "0" * 64) is None


def test_begin_takes_up_what_is_there_too(folder: Path) -> None:
    part_of(folder, 2)
    with BlobStore(folder, keep_free=0) as store:
        assert list(store.begin(ONE.manifest, ONE.leaves).have) == [2]


@pytest.mark.parametrize(
    "lie",
    [
        lambda raw: raw[:-1] + b"\xf0",
        lambda raw: raw[:-1] + b"\xff",
        lambda raw: raw[:-1] + b"\x00",
        lambda raw: raw[:-1],
        lambda raw: raw + bytes(100),
        lambda raw: b"",
        lambda raw: bytes(len(raw)),
        lambda raw: b"x" + raw[1:],
        lambda raw: raw[:40] + b"\xff\xff\xff\xff" + raw[44:],
    ],
    ids=["all", "behind the end", "none", "cut", "longer", "empty", "zeros", "magic", "blocks"],
)
def test_a_journal_that_lies_is_found_out(folder: Path, lie: Callable[[bytes], bytes]) -> None:
    part_of(folder, 0, 3)
    journal = path_of(folder, "journal")
    raw = lie(journal.read_bytes())
    journal.write_bytes(raw)
    with BlobStore(folder, keep_free=0) as store:
        partial = store.resume()[ONE.blob]
        # A readable one that claims nothing is believed; any other makes no difference to what is here.
        assert list(partial.have) == ([] if raw[-1:] == b"\0" and len(raw) == 49 and raw[0] else [0, 3])
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_damaged_blocks_are_not_counted_and_the_others_are(folder: Path) -> None:
    part_of(folder, 0, 1, 3)
    flip(path_of(folder, "part"), BLOCK + 5)
    with BlobStore(folder, keep_free=0) as store:
        assert list(store.resume()[ONE.blob].have) == [0, 3]
    with BlobStore(folder, keep_free=0) as store:
        assert store.partials()[ONE.blob].blocks == 2  # and the journal says so now


@pytest.mark.parametrize("size", [0, 1, 2 * BLOCK, SIZE - 1, SIZE + 1, 5 * BLOCK])
def test_a_partial_of_another_size_is_made_right(folder: Path, size: int) -> None:
    part_of(folder)
    os.truncate(path_of(folder, "part"), size)
    with BlobStore(folder, keep_free=0) as store:
        partial = store.resume()[ONE.blob]
        assert list(partial.have) == [n for n in range(4) if min(n * BLOCK + BLOCK, SIZE) <= size]
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


@pytest.mark.parametrize("size", [0, 1, 2 * BLOCK, SIZE - 1, SIZE + 1, 5 * BLOCK])
def test_a_complete_blob_of_another_size_is_none_any_more(folder: Path, size: int) -> None:
    whole(folder)
    os.truncate(path_of(folder, "blob"), size)
    with BlobStore(folder, keep_free=0) as store:
        assert not store.held()
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_rot_is_found_at_the_first_reading_and_only_that_block_is_fetched_again(folder: Path) -> None:
    whole(folder)
    flip(path_of(folder, "blob"), 2 * BLOCK)
    with BlobStore(folder, keep_free=0) as store:
        held = store.held()[ONE.blob]
        assert held.read(0) == ONE.block(0)
        with pytest.raises(MissingBlockError) as caught:
            held.read(2)
        assert caught.value.index == 2
        with pytest.raises(BlobGoneError):
            held.read(0)
        assert not store.held()
        assert store.partials()[ONE.blob].blocks == 3
        assert names(folder) == {".part", ".tree", ".journal"}
    with BlobStore(folder, keep_free=0) as store:  # nor is it forgotten
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert list(partial.have) == [0, 1, 3]
        ONE.write(partial, 2)
        assert partial.finish().read_bytes() == ONE.data


def test_a_file_that_is_written_to_is_hashed_again(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    path = partial.finish()
    held = store.held()[ONE.blob]
    assert held.read(1) == ONE.block(1)
    flip(path, BLOCK)
    with pytest.raises(MissingBlockError):
        held.read(1)


@pytest.mark.parametrize("read", [lambda held: held.read(1), lambda held: held.verify() and held.read(1)])
def test_a_file_that_gets_longer_or_is_deleted_is_no_complete_blob_any_more(
    store: BlobStore, folder: Path, read: Callable[[Held], object]
) -> None:
    for harm in (lambda path: os.truncate(path, SIZE + 1), Path.unlink):
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        harm(partial.finish())
        with pytest.raises((MissingBlockError, BlobGoneError)):
            read(store.held()[ONE.blob])
        assert not store.held()
    assert not store.partials()


def test_a_partial_that_somebody_else_made_longer_is_cut(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    os.truncate(path_of(folder, "part"), SIZE + 1)
    assert partial.finish().read_bytes() == ONE.data


def test_another_file_in_the_place_of_a_partial_is_not_made_the_blob(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    TWO.file(folder / "other").rename(path_of(folder, "part"))
    with pytest.raises(BlobGoneError, match="another file"):
        partial.finish()
    assert not store.held()
    again = store.begin(ONE.manifest, ONE.leaves)
    assert again.have.count == 0
    ONE.write(again)
    assert again.finish().read_bytes() == ONE.data


@pytest.mark.parametrize("when", ["open", "resume", "begin", "used"])
def test_a_partial_that_somebody_deleted_is_begun_anew(folder: Path, when: str) -> None:
    part_of(folder, 0)
    if when == "open":
        path_of(folder, "part").unlink()
    with BlobStore(folder, keep_free=0) as store:
        if when in ("resume", "begin"):
            path_of(folder, "part").unlink()
        if when == "resume":
            assert not store.resume()
            assert not list(folder.iterdir())
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert partial.have.count == (when == "used")
        ONE.write(partial)
        if when == "used":
            path_of(folder, "part").unlink()
            with pytest.raises(BlobGoneError):
                partial.finish()
            partial = store.begin(ONE.manifest, ONE.leaves)
            assert partial.have.count == 0
            ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_a_journal_that_cannot_be_read_is_no_matter_of_other_blobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_of(folder, 0)
    with BlobStore(folder, keep_free=0) as store:
        TWO.write(store.begin(TWO.manifest, TWO.leaves), 1)
    real = os.preadv

    def failing(fd: int, *args: Any) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().name == path_of(folder, "journal").name:
            raise OSError(5, "no")
        return real(fd, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        store = BlobStore(folder, keep_free=0)
        store.open()
        assert (store.partials()[ONE.blob].blocks, store.partials()[TWO.blob].blocks) == (4, 1)
    assert list(store.resume()[ONE.blob].have) == [0]
    store.close()


@pytest.mark.parametrize("how", ["check", "verify", "cut"])
def test_rot_is_found_when_somebody_asks(store: BlobStore, folder: Path, how: str) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    path = partial.finish()
    held = store.held()[ONE.blob]
    assert held.check(3)
    assert held.verify() == ()
    if how == "cut":
        os.truncate(path, 3 * BLOCK)
    else:
        flip(path, SIZE - 1)
    if how == "check":
        assert not held.check(3)
    else:
        assert held.verify() == (3,)
    assert ONE.blob in store.partials()
    assert list(store.begin(ONE.manifest, ONE.leaves).have) == [0, 1, 2]


def test_rot_in_a_partial_is_withdrawn_too(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    flip(path_of(folder, "part"), 5)
    assert partial.check(1)
    assert not partial.check(0)
    assert list(partial.have) == [1, 2, 3]
    os.truncate(path_of(folder, "part"), SIZE - 1)
    with pytest.raises(MissingBlockError):
        partial.read(3)
    flip(path_of(folder, "part"), BLOCK)
    ONE.write(partial, 0, 3)
    with pytest.raises(MissingBlockError) as caught:  # which only the whole shows
        partial.finish()
    assert caught.value.index == 1
    ONE.write(partial, 1)
    assert partial.finish().read_bytes() == ONE.data


def test_a_manifest_whose_leaves_are_right_and_whose_hash_is_not_ends_at_the_whole(
    store: BlobStore, folder: Path
) -> None:
    lie = Manifest(TWO.blob, SIZE, ONE.manifest.root)
    partial = store.begin(lie, ONE.leaves)
    ONE.write(partial)
    with pytest.raises(BadManifestError, match="add the model again"):
        partial.finish()
    assert not list(folder.iterdir())
    assert not store.partials()
    assert not store.held()
    with pytest.raises(BlobGoneError):
        partial.read(0)


def test_leaves_of_another_file_are_refused_and_leave_nothing(store: BlobStore, folder: Path) -> None:
    for leaves in ((), TWO.leaves, ONE.leaves[:-1], (*ONE.leaves, bytes(32)), (b"", *ONE.leaves[1:])):
        with pytest.raises(BadManifestError):
            store.begin(ONE.manifest, leaves)
    assert not list(folder.iterdir())


def test_begun_with_another_tree_everything_is_hashed_by_that(store: BlobStore, folder: Path) -> None:
    lie = Manifest(ONE.blob, SIZE, TWO.manifest.root)
    old = store.begin(lie, TWO.leaves)
    TWO.write(old, 0, 1)
    partial = store.begin(ONE.manifest, ONE.leaves)
    with pytest.raises(BlobGoneError):
        old.write(2, TWO.block(2))
    assert partial.have.count == 0
    ONE.write(partial)
    assert partial.finish().read_bytes() == ONE.data


def test_a_manifest_of_another_size_for_the_same_blob_is_overruled_by_the_right_one(folder: Path) -> None:
    longer = sample(0, SIZE + BLOCK)
    with BlobStore(folder, keep_free=0) as store:
        partial = store.begin(Manifest(ONE.blob, SIZE + BLOCK, longer.manifest.root), longer.leaves)
        longer.write(partial, 0, 4)
    with BlobStore(folder, keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert list(partial.have) == [0]
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_a_blob_that_is_larger_than_the_disk_is_refused_with_what_is_missing(store: BlobStore, folder: Path) -> None:
    huge = Manifest(ONE.blob, MAX_SIZE, bytes(32))
    with pytest.raises(BadManifestError):
        store.begin(huge, ONE.leaves)
    with BlobStore(folder.parent / "other", keep_free=1 << 60) as tight:
        with pytest.raises(NoSpaceError) as caught:
            tight.begin(ONE.manifest, ONE.leaves)
        assert 1 << 59 < caught.value.missing < (1 << 60) + SIZE
        assert caught.value.details["missing_bytes"] == caught.value.missing
        assert not list(tight.folder.iterdir())
        assert tight.room() < 0


def test_what_is_no_file_of_the_store_is_neither_opened_nor_followed(folder: Path, tmp_path: Path) -> None:
    part_of(folder, 0)
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    for kind in ("blob", "part", "journal", "tree"):
        for seed in (0, 1):
            path = folder / f"{sample(seed).manifest.hex}.{kind}"
            path.unlink(missing_ok=True)
            if seed:
                os.mkfifo(path)
            else:
                path.symlink_to(outside)
    (folder / "0.new").symlink_to(outside)
    with BlobStore(folder, keep_free=0) as store:
        assert not store.held()
        assert not store.partials()
        assert not store.resume()
        for found in (ONE, TWO):
            partial = store.begin(found.manifest, found.leaves)
            found.write(partial)
            assert partial.finish().read_bytes() == found.data
            assert not (folder / f"{found.manifest.hex}.blob").is_symlink()
    assert outside.read_bytes() == b"precious"


def test_a_folder_with_the_name_of_a_file_is_said_and_not_deleted(folder: Path) -> None:
    path_of(folder, "part").mkdir(parents=True)
    (path_of(folder, "part") / "x").touch()
    with BlobStore(folder, keep_free=0) as store:
        with pytest.raises(Exception, match="blobs") as caught:
            store.begin(ONE.manifest, ONE.leaves)
        assert getattr(caught.value, "code", "") == "store_paused"
        assert (path_of(folder, "part") / "x").exists()
        assert not store.partials()


@pytest.mark.parametrize("harm", [b"", b"nonsense", b"SHOALTR1\xff\xff\xff\xff", None])
@pytest.mark.parametrize("kind", ["blob", "part"])
def test_without_a_sound_description_the_data_are_kept_until_there_is_one(
    folder: Path, harm: bytes | None, kind: str
) -> None:
    if kind == "blob":
        whole(folder)
    else:
        part_of(folder, 0, 2)
    tree = path_of(folder, "tree")
    if harm is None:
        flip(tree, tree.stat().st_size - 1)  # a leaf
    else:
        tree.write_bytes(harm)
    with BlobStore(folder, keep_free=0) as store:
        assert store.orphans() == {ONE.blob}
        assert not store.held()
        assert not store.partials()
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert list(partial.have) == ([0, 1, 2, 3] if kind == "blob" else [0, 2])
        assert not store.orphans()
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_the_description_of_another_blob_is_none(folder: Path) -> None:
    part_of(folder, 0)
    path_of(folder, "tree").rename(folder / f"{TWO.manifest.hex}.tree")
    path_of(folder, "part").rename(folder / f"{TWO.manifest.hex}.part")
    path_of(folder, "journal").unlink()
    with BlobStore(folder, keep_free=0) as store:
        assert store.orphans() == {TWO.blob}
        assert store.remove(TWO.blob)
        assert not list(folder.iterdir())


def test_removed_is_gone_also_for_those_who_use_it(store: BlobStore, folder: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial, 0)
    assert store.remove(ONE.blob)
    for use in (lambda: partial.read(0), lambda: partial.write(1, ONE.block(1)), partial.finish, partial.flush):
        with pytest.raises((BlobGoneError, MissingBlockError)):
            use()
    assert not list(folder.iterdir())
    assert not store.remove(ONE.blob)
    for name in ("../x", "", "sha256:" + "/" * 64):
        assert not store.remove(name)


def test_a_descriptor_outlives_what_it_was_taken_from(store: BlobStore) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial)
    partial.finish()
    fd = store.held()[ONE.blob].fd()
    try:
        store.remove(ONE.blob)
        assert os.pread(fd, SIZE, 0) == ONE.data
    finally:
        os.close(fd)


def test_one_store_has_the_folder_at_a_time(store: BlobStore, folder: Path) -> None:
    with pytest.raises(BlobBusyError, match="another process"):
        BlobStore(folder, keep_free=0).open()
    store.close()
    with BlobStore(folder, keep_free=0):
        pass
    for use in (
        store.room,
        store.resume,
        lambda: store.remove(ONE.blob),
        lambda: store.begin(ONE.manifest, ONE.leaves),
    ):
        with pytest.raises(BlobGoneError):
            use()


def test_many_threads_write_read_and_look_at_once(store: BlobStore) -> None:
    found = sample(2, 40 * BLOCK)
    partial = store.begin(found.manifest, found.leaves)
    wrong = bytes(BLOCK)
    news: list[bool] = []

    def work(offset: int) -> None:
        for step in range(40):
            index = (step * 7 + offset) % 40
            with contextlib.suppress(BadBlockError):  # or another thread was quicker
                assert not partial.write(index, wrong)
            news.append(partial.write(index, found.block(index)))
            assert partial.read(index) == found.block(index)
            assert partial.have.has(index)
            assert store.partials()[found.blob].checked

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, offset) for offset in range(0, 40, 5)]:
            done.result()
    assert (news.count(True), partial.have.count) == (40, 40)
    outcomes: list[object] = []

    def finish() -> None:
        try:
            outcomes.append(partial.finish())
        except (BlobBusyError, BlobGoneError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Path) for outcome in outcomes) == 1
    assert store.held()[found.blob].path.read_bytes() == found.data


def test_many_threads_begin_the_same_blob(store: BlobStore) -> None:
    got: list[Partial] = []

    def begin() -> None:
        while True:
            try:
                got.append(store.begin(ONE.manifest, ONE.leaves))
            except BlobBusyError:
                continue
            return

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1


def test_closing_under_those_who_write_ends_them_and_loses_nothing(folder: Path) -> None:
    found = sample(2, 40 * BLOCK)
    store = BlobStore(folder, keep_free=0)
    store.open()
    partial = store.begin(found.manifest, found.leaves)
    begun = threading.Barrier(3)
    written: list[int] = []

    def work(indexes: range) -> None:
        begun.wait()
        for index in indexes:
            try:
                partial.write(index, found.block(index))
            except BlobGoneError:
                return
            written.append(index)

    threads = [threading.Thread(target=work, args=(range(start, 40, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    begun.wait()
    store.close()
    for thread in threads:
        thread.join()
    with BlobStore(folder, keep_free=0) as again:
        assert set(written) <= set(again.resume()[found.blob].have)


def test_a_file_is_taken_in_as_it_is(store: BlobStore, tmp_path: Path) -> None:
    path = ONE.file(tmp_path / "model")
    told: list[tuple[int, int]] = []
    held = store.adopt(path, progress=lambda *step: told.append(step))
    assert (held.manifest, held.leaves) == (ONE.manifest, ONE.leaves)
    assert told[-1] == (SIZE, SIZE)
    assert held.path.read_bytes() == path.read_bytes() == ONE.data
    assert store.adopt(path) is held
    assert names(store.folder) == {".blob", ".tree"}
    store.remove(ONE.blob)
    assert path.read_bytes() == ONE.data


def test_a_file_that_is_moved_in_is_gone_from_where_it_was(store: BlobStore, tmp_path: Path) -> None:
    path = ONE.file(tmp_path / "model")
    held = store.adopt(path, move=True)
    assert not path.exists()
    assert held.path.stat().st_nlink == 1
    again = ONE.file(tmp_path / "again")
    assert store.adopt(again, move=True) is held
    assert not again.exists()
    assert store.adopt(held.path, move=True) is held  # its own
    assert held.verify() == ()


def test_from_another_disk_it_is_copied(store: BlobStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = ONE.file(tmp_path_factory.mktemp("other") / "model")
    if path.stat().st_dev == store.folder.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    held = store.adopt(path)
    assert held.path.read_bytes() == path.read_bytes() == ONE.data
    assert held.path.stat().st_mode & 0o777 == 0o600
    assert store.adopt(path, move=True) is held
    assert not path.exists()


def test_mending_a_blob_never_writes_into_the_file_it_was_taken_from(folder: Path, tmp_path: Path) -> None:
    path = ONE.file(tmp_path / "model")
    with BlobStore(folder, keep_free=0) as store:
        held = store.adopt(path)
        if held.path.stat().st_nlink == 1:
            pytest.skip("this file system clones")
        flip(path, 7)  # its owner edits it
        with pytest.raises(MissingBlockError):
            held.read(0)
        edited = path.read_bytes()
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert list(partial.have) == [1, 2, 3]
        ONE.write(partial, 0)
        assert partial.finish().read_bytes() == ONE.data
        assert path.read_bytes() == edited


def test_a_file_that_changes_while_it_is_read_is_not_taken(store: BlobStore, tmp_path: Path) -> None:
    path = ONE.file(tmp_path / "model")

    def edit(done: int, total: int) -> None:
        if done == total:
            flip(path, 0)

    def cut(done: int, total: int) -> None:
        os.truncate(path, 5)

    for change in (edit, cut):
        with pytest.raises(BlobFileError, match="changed"):
            store.adopt(path, progress=change)
    assert not list(store.folder.iterdir())


def test_what_is_no_file_is_not_taken(store: BlobStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    for name in ("pipe", "empty", "huge", "missing", "."):
        with pytest.raises(BlobFileError):
            store.adopt(tmp_path / name)
    assert not list(store.folder.iterdir())


def test_adopting_what_is_being_fetched_ends_that(store: BlobStore, tmp_path: Path) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    ONE.write(partial, 0)
    held = store.adopt(ONE.file(tmp_path / "model"))
    assert not store.partials()
    with pytest.raises(BlobGoneError):
        ONE.write(partial, 1)
    assert held.verify() == ()
    assert names(store.folder) == {".blob", ".tree"}


class StopError(Exception):
    """Raised by a progress callback."""


def stop(done: int, total: int) -> None:
    raise StopError


def test_long_work_can_be_stopped_and_leaves_things_as_they_were(folder: Path, tmp_path: Path) -> None:
    path = ONE.file(tmp_path / "model")
    part_of(folder, 0, 1)
    with BlobStore(folder, keep_free=0) as store:
        for work in (
            lambda: store.begin(ONE.manifest, ONE.leaves, stop),
            lambda: store.resume(stop),
            lambda: store.adopt(path, progress=stop),
        ):
            with pytest.raises(StopError):
                work()
            assert store.partials()[ONE.blob].blocks == 2
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        with pytest.raises(StopError):
            partial.finish(stop)
        partial.finish()
        with pytest.raises(StopError):
            store.held()[ONE.blob].verify(stop)
        assert store.held()[ONE.blob].verify() == ()


def test_the_folder_is_its_owners_alone(store: BlobStore, folder: Path) -> None:
    store.begin(ONE.manifest, ONE.leaves)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_have_is_a_copy(store: BlobStore) -> None:
    partial = store.begin(ONE.manifest, ONE.leaves)
    partial.have.set(0)
    assert partial.have == Bitfield(4)
