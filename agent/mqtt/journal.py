"""Jobs and answers on disk: SQLite, written in groups, so that a job that was acknowledged outlasts the agent.

A request is acknowledged to the broker once it is synced; an answer is committed before it is sent, and deleted when
the broker has it. Commits do not wait for syncs: what was committed is there after a kill, what was synced after a
power cut too. So a box that is killed runs its jobs again at its next start, and sends what it had not sent. Answers
are kept for KEEP seconds beside: a request that comes again with the same id gets the same answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import structlog
import trio

from agent.errors import AgentError
from agent.mqtt.outbox import Entry
from fleet.durable import make_private
from fleet.net.messages import Priority

FOLDER: Final = "mqtt"
_DATABASE: Final = "journal.db"
_VERSION: Final = 1
#: Seconds that an answer is kept for those who ask again, and how many of them.
KEEP: Final = 3600.0
MAX_KEPT: Final = 2000
MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
#: Changes that are committed together.
_BATCH: Final = 256
#: Changes that are kept for when the disk takes something again.
_MOST_AGAIN: Final = 10_000
#: Commits between two looks for answers that are too old.
_TIDY: Final = 64

log = structlog.get_logger("shoal.mqtt")

_SCHEMA: Final = """
create table if not exists jobs (
    id text primary key, fleet_wide int, auto int, fingerprint blob, request blob, reply_to text, correlation blob,
    traceparent text, client text, priority text, received real, deadline real, model text, tries int, done real,
    topic text, answer blob
);
create table if not exists outbox (
    seq integer primary key, topic text, payload blob, priority text, retain int, correlation blob, user text,
    expires real
);
create table if not exists meta (key text primary key, value text);
"""


class JournalError(AgentError):
    """The disk does not take what has to be on it before a job is acknowledged; the message says why."""

    code = "store"
    retryable = True


@dataclass(frozen=True)
class JobRow:
    """A job as it was asked for, and the model that it is to run with. Times are of the wall clock.

    `auto` is whether the box chose the id; `tries` how often it was begun; `done` is when it was answered, to `topic`
    with `answer`, None before.
    """

    id: str
    fleet_wide: bool
    auto: bool
    fingerprint: bytes
    request: bytes
    reply_to: str | None
    correlation: bytes | None
    traceparent: str | None
    client: str
    priority: Priority
    received: float
    deadline: float
    model: str
    tries: int = 0
    done: float | None = None
    topic: str = ""
    answer: bytes = b""


@dataclass
class Opened:
    """What the journal had in it. `set_aside` is a database that cannot be read and was moved out of the way."""

    jobs: list[JobRow]
    outbox: list[Entry]
    next_seq: int
    meta: dict[str, str]
    set_aside: Path | None = None


_Statement: TypeAlias = tuple[str, Sequence[object]]


class Journal:
    """The journal of one box, in `state_dir`. `run` writes; the other methods say what to write."""

    def __init__(self, state_dir: Path, wall: Callable[[], float] = time.time) -> None:
        self.folder: Final = state_dir / FOLDER
        self.problem = ""
        self._wall = wall
        self._connection: sqlite3.Connection | None = None
        self._waiting: list[Change] = []
        #: What could not be written and is to be with the next that can.
        self._again: list[Change] = []
        #: What is committed and is to be synced, and SQLite's log, in which it is.
        self._unsynced: list[Change] = []
        self._unsynced_more = trio.Event()
        self._log: int | None = None
        self._more = trio.Event()
        self._commits = 0
        self._next_seq = 1

    def open(self) -> Opened:
        """Read what is there, setting aside what cannot be read. Blocks; raises JournalError."""
        try:
            return self._open()
        except (OSError, sqlite3.Error) as error:
            text = f"the journal of jobs in {self.folder} cannot be opened: {error}; check the disk, and who owns it"
            raise JournalError(text) from None

    def _open(self) -> Opened:
        make_private(self.folder)
        path = self.folder / _DATABASE
        try:
            opened = self._read(path)
        except sqlite3.OperationalError:
            raise  # the disk, or somebody who has it open: what is in it may be whole
        except sqlite3.DatabaseError:
            self.close()
            aside = path.with_suffix(f".damaged-{int(self._wall())}")
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{ending}").rename(f"{aside}{ending}")
            opened = self._read(path)
            opened.set_aside = aside
        self._next_seq = opened.next_seq
        return opened

    def _read(self, path: Path) -> Opened:
        # Any thread, one at a time: `run` alone uses it once it is open.
        db = self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        path.chmod(0o600)
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.executescript(_SCHEMA)
        version = db.execute("pragma user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError("of another version")
        db.execute(f"pragma user_version = {_VERSION}")
        jobs = [_job(row) for row in db.execute(f"select {_JOB_COLUMNS} from jobs order by received, id")]  # noqa: S608
        outbox = [_entry(row) for row in db.execute(f"select {_ENTRY_COLUMNS} from outbox order by seq")]  # noqa: S608
        meta = dict(db.execute("select key, value from meta"))
        next_seq = max((entry.seq for entry in outbox), default=0) + 1
        return Opened(jobs, outbox, next_seq, meta)

    def close(self) -> None:
        """Let go of the files."""
        if self._log is not None:
            os.close(self._log)
            self._log = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what to write -----------------------------------------------------------------------------------------------

    def take(self, job: JobRow) -> Change:
        """A job, to be there after a power cut too; `synced` waits for that."""
        return self._put((_INSERT_JOB, _job_values(job)), sync=True)

    async def written(self, change: Change) -> None:
        """Return when it is committed. Raises JournalError. Cancelling leaves it to be written."""
        await change.done.wait()
        change.check()

    async def synced(self, change: Change) -> None:
        """Return when it is there for good. Raises JournalError. Cancelling leaves it to be synced."""
        await change.synced.wait()
        change.check()

    def began(self, job: str, tries: int) -> None:
        """The job was begun so many times."""
        self._put(("update jobs set tries = ? where id = ?", (tries, job)))

    async def finish(self, job: str, entry: Entry) -> None:
        """The job's answer, which is to be sent: it gets a number. Raises JournalError; then nothing was written."""
        entry.seq = self._number()
        done = (self._wall(), entry.topic, entry.payload, job)
        update = "update jobs set done = ?, topic = ?, answer = ? where id = ?", done
        await self.written(self._put(update, (_INSERT_ENTRY, _entry_values(entry))))

    async def keep(self, entry: Entry) -> None:
        """Something to be sent: it gets a number. Raises JournalError."""
        entry.seq = self._number()
        await self.written(self._put((_INSERT_ENTRY, _entry_values(entry))))

    def sent(self, entry: Entry) -> None:
        """The broker has it, or it is not to be sent any more."""
        if entry.seq:
            self._put(("delete from outbox where seq = ?", (entry.seq,)), again=True)

    def drop(self, job: str) -> None:
        """The job is another box's, or was answered and could not be finished here."""
        self._put(("delete from jobs where id = ?", (job,)), again=True)

    def remember(self, key: str, value: str) -> None:
        """Keep a text for the next start."""
        self._put(("insert or replace into meta values (?, ?)", (key, value)))

    def _number(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    # --- writing -----------------------------------------------------------------------------------------------------

    def _put(self, *statements: _Statement, sync: bool = False, again: bool = False) -> Change:
        change = Change(statements, sync, again)
        self._waiting.append(change)
        self._more.set()
        return change

    async def run(self) -> None:
        """Write until cancelled; what waits then is written before it returns."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_synced)
                while True:
                    await self._more.wait()
                    self._more = trio.Event()
                    while self._waiting:
                        await self._commit()
        finally:
            while self._waiting:
                await self._commit()
            if self._again:
                await self._commit()
            await self._sync()

    async def _keep_synced(self) -> None:
        while True:
            await self._unsynced_more.wait()
            self._unsynced_more = trio.Event()
            await self._sync()

    async def _sync(self) -> None:
        """Have the log of commits synced, and what was in it with it."""
        batch, self._unsynced = self._unsynced, []
        if not batch:
            return
        with trio.CancelScope(shield=True):
            problem = await trio.to_thread.run_sync(self._sync_log)
        for change in batch:
            change.problem = problem
            change.synced.set()

    def _sync_log(self) -> str:
        """What SQLite does at each commit with synchronous = full; returns why not, empty where it worked."""
        try:
            if self._log is None:
                self._log = os.open(f"{self.folder / _DATABASE}-wal", os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(self._log)
        except OSError as error:
            return str(error.strerror or error)
        return ""

    async def _commit(self) -> None:
        batch, self._waiting = [*self._again, *self._waiting[:_BATCH]], self._waiting[_BATCH:]
        self._commits += 1
        with trio.CancelScope(shield=True):
            # A thread is not begun in a scope that is cancelled, and the batch would be lost.
            problem = await trio.to_thread.run_sync(self._write, batch, self._commits % _TIDY == 0)
        if problem != self.problem:
            log.warning("mqtt.journal", problem=problem or "it can be written again")
        self.problem = problem
        self._again = [change for change in batch if change.again][-_MOST_AGAIN:] if problem else []
        for change in batch:
            change.problem = problem
            change.done.set()
            if change.wants_sync:
                if problem:
                    change.synced.set()
                else:
                    self._unsynced.append(change)
                    self._unsynced_more.set()

    def _write(self, batch: Sequence[Change], tidy: bool) -> str:
        """Commit changes together; returns why not, empty where it worked."""
        db = self._connection
        if db is None:
            return "it is closed"
        try:
            db.execute("begin immediate")
            for change in batch:
                for statement, values in change.statements:
                    db.execute(statement, values)
            if tidy:
                self._tidy(db)
            db.execute("commit")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                db.execute("rollback")
            return str(error)
        return ""

    def _tidy(self, db: sqlite3.Connection) -> None:
        db.execute("delete from jobs where done < ?", (self._wall() - KEEP,))
        sizes = list(db.execute("select id, length(answer) from jobs where done is not null order by done desc"))
        total = 0
        for count, (job, size) in enumerate(sizes, 1):
            total += size
            if count > MAX_KEPT or total > MAX_KEPT_BYTES:
                db.execute("delete from jobs where id = ?", (job,))


class Change:
    """What is to be written together, and whether it has been; `again` is for what nobody waits for and must not be
    lost: what was answered would be answered once more at the next start."""

    def __init__(self, statements: Sequence[_Statement], sync: bool, again: bool) -> None:
        self.statements = statements
        self.again = again
        self.wants_sync = sync
        self.done = trio.Event()
        self.synced = trio.Event()
        self.problem = ""

    def check(self) -> None:
        """Raises JournalError where it could not be written."""
        if self.problem:
            raise JournalError(f"the journal of jobs cannot be written ({self.problem}); check the disk of state_dir")


_JOB_COLUMNS: Final = (
    "id, fleet_wide, auto, fingerprint, request, reply_to, correlation, traceparent, client, priority, received,"
    " deadline, model, tries, done, topic, answer"
)
_ENTRY_COLUMNS: Final = "seq, topic, payload, priority, retain, correlation, user, expires"
_INSERT_JOB: Final = f"insert or replace into jobs ({_JOB_COLUMNS}) values ({', '.join('?' * 17)})"  # noqa: S608
_INSERT_ENTRY: Final = f"insert into outbox ({_ENTRY_COLUMNS}) values ({', '.join('?' * 8)})"  # noqa: S608


def _job_values(job: JobRow) -> tuple[object, ...]:
    return tuple(vars(job).values())


def _job(row: tuple[Any, ...]) -> JobRow:
    values = dict(zip(_names(_JOB_COLUMNS), row, strict=True))
    values |= {"fleet_wide": bool(values["fleet_wide"]), "auto": bool(values["auto"])}
    return JobRow(**values)


def _entry_values(entry: Entry) -> tuple[object, ...]:
    user = json.dumps(entry.user)
    return (
        entry.seq, entry.topic, entry.payload, entry.priority, entry.retain, entry.correlation, user, entry.expires,
    )  # fmt: skip


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, topic, payload, priority, retain, correlation, user, expires = row
    pairs = tuple((str(key), str(value)) for key, value in json.loads(user))
    return Entry(topic, payload, cast("Priority", priority), bool(retain), correlation, pairs, expires, seq)


def _names(columns: str) -> Iterator[str]:
    return (name.strip() for name in columns.split(","))
