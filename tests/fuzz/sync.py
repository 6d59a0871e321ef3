"""Targets of what spreads the document: sync messages between boxes, bundles in files, Yjs from an HTTP client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import cbor2

from fleet import cbor
from fleet.document import yjs
from fleet.document.bundle import HEADER, read_bundle, write_bundle
from fleet.document.plain_json import text_of
from fleet.errors import MessageError, RefusedOpError
from fleet.gossip import sync_messages as wire
from fleet.gossip.digest_tree import DIGEST_BYTES, ID_BYTES, WIDTH, Listing
from tests.fuzz.base import Target, check_brief
from tests.fuzz.document import GENESIS, raw_ops
from tests.fuzz.wire import VALUES, cbor_stretch

_IDS = [bytes([0xAB, number]) + bytes(30) for number in range(5)]
_BRANCH = Listing(160, (), tuple(bytes([n]) * DIGEST_BYTES for n in range(WIDTH)), (10,) * WIDTH)
_PREFIXES = ("", "ab")

READERS: tuple[Callable[[object], object], ...] = (
    wire.read_map,
    wire.read_tree,
    wire.read_digest,
    wire.read_prefixes,
    wire.read_ids,
    lambda value: wire.read_sorted_ids(value, "ab"),
    lambda value: wire.read_listing(value, "ab"),
    lambda value: wire.read_listing(value, "ab" * 8),
    lambda value: wire.read_listings(value, _PREFIXES),
    lambda value: wire.read_id_lists(value, _PREFIXES),
    wire.read_ops,
    wire.read_size,
    wire.read_key,
)
MESSAGES: list[object] = [
    {"g": bytes(DIGEST_BYTES), "f": bytes(DIGEST_BYTES)},
    "g",
    bytes(DIGEST_BYTES),
    ["", "ab", "0123456789abcdef"],
    wire.pack_ids(_IDS),
    wire.pack_listing(Listing(5, tuple(_IDS))),
    wire.pack_listing(_BRANCH),
    [wire.pack_listing(_BRANCH), wire.pack_listing(Listing(5, tuple(_IDS)))],
    [None, wire.pack_ids(_IDS)],
    raw_ops(),
    wire.MAX_BATCH,
]


def run_sync(data: bytes) -> bool:
    """Every reader of `fleet.gossip.sync_messages` on any CBOR."""
    try:
        value = cbor.decode(data)
    except cbor.CborError:
        return False
    accepted = False
    for read in READERS:
        try:
            found = read(value)
        except MessageError as error:
            check_brief(error)
            continue
        accepted = True
        if isinstance(found, Listing):
            assert wire.pack_listing(found) == value
    return accepted


def run_bundle(data: bytes) -> bool:
    """`read_bundle` of the lines of any text."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        bundle = read_bundle(text.splitlines())
    except RefusedOpError as error:
        check_brief(error)
        return False
    assert read_bundle("".join(write_bundle(bundle.genesis, bundle.ops)).splitlines()) == bundle
    return True


def run_yjs(data: bytes) -> bool:
    """What is read of a Yjs client's message: a state vector, and whether an update brings items."""
    accepted = False
    for read in (_byte_strings, yjs.brings_items, _vector):
        try:
            read(data)
        except yjs.YjsError as error:
            check_brief(error)
        else:
            accepted = True
    return accepted


def _byte_strings(data: bytes) -> None:
    reader = yjs.Reader(data)
    while not reader.at_end:
        reader.bytes()


def _vector(data: bytes) -> None:
    clocks = yjs.read_vector(data)
    assert yjs.read_vector(yjs.vector(clocks)) == clocks
    assert not yjs.brings_items(yjs.deletion(clocks))


def run_plain_json(data: bytes) -> bool:
    """`plain_json.text_of` of any CBOR: strict JSON, whatever an admin wrote into a setting."""
    try:
        value = cbor.decode(data)
    except cbor.CborError:
        return False
    text = text_of(value)
    json.loads(text, parse_constant=_no_constant)
    text.encode()
    return True


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def _bundle() -> bytes:
    return "".join(write_bundle(GENESIS, raw_ops())).encode()


def _line(word: bytes, raw: bytes) -> bytes:
    return HEADER.encode() + b"\n" + word + b" " + base64.b64encode(raw) + b"\n"


SYNC = (
    Target(
        "sync",
        run_sync,
        lambda: [cbor2.dumps(value) for value in MESSAGES],
        [
            *cbor_stretch(),
            lambda n: cbor2.dumps(["ab"] * (n // 3)),
            lambda n: cbor2.dumps(b"".join(number.to_bytes(ID_BYTES, "big") for number in range(n // ID_BYTES))),
            lambda n: cbor2.dumps([b""] * n),
            lambda n: cbor2.dumps([1 << 31, bytes(WIDTH * DIGEST_BYTES), [1] * n]),
        ],
        memory=150,
    ),
    Target(
        "bundle",
        run_bundle,
        lambda: [_bundle(), HEADER.encode() + b"\n\n"],
        [
            lambda n: _line(b"op", bytes(n)),
            lambda n: HEADER.encode() + b"\nop AAAA" * (n // 8),
            lambda n: HEADER.encode() + b"\n" * n,
            lambda n: _line(b"genesis", GENESIS.raw) + b"genesis\n" * (n // 8),
            lambda n: b"x" * n,
        ],
        tokens=(HEADER.encode() + b"\n", b"\nop ", b"\ngenesis ", b"="),
    ),
    Target(
        "yjs",
        run_yjs,
        lambda: [yjs.vector({1: 2, 1 << 40: 3}), yjs.vector({}), yjs.deletion({1: 2}), yjs.byte_string(b"\0\1") * 3],
        [
            lambda n: b"\xff" * n,
            lambda n: b"\0" * n,
            lambda n: yjs.integer(n) + b"".join(yjs.integer(k) + b"\1" for k in range(n)),
            lambda n: yjs.integer((1 << 53) - 1) + bytes(n),
        ],
        tokens=(yjs.integer((1 << 53) - 1), yjs.integer(1 << 53), b"\xff" * 9),
    ),
    Target("plain_json", run_plain_json, lambda: [cbor.encode(value) for value in VALUES], cbor_stretch(), memory=250),
)
