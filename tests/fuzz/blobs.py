"""Targets of models that move: what peers say about blobs, who is given a turn, and what stands in a store's files."""

from __future__ import annotations

import functools
import hashlib
import struct
import tempfile
from pathlib import Path
from typing import Any, Final

import cbor2

from fleet import cbor
from fleet.blobs import messages as wire
from fleet.blobs.bitfield import Bitfield, bytes_of
from fleet.blobs.description import read_description, write_description
from fleet.blobs.errors import BlobError
from fleet.blobs.folder import Folder, name_of
from fleet.blobs.journal import read_journal, write_journal
from fleet.blobs.manifest import MAX_BLOCKS, MAX_SIZE, Manifest, check_leaves, read_manifest
from fleet.blobs.merkle import BLOCK, root_of
from fleet.blobs.slots import MAX_SLOTS, Slots
from fleet.errors import MessageError
from fleet.net.messages import parse
from tests.fuzz.base import Target, check_brief
from tests.fuzz.wire import cbor_stretch

LEAVES: Final = tuple(hashlib.sha256(bytes([number])).digest() for number in range(11))
MANIFEST: Final = Manifest("sha256:" + "ab" * 32, 10 * BLOCK + 1, root_of(LEAVES, "sha256"))

# --- what peers say ---------------------------------------------------------------------------------------------------

_KINDS: Final = (
    wire.LeavesAsked, wire.Leaves, wire.Follow, wire.Shown, wire.Turn, wire.Get, wire.Piece, wire.LaneAsked,
    wire.LaneOffer, wire.Keep, wire.Kept,
)  # fmt: skip
SAID: Final[list[dict[str, Any]]] = [
    MANIFEST.body(),
    {"blob": MANIFEST.sha256, "first": 3},
    {"leaves": b"".join(LEAVES)},
    {"blob": MANIFEST.sha256, "have": b"\xff\x20"},
    {"bits": b"\xff\xe0", "have": [1, 2, 10], "turn": 16},
    {"blob": MANIFEST.sha256, "want": True},
    {"blob": MANIFEST.sha256, "index": 10},
    {"data": b"x" * 40},
    {"certificate": b"c" * 300},
    {"port": 4211, "offer": b"o" * 16, "fingerprint": b"f" * 32, "token": b"t" * 32},
    {"keeps": False},
]


def run_blob_message(data: bytes) -> bool:
    """Every message about blobs, and a manifest, of any CBOR; what is accepted can be sent on, and is within limits."""
    try:
        body = cbor.decode(data)
    except cbor.CborError:
        return False
    accepted = False
    for kind in _KINDS:
        try:
            message = parse(kind, body)
        except MessageError as error:
            check_brief(error)
            continue
        accepted = True
        assert parse(kind, cbor.decode(cbor2.dumps(message.model_dump()))) == message
        if isinstance(message, wire.Shown):
            assert all(0 <= index < MAX_BLOCKS for index in message.have)
            assert len(message.have) <= wire.MAX_INDEXES
    try:
        manifest = read_manifest(body)
    except BlobError as error:
        check_brief(error)
        return accepted
    assert 1 <= manifest.size <= MAX_SIZE
    assert 1 <= manifest.blocks <= MAX_BLOCKS
    assert read_manifest(manifest.body()) == manifest
    return True


def run_bitfield(data: bytes) -> bool:
    """`Bitfield.from_bytes` of any bytes, for the number of blocks that the first four say."""
    if len(data) < 4:
        return False
    blocks, raw = int.from_bytes(data[:4], "big"), data[4:]
    try:
        bits = Bitfield.from_bytes(raw, blocks)
    except BlobError as error:
        check_brief(error)
        return False
    assert bits.to_bytes() == raw
    held, missing = list(bits), list(bits.missing())
    assert len(held) == bits.count
    assert len(held) + len(missing) == blocks
    assert sorted((*held, *missing)) == list(range(blocks))
    return True


def _bitfield(blocks: int) -> bytes:
    return blocks.to_bytes(4, "big") + Bitfield.full(blocks).to_bytes()


def run_leaves(data: bytes) -> bool:
    """`check_leaves` of what a peer sends for one manifest: nothing but its leaves folds to its root."""
    try:
        found = check_leaves(MANIFEST, data)
    except BlobError as error:
        check_brief(error)
        return False
    assert found == LEAVES
    return True


def run_asks(data: bytes) -> bool:
    """`read_asks` of what comes over a fast lane: whole frames of words that there are."""
    try:
        asks = wire.read_asks(data)
    except MessageError as error:
        check_brief(error)
        return False
    assert len(asks) == len(data) // wire.ASKED.size
    assert b"".join(wire.ASKED.pack(*ask) for ask in asks) == data[: len(asks) * wire.ASKED.size]
    return True


