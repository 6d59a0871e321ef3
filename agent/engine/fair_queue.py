"""Who waits for a model, whose turn is next, and how many may wait. Pure.

Askers are this box's own clients, taken together, and each peer by its key. Turns go to the asker who has waited
longest for one, so a peer with two hundred jobs and a peer with one get one each; every second turn at most goes to
this box's own clients, as long as there are any.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

#: The asker of jobs that this box's own clients sent.
LOCAL: Final = ""
#: Askers whose last turn is remembered; past it, those who had theirs longest ago are forgotten.
_REMEMBERED: Final = 1024

T = TypeVar("T")


def refusal(asker: str, *, capacity: int, total: int, of_asker: int, of_peers: int) -> str | None:
    """Why one more job of an asker cannot be taken, None if it can; all counts are of jobs that run or wait.

    One peer gets half of the room at most, and all peers together three quarters: what is left is for others, and
    for this box's own clients.
    """
    if total >= capacity:
        return f"{total} jobs run or wait, which is all that may (engine.max_queue)"
    if asker == LOCAL:
        return None
    share = max(1, capacity // 2)
    if of_asker >= share:
        return f"{of_asker} jobs of the asking box run or wait here already, its share of the queue"
    if of_peers >= max(1, capacity - capacity // 4):
        return f"{of_peers} jobs of other boxes run or wait, which is all that may"
    return None


class FairQueue(Generic[T]):
    """Jobs that wait, one line for each asker."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        #: When each asker had its last turn, as the number of that turn; in the order of turns.
        self._turns: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def count(self, asker: str) -> int:
        """How many jobs of an asker wait."""
        return len(self._lines.get(asker, ()))

    def put(self, asker: str, job: T) -> None:
        """Append a job to its asker's line."""
        self._lines.setdefault(asker, deque()).append(job)

    def take(self) -> T:
        """Remove and return the job whose turn it is. Raises LookupError where nobody waits."""
        peers = [asker for asker in self._lines if asker != LOCAL]
        if LOCAL in self._lines and (not peers or self._turns.get(LOCAL) != self._turn):
            asker = LOCAL
        elif peers:
            asker = min(peers, key=lambda peer: self._turns.get(peer, 0))
        else:
            raise LookupError("nobody waits")
        line = self._lines[asker]
        job = line.popleft()
        if not line:
            del self._lines[asker]
        self._turn += 1
        self._turns.pop(asker, None)
        self._turns[asker] = self._turn
        if len(self._turns) > _REMEMBERED:
            del self._turns[next(iter(self._turns))]
        return job

    def remove(self, asker: str, job: T) -> bool:
        """Take a job out of its line; False where it does not wait."""
        line = self._lines.get(asker)
        if line is None or job not in line:
            return False
        line.remove(job)
        if not line:
            del self._lines[asker]
        return True

    def clear(self) -> list[T]:
        """Empty every line; returns the jobs."""
        jobs = [job for line in self._lines.values() for job in line]
        self._lines.clear()
        return jobs
