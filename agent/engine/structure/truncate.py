"""Which messages of a chat that is too long are left out. Pure.

A turn is a message of the user and all that follows up to the next one: answers, calls and their results. Turns are
left out whole, so that no answer stands without its question and no result without its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

How = Literal["oldest", "middle"]


def turns_of(roles: Sequence[str]) -> list[list[int]]:
    """The turns that may be left out, oldest first, as places of messages: neither instructions nor the last turn."""
    turns: list[list[int]] = []
    begun = False
    for at, role in enumerate(roles):
        if role in ("system", "developer"):
            continue
        if role == "user" or not begun:
            turns.append([])
            begun = True
        turns[-1].append(at)
    if "user" not in roles:
        return []
    return turns[:-1]


def left_out(roles: Sequence[str], tokens: Sequence[int], excess: int, how: How) -> frozenset[int]:
    """Places of messages whose `tokens` together are at least `excess`, as few turns as that takes.

    `oldest` takes turns from the beginning, `middle` from the middle outwards. All that may be left out where that is
    not enough.
    """
    turns = turns_of(roles)
    order = list(range(len(turns)))
    if how == "middle":
        centre = (len(turns) - 1) / 2
        order.sort(key=lambda turn: (abs(turn - centre), turn))
    out: set[int] = set()
    for turn in order:
        if excess <= 0:
            break
        out.update(turns[turn])
        excess -= sum(tokens[at] for at in turns[turn])
    return frozenset(out)
