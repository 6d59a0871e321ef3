"""How much of a model other boxes get: of its slots together, and of their turns each. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _alike(asker: str) -> float:
    return 1.0


@dataclass(frozen=True)
class Shares:
    """`lent` is the part of a model's slots that jobs of other boxes may have at a time, more than 0 and at most 1.

    `weight_of` says how much a box, by its PeerID, counts where it waits with others; twice the weight gets twice the
    work.
    """

    lent: float = 1.0
    weight_of: Callable[[str], float] = _alike

    def slots_lent(self, slots: int) -> int:
        """How many of a model's slots jobs of other boxes may have: one at least."""
        return max(1, int(slots * self.lent + 1e-9))
