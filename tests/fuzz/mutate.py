"""What libFuzzer's own mutations do not know: the shape of CBOR and GGUF lengths, and other inputs to join with."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Wide heads of arrays, maps, strings; tags; floats; simple values; an opening of everything indefinite.
_HEADS = (
    b"\x80", b"\xa0", b"\x81", b"\xa1\x60", b"\x9a", b"\xbb", b"\x5b", b"\x7b", b"\x98", b"\xf7", b"\xf8", b"\xf9",
    b"\xfb", b"\xc2", b"\xd8\x1c", b"\xd8\x1d", b"\x9f", b"\xbf", b"\x5f", b"\x7f", b"\xff", b"\x1b", b"\x3b", b"\x60",
)  # fmt: skip
_EDGES = (
    0,
    1,
    23,
    24,
    63,
    64,
    255,
    256,
    65_535,
    65_536,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def mutate(data: bytes, chance: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes], max_size: int) -> bytes:
    """One to four edits of an input, chosen by `chance`; at most `max_size` bytes."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, to = sorted((chance.randint(0, len(out)), chance.randint(0, len(out))))
        match chance.randrange(10):
            case 0:
                out[at : at + 1] = chance.randbytes(1)
            case 1:
                del out[at : min(to, at + chance.choice((1, 4, 32)))]
            case 2:
                out[at:at] = chance.choice(_HEADS) * chance.choice((1, 1, 1, 2, 7, 8, 9))
            case 3:
                size = chance.choice((1, 2, 4, 8))
                number = chance.choice(_EDGES) % (1 << 8 * size)
                out[at : at + chance.choice((0, size))] = number.to_bytes(size, chance.choice(("big", "little")))
            case 4 | 5 if tokens:
                out[at : chance.choice((at, min(to, at + 16)))] = chance.choice(tokens)
            case 6:
                other = chance.choice(seeds)
                start = chance.randint(0, len(other))
                out[at : chance.choice((at, to))] = other[start : start + chance.choice((4, 16, 64, 1 << 16))]
            case 7:
                out[at:at] = out[at:to] * chance.randint(1, 4)
            case 8 if at < len(out):
                # The number of items or bytes that a head of CBOR states, off by one.
                out[at] = out[at] & 0xE0 | (out[at] + chance.choice((-1, 1))) & 0x1F
            case _:
                out[at:at] = chance.choice((b"\x00", b"\xff", b'"', b"{", b"[", b"\n", b": ", b"- ", b"!", b"\\u"))
    return bytes(out[:max_size])
