"""Sequences that are over and whose cells are kept, and which of all sequences a new one can begin with. Pure.

Only what the same owner asked for is reused: how soon a first token comes would otherwise tell one peer what another
one has asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """The cells of a sequence that is over. `session` names the conversation it belongs to, where it has a name."""

    seq: int
    owner: str
    tokens: Sequence[int]
    session: str = ""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A sequence whose first `length` tokens are those of a new one.

    `kept` where it is over and is taken over, with all it has; else the new one shares its beginning, and it stays.
    """

    seq: int
    length: int
    kept: Kept | None = None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:  # invariant: the first `low` are alike, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def best_beginning(
    tokens: Sequence[int],
    owner: str,
    kept: Iterable[Kept],
    running: Iterable[tuple[int, str, Sequence[int]]],
    *,
    whole_only: bool,
    session: str = "",
) -> Beginning | None:
    """The sequence of this owner with the longest beginning in common; one that is over is preferred.

    One that is over is taken over where the new one goes on with most of it, and it is no other `session`'s: all chats
    begin with the few tokens of a template, and a conversation is not given up for those.

    At most all tokens but the last, whose logits are needed. `running` are (seq, owner, decoded tokens). With
    `whole_only` nothing can be cut off a sequence, or read from one that went on: only one that is over and is
    contained whole will do (models with a sliding window keep no more than that window).
    """
    most = len(tokens) - 1
    best: Beginning | None = None
    for one in kept:
        length = min(common(one.tokens, tokens), most) if one.owner == owner else 0
        if whole_only and length < len(one.tokens):
            continue
        if length > (best.length if best else 0):
            goes_on = 2 * length >= len(one.tokens) and one.session in ("", session)
            best = Beginning(one.seq, length, one if goes_on or whole_only else None)
    if not whole_only:
        for seq, who, decoded in running:
            length = min(common(decoded, tokens), most) if who == owner else 0
            if length > (best.length if best else 0):
                best = Beginning(seq, length)
    return best


class Shelf:
    """The sequences that are kept, the one that was used longest ago first."""

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def tokens(self) -> int:
        """The tokens of all of them, shared ones counted for each."""
        return sum(len(kept.tokens) for kept in self._kept.values())

    def all(self) -> Sequence[Kept]:
        """All of them, oldest first."""
        return list(self._kept.values())

    def put(self, kept: Kept) -> None:
        """Keep one, as the newest."""
        self._kept.pop(kept.seq, None)
        self._kept[kept.seq] = kept

    def take(self, seq: int) -> Kept | None:
        """Keep it no longer."""
        return self._kept.pop(seq, None)

    def oldest(self, *, but: int = -1) -> Kept | None:
        """The one to be given up first, not `but`."""
        return next((one for one in self._kept.values() if one.seq != but), None)
