"""Disks that are full, read-only or failing under a store: what is refused, what is kept, and in which order."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.blobs import flush
from fleet.blobs.errors import BadManifestError, MissingBlockError, NoSpaceError, StorePausedError
from fleet.blobs.merkle import BLOCK
from fleet.blobs.partial import Partial
from fleet.blobs.store import BlobStore
from tests.blob_files import SIZE, fast_folder, sample

ONE = sample()


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


@pytest.fixture
def partial(store: BlobStore) -> Partial:
    return store.begin(ONE.manifest, ONE.leaves)


def name_of(fd: int) -> str:
    """`part`, `journal` and so on: what kind of file a descriptor is of."""
    return Path(f"/proc/self/fd/{fd}").readlink().name.rpartition(".")[2]


class Fault:
    """Makes one call of `os` fail for one kind of file, as long as it is on; `before` runs in its place first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, kind: str, number: int) -> None:
        self.on = True
        self.before: Callable[..., object] = lambda *args: None
        real = getattr(os, call)

        def failing(fd: int, *args: Any) -> Any:
            if self.on and name_of(fd) == kind:
                self.before(fd, *args)
                raise OSError(number, os.strerror(number))
            return real(fd, *args)

        monkeypatch.setattr(os, call, failing)


def test_a_full_disk_in_the_midst_of_a_block_pauses_and_loses_nothing(
    partial: Partial, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONE.write(partial, 0)
    real = os.pwrite
    fault = Fault(monkeypatch, "pwrite", "part", errno.ENOSPC)
    fault.before = lambda fd, data, offset: real(fd, bytes(data)[: BLOCK // 2], offset)
    with pytest.raises(StorePausedError, match="free some space") as caught:
        ONE.write(partial, 1)
    assert caught.value.details["errno"] == errno.ENOSPC
    assert partial.trouble
    for use in (lambda: ONE.write(partial, 2), partial.flush):
        with pytest.raises(StorePausedError):
            use()
    assert partial.read(0) == ONE.block(0)  # it can still be given
    assert not partial.has(1)
    fault.on = False
    with pytest.raises(StorePausedError):
        ONE.write(partial, 1)
    assert partial.recover() == ()
    assert not partial.trouble
    ONE.write(partial, 1, 2, 3)
    assert partial.finish().read_bytes() == ONE.data


def test_a_full_disk_in_the_midst_of_the_journal_claims_nothing_that_is_not_there(
    partial: Partial, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONE.write(partial, 3)
    fault = Fault(monkeypatch, "pwrite", "journal", errno.ENOSPC)
    with pytest.raises(StorePausedError):
        ONE.write(partial, 0)
    assert list(partial.have) == [3]
    with pytest.raises(StorePausedError):  # nor can it be written anew
        partial.recover()
    fault.on = False
    assert partial.recover() == ()
    assert list(partial.have) == [3]
    ONE.write(partial)
    assert partial.finish().read_bytes() == ONE.data


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EDQUOT])
def test_whatever_else_the_disk_says_is_a_pause_with_its_remedy(
    partial: Partial, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Fault(monkeypatch, "pwrite", "part", number)
    with pytest.raises(StorePausedError, match=";") as caught:
        ONE.write(partial, 1)
    assert caught.value.details["errno"] == number
    assert caught.value.retryable


def test_a_write_that_is_taken_in_pieces_is_written_whole(
    partial: Partial, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, memoryview(data)[:300_001], at))
    ONE.write(partial)
    assert partial.finish().read_bytes() == ONE.data


@pytest.mark.parametrize("kind", ["part", "journal"])
def test_what_the_disk_could_not_keep_is_read_from_it_again(
    partial: Partial, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A disk reports once that it could not keep what it was given, and forgets it (fsync of Linux): a second sync that
    goes well says nothing about the blocks before it."""
    ONE.write(partial, 0)
    partial.flush()
    ONE.write(partial, 1, 2)
    fault = Fault(monkeypatch, "fdatasync", kind, errno.EIO)
    with pytest.raises(StorePausedError):
        partial.flush()
    fault.on = False
    with pytest.raises(StorePausedError):  # which would go well now, and mean nothing
        partial.flush()
    with (folder / f"{ONE.manifest.hex}.part").open("r+b") as file:  # what the disk dropped
        file.seek(BLOCK)
        file.write(bytes(BLOCK))
    assert partial.recover() == (1,)
    assert list(partial.have) == [0, 2]
    ONE.write(partial, 1, 3)
    assert partial.finish().read_bytes() == ONE.data


def test_a_sync_that_fails_beside_the_writers_reaches_them(partial: Partial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "FLUSH_EVERY", BLOCK)
    Fault(monkeypatch, "fdatasync", "part", errno.EIO)
    ONE.write(partial, 0)
    partial._flusher.wait()
    with pytest.raises(StorePausedError, match="check the disk"):
        ONE.write(partial, 1)


def test_data_are_made_durable_before_the_journal_and_both_before_the_name(
    partial: Partial, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    for call in ("pwrite", "fdatasync", "fsync"):
        real = getattr(os, call)

        def note(fd: int, *args: Any, call: str = call, real: Any = real) -> Any:
            told.append(f"{call} {name_of(fd)}")
            return real(fd, *args)

        monkeypatch.setattr(os, call, note)
    rename = os.rename

    def note_rename(old: str, new: str, **more: Any) -> None:
        told.append(f"rename {old.rpartition('.')[2]} {new.rpartition('.')[2]}")
        rename(old, new, **more)

    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(flush, "FLUSH_EVERY", 2 * BLOCK)
    ONE.write(partial, 0, 1)
    partial._flusher.wait()
    assert told == ["pwrite part", "pwrite journal"] * 2 + ["fdatasync part", "fdatasync journal"]
    ONE.write(partial, 2, 3)
    partial._flusher.wait()
    told.clear()
    partial.finish()
    assert told == ["fdatasync part", "fdatasync journal", "rename part blob", f"fsync {folder.name}"]


def test_writers_wait_for_a_disk_that_is_far_behind(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "FLUSH_EVERY", BLOCK)
    monkeypatch.setattr(flush, "_MOST_WAITING", 2 * BLOCK)
    found = sample(2, 8 * BLOCK)
    partial = store.begin(found.manifest, found.leaves)
    slow, syncing = threading.Event(), threading.Event()
    real = os.fdatasync

    def wait(fd: int) -> None:
        syncing.set()
        assert slow.wait(20)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", wait)
    writer = threading.Thread(target=found.write, args=(partial,))
    writer.start()
    assert syncing.wait(20)
    writer.join(0.2)
    assert writer.is_alive()
    assert partial.count <= 3
    slow.set()
    writer.join(20)
    assert partial.have.complete


def test_a_sector_that_cannot_be_read_costs_its_block_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BlobStore(folder, keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        partial.finish()
    real_preadv, real_pread = os.preadv, os.pread

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if name_of(fd) in ("part", "blob") and offset // BLOCK == 2:
            raise OSError(errno.EIO, "")
        return real_preadv(fd, buffers, offset)

    def pread(fd: int, size: int, offset: int) -> bytes:
        if name_of(fd) in ("part", "blob") and offset // BLOCK == 2:
            raise OSError(errno.EIO, "")
        return real_pread(fd, size, offset)

    with BlobStore(folder, keep_free=0) as store:
        monkeypatch.setattr(os, "preadv", preadv)
        monkeypatch.setattr(os, "pread", pread)
        held = store.held()[ONE.blob]
        assert held.read(1) == ONE.block(1)
        with pytest.raises(MissingBlockError):
            held.read(2)
        partial = store.begin(ONE.manifest, ONE.leaves)
        assert list(partial.have) == [0, 1, 3]
        ONE.write(partial, 2)
        with pytest.raises(MissingBlockError) as caught:  # the disk takes it and does not give it
            partial.finish()
        assert caught.value.index == 2
        assert list(partial.have) == [0, 1, 3]


def test_a_blob_that_cannot_be_begun_leaves_nothing(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("posix_fallocate", "pwrite", "fsync"):
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, call, full)
            with pytest.raises(StorePausedError):
                store.begin(ONE.manifest, ONE.leaves)
        assert not list(folder.iterdir()), call
        assert not store.partials()
    store.begin(ONE.manifest, ONE.leaves)


def test_without_reservations_it_works_too(store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    partial = store.begin(ONE.manifest, ONE.leaves)
    assert (folder / f"{ONE.manifest.hex}.part").stat().st_size == SIZE
    ONE.write(partial)
    assert partial.finish().read_bytes() == ONE.data


def test_a_rename_that_is_refused_can_be_tried_again(
    partial: Partial, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONE.write(partial)
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(os, "rename", refuse)
        with pytest.raises(StorePausedError, match="writing"):
            partial.finish()
        assert not store.held()
        assert ONE.blob in store.partials()
    assert partial.finish().read_bytes() == ONE.data


def test_rot_on_a_disk_that_takes_nothing_is_withdrawn_all_the_same(
    partial: Partial, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONE.write(partial)
    path = partial.finish()
    with path.open("r+b") as file:
        file.write(b"rot")
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(os, "rename", refuse)
        assert store.held()[ONE.blob].verify() == (0,)
        assert not store.held()
        with pytest.raises(StorePausedError):
            store.begin(ONE.manifest, ONE.leaves)
    again = store.begin(ONE.manifest, ONE.leaves)
    assert list(again.have) == [1, 2, 3]
    ONE.write(again, 0)
    assert again.finish().read_bytes() == ONE.data


# --- a real small disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "shoal-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root and its capabilities")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_two_blobs_do_not_get_the_same_room(small: Path) -> None:
    with BlobStore(small / "blobs", keep_free=2 << 20) as store:
        first = store.begin(ONE.manifest, ONE.leaves)
        two = sample(1)
        with pytest.raises(NoSpaceError) as caught:
            store.begin(two.manifest, two.leaves)
        missing = caught.value.missing
        assert 0 < missing < 1 << 20
        assert not (store.folder / f"{two.manifest.hex}.part").exists()
        filler = small / "filler"  # what was reserved is there whatever others write
        with pytest.raises(OSError, match="space"), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        ONE.write(first)
        assert first.finish().read_bytes() == ONE.data
        filler.unlink()
        store.remove(ONE.blob)
        assert store.begin(two.manifest, two.leaves).have.count == 0


def punch(path: Path, offset: int, size: int) -> None:
    """Give back the room of a part of a file, which reads as zeros then."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(size)):  # keep size, punch hole
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)


def test_a_disk_that_is_really_full_pauses_until_there_is_room(small: Path) -> None:
    with BlobStore(small / "blobs", keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial, 0)
        punch(store.folder / f"{ONE.manifest.hex}.part", BLOCK, SIZE - BLOCK)
        filler = small / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(fd, 0, store.room() - (1 << 19))  # half a block of room
        os.close(fd)
        with pytest.raises(StorePausedError, match="free some space"):
            ONE.write(partial, 1)
        assert list(partial.have) == [0]
        with pytest.raises(NoSpaceError) as caught:
            partial.recover()
        assert 0 < caught.value.missing < SIZE
        assert "missing" in partial.trouble
        os.truncate(filler, (1 << 20) + 4096)
        assert partial.recover() == ()
        ONE.write(partial)
        assert partial.finish().read_bytes() == ONE.data


def test_a_disk_that_becomes_read_only_pauses_and_can_still_be_read_from(small: Path) -> None:
    with BlobStore(small / "blobs", keep_free=0) as store:
        ONE.write(store.begin(ONE.manifest, ONE.leaves), 0)
    with BlobStore(small / "blobs", keep_free=0) as store:
        partial = store.begin(ONE.manifest, ONE.leaves)
        ONE.write(partial)
        partial.finish()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    two = sample(1, BLOCK)
    with BlobStore(small / "blobs", keep_free=0) as store:
        assert store.held()[ONE.blob].read(2) == ONE.block(2)
        for use in (lambda: store.begin(two.manifest, two.leaves), lambda: store.remove(ONE.blob)):
            with pytest.raises(StorePausedError, match="writing"):
                use()
        assert store.held()[ONE.blob].read(1) == ONE.block(1)
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        assert store.begin(two.manifest, two.leaves).have.count == 0
        with pytest.raises(BadManifestError):
            store.begin(two.manifest, ())
