"""Which blocks of a blob are there: one bit for each, the first block in the highest bit of the first byte (BEP 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from fleet.blobs.errors import BlobError
from fleet.blobs.manifest import MAX_BLOCKS

_NOT_EMPTY: Final = re.compile(rb"[^\x00]")
_NOT_FULL: Final = re.compile(rb"[^\xff]")


class BadBitfieldError(BlobError):
    """A bitfield of another length than its blob asks for, or with bits set behind the last block."""

    code = "bad_bitfield"


class Bitfield:
    """`blocks` bits, all clear at first. Reading is safe beside one thread that writes."""

    __slots__ = ("_bits", "_blocks", "_count")

    def __init__(self, blocks: int, have: Iterable[int] = ()) -> None:
        if not 0 <= blocks <= MAX_BLOCKS:
            raise BadBitfieldError(f"a bitfield has at most {MAX_BLOCKS} bits")
        self._blocks = blocks
        self._bits = bytearray(bytes_of(blocks))
        self._count = 0
        for index in have:
            self.set(index)

    @classmethod
    def full(cls, blocks: int) -> Bitfield:
        """One with every bit set."""
        made = cls(blocks)
        made._bits = bytearray(b"\xff" * bytes_of(blocks))
        if blocks % 8:
            made._bits[-1] = 0xFF00 >> blocks % 8 & 0xFF
        made._count = blocks
        return made

    @classmethod
    def from_bytes(cls, raw: bytes, blocks: int) -> Bitfield:
        """One that a peer or the disk gives; raises BadBitfieldError unless it is what `to_bytes` gives."""
        made = cls(blocks)
        if len(raw) != len(made._bits):
            raise BadBitfieldError(f"a bitfield of {blocks} blocks has {len(made._bits)} bytes")
        if blocks % 8 and raw[-1] & (0xFF >> blocks % 8):
            raise BadBitfieldError("a bitfield has no bits set behind its last block")
        made._bits = bytearray(raw)
        made._count = int.from_bytes(raw, "big").bit_count()
        return made

    def has(self, index: int) -> bool:
        """Whether a block is there; False for one that the blob does not have."""
        return 0 <= index < self._blocks and bool(self._bits[index >> 3] & 0x80 >> (index & 7))

    def set(self, index: int) -> bool:
        """Say that a block is there; whether that was news. Raises IndexError for one that the blob does not have."""
        self._check(index)
        if self.has(index):
            return False
        self._bits[index >> 3] |= 0x80 >> (index & 7)
        self._count += 1
        return True

    def clear(self, index: int) -> bool:
        """Say that a block is not there; whether that was news. Raises IndexError."""
        self._check(index)
        if not self.has(index):
            return False
        self._bits[index >> 3] &= ~(0x80 >> (index & 7))
        self._count -= 1
        return True

    @property
    def blocks(self) -> int:
        """How many bits there are."""
        return self._blocks

    @property
    def count(self) -> int:
        """How many are set."""
        return self._count

    @property
    def complete(self) -> bool:
        """Whether all are set."""
        return self._count == self._blocks

    def to_bytes(self) -> bytes:
        """As it is sent and stored: a byte for eight blocks, spare bits at the end clear."""
        return bytes(self._bits)

    def byte(self, at: int) -> int:
        """One byte of what `to_bytes` gives."""
        return self._bits[at]

    def copy(self) -> Bitfield:
        """Another one with the same bits."""
        return Bitfield.from_bytes(bytes(self._bits), self._blocks)

    def __iter__(self) -> Iterator[int]:
        """The blocks that are there, ascending; as things stand now, whatever is set meanwhile."""
        bits = bytes(self._bits)
        for match in _NOT_EMPTY.finditer(bits):
            at = match.start()
            for bit in range(8):
                if bits[at] & 0x80 >> bit:
                    yield at * 8 + bit

    def missing(self) -> Iterator[int]:
        """The blocks that are not there, ascending; as things stand now."""
        bits = bytes(self._bits)
        for match in _NOT_FULL.finditer(bits):
            at = match.start()
            for index in range(at * 8, min(at * 8 + 8, self._blocks)):
                if not bits[at] & 0x80 >> (index & 7):
                    yield index

    def __len__(self) -> int:
        return self._blocks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitfield):
            return NotImplemented
        return self._blocks == other._blocks and self._bits == other._bits

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<Bitfield {self._count} of {self._blocks}>"

    def _check(self, index: int) -> None:
        if not 0 <= index < self._blocks:
            raise IndexError(index)


def bytes_of(blocks: int) -> int:
    """How many bytes a bitfield takes."""
    return (blocks + 7) // 8
