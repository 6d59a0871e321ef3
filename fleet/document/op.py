"""An op: one signed record of the fleet document, its bytes, and the limits that are checked before anything else.

    bytes = cbor([1, fleet, author, seq, hlc, kind, path, body, sup]) || signature (64 bytes)
    the signature is over "shoal-op-v1" 0x00 || cbor;  id = blake2b-256(cbor)

All in canonical CBOR (`fleet.cbor`). docs/fleet-document.md has the format in words, with test vectors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, cast

from fleet import cbor
from fleet.document.clock import MAX_HLC
from fleet.document.plain_form import read_plain
from fleet.errors import RefusedOpError
from fleet.identity.keys import Identity, verify

Kind = Literal["node", "join", "cert", "revoke", "fw", "cfg"]

KINDS: Final = ("node", "join", "cert", "revoke", "fw", "cfg")
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
#: NAME or NAME/REST for facts and settings; hex digits for keys and invites.
_PATH: Final = re.compile(r"[a-z]+(/[\x21-\x7e]+)?|[0-9a-f]+")
_KEY_PATH: Final = re.compile(r"[0-9a-f]{64}")
_INVITE_PATH: Final = re.compile(r"[0-9a-f]{32}")


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
    fields = [_VERSION, fleet, identity.public_key, seq, hlc, kind, path, cbor.encode(body), sorted(set(sup))]
    signed = cbor.encode(fields)
    return read_op(signed + identity.sign(_DOMAIN + signed))


def read_op(raw: bytes) -> Op:
    """Decode an op and check its limits and its form, but not its signature.

    Raises RefusedOpError with the code of what is wrong: `size`, `form`, `limits`. Takes bounded time and memory
    whatever the bytes.
    """
    if not SIGNATURE_BYTES < len(raw) <= MAX_OP:
        raise RefusedOpError("size", f"an op has at most {MAX_OP} bytes, this one has {len(raw)}")
    signed = bytes(raw[:-SIGNATURE_BYTES])
    plain = read_plain(signed)
    fleet, author, seq, hlc, kind, path, body, sup = (*plain, ()) if plain is not None else _decode(signed)
    if not (1 <= seq <= MAX_SEQ and 0 <= hlc <= MAX_HLC):
        raise RefusedOpError("limits", "seq or hlc is out of range")
    if kind not in KINDS:
        raise RefusedOpError("form", "unknown kind; this box may run an older version")
    if len(path) > MAX_PATH or not _PATH.fullmatch(path):
        raise RefusedOpError("form", "a path is NAME, NAME/REST or hex digits")
    if kind == "node" and len(body) > MAX_NODE_BODY:
        raise RefusedOpError("limits", f"the body of a node op has at most {MAX_NODE_BODY} bytes")
    if len(sup) > MAX_SUP or not all(len(one) == ID_BYTES for one in sup):
        raise RefusedOpError("limits", f"sup lists at most {MAX_SUP} op ids")
    if sup and kind not in ADMIN_KINDS:
        # It would mean nothing there, and make a box's share of everybody's disk twice as large.
        raise RefusedOpError("limits", "a fact or a join replaces no op by its id")
    if kind in _SMALL_KINDS and len(raw) > MAX_SMALL:
        raise RefusedOpError("limits", f"a {kind} op has at most {MAX_SMALL} bytes")
    if any(a >= b for a, b in pairwise(sup)):
        raise RefusedOpError("form", "sup is sorted and names no op twice")
    check_path = _PATH_OF_KIND[kind]
    if not check_path(path):
        raise RefusedOpError("form", f"not a path of kind {kind}")
    return Op(op_id(signed), fleet, author, seq, hlc, cast("Kind", kind), path, body, sup, bytes(raw))


def _decode(signed: bytes) -> tuple[bytes, bytes, int, int, str, str, bytes, tuple[bytes, ...]]:
    """The fields of any op; raises RefusedOpError (`form`) for what is not canonical or of other types."""
    try:
        fields = cbor.decode_canonical(signed)
    except cbor.CborError as error:
        raise RefusedOpError("form", f"an op is canonical CBOR: {error}") from None
    match fields:
        case [1, bytes(fleet), bytes(author), int(seq), int(hlc), str(kind), str(path), bytes(body), list(sup)] if (
            type(fields[0]) is int and bool not in (type(seq), type(hlc)) and all(type(one) is bytes for one in sup)
        ):
            if len(fleet) != ID_BYTES or len(author) != KEY_BYTES:
                raise RefusedOpError("form", "fleet and author are byte strings of 32")
            return fleet, author, seq, hlc, kind, path, body, tuple(sup)
    raise RefusedOpError("form", "an op is an array of 9: its version, 1, and then fields of fixed types")


def signature_holds(op: Op) -> bool:
    """Whether the op was signed by its author."""
    return verify(op.author, _DOMAIN + op.raw[:-SIGNATURE_BYTES], op.raw[-SIGNATURE_BYTES:])


def is_key_path(path: str) -> bool:
    """Whether a path is a public key, as 64 lower-case hex digits."""
    return _KEY_PATH.fullmatch(path) is not None


def _is_invite_path(path: str) -> bool:
    return _INVITE_PATH.fullmatch(path) is not None


def _is_fact_path(path: str) -> bool:
    return not is_key_path(path) and not path[0].isdigit()


def _is_setting_path(path: str) -> bool:
    return "/" in path


#: Names within node and cfg are not limited to the known ones, so that an older box keeps what a newer one writes.
_PATH_OF_KIND: Final[dict[str, Callable[[str], bool]]] = {
    "node": _is_fact_path,
    "cfg": _is_setting_path,
    "join": _is_invite_path,
    "cert": is_key_path,
    "revoke": is_key_path,
    "fw": is_key_path,
}
