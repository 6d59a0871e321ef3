"""Who is sent blocks now: a few upload slots that go round among those who want something. Pure.

A box sends to a few at a time, so that each gets blocks fast enough to pass them on. A slot is held for one turn, some
blocks long, and then goes to one that has had little so far: near peers get more than far ones, everybody gets some.
What a peer gives in return does not matter, since boxes of a fleet have one owner.

Source: P. Goyal et al., "Start-time Fair Queueing" (1996), for how what each has had is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Peers that are sent blocks at the same time.
MIN_SLOTS: Final = 2
MAX_SLOTS: Final = 4
#: Seconds that a turn is meant to last, and blocks that it has at most. Short turns bring each block to many boxes
#: sooner; but whoever has a turn must hear of its next one before it has used it up.
TURN_SECONDS: Final = 0.35
TURN_BLOCKS: Final = 16
#: Blocks of a turn until it is known how long one takes.
FIRST_TURN: Final = 2
#: Seconds after which a turn ends all the same, or four times what its blocks usually take where that is more.
OVERDUE_SECONDS: Final = 10.0
#: Seconds in which whoever has a turn must ask for something.
IDLE_SECONDS: Final = 2.0
#: What a block costs a far peer that costs a near one 1.
FAR: Final = 2.0
#: Seconds between looks at whose turn has to end.
LOOK: Final = 0.25
#: Blocks that one may have had more than another and still come first.
LEEWAY: Final = 4.0
#: How much of a new measurement goes into what a block usually takes, and how many times that it counts at most.
_NEW: Final = 0.1
_WORST: Final = 4.0


@dataclass(frozen=True)
class Turn:
    """A peer may now ask for this many blocks; it asks again for a turn to get more."""

    peer: str
    blocks: int


@dataclass(slots=True)
class _Running:
    """A turn that began at `began`: `left` blocks may still be asked for, `unsent` were and are not out.

    `since` is since when the block that is on its way has been sent or, with none, since when nothing was asked for.
    `again`: it wants another turn after this one.
    """

    left: int
    began: float
    since: float
    unsent: int = 0
    again: bool = False


class Slots:
    """The upload slots of one blob. Peers are PeerIDs, times are seconds of one monotonic clock. The caller locks.

    Call `grant` after every other call that changes something, and twice a second.
    """

    def __init__(self, slots: int = MAX_SLOTS, *, turn: int = TURN_BLOCKS) -> None:
        if not MIN_SLOTS <= slots <= MAX_SLOTS:
            raise ValueError(f"there are {MIN_SLOTS} to {MAX_SLOTS} slots")
        if turn < 1:
            raise ValueError("a turn has at least one block")
        self._slots = slots
        self._turn = turn
        self._running: dict[str, _Running] = {}
        #: How many blocks are still on their way to those whose turn took too long; they hold no slot any more.
        self._overtime: dict[str, int] = {}
        self._waiting: dict[str, None] = {}
        #: What a block costs each peer, and what each has had so far; `_floor` is what the last to get a turn had.
        self._cost: dict[str, float] = {}
        self._had: dict[str, float] = {}
        self._floor = 0.0
        #: Whether somebody may have used its turn up.
        self._used_up = False
        #: Seconds that a block usually takes, None before the first.
        self._usual: float | None = None
        self._look_at = float("-inf")

    # --- what peers do ------------------------------------------------------------------------------------------------

    def want(self, peer: str, *, near: bool = True) -> None:
        """A peer wants blocks. Said again while it waits: nothing changes; while it has a turn: it waits for the next.

        Whoever comes new, or comes back, starts level with whoever got the last turn.
        """
        self._cost[peer] = 1.0 if near else FAR
        running = self._running.get(peer)
        if running is not None:
            running.again = True
            self._used_up = self._used_up or running.left == 0
        elif peer not in self._waiting:
            self._wait(peer)

    def asked(self, peer: str, now: float) -> bool:
        """A peer has asked for a block. False: it has no turn (any more); tell it so, and it asks for another turn."""
        running = self._running.get(peer)
        if running is None or running.left == 0:
            return False
        if running.unsent == 0:
            running.since = now
        running.left -= 1
        running.unsent += 1
        self._used_up = self._used_up or running.left == 0
        return True

    def sent(self, peer: str, now: float) -> None:
        """A block for which `asked` was true is out, or will not be sent any more; with the last of a turn it ends."""
        running = self._running.get(peer)
        if running is None or running.unsent == 0:
            self._sent_late(peer)
            return
        self._measure(now - running.since)
        self._had[peer] += self._cost[peer]
        running.unsent -= 1
        running.since = now
        if running.left == 0 and running.unsent == 0:
            self._end(peer)

    def finish(self, peer: str) -> None:
        """A peer has nothing to ask for now: it does not wait, and its turn ends when what it has asked for is out."""
        self._waiting.pop(peer, None)
        running = self._running.get(peer)
        if running is not None:
            running.left, running.again = 0, False
            if running.unsent == 0:
                self._end(peer)

    def leave(self, peer: str) -> None:
        """A peer is gone: it wants nothing, its turn is over, and what it has had so far is forgotten."""
        self._waiting.pop(peer, None)
        self._running.pop(peer, None)
        self._overtime.pop(peer, None)
        self._cost.pop(peer, None)
        self._had.pop(peer, None)

    # --- whose turn it is ---------------------------------------------------------------------------------------------

    def grant(self, now: float) -> tuple[Turn, ...]:
        """The turns that begin now, to be told to those peers: ends those that are idle or take too long, and fills
        the free slots. Where nobody waits, whoever has used a turn up and wants more gets more at once.
        """
        if now >= self._look_at:
            self._look_at = now + LOOK
            self._end_overdue(now)
        if len(self._running) >= self._slots if self._waiting else not self._used_up:
            return ()
        turns: list[Turn] = []
        blocks = self._blocks()
        while len(self._running) < self._slots and (peer := self._next()) is not None:
            del self._waiting[peer]
            self._floor = self._had[peer]
            self._running[peer] = _Running(blocks, now, now)
            turns.append(Turn(peer, blocks))
        if not self._waiting:
            for peer, running in self._running.items():
                if running.again and running.left == 0:
                    running.left, running.began, running.again = blocks, now, False
                    turns.append(Turn(peer, blocks))
            self._used_up = False
        return tuple(turns)

    @property
    def holders(self) -> tuple[str, ...]:
        """The peers that have a turn."""
        return tuple(self._running)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    def _next(self) -> str | None:
        """Of those that have had least, but for LEEWAY, who came last: whoever came first has found another source by
        now more often than not, and gives the turn back. Whoever is still being sent the end of a turn stands back.
        """
        waiting = [one for one in self._waiting if one not in self._overtime] if self._overtime else self._waiting
        if not waiting:
            return None
        had = self._had
        most = min([had[one] for one in waiting]) + LEEWAY
        return next(one for one in reversed(waiting) if had[one] <= most)

    def _wait(self, peer: str) -> None:
        self._had[peer] = max(self._had.get(peer, 0.0), self._floor)
        self._waiting[peer] = None

    def _end(self, peer: str) -> None:
        if self._running.pop(peer).again:
            self._wait(peer)

    def _end_overdue(self, now: float) -> None:
        limit = self._limit()
        for peer, running in list(self._running.items()):
            if running.unsent == 0 and now - running.since >= IDLE_SECONDS:
                # As if it had been sent so many, so that others come before it.
                self._had[peer] += LEEWAY + self._cost[peer]
                self._end(peer)
            elif self._waiting and now - running.began >= limit:
                if running.unsent:
                    self._overtime[peer] = running.unsent
                self._end(peer)

    def _sent_late(self, peer: str) -> None:
        left = self._overtime.get(peer, 0) - 1
        if left > 0:
            self._overtime[peer] = left
        elif self._overtime.pop(peer, None) is not None:
            self._had[peer] += self._cost[peer]

    def _measure(self, took: float) -> None:
        if self._usual is None:
            self._usual = took
        else:
            # A single peer that crawls must not make everybody's turns long.
            self._usual += _NEW * (min(took, _WORST * self._usual) - self._usual)

    def _limit(self) -> float:
        return max(OVERDUE_SECONDS, 4 * self._blocks() * (self._usual or 0.0))

    def _blocks(self) -> int:
        """How many blocks a turn has now."""
        if self._usual is None:
            return min(FIRST_TURN, self._turn)
        if self._usual * self._turn <= TURN_SECONDS:
            return self._turn
        return max(1, round(TURN_SECONDS / self._usual))
