"""The bytes of an op as nearly every op has them, read without a CBOR decoder: canonical, and with an empty `sup`.

    89 01  5820 FLEET  5820 AUTHOR  SEQ  HLC  KIND  PATH  BODY  80

To decode CBOR and to encode it again, only to see whether it was canonical, takes five times as long as to read the one
form that canonical CBOR can have here, and a box reads every op of its fleet when it starts. What is not found to have
this form is not refused for it: `op.read_op` then decodes it, and says what is wrong.
"""

from __future__ import annotations

import re
from typing import Final

#: fleet, author, seq, hlc, kind, path, body: well-formed and of the right types, and nothing more is said of them.
Fields = tuple[bytes, bytes, int, int, str, str, bytes]

#: An unsigned integer in the shortest form there is for it (RFC 7049, section 3.9).
_INTEGER: Final = rb"([\x00-\x17]|\x18[\x18-\xff]|\x19(?!\x00).{2}|\x1a(?!\x00\x00).{4}|\x1b(?!\x00\x00\x00\x00).{8})"
_KINDS: Final = {
    bytes([0x60 + len(kind)]) + kind.encode("ascii"): kind for kind in ("node", "join", "cert", "revoke", "fw", "cfg")
}
#: All before the path, and its length: 1 to 255 bytes.
_HEAD: Final = re.compile(
    rb"\x89\x01\x58\x20(.{32})\x58\x20(.{32})" + _INTEGER * 2 + b"(" + b"|".join(_KINDS) + rb")"
    rb"([\x61-\x77]|\x78[\x18-\xff])",
    re.DOTALL,
)
_EMPTY_LIST: Final = 0x80


def read_plain(signed: bytes) -> Fields | None:
    """The fields of an op's CBOR, which is canonical then; None where it has another form, or is none."""
    head = _HEAD.match(signed)
    if head is None:
        return None
    fleet, author, seq, hlc, kind, size = head.groups()
    start = head.end()
    end = start + (size[0] - 0x60 if len(size) == 1 else size[1])
    path = signed[start:end]
    try:
        found = _byte_string(signed, end)
        if found is None or signed[found[1]] != _EMPTY_LIST or len(signed) != found[1] + 1 or not path.isascii():
            return None
    except IndexError:
        return None  # cut short
    return fleet, author, _integer(seq), _integer(hlc), _KINDS[kind], path.decode("ascii"), signed[slice(*found)]


def _byte_string(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the content of a byte string of at most 64 KiB starts and ends; None where its length is not canonical."""
    first = data[at]
    if 0x40 <= first <= 0x57:
        return at + 1, at + 1 + first - 0x40
    if first == 0x58 and data[at + 1] >= 24:
        return at + 2, at + 2 + data[at + 1]
    if first == 0x59 and data[at + 1] > 0:
        return at + 3, at + 3 + (data[at + 1] << 8 | data[at + 2])
    return None


def _integer(data: bytes) -> int:
    return data[0] if len(data) == 1 else int.from_bytes(data[1:], "big")
