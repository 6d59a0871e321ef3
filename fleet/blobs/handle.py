"""A file descriptor that many threads use and one may close: it is closed when the last of them is done with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fleet.blobs.errors import BlobGoneError
from fleet.blobs.merkle import Data


class SharedFd:
    """Owns `fd`. A number that was closed under a reader would soon be that of another file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, open for as long as the block lasts. Raises BlobGoneError after `close`."""
        with self._lock:
            if self._closing:
                raise BlobGoneError("the file of this blob was closed; ask the store for it again")
            self._users += 1
        try:
            yield self._fd
        finally:
            self._leave()

    def close(self) -> None:
        """Let nobody use it any more, and close it once those who do are done. Does not wait for them."""
        with self._lock:
            last = not self._closing and self._users == 0
            self._closing = True
        if last:
            os.close(self._fd)

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closing and self._users == 0
        if last:
            os.close(self._fd)


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset` on; gives how much there was, less than asked for only at the file's end."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def write_all(fd: int, data: Data, offset: int) -> None:
    """Write the whole of `data` at `offset`. Raises OSError, with a part of it written perhaps."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
