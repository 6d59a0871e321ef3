"""Any order of fetching, stopping, damaging, adopting and removing: what a store says to have it has, and nothing wrong
is ever given out or called complete."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.description import read_description, write_description
from fleet.blobs.errors import BadBlockError, MissingBlockError
from fleet.blobs.folder import Folder
from fleet.blobs.journal import read_journal, write_journal
from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK
from fleet.blobs.partial import Partial
from fleet.blobs.store import BlobStore
from tests.blob_files import fast_folder, sample

ONE = sample(3, 2 * BLOCK + 5)
BLOCKS = ONE.manifest.blocks
indexes = st.integers(0, BLOCKS - 1)


class Store(RuleBasedStateMachine):
    """One blob in one store. `sound` are the blocks that are on disk as they should be, as far as this knows."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        self.root = self.cleanup.enter_context(fast_folder())
        self.folder = self.root / "blobs"
        self.original = ONE.file(self.root / "model")
        self.store = self.open()
        self.sound: set[int] = set()
        self.partial: Partial | None = None

    def open(self) -> BlobStore:
        store = BlobStore(self.folder, keep_free=0)
        store.open()
        return store

    def teardown(self) -> None:
        self.store.close()
        self.cleanup.close()

    @property
    def data(self) -> Path:
        """The file that holds the blocks."""
        return self.folder / f"{ONE.manifest.hex}.{'blob' if ONE.blob in self.store.held() else 'part'}"

    @initialize()
    def begin_first(self) -> None:
        self.begin()

    @rule()
    def begin(self) -> None:
        if ONE.blob in self.store.held():
            return
        fresh = self.store.partial(ONE.blob) is None
        self.partial = self.store.begin(ONE.manifest, ONE.leaves)
        if fresh:
            assert set(self.partial.have) <= self.sound
            self.sound = set(self.partial.have)

    @precondition(lambda self: self.partial)
    @rule(index=indexes)
    def write(self, index: int) -> None:
        assert self.partial is not None
        if self.partial.write(index, ONE.block(index)):
            self.sound.add(index)

    @precondition(lambda self: self.partial)
    @rule()
    def write_the_rest(self) -> None:
        for index in range(BLOCKS):
            self.write(index)

    @precondition(lambda self: self.partial)
    @rule(index=indexes, other=indexes)
    def write_wrongly(self, index: int, other: int) -> None:
        assert self.partial is not None
        if index != other:
            with contextlib.suppress(BadBlockError):
                assert not self.partial.write(index, ONE.block(other))

    @precondition(lambda self: self.partial)
    @rule()
    def finish(self) -> None:
        assert self.partial is not None
        if not self.partial.have.complete:
            return
        try:
            path = self.partial.finish()
        except MissingBlockError:
            assert self.sound != set(range(BLOCKS))
        else:
            assert path.read_bytes() == ONE.data
            assert self.sound == set(range(BLOCKS))
            self.partial = None

    @rule(resume=st.booleans())
    def restart(self, resume: bool) -> None:
        held = ONE.blob in self.store.held()
        self.store.close()
        self.partial = None
        self.store = self.open()
        if self.sound == set(range(BLOCKS)) and held:
            assert ONE.blob in self.store.held()
        if resume:
            self.store.resume()
            self.partial = self.store.partial(ONE.blob)
        if self.partial is not None:
            assert set(self.partial.have) <= self.sound
            self.sound = set(self.partial.have)

    @rule(index=indexes)
    def damage(self, index: int) -> None:
        if not self.data.exists() or self.data.stat().st_nlink > 1:
            return
        with self.data.open("r+b") as file:
            file.seek(index * BLOCK + 1)
            file.write(bytes([ONE.data[index * BLOCK + 1] ^ 1]))
        os.utime(self.data, ns=(0, random.Random(index).getrandbits(60)))
        self.sound.discard(index)

    @rule(seed=st.integers(0, 1 << 32))
    def lie(self, seed: int) -> None:
        """The journal says anything, or is none; the store is stopped meanwhile."""
        self.store.close()
        self.partial = None
        journal = self.folder / f"{ONE.manifest.hex}.journal"
        if journal.exists():
            rng = random.Random(seed)
            raw = bytearray(journal.read_bytes())
            if rng.random() < 0.5 and raw:
                raw[-1] = rng.randrange(256)
            journal.write_bytes(bytes(raw) if rng.random() < 0.7 else rng.randbytes(rng.randrange(60)))
        self.store = self.open()

    @rule(index=indexes)
    def read(self, index: int) -> None:
        held = self.store.held().get(ONE.blob)
        if held is None:
            return
        try:
            assert held.read(index) == ONE.block(index)
        except MissingBlockError:
            assert index not in self.sound
            assert ONE.blob in self.store.partials()

    @rule()
    def verify(self) -> None:
        held = self.store.held().get(ONE.blob)
        if held is not None:
            assert set(held.verify()) == set(range(BLOCKS)) - self.sound

    @precondition(lambda self: ONE.blob not in self.store.held())
    @rule()
    def adopt(self) -> None:
        assert self.store.adopt(self.original).manifest == ONE.manifest
        self.partial, self.sound = None, set(range(BLOCKS))

    @rule()
    def remove(self) -> None:
        self.store.remove(ONE.blob)
        self.partial, self.sound = None, set()
        assert not list(self.folder.iterdir())

    @invariant()
    def nothing_else_is_there(self) -> None:
        assert self.original.read_bytes() == ONE.data
        assert not self.store.orphans()
        assert not (self.store.held().keys() & self.store.partials().keys())
        assert all(path.stem == ONE.manifest.hex for path in self.folder.iterdir())


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


@st.composite
def changes(draw: Any, raw: bytes) -> bytes:
    """The bytes with some changed, cut off, or added."""
    found = bytearray(raw)
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=3)):
        found[at] = value
    return bytes(
        found[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else found + draw(st.binary(max_size=3))
    )


def test_a_description_or_journal_that_was_changed_is_the_same_or_none() -> None:
    with fast_folder() as root:
        folder = Folder(root / "blobs")
        manifest: Manifest = ONE.manifest
        write_description(folder, manifest, ONE.leaves)
        write_journal(folder, manifest, Bitfield(BLOCKS, (0, 2)))
        tree, journal = folder.file(manifest.hex, "tree"), folder.file(manifest.hex, "journal")

        @settings(max_examples=80, deadline=None)
        @given(changes(tree.read_bytes()), changes(journal.read_bytes()))
        def hold(changed_tree: bytes, changed_journal: bytes) -> None:
            tree.write_bytes(changed_tree)
            journal.write_bytes(changed_journal)
            assert read_description(folder, manifest.hex) in (None, (manifest, ONE.leaves))
            claims = read_journal(folder, manifest)
            assert claims is None or claims.blocks == BLOCKS

        hold()
        folder.close()
