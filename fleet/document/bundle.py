"""Ops as a file: what `shoal export` writes, `shoal import` reads, and a box's HTTP endpoint speaks.

Text, one record a line, so that it can be carried, cut and joined with ordinary tools:

    shoal-ops-1
    genesis BASE64
    op BASE64
    ...

The order of ops does not matter. Nothing in a bundle is secret, and nothing in it is believed before it was checked.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fleet.document.op import MAX_OP
from fleet.errors import RefusedOpError
from fleet.identity.genesis import Genesis

HEADER: Final = "shoal-ops-1"
_MAX_LINE: Final = 4 + 4 * (MAX_OP + 2) // 3


@dataclass(frozen=True)
class Bundle:
    """What was read. Ops are raw: they are checked by whoever takes them in."""

    genesis: Genesis | None
    ops: Sequence[bytes]


def write_bundle(genesis: Genesis | None, ops: Iterable[bytes]) -> Iterator[str]:
    """The lines of a bundle, each with its line break."""
    yield f"{HEADER}\n"
    if genesis is not None:
        yield f"genesis {_text(genesis.raw)}\n"
    for raw in ops:
        yield f"op {_text(raw)}\n"


def read_bundle(lines: Iterable[str]) -> Bundle:
    """Read a bundle; raises RefusedOpError that names the first line that is wrong. Blank lines are passed over."""
    genesis: Genesis | None = None
    ops: list[bytes] = []
    started = False
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        if not started:
            if line != HEADER:
                raise RefusedOpError("form", f"line {number}: not a bundle of ops: it starts with {HEADER}")
            started = True
            continue
        what, _, text = line.partition(" ")
        raw = _bytes(text, number)
        if what == "op":
            ops.append(raw)
        elif what == "genesis":
            read = Genesis.read(raw)
            if genesis is not None and genesis.fleet_id != read.fleet_id:
                raise RefusedOpError("other_fleet", f"line {number}: a second genesis; a bundle is of one fleet")
            genesis = read
        else:
            raise RefusedOpError("form", f"line {number}: neither a genesis nor an op")
    if not started:
        raise RefusedOpError("form", "the bundle is empty")
    return Bundle(genesis, ops)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(text: str, number: int) -> bytes:
    if len(text) > _MAX_LINE:
        raise RefusedOpError("size", f"line {number}: longer than any op")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedOpError("form", f"line {number}: damaged or cut short") from None
