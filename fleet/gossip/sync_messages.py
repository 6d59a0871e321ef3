"""What two boxes say to compare their documents, on the wire; every reader checks limits before anything else.

Ids and digests travel end to end in one byte string. Readers raise MessageError; they never echo what they refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal

from fleet.document.op import KEY_BYTES, MAX_OP
from fleet.errors import MessageError
from fleet.gossip.digest_tree import DIGEST_BYTES, ID_BYTES, LEAF, MAX_DEPTH, WIDTH, Listing, is_prefix

METHOD_ROOTS: Final = "sync.roots"
METHOD_NODES: Final = "sync.nodes"
METHOD_IDS: Final = "sync.ids"
METHOD_OPS: Final = "sync.ops"
METHOD_PUSH: Final = "sync.push"
METHOD_SEQ: Final = "sync.seq"
METHOD_GOSSIP: Final = "gossip.ops"
#: Every member holds it, whatever else it may do: what the fleet decides has to reach everybody.
SCOPE_SYNC: Final = "sync"

#: Bytes of ops in one message.
MAX_BATCH: Final = 256 * 1024
#: Ops in one message: as many of the smallest kind as fit.
MAX_BATCH_OPS: Final = 2048
#: Prefixes asked about in one call: an answer has at most 64 * 16 digests, or 64 leaves; 33 KiB.
MAX_PREFIXES: Final = 64
#: Ids in one message: 128 KiB.
MAX_IDS: Final = 4096
_MAX_COUNT: Final = 1 << 32

#: "g": what governs (certificates, revocations, firewall, settings, joins); "f": facts of boxes.
TreeName = Literal["g", "f"]
TREES: Final[tuple[TreeName, ...]] = ("g", "f")


def read_map(body: object) -> Mapping[object, object]:
    """The body of any message here."""
    if not isinstance(body, dict):
        raise MessageError("expected a map")
    return body


def read_tree(value: object) -> TreeName:
    """Which tree."""
    if value == "g":
        return "g"
    if value == "f":
        return "f"
    raise MessageError("no such tree; this box may run an older version")


def read_digest(value: object) -> bytes:
    """One digest."""
    if type(value) is not bytes or len(value) != DIGEST_BYTES:
        raise MessageError(f"a digest has {DIGEST_BYTES} bytes")
    return value


def read_prefixes(value: object) -> list[str]:
    """Prefixes to be told about."""
    if type(value) is not list or not 0 < len(value) <= MAX_PREFIXES:
        raise MessageError(f"from 1 to {MAX_PREFIXES} prefixes at once")
    if not all(is_prefix(one) for one in value):
        raise MessageError(f"a prefix has at most {MAX_DEPTH} hex digits")
    return value


def pack_ids(ids: Iterable[bytes]) -> bytes:
    """Ids end to end."""
    return b"".join(ids)


def read_ids(value: object, limit: int = MAX_IDS) -> list[bytes]:
    """Ids end to end; the caller says how many at most."""
    if type(value) is not bytes or len(value) % ID_BYTES or len(value) > limit * ID_BYTES:
        raise MessageError(f"at most {limit} ids of {ID_BYTES} bytes, end to end")
    return [value[start : start + ID_BYTES] for start in range(0, len(value), ID_BYTES)]


def read_sorted_ids(value: object, prefix: str, limit: int = MAX_IDS) -> list[bytes]:
    """Ids that are all under one prefix, each once."""
    ids = read_ids(value, limit)
    if any(a >= b for a, b in pairwise(ids)):
        raise MessageError("a list of ids is sorted and has each once")
    if ids and not (ids[0].hex().startswith(prefix) and ids[-1].hex().startswith(prefix)):
        raise MessageError("an id that is not under the prefix")
    return ids


def pack_listing(listing: Listing) -> object:
    """A listing as it travels: [count, ids], or [count, digests, counts]."""
    if listing.digests:
        return [listing.count, b"".join(listing.digests), list(listing.counts)]
    return [listing.count, pack_ids(listing.ids)]


def read_listing(value: object, prefix: str) -> Listing:
    """A listing of what is under `prefix` at the peer. A leaf has at most LEAF ids, a branch has more."""
    if type(value) is not list or len(value) not in (2, 3):
        raise MessageError("a listing has two or three fields")
    count = value[0]
    if type(count) is not int or not 0 <= count < _MAX_COUNT:
        raise MessageError("a count is out of range")
    if len(value) == 2:
        ids = read_sorted_ids(value[1], prefix, LEAF)
        if len(ids) != count:
            raise MessageError("a leaf that does not have as many ids as it says")
        return Listing(count, tuple(ids))
    digests, counts = value[1], value[2]
    if len(prefix) >= MAX_DEPTH:
        raise MessageError("a branch below the deepest level")
    if type(digests) is not bytes or len(digests) != WIDTH * DIGEST_BYTES:
        raise MessageError("a branch has sixteen digests")
    if type(counts) is not list or len(counts) != WIDTH:
        raise MessageError("a branch has sixteen counts")
    if not all(type(one) is int and 0 <= one < _MAX_COUNT for one in counts) or sum(counts) != count or count <= LEAF:
        raise MessageError("the counts of a branch do not add up")
    split = tuple(digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES))
    return Listing(count, (), split, tuple(counts))


def read_listings(value: object, prefixes: Sequence[str]) -> list[Listing]:
    """The answer to sync.nodes."""
    if type(value) is not list or len(value) != len(prefixes):
        raise MessageError("one listing for every prefix")
    return [read_listing(one, prefix) for one, prefix in zip(value, prefixes, strict=True)]


def read_id_lists(value: object, prefixes: Sequence[str]) -> list[list[bytes] | None]:
    """The answer to sync.ids; None for a prefix under which there were too many."""
    if type(value) is not list or len(value) != len(prefixes):
        raise MessageError("one list of ids for every prefix")
    found: list[list[bytes] | None] = []
    room = MAX_IDS
    for one, prefix in zip(value, prefixes, strict=True):
        ids = None if one is None else read_sorted_ids(one, prefix, room)
        room -= len(ids or ())
        found.append(ids)
    return found


def read_ops(value: object) -> list[bytes]:
    """Ops as bytes, not decoded yet."""
    if type(value) is not list or len(value) > MAX_BATCH_OPS:
        raise MessageError(f"at most {MAX_BATCH_OPS} ops in a message")
    if not all(type(raw) is bytes and len(raw) <= MAX_OP for raw in value):
        raise MessageError(f"an op is a byte string of at most {MAX_OP}")
    if sum(map(len, value)) > MAX_BATCH:
        raise MessageError(f"at most {MAX_BATCH} bytes of ops in a message")
    return value


def read_size(value: object) -> int:
    """How many bytes of ops the caller wants at most."""
    if type(value) is not int or not MAX_OP <= value <= MAX_BATCH:
        raise MessageError(f"between {MAX_OP} and {MAX_BATCH} bytes of ops in a message")
    return value


def read_key(value: object) -> bytes:
    """An author's public key."""
    if type(value) is not bytes or len(value) != KEY_BYTES:
        raise MessageError(f"a key has {KEY_BYTES} bytes")
    return value
