"""The ops on disk: SQLite, in WAL mode, synced at every commit. An op is acknowledged only after its commit.

The only module of `fleet.document` that does I/O. Its methods block; `replica` calls them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet.document.collector import collector_paused
from fleet.document.op import Op
from fleet.document.records import SCHEMA_VERSION, checksum, make_table, read_ops, read_rows
from fleet.durable import make_private, sync_folder
from fleet.errors import DamagedGenesisError, RefusedOpError, StoreError
from fleet.identity.genesis import MAX_GENESIS, Genesis

_GENESIS: Final = "genesis.cbor"
_DATABASE: Final = "document.db"
_BUSY_SECONDS: Final = 10


@dataclass(frozen=True)
class Opened:
    """What was found: `ops` to be restored; `set_aside` names a corrupt database that was moved out of the way;
    `damaged` counts records that do not match their id or their checksum any more, or are no ops, and were left out, to
    be fetched again from peers."""

    ops: list[Op]
    set_aside: Path | None = None
    damaged: int = 0


class OpStore:
    """The fleet document of one box, in `folder`: genesis.cbor and document.db. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _DATABASE
        self._connection: sqlite3.Connection | None = None
        #: The fleet of the ops in the open database; None while there are none.
        self._fleet: bytes | None = None
        #: In which row an op is, and the first row that is free.
        self._rows: dict[bytes, int] = {}
        self._next = 1
        # sqlite3 objects may be used by one thread at a time; which one does not matter.
        self._lock = threading.RLock()

    @property
    def path(self) -> Path:
        """The database."""
        return self._path

    def genesis(self) -> Genesis | None:
        """The fleet this box belongs to; None where it belongs to none.

        Raises DamagedGenesisError, and StoreError for a file that cannot be read.
        """
        path = self._folder / _GENESIS
        try:
            with path.open("rb") as file:
                return Genesis.read(file.read(MAX_GENESIS + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"cannot read {path}: {error.strerror or error}; check who owns it, and the disk"
            ) from None
        except RefusedOpError as error:
            raise DamagedGenesisError(
                f"{path}, which says what fleet this box belongs to, is damaged ({error.message}); with the agent"
                " stopped, shoal doctor --repair sets it aside and says how to go on"
            ) from None

    def set_genesis_aside(self) -> Path:
        """Rename a damaged genesis, so that the box can be given a sound copy of it; returns where it is now.

        The ops stay, and hold the box to its fleet: `found` and `commit` refuse any other. Raises StoreError.
        """
        path = self._folder / _GENESIS
        target = _free_name(path)
        try:
            path.rename(target)
            sync_folder(self._folder)
        except OSError as error:
            raise StoreError(f"cannot rename {path}: {error.strerror or error}") from None
        return target

    def found(self, genesis: Genesis) -> None:
        """Make this box part of a fleet, durably; raises StoreError where it, or what it holds, belongs to another."""
        known = self.genesis()
        if known is not None:
            if known.fleet_id != genesis.fleet_id:
                raise StoreError(
                    f"this box already belongs to the fleet {known.name!r}; to leave it, stop the agent and remove"
                    f" {self._folder}"
                )
            return
        self._refuse_others(self.peek(), genesis.fleet_id)
        make_private(self._folder)
        path = self._folder / _GENESIS
        new = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(genesis.raw)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            sync_folder(self._folder)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from None

    def open(self) -> Opened:
        """Open or make the database and read every op.

        A database that SQLite finds corrupt is renamed and a new one made: what it held comes back from the peers.
        Raises StoreError where the folder cannot be written.
        """
        with self._lock:
            try:
                return self._open(None)
            except sqlite3.OperationalError as error:
                raise StoreError(f"cannot open {self._path}: {error}; check the disk and who owns the folder") from None
            except sqlite3.DatabaseError:
                return self._open(self._set_aside())

    def _open(self, set_aside: Path | None) -> Opened:
        self.close()
        make_private(self._folder)
        # SQLite makes files as the umask says; this one lists every box of the fleet.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
        self._connection = connection
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma journal_size_limit = 4000000")
        found = connection.execute("pragma user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            self.close()
            raise StoreError(f"{self._path} was written by a newer shoal (schema {found}); update this one")
        if found < SCHEMA_VERSION:
            with _transaction(connection):
                make_table(connection, found)
        ops, damaged = [], []
        self._rows, self._next = {}, 1
        with collector_paused():
            for row, op in read_rows(connection):
                if op is None or op.id in self._rows:
                    damaged.append(row)
                else:
                    ops.append(op)
                    self._rows[op.id] = row
                self._next = row + 1
        if damaged:
            with _transaction(connection):
                connection.executemany("delete from op where n = ?", [(row,) for row in damaged])
        self._fleet = ops[0].fleet if ops else None
        return Opened(ops, set_aside, len(damaged))

    def peek(self) -> list[Op]:
        """Every op, read beside whoever has the database open; nothing is changed. Raises StoreError.

        Ops whose signature is damaged are among them, so that they can be shown; `open` leaves them out.
        """
        if not self._path.exists():
            return []
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
            ) as connection:
                return read_ops(connection)
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read {self._path}: {error}; with the agent stopped: shoal doctor --repair"
            ) from None

    def _set_aside(self) -> Path:
        self.close()
        target = _free_name(self._path)
        self._path.rename(target)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(_DATABASE + suffix).rename(target.with_name(target.name + suffix))
        return target

    def commit(self, added: Iterable[Op], dropped: Iterable[Op]) -> None:
        """Write one change, whole or not at all; it is on disk when this returns.

        Raises StoreError, also for ops of another fleet than that of the ops which are here: a box that has lost its
        genesis must not become part of two.
        """
        added = list(added)
        with self._lock:
            if self._connection is None:
                raise StoreError(f"{self._path} is closed")
            if self._fleet is not None:
                self._refuse_others(added, self._fleet)
            gone = {op.id: self._rows[op.id] for op in dropped if op.id in self._rows}
            new = {op.id: op for op in added if op.id not in self._rows or op.id in gone}
            rows = [(row, op.id, op.raw, checksum(op.raw)) for row, op in enumerate(new.values(), self._next)]
            try:
                with _transaction(self._connection) as cursor:
                    cursor.executemany("delete from op where n = ?", [(row,) for row in gone.values()])
                    # A commit that failed may have reached the disk all the same: its rows are then written again.
                    cursor.executemany("insert or replace into op values (?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                raise StoreError(f"cannot write {self._path}: {error}; check the disk's free space") from None
            for op_id in gone:
                del self._rows[op_id]
            self._rows |= {op_id: row for row, op_id, _, _ in rows}
            self._next += len(rows)
            if self._fleet is None and added:
                self._fleet = added[0].fleet

    def _refuse_others(self, ops: Iterable[Op], fleet: bytes) -> None:
        if any(op.fleet != fleet for op in ops):
            raise StoreError(
                f"the ops in {self._path} are of another fleet; to leave that one, stop the agent and move"
                f" {self._folder} away"
            )

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; empty when it is sound. Reads all of it."""
        with self._lock:
            if self._connection is None:
                raise StoreError(f"{self._path} is closed")
            try:
                rows = self._connection.execute("pragma integrity_check(20)").fetchall()
            except sqlite3.Error as error:
                return [str(error)]
            return [str(row[0]) for row in rows if row[0] != "ok"]

    def rebuild(self, fleet: bytes | None) -> Path:
        """Set the open database aside and write its sound ops of a fleet into a new one; returns where the old one is.

        `fleet` is None where it is not known; then all are kept. For a file in which `check` finds something, or that
        holds ops of another fleet. Raises StoreError.
        """
        with self._lock:
            if self._connection is None:
                raise StoreError(f"{self._path} is closed")
            try:
                ops = [op for _, op in read_rows(self._connection) if op is not None and fleet in (None, op.fleet)]
                aside = self._set_aside()
                self._open(None)
            except (OSError, sqlite3.Error) as error:
                raise StoreError(f"cannot rebuild {self._path}: {error}") from None
            self.commit(ops, [])
            return aside

    def close(self) -> None:
        """Close the database; what was committed is on disk already."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    cursor = connection.cursor()
    cursor.execute("begin immediate")
    try:
        yield cursor
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors, such as a full disk
            cursor.execute("rollback")
        raise
    cursor.execute("commit")


def _free_name(path: Path) -> Path:
    """A name beside a file for its damaged copy; earlier ones are kept."""
    number = 1
    while (target := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return target
