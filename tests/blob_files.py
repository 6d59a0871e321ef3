"""Files that are blobs, for tests: their bytes, manifest and leaves."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet.blobs.manifest import Manifest
from fleet.blobs.merkle import BLOCK, Algorithm, leaf_hash, root_of
from fleet.blobs.partial import Partial

#: Four blocks, the last one of 77 bytes.
SIZE = 3 * BLOCK + 77


@dataclass(frozen=True)
class Sample:
    """One blob, whole."""

    data: bytes
    manifest: Manifest
    leaves: tuple[bytes, ...]

    @property
    def blob(self) -> str:
        return self.manifest.sha256

    def block(self, index: int) -> bytes:
        return self.data[index * BLOCK : (index + 1) * BLOCK]

    def write(self, partial: Partial, *indexes: int) -> None:
        for index in indexes or range(self.manifest.blocks):
            partial.write(index, self.block(index))

    def file(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is room for that: a store syncs at every turn, and a test asks for hundreds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as made:
        yield Path(made)


@functools.cache
def sample(seed: int = 0, size: int = SIZE, algorithm: Algorithm = "sha256") -> Sample:
    """The same for the same arguments."""
    data = random.Random(seed).randbytes(size)
    leaves = tuple(leaf_hash(data[at : at + BLOCK], algorithm) for at in range(0, size, BLOCK))
    digest = hashlib.sha256(data).hexdigest()
    return Sample(data, Manifest(f"sha256:{digest}", size, root_of(leaves, algorithm), algorithm), leaves)
