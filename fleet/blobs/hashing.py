"""Hashing what is on disk: single blocks in several threads, or a whole file in one pass with its leaves.

The thread that asks waits and reports; others read and hash, which releases the GIL for every block.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final

from fleet.blobs.handle import read_into, write_all
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK, Algorithm, leaf_hash

#: Called in the thread that asked for the work, with the bytes done and to do; what it raises ends the work.
Progress = Callable[[int, int], None]

#: More of them read a disk no faster.
_MOST_THREADS: Final = 4
#: Blocks that a thread takes at a time.
_RUN: Final = 8
#: Blocks read ahead of the hash of the whole file.
_RING: Final = 4
#: A disk that cannot read a sector says one of these; whatever else it says is no matter of one block.
_ROT: Final = frozenset((errno.EIO, errno.EBADMSG, errno.EILSEQ, errno.EUCLEAN))


def read_block(fd: int, manifest: Manifest, index: int) -> bytes | None:
    """A block as it is on disk; None where the file ends before it, or the disk cannot read it. Raises OSError."""
    size = manifest.block_size(index)
    try:
        block = os.pread(fd, size, index * BLOCK)
    except OSError as error:
        if error.errno in _ROT:
            return None
        raise
    if len(block) == size:
        return block
    slow = bytearray(size)  # the file ends here, or the system gives it in pieces
    return bytes(slow) if _fill(fd, memoryview(slow), index) else None


def block_is_sound(fd: int, manifest: Manifest, leaves: tuple[bytes, ...], index: int) -> bool:
    """Whether a block on disk is what the manifest says. Raises OSError."""
    block = read_block(fd, manifest, index)
    return block is not None and leaf_hash(block, manifest.algorithm) == leaves[index]


def bad_blocks(
    fd: int, manifest: Manifest, leaves: tuple[bytes, ...], indexes: Iterable[int], progress: Progress | None = None
) -> tuple[int, ...]:
    """Of these blocks the ones that are not on disk as the manifest says, ascending.

    Blocks for as long as the disk takes; hashes in as many threads as there are cores, four at most. Raises OSError.
    """
    todo = list(indexes)
    total = sum(map(manifest.block_size, todo))
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), (len(todo) + _RUN - 1) // _RUN)
    if threads == 0:
        return ()
    runs = _Runs(todo)
    told: SimpleQueue[int | None] = SimpleQueue()

    def work() -> list[int]:
        bad: list[int] = []
        buffer = memoryview(bytearray(min(BLOCK, manifest.size)))
        try:
            for run in runs:
                done = 0
                for index in run:
                    view = buffer[: manifest.block_size(index)]
                    if not _fill(fd, view, index) or leaf_hash(view, manifest.algorithm) != leaves[index]:
                        bad.append(index)
                    done += len(view)
                told.put(done)
        finally:
            told.put(None)
        return bad

    with ThreadPoolExecutor(threads, thread_name_prefix="shoal-hash") as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            done = working = 0
            while working < threads:
                step = told.get()
                if step is None:
                    working += 1
                    continue
                done += step
                if progress is not None:
                    progress(done, total)
        finally:
            runs.stop()
    return tuple(sorted(index for worker in workers for index in worker.result()))


def whole_sha256(fd: int, size: int, progress: Progress | None = None) -> str:
    """The SHA-256 of a file's first `size` bytes, in hex. Raises OSError; a file that is shorter has another hash."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(BLOCK, size)))
    done = 0
    while done < size:
        got = read_into(fd, buffer[: size - done], done)
        if got == 0:
            break
        digest.update(buffer[:got])
        done += got
        if progress is not None:
            progress(done, size)
    return digest.hexdigest()


def hash_file(
    fd: int, size: int, algorithm: Algorithm, *, copy_to: int | None = None, progress: Progress | None = None
) -> tuple[str, tuple[bytes, ...]]:
    """SHA-256 in hex and leaves of a file of `size` bytes, which is read once; `copy_to` gets what was hashed.

    Raises OSError, and EOFError where the file is shorter than `size`.
    """
    digest = hashlib.sha256()
    ring = [memoryview(bytearray(min(BLOCK, size))) for _ in range(_RING)]
    pending: list[Future[bytes]] = []
    blocks = (size + BLOCK - 1) // BLOCK
    with ThreadPoolExecutor(1, thread_name_prefix="shoal-hash") as pool:
        try:
            for index in range(blocks):
                if index >= _RING:
                    pending[index - _RING].result()  # its buffer is about to be used again
                offset = index * BLOCK
                view = ring[index % _RING][: min(BLOCK, size - offset)]
                if read_into(fd, view, offset) < len(view):
                    raise EOFError
                pending.append(pool.submit(leaf_hash, view, algorithm))
                digest.update(view)
                if copy_to is not None:
                    write_all(copy_to, view, offset)
                if progress is not None:
                    progress(offset + len(view), size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return digest.hexdigest(), tuple(future.result() for future in pending)


def _fill(fd: int, view: memoryview, index: int) -> bool:
    try:
        return read_into(fd, view, index * BLOCK) == len(view)
    except OSError as error:
        if error.errno in _ROT:
            return False
        raise


class _Runs:
    """Hands out a list in runs to many threads, until it is stopped."""

    def __init__(self, indexes: list[int]) -> None:
        self._indexes = indexes
        self._at = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[list[int]]:
        while run := self._next():
            yield run

    def stop(self) -> None:
        with self._lock:
            self._at = len(self._indexes)

    def _next(self) -> list[int]:
        with self._lock:
            run = self._indexes[self._at : self._at + _RUN]
            self._at += len(run)
        return run
