"""Which blocks of a partial blob have been written: a bitfield on disk, of which one byte is written for each block.

    MAGIC (8)   id (32)   blocks (4, big-endian)   CRC-32 of these (4)   bitfield

A bit is set after its block was written, so that a process that is killed loses no block and claims none that it did
not write. A power cut may keep the bit and lose the block; so may anybody who edits the file. That is why every claim
is hashed again at the next start, and why a journal that cannot be read claims everything.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Final

from fleet.blobs.bitfield import BadBitfieldError, Bitfield, bytes_of
from fleet.blobs.folder import Folder, StrangeFileError, name_of
from fleet.blobs.handle import SharedFd, read_into, write_all
from fleet.blobs.manifest import Manifest

_HEAD: Final = struct.Struct("!8s32sII")
_MAGIC: Final = b"SHOALJN1"


class Journal:
    """The journal of an open partial. Not thread-safe, but for `sync` and `close`. Every method raises OSError, and
    BlobGoneError after `close`."""

    def __init__(self, fd: int, bits: Bitfield) -> None:
        """Owns `fd`, whose bitfield is `bits`."""
        self._file = SharedFd(fd)
        #: What is claimed, and what the file says but for writes that failed.
        self.bits = bits

    def take(self, bits: Bitfield) -> None:
        """Claim this and no more, after what was claimed was hashed. Takes no room on the disk."""
        if bits != self.bits:
            self.bits = bits
            self.rewrite()

    def enter(self, index: int) -> None:
        """Claim a block: on disk first, then in `bits`."""
        self._write_byte(index, self.bits.byte(index >> 3) | 0x80 >> (index & 7))
        self.bits.set(index)

    def strike(self, index: int) -> None:
        """Claim a block no longer: in `bits` first, which is what counts while this process lives."""
        self.bits.clear(index)
        self._write_byte(index, self.bits.byte(index >> 3))

    def rewrite(self) -> None:
        """Write all of it again, after something could not be written."""
        with self._file.use() as fd:
            write_all(fd, self.bits.to_bytes(), _HEAD.size)

    def sync(self) -> None:
        """Make it durable; after the data."""
        with self._file.use() as fd:
            os.fdatasync(fd)

    def close(self) -> None:
        """Let go of it, once nobody writes it."""
        self._file.close()

    def _write_byte(self, index: int, value: int) -> None:
        with self._file.use() as fd:
            write_all(fd, bytes((value,)), _HEAD.size + (index >> 3))


def write_journal(folder: Folder, manifest: Manifest, bits: Bitfield) -> None:
    """Put a journal with these claims in the place of any other, durably. Raises OSError."""
    folder.replace(name_of(manifest.hex, "journal"), (_head(manifest), bits.to_bytes()))


def open_journal(folder: Folder, manifest: Manifest) -> Journal | None:
    """The journal that is there, open for writing; None where there is none, or none that can be read."""
    bits = read_journal(folder, manifest)
    return None if bits is None else Journal(folder.open(name_of(manifest.hex, "journal"), write=True), bits)


def read_journal(folder: Folder, manifest: Manifest) -> Bitfield | None:
    """What the journal claims; None where there is none, or it is none of this blob."""
    try:
        fd = folder.open(name_of(manifest.hex, "journal"))
    except (FileNotFoundError, StrangeFileError):
        return None
    try:
        raw = bytearray(_HEAD.size + bytes_of(manifest.blocks) + 1)
        size = read_into(fd, memoryview(raw), 0)
    finally:
        os.close(fd)
    head = bytes(raw[: _HEAD.size])
    if size != len(raw) - 1 or head != _head(manifest):
        return None
    try:
        return Bitfield.from_bytes(bytes(raw[_HEAD.size : size]), manifest.blocks)
    except BadBitfieldError:
        return None


def _head(manifest: Manifest) -> bytes:
    start = _HEAD.pack(_MAGIC, bytes.fromhex(manifest.hex), manifest.blocks, 0)[:-4]
    return start + zlib.crc32(start).to_bytes(4, "big")
