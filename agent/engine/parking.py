"""Sequences that are over and whose memory is kept beside the engine's cells, as bytes. Pure bookkeeping.

Every step looks at each cell that is in use, if only to see that it is another's: what is not running costs those that
run less here, and is as good as before once it is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.engine.prefix import Kept, best_beginning

#: Sequences that are parked at most, however small they are: each is compared with every new request.
MOST: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A sequence's tokens and llama.cpp's memory of them. `unsaved`: it is a conversation that disk has not got yet."""

    owner: str
    tokens: Sequence[int]
    session: str
    state: bytes | memoryview
    unsaved: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One that begins as a new sequence does, in its first `length` tokens. `whole`: it need not stay for others."""

    parked: Parked
    length: int
    whole: bool


class Parking:
    """What is parked, at most `budget` bytes of it; what was used longest ago goes first."""

    def __init__(self, budget: int, gone: Callable[[Parked], None]) -> None:
        """`gone` is called with each that has to make room for another."""
        self._budget = budget
        self._gone = gone
        self._parked: list[Parked] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._parked)

    def takes(self, size: int) -> bool:
        """Whether one of `size` bytes may be put here."""
        return size <= self._budget

    def put(self, parked: Parked) -> None:
        """Park one, as the newest; it has to be one that this takes. An older one of the same conversation goes."""
        if parked.session:
            for one in self.all():
                if (one.owner, one.session) == (parked.owner, parked.session):
                    self.take(one)
        self._parked.append(parked)
        self.bytes += len(parked.state)
        while self.bytes > self._budget or len(self._parked) > MOST:
            oldest = self._parked[0]
            self.take(oldest)
            self._gone(oldest)

    def take(self, parked: Parked) -> None:
        """Keep it no longer; nothing happens where it is not here."""
        if parked in self._parked:
            self._parked.remove(parked)
            self.bytes -= len(parked.state)

    def saved(self, parked: Parked) -> None:
        """The disk has it now; it stays where it is."""
        self._parked[self._parked.index(parked)] = replace(parked, unsaved=False)

    def all(self) -> Sequence[Parked]:
        """All of them, oldest first."""
        return tuple(self._parked)

    def find(
        self, tokens: Sequence[int], owner: str, session: str, *, longer_than: int, whole_only: bool
    ) -> Found | None:
        """The one that begins most like a new sequence, as `best_beginning` has it, and in more than so many tokens."""
        kept = [Kept(number, one.owner, one.tokens, one.session) for number, one in enumerate(self._parked)]
        best = best_beginning(tokens, owner, kept, (), whole_only=whole_only, session=session)
        if best is None or best.length <= longer_than:
            return None
        found = self._parked[best.seq]
        if best.kept is None:  # it is used for another, and stays: as the newest
            self._parked.remove(found)
            self._parked.append(found)
        return Found(found, best.length, best.kept is not None)
