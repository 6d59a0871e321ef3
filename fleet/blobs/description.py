"""What is kept beside each blob: its manifest and its leaves, so that its blocks can be checked without asking anybody.

    MAGIC (8)   length of the manifest (4, big-endian)   manifest (CBOR)   leaves (32 for each block)

Nothing in it is believed: the leaves must fold to the root, and the id must be that of the file's name. That the root
is the one that an admin signed is for the caller to compare.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from fleet import cbor
from fleet.blobs.errors import BlobError
from fleet.blobs.folder import Folder, StrangeFileError, name_of
from fleet.blobs.handle import read_into
from fleet.blobs.manifest import MAX_BLOCKS, Manifest, check_leaves, read_manifest
from fleet.blobs.merkle import HASH

_HEAD: Final = struct.Struct("!8sI")
_MAGIC: Final = b"SHOALTR1"
_MAX_MANIFEST: Final = 1024
_MAX: Final = _HEAD.size + _MAX_MANIFEST + MAX_BLOCKS * HASH


def write_description(folder: Folder, manifest: Manifest, leaves: tuple[bytes, ...]) -> None:
    """Write it, durably. Blocks; raises OSError."""
    body = cbor.encode(manifest.body())
    folder.replace(name_of(manifest.hex, "tree"), (_HEAD.pack(_MAGIC, len(body)), body, b"".join(leaves)))


def read_description(folder: Folder, blob: str) -> tuple[Manifest, tuple[bytes, ...]] | None:
    """What is known of a blob (its id without `sha256:`); None where nothing is, or nothing sound. Raises OSError."""
    try:
        fd = folder.open(name_of(blob, "tree"))
    except (FileNotFoundError, StrangeFileError):
        return None
    try:
        raw = bytearray(min(os.fstat(fd).st_size, _MAX + 1))
        size = read_into(fd, memoryview(raw), 0)
    finally:
        os.close(fd)
    return _parse(bytes(raw[:size]), blob) if size <= _MAX else None


def _parse(raw: bytes, blob: str) -> tuple[Manifest, tuple[bytes, ...]] | None:
    if len(raw) < _HEAD.size:
        return None
    magic, length = _HEAD.unpack_from(raw)
    if magic != _MAGIC or length > _MAX_MANIFEST:
        return None
    try:
        manifest = read_manifest(cbor.decode_canonical(raw[_HEAD.size : _HEAD.size + length]))
        if manifest.hex != blob:
            return None
        return manifest, check_leaves(manifest, raw[_HEAD.size + length :])
    except (cbor.CborError, BlobError):
        return None
