"""Which of the boxes that have some of a blob to follow: most of them near, some from anywhere. Pure.

Near ones alone would do where the network is one; the others keep the swarm in one piece where it is many sites, and
bring over what no box of this site has.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

#: Boxes to follow for one blob, and how many of them are chosen without regard to where they are.
NEIGHBOURS: Final = 20
ANYWHERE: Final = 8
#: Round-trip time (seconds) up to which a box counts as near where a label does not tell.
NEAR_RTT: Final = 0.005


@dataclass(frozen=True)
class Candidate:
    """A box that has the blob, or some of it, or is fetching it. `rtt` in seconds, None where not measured; `site` is
    its label `site`, empty without one; `relayed`: reached through another box; `complete`: it has the whole."""

    peer: str
    rtt: float | None = None
    site: str = ""
    relayed: bool = False
    complete: bool = False


def is_near(candidate: Candidate, own_site: str) -> bool:
    """Whether the box is on this box's site: by label where both have one, else by its round-trip time."""
    if candidate.site and own_site:
        return candidate.site == own_site
    return not candidate.relayed and candidate.rtt is not None and candidate.rtt <= NEAR_RTT


def choose_sources(
    candidates: Sequence[Candidate],
    own_site: str,
    followed: Collection[str],
    rng: random.Random,
    *,
    lacking: bool = False,
) -> tuple[str, ...]:
    """The peers to follow, at most NEIGHBOURS.

    Those of `followed` that are still candidates stay. Of the others ANYWHERE are taken at random, and before them the
    nearest. With `lacking` (some block is with none of those followed, see `Picker.unavailable`) one
    that has the whole blob takes the last place, where none is followed.
    """
    if len(candidates) <= NEIGHBOURS:
        return tuple(one.peer for one in candidates)
    pool = list(candidates)
    rng.shuffle(pool)
    kept = [one for one in pool if one.peer in followed][:NEIGHBOURS]
    rest = sorted((one for one in pool if one.peer not in followed), key=lambda one: _distance(one, own_site))
    near = rest[: max(0, NEIGHBOURS - ANYWHERE - len(kept))]
    far = rest[len(near) :]
    rng.shuffle(far)
    chosen = [*kept, *near, *far][:NEIGHBOURS]
    if lacking and not any(one.complete for one in chosen):
        chosen = [*chosen[:-1], next((one for one in pool if one.complete), chosen[-1])]
    return tuple(one.peer for one in chosen)


def _distance(candidate: Candidate, own_site: str) -> tuple[bool, float]:
    """Near ones are equal: were the very nearest preferred, everybody on a site would follow the same boxes."""
    if is_near(candidate, own_site):
        return (False, 0.0)
    return (candidate.relayed, float("inf") if candidate.rtt is None else candidate.rtt)
