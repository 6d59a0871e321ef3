"""What a blob is: the hash of the whole file, its size, and the root of the tree over its blocks. Pure.

A manifest is small enough for the fleet document, where an admin signs it. The leaves come from any peer: they are
believed once they fold to the root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from fleet.blobs.errors import BadManifestError
from fleet.blobs.merkle import ALGORITHMS, BLOCK, HASH, Algorithm, root_of

#: Bytes of the largest blob; its leaves are 32 MiB, its bitfield 128 KiB.
MAX_SIZE: Final = 1 << 40
MAX_BLOCKS: Final = MAX_SIZE // BLOCK

_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ROOT: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = frozenset(("sha256", "size", "root", "algorithm"))


@dataclass(frozen=True)
class Manifest:
    """One blob. `sha256` is its id: `sha256:` and the 64 hex digits of the whole file's SHA-256, whatever the tree's
    `algorithm`. `size` in bytes, at least 1 and at most MAX_SIZE; `root` has 32 bytes.

    Raises BadManifestError where a value is out of bounds: there is no manifest that is not valid.
    """

    sha256: str
    size: int
    root: bytes
    algorithm: Algorithm = "sha256"

    def __post_init__(self) -> None:
        if not is_blob_id(self.sha256):
            raise BadManifestError("a blob's id is sha256: and 64 hex digits, lower case")
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise BadManifestError(f"a blob has 1 to {MAX_SIZE} bytes")
        if type(self.root) is not bytes or len(self.root) != HASH:
            raise BadManifestError(f"a blob's root has {HASH} bytes")
        if self.algorithm not in ALGORITHMS:
            raise BadManifestError(f"a blob's algorithm is one of {', '.join(ALGORITHMS)}")

    @property
    def hex(self) -> str:
        """The id without `sha256:`; files are named so."""
        return self.sha256.removeprefix("sha256:")

    @property
    def blocks(self) -> int:
        """How many blocks it has, at least one."""
        return (self.size + BLOCK - 1) // BLOCK

    def block_size(self, index: int) -> int:
        """Bytes of a block: BLOCK, but what is left over for the last. Raises IndexError outside 0 to `blocks` - 1."""
        if not 0 <= index < self.blocks:
            raise IndexError(index)
        return min(BLOCK, self.size - index * BLOCK)

    def body(self) -> dict[str, object]:
        """As it is written, in CBOR as in JSON."""
        return {"sha256": self.sha256, "size": self.size, "root": self.root.hex(), "algorithm": self.algorithm}


def read_manifest(value: object) -> Manifest:
    """The manifest that a decoded map is: exactly what `Manifest.body` writes. Raises BadManifestError."""
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise BadManifestError("a manifest has sha256, size, root and algorithm, and nothing else")
    root, algorithm = value["root"], value["algorithm"]
    if type(root) is not str or not _ROOT.fullmatch(root):
        raise BadManifestError("a blob's root is 64 hex digits, lower case")
    if type(algorithm) is not str:
        raise BadManifestError("a blob's algorithm is a text")
    return Manifest(value["sha256"], value["size"], bytes.fromhex(root), cast(Algorithm, algorithm))


def is_blob_id(value: object) -> bool:
    """Whether a value is `sha256:` and 64 hex digits. Nothing else becomes part of a file's name."""
    return type(value) is str and _ID.fullmatch(value) is not None


def split_leaves(raw: bytes) -> tuple[bytes, ...]:
    """Leaves that stand one behind the other; a rest at the end is left out."""
    return tuple(raw[at : at + HASH] for at in range(0, len(raw) - HASH + 1, HASH))


def check_leaves(manifest: Manifest, raw: bytes) -> tuple[bytes, ...]:
    """The leaves of a blob, of 32 bytes for each block, one behind the other, as a peer or the disk gives them.

    Raises BadManifestError where there are more or fewer than blocks, or they do not fold to the root, and
    MissingAlgorithmError. Takes about 1 ms for each GiB of the blob.
    """
    if len(raw) != manifest.blocks * HASH:
        raise BadManifestError(f"a blob of {manifest.blocks} blocks has {manifest.blocks * HASH} bytes of leaves")
    return _folded(manifest, split_leaves(raw))


def check_leaf_list(manifest: Manifest, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """The same for leaves that are apart already."""
    if len(leaves) != manifest.blocks or any(type(leaf) is not bytes or len(leaf) != HASH for leaf in leaves):
        raise BadManifestError(f"a blob of {manifest.blocks} blocks has as many leaves of {HASH} bytes")
    return _folded(manifest, tuple(leaves))


def _folded(manifest: Manifest, leaves: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if root_of(leaves, manifest.algorithm) != manifest.root:
        raise BadManifestError("the leaves do not fold to the root of the manifest: they are of another file")
    return leaves
