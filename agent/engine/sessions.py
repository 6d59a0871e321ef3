"""The memory of conversations on disk, so that their next turn need not be computed from the beginning after a restart.

Losing a file costs time and nothing else: there is no fsync, and what is damaged, of another model or of another
version of llama.cpp is as if it were not there. A file holds what people said to a model: folders and files are the
agent's own (0700, 0600). A disk that takes nothing costs the conversations, and is told to the agent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.engine.telling import told
from fleet.durable import make_private

_MAGIC: Final = b"shoal-session-1\n"
_HEAD: Final = struct.Struct("<32sII")
_DIGEST: Final = 32
_SUFFIX: Final = ".kv"
#: States that wait to be written; more are dropped.
_WAITING: Final = 4
#: A conversation takes at most this share of the budget.
_SHARE: Final = 0.5


@dataclass(frozen=True)
class Saved:
    """A conversation as it was saved: its tokens, and the memory that llama.cpp had of them."""

    tokens: Sequence[int]
    state: bytes | memoryview


class Sessions:
    """The conversations of one model in one folder, at most `budget` bytes of them; those used longest ago go first.

    Thread-safe; writing is done by a thread of its own. `build` names what has to be equal for a state to be of use.
    """

    def __init__(self, folder: Path, budget: int, build: str, tell: Callable[[str], None] | None = None) -> None:
        """`tell` is called when the disk begins to take nothing, with the reason, and with "" when it does again.

        It is called in the thread that writes, and here; by default it is a line for the agent on standard error.
        """
        self._folder = folder
        self._budget = budget
        self._build = hashlib.blake2b(build.encode(), digest_size=32).digest()
        self._writes: queue.Queue[tuple[str, Saved]] = queue.Queue(_WAITING)
        self._resident: set[str] = set()
        self._tell = tell or _tell_agent
        self._problem = ""
        try:
            make_private(folder)
            for left in folder.glob("*.new"):
                left.unlink(missing_ok=True)
        except OSError as error:
            self._note(error)
        threading.Thread(target=self._write_forever, daemon=True).start()

    def note_resident(self, owner: str, session: str, *, here: bool) -> None:
        """Whether the engine has the conversation in its own memory: then it need not be read."""
        (self._resident.add if here else self._resident.discard)(_name(owner, session))

    def load(self, owner: str, session: str) -> Saved | None:
        """A conversation that is saved and not resident; None where there is none that is of use."""
        name = _name(owner, session)
        if name in self._resident:
            return None
        path = self._folder / (name + _SUFFIX)
        try:
            with path.open("rb") as file:
                raw = file.read(self._budget + 1)
            os.utime(path)
        except OSError:
            return None
        saved = _read(raw, self._build)
        if saved is None:
            path.unlink(missing_ok=True)
        return saved

    def save(self, owner: str, session: str, tokens: Sequence[int], state: bytes | memoryview) -> None:
        """Write a conversation soon; dropped where it is too large, or others wait to be written."""
        if len(state) <= self._budget * _SHARE:
            with contextlib.suppress(queue.Full):
                self._writes.put_nowait((_name(owner, session), Saved(tokens, state)))

    def wait_written(self) -> None:
        """Return when all that was to be saved is on its way to the disk."""
        self._writes.join()

    def _write_forever(self) -> None:
        while True:
            name, saved = self._writes.get()
            try:
                self._write(name, saved)
                self._make_room()
                self._note(None)
            except OSError as error:
                self._note(error)
            finally:
                self._writes.task_done()

    def _note(self, error: OSError | None) -> None:
        """Tell what has changed, and that alone: a full disk stays full for many conversations."""
        problem = "" if error is None else error.strerror or type(error).__name__
        if problem != self._problem:
            self._problem = problem
            self._tell(problem)

    def _write(self, name: str, saved: Saved) -> None:
        make_private(self._folder)
        new = self._folder / f"{name}.new"
        tokens = array("I", saved.tokens)
        if sys.byteorder == "big":
            tokens.byteswap()
        head = _MAGIC + _HEAD.pack(self._build, len(saved.tokens), len(saved.state))
        digest = hashlib.blake2b(head, digest_size=_DIGEST)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(head)
                for part in (tokens.tobytes(), saved.state):
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
            new.replace(self._folder / (name + _SUFFIX))
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        found = []
        for path in self._folder.glob("*" + _SUFFIX):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._budget:
                break
            path.unlink(missing_ok=True)
            total -= size


def _tell_agent(problem: str) -> None:
    sys.stderr.write(told(problem))
    sys.stderr.flush()


def _name(owner: str, session: str) -> str:
    text = f"{len(owner)}:{owner}{session}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _read(raw: bytes, build: bytes) -> Saved | None:
    begin = len(_MAGIC) + _HEAD.size
    if not raw.startswith(_MAGIC) or len(raw) < begin + _DIGEST:
        return None
    found, count, size = _HEAD.unpack_from(raw, len(_MAGIC))
    if found != build or len(raw) != begin + 4 * count + size + _DIGEST:
        return None
    if hashlib.blake2b(memoryview(raw)[:-_DIGEST], digest_size=_DIGEST).digest() != raw[-_DIGEST:]:
        return None
    tokens = array("I", raw[begin : begin + 4 * count])
    if sys.byteorder == "big":
        tokens.byteswap()
    return Saved(tokens.tolist(), raw[begin + 4 * count : -_DIGEST])
