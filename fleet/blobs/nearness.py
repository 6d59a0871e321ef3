"""Which of the boxes that have some of a blob to follow: most of them near, some from afar. Pure.

Near ones alone would do where the network is one; the others keep the swarm in one piece where it is many sites, and
bring over what no box of this site has.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

#: Boxes to follow for one blob, and how many of them are chosen without regard to where they are.
NEIGHBOURS: Final = 20
ANYWHERE: Final = 8
#: Round-trip time (seconds) up to which a box counts as near, where no site is known of both.
NEAR_RTT: Final = 0.005


@dataclass(frozen=True)
class Candidate:
    """A box that has the blob, or some of it, or is fetching it. `rtt` in seconds, None where not measured; `site` is
    its label `site`, empty without one; `relayed`: reached through another box."""

    peer: str
    rtt: float | None = None
    site: str = ""
    relayed: bool = False
    complete: bool = False


def is_near(candidate: Candidate, own_site: str) -> bool:
    """Whether the box is on this box's site: by label where both have one, else by its round-trip time."""
    raise NotImplementedError


def choose_sources(
    candidates: Sequence[Candidate], own_site: str, followed: Iterable[str], rng: random.Random
) -> tuple[str, ...]:
    """The peers to follow, at most NEIGHBOURS: those `followed` that are still candidates stay, then the nearest, then
    any. One that has the whole blob is always among them, where there is one."""
    raise NotImplementedError
