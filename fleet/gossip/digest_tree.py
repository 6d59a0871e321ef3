"""A digest tree over op ids: two boxes find what differs between their sets by comparing a few hashes. Pure.

A 16-ary trie on the hex digits of the ids. Up to LEAF ids under a prefix are a leaf, more are a branch of sixteen;
which of the two is a matter of the set alone, so equal sets have equal digests however they came about.

    leaf   = blake2b-160(0x00 || ids, sorted)
    branch = blake2b-160(0x01 || the sixteen children's digests; twenty zero bytes for an empty one)

Hashes are combined by hashing, never by XOR or addition: a member chooses its ops' ids freely, and could make sets
whose sums collide. Two sets with one digest of 160 bits take 2^80 tries.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

DIGEST_BYTES: Final = 20
ID_BYTES: Final = 32
#: More ids than this under one prefix are split up by their next digit.
LEAF: Final = 16
#: No prefix is longer. Whoever makes more than LEAF ids with 16 digits in common has done 2^64 work for a long list.
MAX_DEPTH: Final = 16
WIDTH: Final = 16
HEX: Final = "0123456789abcdef"
_NOTHING: Final = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Listing:
    """What is under a prefix: the ids themselves where there are few, else the digest and the size of each child."""

    count: int
    ids: tuple[bytes, ...] = ()
    digests: tuple[bytes, ...] = ()
    counts: tuple[int, ...] = ()


class _Branch:
    __slots__ = ("children", "count", "digest")

    def __init__(self) -> None:
        self.children: list[_Branch | _Leaf | None] = [None] * WIDTH
        self.count = 0
        self.digest: bytes | None = None


class _Leaf:
    __slots__ = ("digest", "ids")

    def __init__(self, ids: list[bytes]) -> None:
        self.ids = ids
        self.digest: bytes | None = None

    @property
    def count(self) -> int:
        return len(self.ids)


_Tree = _Branch | _Leaf | None


def _digit(op_id: bytes, depth: int) -> int:
    byte = op_id[depth >> 1]
    return byte & 15 if depth & 1 else byte >> 4


def _digest(node: _Tree) -> bytes:
    """The digest of a subtree; hashes only what changed since it was last asked for."""
    if node is None:
        return _NOTHING
    if node.digest is None:
        content = (
            b"\0" + b"".join(node.ids)
            if isinstance(node, _Leaf)
            else b"\1" + b"".join([_digest(child) for child in node.children])
        )
        node.digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    return node.digest


def _walk(node: _Tree) -> Iterator[bytes]:
    if isinstance(node, _Leaf):
        yield from node.ids
    elif node is not None:
        for child in node.children:
            yield from _walk(child)


def is_prefix(text: object) -> bool:
    """Whether a value is a prefix of ids that may be asked about."""
    return type(text) is str and len(text) <= MAX_DEPTH and all(digit in HEX for digit in text)


class DigestTree:
    """A set of ids of 32 bytes. `add` and `discard` touch one path; hashing waits until a digest is asked for."""

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._root: _Tree = None
        for op_id in ids:
            self.add(op_id)

    def __len__(self) -> int:
        return 0 if self._root is None else self._root.count

    def __contains__(self, op_id: bytes) -> bool:
        node, depth = self._root, 0
        while isinstance(node, _Branch):
            node, depth = node.children[_digit(op_id, depth)], depth + 1
        return node is not None and op_id in node.ids

    @property
    def root(self) -> bytes:
        """The digest of the whole set; twenty zero bytes when it is empty."""
        return _digest(self._root)

    def add(self, op_id: bytes) -> bool:
        """Put an id in; False where it was there already."""
        if len(op_id) != ID_BYTES:
            raise ValueError(f"an id has {ID_BYTES} bytes")
        path: list[_Branch] = []
        node = self._root
        while isinstance(node, _Branch):
            path.append(node)
            node = node.children[_digit(op_id, len(path) - 1)]
        if node is None:
            self._hang(path, op_id, _Leaf([op_id]))
        elif op_id in node.ids:
            return False
        else:
            insort(node.ids, op_id)
            node.digest = None
            if node.count > LEAF:
                self._hang(path, op_id, _split(node.ids, len(path)))
        for branch in path:
            branch.count += 1
            branch.digest = None
        return True

    def discard(self, op_id: bytes) -> bool:
        """Take an id out; False where it was not there."""
        path: list[_Branch] = []
        node = self._root
        while isinstance(node, _Branch):
            path.append(node)
            node = node.children[_digit(op_id, len(path) - 1)]
        if node is None or op_id not in node.ids:
            return False
        node.ids.remove(op_id)
        node.digest = None
        if not node.ids:
            self._hang(path, op_id, None)
        for branch in path:
            branch.count -= 1
            branch.digest = None
        for depth, branch in enumerate(path):
            if branch.count <= LEAF:  # the highest branch that is too small swallows those below it
                self._hang(path[:depth], op_id, _Leaf(list(_walk(branch))))
                break
        return True

    def listing(self, prefix: str) -> Listing:
        """What is under a prefix of at most MAX_DEPTH hex digits."""
        node = self._find(prefix)
        if isinstance(node, _Branch) and len(prefix) < MAX_DEPTH:
            counts = tuple(0 if child is None else child.count for child in node.children)
            return Listing(node.count, (), tuple(_digest(child) for child in node.children), counts)
        ids = tuple(self._under(node, prefix))
        return Listing(len(ids), ids)

    def digest(self, prefix: str) -> bytes:
        """The digest of what is under a prefix, as its parent's listing has it."""
        node = self._find(prefix)
        if isinstance(node, _Leaf):
            ids = list(self._under(node, prefix))
            return _digest(_Leaf(ids) if ids else None)
        return _digest(node)

    def count(self, prefix: str) -> int:
        """How many ids are under a prefix."""
        node = self._find(prefix)
        if isinstance(node, _Leaf):
            return sum(1 for _ in self._under(node, prefix))
        return 0 if node is None else node.count

    def ids(self, prefix: str = "") -> Iterator[bytes]:
        """The ids under a prefix, sorted; not to be held across a change."""
        return self._under(self._find(prefix), prefix)

    def _find(self, prefix: str) -> _Tree:
        """The subtree at a prefix, or the leaf in which its ids are among others."""
        node = self._root
        for digit in prefix:
            if not isinstance(node, _Branch):
                break
            node = node.children[int(digit, 16)]
        return node

    def _under(self, node: _Tree, prefix: str) -> Iterator[bytes]:
        if not isinstance(node, _Leaf):
            return _walk(node)
        low = bytes.fromhex(prefix.ljust(2 * ID_BYTES, "0"))
        high = bytes.fromhex(prefix.ljust(2 * ID_BYTES, "f"))
        first, last = bisect_left(node.ids, low), bisect_left(node.ids, high)
        if last < len(node.ids) and node.ids[last] == high:
            last += 1
        return iter(node.ids[first:last])

    def _hang(self, path: list[_Branch], op_id: bytes, node: _Tree) -> None:
        if path:
            path[-1].children[_digit(op_id, len(path) - 1)] = node
        else:
            self._root = node


def _split(ids: list[bytes], depth: int) -> _Tree:
    """The subtree for sorted ids that have `depth` digits in common."""
    if not ids:
        return None
    if len(ids) <= LEAF or depth >= MAX_DEPTH:
        return _Leaf(ids)
    branch = _Branch()
    branch.count = len(ids)
    shares: list[list[bytes]] = [[] for _ in range(WIDTH)]
    for op_id in ids:
        shares[_digit(op_id, depth)].append(op_id)
    branch.children = [_split(share, depth + 1) for share in shares]
    return branch