def run_turns(data: bytes) -> bool:
    """`Slots` under peers that say anything in any order, a byte for each word: nobody is sent more than a turn has,
    and no more have one than there are slots."""
    slots, now = Slots(), 0.0
    granted: dict[str, int] = {}
    for byte in data:
        word, peer = byte & 7, f"peer-{byte >> 3}"
        if word == 0:
            slots.want(peer, near=bool(byte & 8))
        elif word == 1 and slots.asked(peer, now):
            granted[peer] -= 1
            assert granted[peer] >= 0
        elif word == 2:
            slots.sent(peer, now)
        elif word == 3:
            slots.finish(peer)
            granted.pop(peer, None)
        elif word == 4:
            slots.leave(peer)
            granted.pop(peer, None)
        elif word == 5:
            now += byte / 16
        for turn in slots.grant(now):
            granted[turn.peer] = turn.blocks
        assert len(slots.holders) <= MAX_SLOTS
    return True


# --- what stands in files ---------------------------------------------------------------------------------------------


class _Disk:
    """A folder of a store, for as long as the process lives."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory()
        self.folder = Folder(Path(self._made.name) / "blobs")

    def put(self, kind: Any, data: bytes) -> None:
        self.folder.file(MANIFEST.hex, kind).write_bytes(data)


@functools.cache
def _disk() -> _Disk:
    return _Disk()


def run_journal(data: bytes) -> bool:
    """`read_journal` of any file: what it claims are blocks of the blob, and it is what would be written."""
    disk = _disk()
    disk.put("journal", data)
    claims = read_journal(disk.folder, MANIFEST)
    if claims is None:
        return False
    assert claims.blocks == MANIFEST.blocks
    write_journal(disk.folder, MANIFEST, claims)
    assert disk.folder.file(MANIFEST.hex, "journal").read_bytes() == data
    return True


def run_description(data: bytes) -> bool:
    """`read_description` of any file: a manifest of this blob with leaves that fold to its root, or nothing."""
    disk = _disk()
    disk.put("tree", data)
    found = read_description(disk.folder, MANIFEST.hex)
    if found is None:
        return False
    manifest, leaves = found
    assert manifest.hex == MANIFEST.hex
    assert root_of(leaves, manifest.algorithm) == manifest.root
    return True


def _journal(*have: int) -> bytes:
    disk = _disk()
    write_journal(disk.folder, MANIFEST, Bitfield(MANIFEST.blocks, have))
    return disk.folder.file(MANIFEST.hex, "journal").read_bytes()


def _description() -> bytes:
    disk = _disk()
    write_description(disk.folder, MANIFEST, LEAVES)
    return (disk.folder.path / name_of(MANIFEST.hex, "tree")).read_bytes()


BLOBS: Final = (
    Target(
        "blob_message",
        run_blob_message,
        lambda: [cbor2.dumps(value) for value in SAID],
        [
            *cbor_stretch(),
            lambda n: cbor2.dumps({"have": [0] * n}),
            lambda n: cbor2.dumps({"have": ["0"] * n}),
            lambda n: cbor2.dumps({"bits": bytes(n), "have": list(range(min(4096, n // 4)))}),
            lambda n: cbor2.dumps({"leaves": bytes(n)}),
            lambda n: cbor2.dumps({"data": bytes(n)}),
            lambda n: cbor2.dumps({**MANIFEST.body(), "sha256": "a" * n}),
            lambda n: cbor2.dumps({**MANIFEST.body(), "root": "f" * n}),
            lambda n: cbor2.dumps({**MANIFEST.body(), "algorithm": "f" * n}),
        ],
        memory=150,
        tokens=tuple(cbor2.dumps(key) for key in {key: None for one in SAID for key in one}),
    ),
    Target(
        "bitfield",
        run_bitfield,
        lambda: [_bitfield(blocks) for blocks in (0, 1, 8, 11, 64)],
        [lambda n: _bitfield(8 * n), lambda n: MAX_BLOCKS.to_bytes(4, "big") + bytes(n), lambda n: b"\xff" * n],
        # Every block as a number, in three lists.
        memory=8 * 150,
        large=1024,
    ),
    Target("leaves", run_leaves, lambda: [b"".join(LEAVES)], [lambda n: bytes(n)]),
    Target(
        "asks",
        run_asks,
        lambda: [b"", wire.ASKED.pack(wire.ASK, 7) + wire.ASKED.pack(wire.CANCEL, (1 << 32) - 1)],
        [lambda n: wire.ASKED.pack(wire.ASK, 0) * (n // wire.ASKED.size), lambda n: b"\x03" * n],
    ),
    Target(
        "turns",
        run_turns,
        lambda: [bytes((0, 8, 1, 1, 2, 2, 0, 9, 10)), bytes(range(256))],
        [lambda n: bytes(n), lambda n: bytes((0, 8, 16, 24, 32, 1, 9, 17, 2, 10, 0xFD, 4)) * (n // 12)],
        max_len=512,
        large=4096,
    ),
    Target(
        "journal",
        run_journal,
        lambda: [_journal(), _journal(0, 3, 10), _journal(*range(11))],
        [lambda n: _journal(1) + bytes(n), lambda n: struct.pack("!8s32sI", b"SHOALJN1", bytes(32), n) + bytes(n)],
        max_len=64 + bytes_of(MANIFEST.blocks),
    ),
    Target(
        "description",
        run_description,
        lambda: [_description()],
        [
            lambda n: _description() + bytes(n),
            lambda n: struct.pack("!8sI", b"SHOALTR1", n) + bytes(n),
            lambda n: struct.pack("!8sI", b"SHOALTR1", 1024) + b"\x81" * n,
        ],
    ),
)
