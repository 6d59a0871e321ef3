"""Who is sent blocks now: a few upload slots that go round among those who want something. Pure.

A box sends to a few at a time, so that each gets blocks fast enough to pass them on. A slot is held for one turn, some
blocks or seconds long, and then goes to whoever has had the least so far; near peers get more than far ones, everybody
gets some. What a peer gives in return does not matter: boxes of a fleet have one owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Peers that are sent blocks at the same time.
MIN_SLOTS: Final = 2
MAX_SLOTS: Final = 4
#: Blocks of a turn, and the seconds after which it ends all the same.
TURN_BLOCKS: Final = 8
TURN_SECONDS: Final = 10.0
#: Seconds in which whoever has a turn must ask for something.
IDLE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Turn:
    """A peer may now ask for this many blocks; it asks again for a turn to get more."""

    peer: str
    blocks: int


class Slots:
    """The upload slots of one blob. Peers are PeerIDs, times are seconds of one monotonic clock. The caller locks.

    Call `grant` after every other call that returns, and when `next_check` has come.
    """

    def __init__(self, slots: int = MAX_SLOTS, *, turn: int = TURN_BLOCKS) -> None: ...

    def want(self, peer: str, now: float, *, near: bool = True) -> None:
        """A peer wants blocks. Said again while it waits: nothing changes; while it has a turn: it waits for the next.

        A request for a block of a peer that has no turn says the same.
        """

    def asked(self, peer: str, now: float) -> bool:
        """A peer with a turn has asked for a block. False: it has no turn, or has used it up (nothing is sent)."""
        raise NotImplementedError

    def sent(self, peer: str, now: float) -> None:
        """A block that a peer asked for is out, or is not to be sent any more; with the last of the turn it ends."""

    def leave(self, peer: str) -> None:
        """A peer wants nothing more, or is gone; its turn ends, and what it has had so far is forgotten."""

    def finish(self, peer: str) -> None:
        """A peer with a turn has nothing to ask for now: the turn ends when what it has asked for is sent."""

    def grant(self, now: float) -> tuple[Turn, ...]:
        """The turns that begin now: ends what is idle or too long, and fills the free slots. Tell those peers."""
        raise NotImplementedError

    def next_check(self) -> float | None:
        """When to call `grant` at the latest; None while nobody has a turn."""
        raise NotImplementedError

    @property
    def holders(self) -> tuple[str, ...]:
        """The peers that have a turn."""
        raise NotImplementedError

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        raise NotImplementedError
