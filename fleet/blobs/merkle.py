"""The hash tree over the blocks of a file: RFC 6962, section 2.1, over blocks of 1 MiB. Pure.

    leaf(block) = H(0x00 || block)        node(left, right) = H(0x01 || left || right)

The left half of a tree is always the largest power of two, so that a node without a neighbour moves up as it is. The
first byte keeps an inner node from being passed off as a block (second preimages). H is SHA-256, or BLAKE3 for boards
without SHA instructions. Both release the GIL for as long as they hash a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final, Literal, get_args

from fleet.blobs.errors import MissingAlgorithmError

Algorithm = Literal["sha256", "blake3"]
#: What a block may be given as.
Data = bytes | bytearray | memoryview

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)
#: Bytes of every block but the last.
BLOCK: Final = 1 << 20
#: Bytes of a leaf, of a node and of the root.
HASH: Final = 32


def leaf_hash(data: Data, algorithm: str) -> bytes:
    """The leaf of one block, 32 bytes. Raises MissingAlgorithmError for one that is unknown or not installed."""
    digest = _hasher(algorithm)(b"\0")
    digest.update(data)
    found: bytes = digest.digest()
    return found


def root_of(leaves: Sequence[bytes], algorithm: str) -> bytes:
    """The root over leaves of 32 bytes each, in the order of their blocks. Raises MissingAlgorithmError.

    Of no leaves it is H of nothing, as the RFC has it; no manifest may say so. One leaf is its own root.
    """
    new = _hasher(algorithm)
    if not leaves:
        empty: bytes = new().digest()
        return empty
    level = list(leaves)
    while len(level) > 1:
        above = [new(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


@cache
def _hasher(algorithm: str) -> Callable[..., Any]:
    if algorithm == "sha256":
        return hashlib.sha256
    if algorithm == "blake3":
        try:
            new: Callable[..., Any] = import_module("blake3").blake3
        except ImportError:
            raise MissingAlgorithmError(
                "the model is described with BLAKE3, which is not installed here: pip install 'shoal[blake3]'"
            ) from None
        return new
    raise MissingAlgorithmError(f"this version knows no algorithm of that name; it knows {', '.join(ALGORITHMS)}")
