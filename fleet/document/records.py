"""The table of ops in the database: its columns, how a row is checked when it is read, and what older ones become.

    op(n, id, raw, sum)     in the order in which they came

Rows are added at the end: were they in the order of their ids, which is no order at all, then 256 ops that are written
together would change 256 pages instead of 20, all of which are written twice. Which row an op is in is known in memory.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from typing import Final

from fleet.document.acceptance import body_is_well_formed
from fleet.document.op import Op, Shared, read_op
from fleet.errors import RefusedOpError

SCHEMA_VERSION: Final = 2
_TABLE: Final = (
    "create table if not exists op (n integer primary key, id blob not null, raw blob not null, sum integer not null)"
)


def make_table(connection: sqlite3.Connection, version: int) -> None:
    """Make the table, or bring one of an older schema up; to be called within a transaction."""
    if version == 1:  # op(id, raw), by id
        connection.create_function("checksum", 1, checksum, deterministic=True)
        connection.execute("alter table op rename to op_by_id")
    connection.execute(_TABLE)
    if version == 1:
        connection.execute("insert into op (id, raw, sum) select id, raw, checksum(raw) from op_by_id")
        connection.execute("drop table op_by_id")
    connection.execute(f"pragma user_version = {SCHEMA_VERSION}")


def checksum(raw: object) -> int:
    """CRC-32 of a whole op. Its id covers all but the signature; one that is damaged there, and passed on, would make
    this box look hostile to others."""
    return zlib.crc32(raw) if isinstance(raw, bytes) else 0


def read_rows(connection: sqlite3.Connection) -> Iterator[tuple[int, Op | None]]:
    """Every row's number, and its op; None for one that is damaged: it does not fit its id or its checksum, or is none.

    Limits, form and the bodies that carry authority are checked as when an op comes from a peer. Its signature and its
    author's right to write it were checked when it came, and are not checked again.
    """
    shared = Shared()
    for number, identifier, raw, total in connection.execute("select n, id, raw, sum from op order by n"):
        sound = type(raw) is bytes and zlib.crc32(raw) == total
        yield number, _read(identifier, raw, shared) if sound else None


def read_ops(connection: sqlite3.Connection) -> list[Op]:
    """The ops of a table of any schema up to this one that fit their ids; signatures may be damaged."""
    shared = Shared()
    found = (_read(identifier, raw, shared) for identifier, raw in connection.execute("select id, raw from op"))
    return [op for op in found if op is not None]


def _read(identifier: object, raw: object, shared: Shared) -> Op | None:
    if type(raw) is not bytes:
        return None
    try:
        op = read_op(raw, shared)
        body_is_well_formed(op)
    except RefusedOpError:
        return None
    return op if op.id == identifier else None
