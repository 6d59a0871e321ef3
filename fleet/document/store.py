"""The ops on disk: SQLite, in WAL mode, synced at every commit. An op is acknowledged only after its commit.

The only module of `fleet.document` that does I/O. Its methods block; `replica` calls them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fleet import cbor
from fleet.document.acceptance import body_is_well_formed
from fleet.document.clock import MAX_HLC
from fleet.document.op import ID_BYTES, KEY_BYTES, MAX_SEQ, SIGNATURE_BYTES, Op, op_id, read_op
from fleet.errors import DamagedGenesisError, RefusedOpError, StoreError
from fleet.identity.genesis import MAX_GENESIS, Genesis

_SCHEMA_VERSION: Final = 1
_GENESIS: Final = "genesis.cbor"
_DATABASE: Final = "document.db"
_BUSY_SECONDS: Final = 10


@dataclass(frozen=True)
class Opened:
    """What was found: `ops` to be restored; `set_aside` names a corrupt database that was moved out of the way;
    `damaged` counts records that no longer match their id, or are no ops, and were left out, to be fetched again from
    peers."""

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
            _sync_folder(self._folder)
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
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / _GENESIS
        new = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(genesis.raw)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            _sync_folder(self._folder)
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
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite makes files as the umask says; this one lists every box of the fleet.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
        self._connection = connection
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma journal_size_limit = 4000000")
        found = connection.execute("pragma user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            self.close()
            raise StoreError(f"{self._path} was written by a newer shoal (schema {found}); update this one")
        with _transaction(connection):
            connection.execute("create table if not exists op (id blob primary key, raw blob not null) without rowid")
            connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        ops, damaged = [], []
        for identifier, raw in connection.execute("select id, raw from op"):
            op = _stored(identifier, raw)
            if op is not None:
                ops.append(op)
            else:
                damaged.append(identifier)
        if damaged:
            with _transaction(connection):
                connection.executemany("delete from op where id = ?", [(identifier,) for identifier in damaged])
        self._fleet = ops[0].fleet if ops else None
        return Opened(ops, set_aside, len(damaged))

    def peek(self) -> list[Op]:
        """Every op, read beside whoever has the database open; nothing is changed. Raises StoreError."""
        if not self._path.exists():
            return []
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
            ) as connection:
                rows = connection.execute("select id, raw from op").fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read {self._path}: {error}; with the agent stopped: shoal doctor --repair"
            ) from None
        return [op for identifier, raw in rows if (op := _stored(identifier, raw)) is not None]

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
            try:
                with _transaction(self._connection) as cursor:
                    cursor.executemany("delete from op where id = ?", [(op.id,) for op in dropped])
                    cursor.executemany("insert or ignore into op values (?, ?)", [(op.id, op.raw) for op in added])
            except sqlite3.Error as error:
                raise StoreError(f"cannot write {self._path}: {error}; check the disk's free space") from None
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

    def rebuild(self) -> Path:
        """Set the database aside and write its sound records into a new one; returns where the old one is now.

        For a file in which `check` finds something, or that cannot be trusted for another reason. Raises StoreError.
        """
        ops = self.peek()
        try:
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


def _stored(identifier: object, raw: object) -> Op | None:
    """The op of a record, or None for one that is damaged: its id is not the hash of its content, or it is no op.

    Its signature and its author's right to write it were checked when it came. Of the facts of boxes, which are most
    of a document, the form is not compared with the canonical one again, which would take four times as long.
    """
    if not isinstance(raw, bytes) or len(raw) <= SIGNATURE_BYTES:
        return None
    signed = raw[:-SIGNATURE_BYTES]
    own = op_id(signed)
    if own != identifier:
        return None
    try:
        match cbor.decode(signed):
            case [1, bytes(fleet), bytes(author), int(seq), int(hlc), "node", str(path), bytes(body), list(sup)] if (
                len(fleet) == ID_BYTES and len(author) == KEY_BYTES and 0 < seq <= MAX_SEQ and 0 <= hlc <= MAX_HLC
            ):
                return Op(own, fleet, author, seq, hlc, "node", _INTERN(path), body, tuple(sup), raw)
        op = read_op(raw)
        body_is_well_formed(op)
    except (cbor.CborError, RefusedOpError):
        return None
    return replace(op, path=_INTERN(op.path))


def _make_interner() -> Callable[[str], str]:
    known: dict[str, str] = {}

    def intern(path: str) -> str:
        return known.setdefault(path, path) if len(known) < 4096 else path

    return intern


#: `node`, `addr` and the like stand in every box's ops.
_INTERN: Final = _make_interner()


def _free_name(path: Path) -> Path:
    """A name beside a file for its damaged copy; earlier ones are kept."""
    number = 1
    while (target := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return target


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
