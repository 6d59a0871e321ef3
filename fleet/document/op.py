"""An op: one signed record of the fleet document, its bytes, and the limits that are checked before anything else.

    bytes = cbor([1, fleet, author, seq, hlc, kind, path, body, sup]) || signature (64 bytes)
    the signature is over "shoal-op-v1" 0x00 || cbor;  id = blake2b-256(cbor)

All in canonical CBOR (`fleet.cbor`). docs/fleet-document.md has the format in words, with test vectors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Final, Literal, cast

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from fleet import cbor
from fleet.document.clock import MAX_HLC
from fleet.document.plain_form import Fields, read_plain
from fleet.errors import RefusedOpError
from fleet.identity.keys import Identity

Kind = Literal["node", "join", "cert", "revoke", "fw", "cfg"]

#: Kinds that only an admin can write.
ADMIN_KINDS: Final = frozenset({"cert", "revoke", "fw", "cfg"})

MAX_OP: Final = 16 * 1024
#: All kinds but settings and facts: the largest is an entry with 16 scopes that replaces 64 others, of 3 KiB.
MAX_SMALL: Final = 4 * 1024
_SMALL_KINDS: Final = frozenset({"join", "cert", "revoke", "fw"})
#: A box's facts: there are many boxes, so they are small.
MAX_NODE_BODY: Final = 2 * 1024
MAX_PATH: Final = 256
MAX_SUP: Final = 64
MAX_SEQ: Final = (1 << 48) - 1
ID_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_DOMAIN: Final = b"shoal-op-v1\0"
_VERSION: Final = 1
_KEY_PATH: Final = r"[0-9a-f]{64}"
#: NAME or NAME/REST for facts and settings; hex digits for keys and invites. Names within node and cfg are not limited
#: to the known ones, so that an older box keeps what a newer one writes; but no fact looks like a key.
_PATH_OF_KIND: Final = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "node": rf"(?!{_KEY_PATH}\Z)([a-z]+(/[\x21-\x7e]+)?|[a-f][0-9a-f]*)",
        "cfg": r"[a-z]+/[\x21-\x7e]+",
        "join": r"[0-9a-f]{32}",
        "cert": _KEY_PATH,
        "revoke": _KEY_PATH,
        "fw": _KEY_PATH,
    }.items()
}
_IS_KEY_PATH: Final = re.compile(_KEY_PATH)


@dataclass(frozen=True, slots=True)
class Op:
    """One record. `seq` counts an author's ops from 1; `sup` are the ids of the ops of admins that this one replaces.

    `body` is CBOR whose schema depends on kind and path, and is read by `bodies`, `facts` and `settings`; `raw` is
    the whole op as it travels.
    """

    id: bytes
    fleet: bytes = field(repr=False)
    author: bytes
    seq: int
    hlc: int
    kind: Kind
    path: str
    body: bytes = field(repr=False)
    sup: tuple[bytes, ...] = field(repr=False)
    raw: bytes = field(repr=False)

    @property
    def subject(self) -> bytes:
        """The public key in the path of a cert, revoke or fw op."""
        return bytes.fromhex(self.path)


_new: Final = object.__new__
_set_id, _set_fleet, _set_author, _set_seq, _set_hlc, _set_kind, _set_path, _set_body, _set_sup, _set_raw = (
    Op.__dict__[one.name].__set__ for one in fields(Op)
)


def _op(
    id_: bytes,
    fleet: bytes,
    author: bytes,
    seq: int,
    hlc: int,
    kind: Kind,
    path: str,
    body: bytes,
    sup: tuple[bytes, ...],
    raw: bytes,
) -> Op:
    """What `Op` makes, in half the time: a frozen dataclass looks up each field by its name to set it."""
    op = _new(Op)
    _set_id(op, id_)
    _set_fleet(op, fleet)
    _set_author(op, author)
    _set_seq(op, seq)
    _set_hlc(op, hlc)
    _set_kind(op, kind)
    _set_path(op, path)
    _set_body(op, body)
    _set_sup(op, sup)
    _set_raw(op, raw)
    return op


class Shared:
    """What many ops have in common, kept once: of a fleet's 40,000 ops that is 5 MB. Grows with what is read.

    `keys` are fleets and authors, `paths` the paths of facts, by themselves.
    """

    def __init__(self) -> None:
        self.keys: Final[dict[bytes, bytes]] = {}
        self.paths: Final[dict[str, str]] = {}


def op_id(signed: bytes) -> bytes:
    """The id of an op: blake2b-256 over its CBOR, without the signature."""
    return hashlib.blake2b(signed, digest_size=ID_BYTES).digest()


def write_op(
    identity: Identity,
    fleet: bytes,
    *,
    seq: int,
    hlc: int,
    kind: Kind,
    path: str,
    body: object,
    sup: Iterable[bytes] = (),
) -> Op:
    """Make and sign an op; `body` is a plain value. Raises RefusedOpError for one that nobody would accept."""
    content = [_VERSION, fleet, identity.public_key, seq, hlc, kind, path, cbor.encode(body), sorted(set(sup))]
    signed = cbor.encode(content)
    return read_op(signed + identity.sign(_DOMAIN + signed))


def read_op(raw: bytes, shared: Shared | None = None) -> Op:
    """Decode an op and check its limits and its form, but not its signature. `shared` where many are read and kept.

    Raises RefusedOpError with the code of what is wrong: `size`, `form`, `limits`. Takes bounded time and memory
    whatever the bytes.
    """
    if not SIGNATURE_BYTES < len(raw) <= MAX_OP:
        raise RefusedOpError("size", f"an op has at most {MAX_OP} bytes, this one has {len(raw)}")
    signed = raw[:-SIGNATURE_BYTES]
    fleet, author, seq, hlc, kind, path, body, sup = read_plain(signed) or _decode(signed)
    if not (1 <= seq <= MAX_SEQ and 0 <= hlc <= MAX_HLC):
        raise RefusedOpError("limits", "seq or hlc is out of range")
    known = shared.paths.get(path) if shared is not None and kind == "node" else None
    if known is None:
        _check_path(kind, path)
    if kind == "node" and len(body) > MAX_NODE_BODY:
        raise RefusedOpError("limits", f"the body of a node op has at most {MAX_NODE_BODY} bytes")
    if sup:
        _check_sup(kind, sup)
    if kind in _SMALL_KINDS and len(raw) > MAX_SMALL:
        raise RefusedOpError("limits", f"a {kind} op has at most {MAX_SMALL} bytes")
    if shared is not None:
        fleet, author = shared.keys.setdefault(fleet, fleet), shared.keys.setdefault(author, author)
        if kind == "node":
            path = shared.paths.setdefault(path, path)
    return _op(op_id(signed), fleet, author, seq, hlc, cast("Kind", kind), path, body, sup, raw)


def _decode(signed: bytes) -> Fields:
    """The fields of any op; raises RefusedOpError (`form`) for what is not canonical or of other types."""
    try:
        found = cbor.decode_canonical(signed)
    except cbor.CborError as error:
        raise RefusedOpError("form", f"an op is canonical CBOR: {error}") from None
    match found:
        case [1, bytes(fleet), bytes(author), int(seq), int(hlc), str(kind), str(path), bytes(body), list(sup)] if (
            type(found[0]) is int and bool not in (type(seq), type(hlc)) and all(type(one) is bytes for one in sup)
        ):
            if len(fleet) != ID_BYTES or len(author) != KEY_BYTES:
                raise RefusedOpError("form", "fleet and author are byte strings of 32")
            return fleet, author, seq, hlc, kind, path, body, tuple(sup)
    raise RefusedOpError("form", "an op is an array of 9: its version, 1, and then fields of fixed types")


def _check_path(kind: str, path: str) -> None:
    form = _PATH_OF_KIND.get(kind)
    if form is None:
        raise RefusedOpError("form", "unknown kind; this box may run an older version")
    if len(path) > MAX_PATH or not form.fullmatch(path):
        raise RefusedOpError("form", f"not a path of kind {kind}: those are NAME, NAME/REST or hex digits")


def _check_sup(kind: str, sup: tuple[bytes, ...]) -> None:
    if len(sup) > MAX_SUP or not all(len(one) == ID_BYTES for one in sup):
        raise RefusedOpError("limits", f"sup lists at most {MAX_SUP} op ids")
    if kind not in ADMIN_KINDS:
        # It would mean nothing there, and make a box's share of everybody's disk twice as large.
        raise RefusedOpError("limits", "a fact or a join replaces no op by its id")
    if any(a >= b for a, b in pairwise(sup)):
        raise RefusedOpError("form", "sup is sorted and names no op twice")


def signature_holds(op: Op) -> bool:
    """Whether the op was signed by its author. Other threads run while it is found out."""
    try:
        # What `keys.verify` does, less an object for the key: that takes 12 us of 75, and holds up other threads.
        crypto_sign_open(op.raw[-SIGNATURE_BYTES:] + _DOMAIN + op.raw[:-SIGNATURE_BYTES], op.author)
    except BadSignatureError:
        return False
    return True


def is_key_path(path: str) -> bool:
    """Whether a path is a public key, as 64 lower-case hex digits."""
    return _IS_KEY_PATH.fullmatch(path) is not None
