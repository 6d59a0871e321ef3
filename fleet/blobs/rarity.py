"""How many have each block, for all blocks at once: sets of blocks are integers, counted in bit-planes. Pure.

Plane k has bit i where the count of block i has its bit k, so that a whole bitfield is added or taken away in a few
operations on integers of as many bits as there are blocks, and the rarest of any set are found as fast: about a
microsecond for the 1,024 blocks of 1 GiB, and some ten for 40 GiB.
"""

from __future__ import annotations

import random
from typing import Final

from fleet.blobs.bitfield import Bitfield

#: Each byte with its bits in the other order.
_TURNED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def mask_of(bits: Bitfield) -> int:
    """The blocks of a bitfield as a set: bit i of the integer is block i."""
    return int.from_bytes(bits.to_bytes().translate(_TURNED), "little")


def indices(mask: int) -> list[int]:
    """The blocks of a set, in order."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def pick(mask: int, rng: random.Random) -> int:
    """One block of a set that is not empty, each as likely as any other."""
    width = mask.bit_length()
    # Each round keeps every block with one half, whatever the others do, until one is left.
    while mask & (mask - 1):
        kept = mask & rng.getrandbits(width)
        if kept:
            mask = kept
    return mask.bit_length() - 1


class Rarity:
    """A count for each block."""

    def __init__(self) -> None:
        self._planes: list[int] = []

    def add(self, mask: int) -> None:
        """One more for each block of the set."""
        planes = self._planes
        for place, plane in enumerate(planes):
            if not mask:
                return
            planes[place] = plane ^ mask
            mask &= plane
        if mask:
            planes.append(mask)

    def remove(self, mask: int) -> None:
        """One less for each block of the set; each of them was added before."""
        planes = self._planes
        for place, plane in enumerate(planes):
            if not mask:
                return
            planes[place] = plane ^ mask
            mask &= ~plane
        assert not mask, "a block was counted less often than it was taken away"

    def rarest(self, mask: int) -> int:
        """Those of the set that have the lowest count."""
        for plane in reversed(self._planes):
            mask = mask & ~plane or mask
        return mask

    @property
    def known(self) -> int:
        """The blocks with a count of at least one."""
        found = 0
        for plane in self._planes:
            found |= plane
        return found
