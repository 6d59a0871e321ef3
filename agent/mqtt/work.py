"""One job of a broker's client on its way through this box, and those that were answered lately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from agent.mqtt.journal import KEEP, MAX_KEPT, MAX_KEPT_BYTES, JobRow
from agent.mqtt.replies import Answer
from agent.mqtt.request import Asked

#: How often a job is begun; one during which the agent ends each time is most likely why.
MAX_TRIES: Final = 3


@dataclass(eq=False)
class Work:
    """A job that is not answered yet. `settle` acknowledges its request to the broker; `size` is its bytes."""

    row: JobRow
    asked: Asked
    settle: Callable[[], None]
    size: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    #: The journal has the job, by its last commit; it is its turn; its client was told that it is accepted.
    stored: trio.Event = field(default_factory=trio.Event)
    turn: trio.Event = field(default_factory=trio.Event)
    accepted: trio.Event = field(default_factory=trio.Event)
    #: Whether it is settled that this box runs it.
    ours: bool = False
    #: Whether the journal cannot be written, or synced; the broker keeps the request until it is answered.
    unwritten: bool = False
    #: Whether the answer could not be written down.
    unfinished: bool = False
    #: Whether the broker has the answer.
    said: bool = False
    #: Whether another box seems to have the job, and whether it has.
    doubted: bool = False
    lost: bool = False
    #: Whether it is of an earlier process of this box.
    replayed: bool = False
    displaced: bool = False
    answer: Answer | None = None

    @property
    def client(self) -> str:
        """Who asks, as far as that is known: brokers do not tell."""
        return self.row.client or self.row.reply_to or "mqtt"

    @property
    def reply_to(self) -> str | None:
        """Where the answer goes, None for the job's own topics."""
        return self.row.reply_to


@dataclass(frozen=True)
class Done:
    """A job that was answered: what was asked, and the answer."""

    fingerprint: bytes
    topic: str
    correlation: bytes | None
    answer: bytes
    at: float


class Answered:
    """Answers of the last hour, for requests that come again; as bounded as the journal's. Pure."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Done] = OrderedDict()
        self._bytes = 0

    def get(self, job: str, now: float) -> Done | None:
        """The answer to a job, None where there is none, or it is too old."""
        found = self._jobs.get(job)
        return found if found is not None and now - found.at <= KEEP else None

    def add(self, row: JobRow, topic: str, answer: bytes, now: float) -> None:
        """A job was answered."""
        self._forget(row.id)
        self._jobs[row.id] = Done(row.fingerprint, topic, row.correlation, answer, now)
        self._bytes += len(answer)
        while len(self._jobs) > MAX_KEPT or self._bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._jobs)))

    def _forget(self, job: str) -> None:
        found = self._jobs.pop(job, None)
        if found is not None:
            self._bytes -= len(found.answer)


class Book:
    """Every job that this box knows: those that are open, and those that were answered."""

    def __init__(self) -> None:
        self.open: Final[dict[str, Work]] = {}
        self.answered: Final = Answered()
        #: Jobs whose ids this box chose, by what their requests say.
        self._auto: OrderedDict[bytes, str] = OrderedDict()

    def add(self, work: Work) -> None:
        """A job is open."""
        self.open[work.row.id] = work
        self.note(work.row)

    def note(self, row: JobRow) -> None:
        """Remember a job by its request, where it had no id."""
        if row.auto:
            self._auto[same_request(row.fingerprint, row.reply_to, row.correlation)] = row.id
            while len(self._auto) > 2 * MAX_KEPT:
                self._auto.popitem(last=False)

    def find(self, same: bytes) -> str:
        """The job without an id of its own whose request was this one; empty where there is none."""
        return self._auto.get(same, "")

    def fingerprint(self, job: str, now: float) -> bytes | None:
        """What a job asks for; None where it is not known."""
        work, done = self.open.get(job), self.answered.get(job, now)
        return work.row.fingerprint if work is not None else done.fingerprint if done is not None else None


def same_request(fingerprint: bytes, reply_to: str | None, correlation: bytes | None) -> bytes:
    """What tells a request without an id apart from another one."""
    return b"\0".join((fingerprint, (reply_to or "").encode("utf-8", "replace"), correlation or b""))


def stored(row: JobRow) -> JobRow:
    """The job once the journal has it, without the bytes of its request: they were understood."""
    return replace(row, request=b"")


def again(row: JobRow) -> JobRow:
    """The job as it is begun once more."""
    return replace(row, tries=row.tries + 1)
