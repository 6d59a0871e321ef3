"""The bytes of an op as nearly every op has them, read without a CBOR decoder: canonical, and with an empty `sup`.

    89 01  5820 FLEET  5820 AUTHOR  SEQ  HLC  KIND  PATH  BODY  80

To decode CBOR and to encode it again, only to see whether it was canonical, takes five times as long as to read the one
form that canonical CBOR can have here, and a box reads every op of its fleet when it starts. What is not found to have
this form is not refused for it: `op.read_op` then decodes it, and says what is wrong.
"""

from __future__ import annotations

import re
from typing import Final

#: fleet, author, seq, hlc, kind, path, body, sup: well-formed and of the right types, and nothing more is said of them.
Fields = tuple[bytes, bytes, int, int, str, str, bytes, tuple[bytes, ...]]

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
    try:
        path = str(signed[start:end], "ascii")
        first = signed[end]
        if 0x40 <= first < 0x58:
            start, size_of_body = end + 1, first - 0x40
        elif first == 0x58 and signed[end + 1] >= 24:
            start, size_of_body = end + 2, signed[end + 1]
        elif first == 0x59 and signed[end + 1] > 0:
            start, size_of_body = end + 3, signed[end + 1] << 8 | signed[end + 2]
        else:
            return None  # not a byte string, or its length is not canonical, or 64 KiB
        end = start + size_of_body
        if signed[end] != _EMPTY_LIST or len(signed) != end + 1:
            return None
    except (IndexError, UnicodeDecodeError):
        return None
    seq_value = seq[0] if len(seq) == 1 else int.from_bytes(seq[1:], "big")
    hlc_value = hlc[0] if len(hlc) == 1 else int.from_bytes(hlc[1:], "big")
    return fleet, author, seq_value, hlc_value, _KINDS[kind], path, signed[start:end], ()
