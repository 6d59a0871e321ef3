"""The document on disk: killed in mid-write, corrupt, full, of another fleet."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import trio

from agent.document_disk import FOLDER, read_document, repair
from fleet import cbor
from fleet.document.op import op_id
from fleet.document.replica import Replica
from fleet.document.store import OpStore
from fleet.errors import RefusedOpError, StoreError
from fleet.identity.keys import Identity
from tests.command import Ended, run_shoal
from tests.harness import Fleet, seed_of

KILLS = 50
BOX = Identity.from_seed(seed_of("writer"))


def opened(folder: Path) -> tuple[OpStore, Replica]:
    store = OpStore(folder)
    genesis = store.genesis()
    assert genesis is not None
    return store, Replica(genesis, store.open().ops, store)


def test_no_acknowledged_op_is_lost_under_50_kills_and_no_commit_is_torn(tmp_path: Path) -> None:
    dice = random.Random(7)
    total = 0
    command = [sys.executable, "-m", "tests.integration._store_writer", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(KILLS):
            writers.stdin.write("another\n")
            writers.stdin.flush()
            writer = int(writers.stdout.readline())
            acknowledged = [int(writers.stdout.readline())]  # it writes by now
            time.sleep(dice.uniform(0, 0.05))  # any moment will do: what it has said by then waits in the pipe
            os.kill(writer, signal.SIGKILL)
            acknowledged += [int(line) for line in iter(writers.stdout.readline, "ended\n")]
            total += len(acknowledged)
            look_at(tmp_path, acknowledged[-1])
    assert total > 2 * KILLS


def look_at(folder: Path, acknowledged: int) -> None:
    """What a writer left: everything that it said was on disk, and each commit whole."""
    store, replica = opened(folder)
    assert store.check() == []
    assert replica.ops.highest_seq(BOX.public_key) >= acknowledged
    facts = replica.facts_of(BOX.public_key)
    seqs = sorted(op.seq for op in facts.values())
    assert len(seqs) == 4
    assert seqs[-1] - seqs[0] == 3, "one commit is whole or not there"
    assert len({cbor.encode(cbor.decode(op.body)["name"]) for op in facts.values()}) == 1  # type: ignore[index]
    store.close()


def filled(folder: Path, boxes: int = 50) -> Fleet:
    fleet = Fleet()
    store = OpStore(folder)
    store.found(fleet.genesis)
    store.open()
    names = [Identity.from_seed(seed_of(f"box-{n}")) for n in range(boxes)]
    store.commit(fleet.certify(*(one.peer_id for one in names)), [])
    store.close()
    return fleet


def test_a_corrupt_database_is_set_aside_and_a_new_one_made(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "document.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
    store = OpStore(tmp_path)
    found = store.open()
    assert found.ops == []
    assert found.set_aside is not None
    assert found.set_aside.exists()
    assert store.genesis() is not None, "the box still knows its fleet"
    assert store.check() == []
    store.close()


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "document.db").write_bytes(b"this is not a database, but it is long enough to look like one" * 100)
    store = OpStore(tmp_path)
    found = store.open()
    assert (found.ops, found.set_aside is not None) == ([], True)
    store.close()


def test_records_with_a_changed_bit_anywhere_are_left_out_and_the_others_stay(tmp_path: Path) -> None:
    fleet = filled(tmp_path)
    with sqlite3.connect(tmp_path / "document.db") as connection:
        records = connection.execute("select n, id, raw, sum from op").fetchall()
        for row, _, raw, _ in records[:16]:
            bit = 8 * len(raw) * row // 17  # in the content of some, in the signature of others
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            connection.execute("update op set raw = ? where n = ?", (bytes(changed), row))
        (row, identifier, _, total) = records[16]
        connection.execute("update op set sum = ? where n = ?", (total ^ 1, row))
        (row, identifier, _, total) = records[17]
        connection.execute("update op set id = ? where n = ?", (identifier[::-1], row))
        (row, _, raw, _) = records[18]
        connection.execute("update op set raw = ? where n = ?", (raw.hex(), row))
        connection.execute("insert into op select 99, id, raw, sum from op where n = ?", (records[20][0],))
    connection.close()
    store = OpStore(tmp_path)
    found = store.open()
    assert (found.damaged, len(found.ops)) == (20, 31)
    new = fleet.certify(BOX.peer_id)
    store.commit(new, found.ops[:1])
    store.close()
    again = OpStore(tmp_path).open()
    assert (again.damaged, again.ops) == (0, [*found.ops[1:], *new])


def test_a_database_of_the_first_schema_is_taken_over_and_read_beside_an_agent_that_has_not(tmp_path: Path) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "document.db") as connection:
        connection.execute("create table old (id blob primary key, raw blob not null) without rowid")
        connection.execute("insert into old select id, raw from op")
        connection.execute("drop table op")
        connection.execute("alter table old rename to op")
        connection.execute("pragma user_version = 1")
    connection.close()
    held = {op.id: op for op in OpStore(tmp_path).peek()}
    assert len(held) == 50
    store = OpStore(tmp_path)
    found = store.open()
    assert ({op.id: op for op in found.ops}, found.damaged, store.check()) == (held, 0, [])
    gone = found.ops[7]
    store.commit([], [gone])
    store.commit([gone, gone], [])
    store.commit([gone], [gone])
    store.close()
    again = OpStore(tmp_path).open()
    assert ({op.id: op for op in again.ops}, again.damaged) == (held, 0)


def test_ops_of_another_fleet_stop_the_box_until_a_repair_sets_them_aside(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    other = Fleet("another")
    filled(folder)
    with sqlite3.connect(folder / "document.db") as connection:
        for row, op in enumerate(other.certify(BOX.peer_id), 1000):
            connection.execute("insert into op values (?, ?, ?, ?)", (row, op.id, op.raw, zlib.crc32(op.raw)))
    connection.close()
    with pytest.raises(RefusedOpError, match="shoal doctor --repair") as refused:
        opened(folder)
    assert refused.value.reason == "other_fleet"
    with pytest.raises(RefusedOpError, match="1 ops on this box's disk are of another fleet"):
        read_document(tmp_path)
    done = repair(tmp_path)
    assert (done.ops, done.members, done.problems) == (50, 50, ("1 ops were of another fleet than genesis.cbor says",))
    assert done.set_aside is not None
    _, replica = opened(folder)
    assert len(replica.ops) == 50


#: Contents that fit their ids and are no ops, as a bad program or a bad disk below the hash could leave them.
NO_OPS = {
    "no CBOR": b"\xff" * 40,
    "a tag": b"\xc1\x1b" + b"\xff" * 8,
    "too deep": b"\x81" * 5000 + b"\x80",
    "a number": cbor.encode(7),
    "eight fields": cbor.encode([1] * 8),
    "wrong types": cbor.encode([1, "f", 2, "seq", None, "node", 3, [], {}]),
    "a short key": cbor.encode([1, bytes(32), b"key", 1, 1, "node", "node", b"\xa0", []]),
    "no number": cbor.encode([1, bytes(32), bytes(32), 1 << 63, 1, "node", "node", b"\xa0", []]),
    "an unknown kind": cbor.encode([1, bytes(32), bytes(32), 1, 1, "what", "node", b"\xa0", []]),
    "a bad path": cbor.encode([1, bytes(32), bytes(32), 1, 1, "cert", "zz", cbor.encode("member"), []]),
    "a bad body": cbor.encode([1, bytes(32), bytes(32), 1, 1, "cert", "ab" * 32, b"\xff", []]),
}


@pytest.mark.parametrize("content", NO_OPS.values(), ids=NO_OPS.keys())
def test_a_record_that_fits_its_id_and_is_no_op_counts_as_damaged(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "document.db") as connection:
        raw = content + bytes(64)
        connection.execute("insert into op values (99, ?, ?, ?)", (op_id(content), raw, zlib.crc32(raw)))
    connection.close()
    store = OpStore(tmp_path)
    genesis = store.genesis()
    assert genesis is not None
    assert len(store.peek()) == 50
    found = store.open()
    assert (found.damaged, len(found.ops)) == (1, 50)
    assert len(Replica(genesis, found.ops, store).view.authority.members) == 50
    store.close()
    assert OpStore(tmp_path).open().damaged == 0


def test_files_are_private_and_a_box_cannot_be_taken_into_another_fleet(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    filled(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    with pytest.raises(StoreError, match="already belongs"):
        OpStore(folder).found(Fleet("another").genesis)


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "document.db") as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer shoal"):
        OpStore(tmp_path).open()


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    fleet = filled(tmp_path)

    async def scenario() -> None:
        store, replica = opened(tmp_path)
        changes = []
        replica.subscribe(changes.append)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (tmp_path / "document.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 4096), limit[1]))
        try:
            with pytest.raises(StoreError, match="free space"):
                await replica.offer([op.raw for op in fleet.certify(BOX.peer_id)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert replica.unsaved
        assert changes == [], "nobody is told of what is not on disk"
        # The next change takes the unsaved one along.
        outcomes = await replica.offer([fleet.write("cfg", "model/a", {}).raw])
        assert [outcome.state for outcome in outcomes] == ["new"]
        assert not replica.unsaved
        assert [len(change.added) for change in changes] == [1, 1]
        store.close()
        _, again = opened(tmp_path)
        assert len(again.ops) == 52
        assert again.view.digest() == replica.view.digest()

    trio.run(scenario)


def test_doctor_repairs_what_is_left_of_a_damaged_document(tmp_path: Path) -> None:
    (tmp_path / "shoal.yaml").write_text("name: pos-1\nstate_dir: state\n")
    folder = tmp_path / "state" / "fleet"
    folder.mkdir(parents=True)
    filled(folder)

    def doctor() -> Ended:
        return run_shoal(["doctor", "--repair", "-o", "json", "--config", str(tmp_path / "shoal.yaml")])

    sound = json.loads(doctor().out)
    assert (sound["ops"], sound["members"], sound["problems"], sound["set_aside"]) == (50, 50, [], None)
    path = folder / "document.db"
    whole = bytearray(path.read_bytes())
    whole[5 * 4096 : 6 * 4096] = os.urandom(4096)
    path.write_bytes(whole)
    mended = doctor()
    assert mended.code == 0, mended.out + mended.err
    report = json.loads(mended.out)
    assert report["set_aside"] is not None
    assert report["ops"] == report["members"] < 50
    again = json.loads(doctor().out)
    assert (again["problems"], again["set_aside"], again["ops"]) == ([], None, report["ops"])


def test_the_document_can_be_read_beside_a_running_agent(tmp_path: Path) -> None:
    filled(tmp_path)
    store = OpStore(tmp_path)
    store.open()
    assert len(OpStore(tmp_path).peek()) == 50
    store.close()
