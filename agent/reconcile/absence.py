"""Which boxes this one tells the fleet are gone. Pure: the caller passes the time.

A box that is chosen to hold a model, or holds one, and cannot be reached is told of once, by whoever notices first: all
who dial it wait a little longer than the time that is given, each for another while. What is told holds until that box
writes anything later, so that one false word costs a copy too many at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

#: How much longer the last of them waits, as a part of the time that is given.
_SPREAD: Final = 0.5


def to_tell(
    silent: Mapping[bytes, float],
    *,
    relevant: Collection[bytes],
    told: Collection[bytes],
    own_word: Collection[bytes],
    own: bytes,
    after: float,
    now: float,
) -> frozenset[bytes]:
    """The keys that this box's own word is about from now on.

    `silent` are boxes that cannot be reached, and since when; `relevant` those that matter to a placement; `told` those
    of which anybody's word holds now; `own_word` what this box has said before.
    """
    due = {key for key, since in silent.items() if now - since >= after * (1 + _SPREAD * _share(own, key))}
    return frozenset(key for key in silent if key in relevant and (key in own_word or (key in due and key not in told)))


def _share(own: bytes, key: bytes) -> float:
    """A number from 0 to 1 that is another for each witness of a box."""
    return int.from_bytes(hashlib.blake2b(own + key, digest_size=2).digest(), "big") / 0xFFFF
