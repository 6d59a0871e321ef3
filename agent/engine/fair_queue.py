"""Who waits for a model, whose turn is next, and how many may wait. Pure: the caller passes the time.

Askers are this box's own clients, taken together, and each peer by its key. While both wait, every second turn goes to
this box's own clients. Of the jobs of one asker a higher class goes first; a job that waits rises by a class every
AGEING seconds, so that none starves, and jobs of a class keep their order. Turns of peers are shared by the work that
they have had (start-time fair queueing: Goyal, Vin and Cheng, 1996): a peer with two hundred jobs and a peer with one
get the same, twice the weight gets twice the work, and who has been away gets nothing for it. A class is what a peer
says of its own job, so between peers it is worth a LEAD and no more: a peer with a job of a higher class goes first
until it has had that much more work than the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fleet.net.messages import Priority

#: The asker of jobs that this box's own clients sent.
LOCAL: Final = ""
#: Seconds of waiting that are worth a class.
AGEING: Final = 15.0
CLASSES: Final[tuple[Priority, ...]] = ("interactive", "normal", "bulk")
#: Work that a class is worth between peers, in the unit of `cost` (tokens): about an answer.
LEAD: Final = 128.0
#: Askers without a waiting job whose share is remembered.
_REMEMBERED: Final = 256

T = TypeVar("T")


def refusal(asker: str, *, capacity: int, total: int, of_asker: int, of_peers: int) -> str | None:
    """Why one more job of an asker cannot be taken, None if it can; all counts are of jobs that run or wait.

    All peers together get three quarters of the room: what is left is for this box's own clients. A peer has at most
    as many jobs here as it and the other peers leave free (dynamic thresholds: Choudhury and Hahne, 1998): half of the
    room where it is alone, a third where two want all they can get. Of the places for peers the last ones, an eighth of
    the room, are for peers that have nothing here, so that they find one while others hold many, and no job has to
    leave for that; where they too are taken, so is the next one that comes free.
    """
    if total >= capacity:
        return f"{total} jobs run or wait, which is all that may (engine.max_queue)"
    if asker == LOCAL:
        return None
    places = max(1, capacity - capacity // 4)
    if of_peers >= places:
        return f"{of_peers} jobs of other boxes run or wait, which is all that may"
    if of_asker and of_asker >= min(capacity - of_peers, capacity // 2):
        return f"{of_asker} jobs of the asking box run or wait here already, its share of the queue"
    if of_asker and of_peers >= places - max(1, capacity // 8):
        return (
            f"{of_asker} jobs of the asking box run or wait here already, and the last places are for boxes with none"
        )
    return None


@dataclass
class _Waiting(Generic[T]):
    job: T
    since: float
    number: int
    cost: float


@dataclass
class _Line(Generic[T]):
    """The waiting jobs of one asker; `start` is the share of work it has had, in units of its weight."""

    start: float
    weight: float
    classes: dict[int, deque[_Waiting[T]]] = field(default_factory=dict)

    def best(self, now: float) -> tuple[int, int, int]:
        """(class after ageing, number of arrival, class) of the job that is next in this line."""
        return min((_aged(rank, jobs[0].since, now), jobs[0].number, rank) for rank, jobs in self.classes.items())

    def jobs(self) -> Iterator[_Waiting[T]]:
        for jobs in self.classes.values():
            yield from jobs


class FairQueue(Generic[T]):
    """Jobs that wait, a line for each asker. `now` is seconds on any clock that does not go back."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        #: Where the shares of askers stand who have no waiting job, those that left last at the end.
        self._left: dict[str, float] = {}
        self._virtual = 0.0
        self._arrivals = 0
        self._local_last = False

    def __len__(self) -> int:
        return sum(len(jobs) for line in self._lines.values() for jobs in line.classes.values())

    def count(self, asker: str) -> int:
        """How many jobs of an asker wait."""
        line = self._lines.get(asker)
        return sum(map(len, line.classes.values())) if line is not None else 0

    def put(
        self, asker: str, job: T, *, priority: Priority = "normal", cost: float = 1.0, weight: float = 1.0,
        now: float = 0.0,
    ) -> None:  # fmt: skip
        """Append a job to its asker's line.

        `cost` (> 0) is the work it is, in a unit of the caller's; `weight` (> 0) the asker's share of all work.
        """
        if not (cost > 0 and weight > 0):
            raise ValueError("cost and weight must be positive")
        line = self._lines.get(asker)
        if line is None:
            line = self._lines[asker] = _Line(max(self._virtual, self._left.pop(asker, 0.0)), weight)
        line.weight = weight
        self._arrivals += 1
        rank = CLASSES.index(priority)
        line.classes.setdefault(rank, deque()).append(_Waiting(job, now, self._arrivals, cost))

    def waits(self, *, peers: bool = True) -> bool:
        """Whether there is a job to take; without `peers`, one of this box's own clients."""
        return bool(self._lines) if peers else LOCAL in self._lines

    def take(self, now: float = 0.0, *, peers: bool = True) -> T:
        """Remove and return the job whose turn it is; without `peers`, of this box's own clients alone.

        Raises LookupError where nobody waits.
        """
        others = [asker for asker in self._lines if asker != LOCAL] if peers else []
        if LOCAL in self._lines and not (others and self._local_last):
            asker = LOCAL
        elif others:
            asker = min(others, key=lambda peer: self._turn(peer, now))
        else:
            raise LookupError("nobody waits")
        line = self._lines[asker]
        rank = line.best(now)[2]
        waiting = line.classes[rank].popleft()
        if asker != LOCAL:  # whose turns are not shared by work
            self._virtual = max(self._virtual, min(self._lines[peer].start for peer in others))
            line.start += waiting.cost / line.weight
        self._local_last = asker == LOCAL
        self._tidy(asker, rank)
        return waiting.job

    def settle(self, asker: str, difference: float, *, weight: float = 1.0) -> None:
        """A job that was taken was so much more work than it was put down for; less, where it is negative."""
        line = self._lines.get(asker)
        if line is not None:
            line.start = max(self._virtual, line.start + difference / line.weight)
        elif asker in self._left:
            self._left[asker] = max(0.0, self._left[asker] + difference / weight)

    def remove(self, asker: str, job: T) -> bool:
        """Take a job out of its line; False where it does not wait."""
        line = self._lines.get(asker)
        for rank, jobs in list(line.classes.items()) if line is not None else ():
            for waiting in jobs:
                if waiting.job == job:
                    jobs.remove(waiting)
                    self._tidy(asker, rank)
                    return True
        return False

    def ahead(self, asker: str, priority: Priority) -> int:
        """How many of those that wait get their turn before a job that came now, if all jobs are alike: an estimate.

        Its own of a lower class do not count, and of each other asker only as many as this one has in front of its own.
        """
        own, every = self._among(asker, CLASSES.index(priority)), len(CLASSES)
        if asker == LOCAL:
            others = sum(self._among(peer, every) for peer in self._lines if peer != LOCAL)
            return own + min(others, own + 1)
        peers = sum(min(self._among(peer, every), own + 1) for peer in self._lines if peer not in (LOCAL, asker))
        local = self._among(LOCAL, every)
        return own + peers + min(local, own + peers + 1)

    def clear(self) -> list[T]:
        """Empty every line; returns the jobs."""
        jobs = [waiting.job for line in self._lines.values() for waiting in line.jobs()]
        for asker in list(self._lines):
            self._leave(asker)
        return jobs

    def _among(self, asker: str, rank: int) -> int:
        line = self._lines.get(asker)
        return sum(len(jobs) for of, jobs in line.classes.items() if of <= rank) if line is not None else 0

    def _turn(self, asker: str, now: float) -> tuple[float, int]:
        line = self._lines[asker]
        aged, number, _ = line.best(now)
        return line.start + aged * LEAD, number

    def _tidy(self, asker: str, rank: int) -> None:
        line = self._lines[asker]
        if not line.classes[rank]:
            del line.classes[rank]
        if not line.classes:
            self._leave(asker)

    def _leave(self, asker: str) -> None:
        """Nobody of an asker waits any more; what it had counts for as long as it is ahead of the others."""
        start = self._lines.pop(asker).start
        if start > self._virtual:
            self._left[asker] = start
        if len(self._left) > _REMEMBERED:
            self._left = {one: left for one, left in self._left.items() if left > self._virtual}
            while len(self._left) > _REMEMBERED:
                del self._left[next(iter(self._left))]


def _aged(rank: int, since: float, now: float) -> int:
    return max(0, rank - int((now - since) / AGEING))
