"""What waits for the broker, bounded and in order, and what is on the disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.journal import FOLDER, JobRow, Journal, JournalError
from agent.mqtt.outbox import RANKS, Entry, Outbox

PRIORITIES = st.lists(st.sampled_from(RANKS), max_size=30)


@given(PRIORITIES, st.integers(1, 10))
def test_what_is_over_the_bound_goes_oldest_bulk_first(priorities: list[str], most: int) -> None:
    box, dropped = Outbox(most), []
    for number, priority in enumerate(priorities):
        dropped += box.add(Entry(f"t{number}", b"x", priority))  # type: ignore[arg-type]
    kept = []
    while (entry := box.next()) is not None:
        kept.append(entry)
    numbers = [int(entry.topic[1:]) for entry in kept]
    assert numbers == sorted(numbers)
    assert len(kept) + len(dropped) == len(priorities)
    # Of those that are left none is worse than one that went, and of the same class none is older.
    for gone in dropped:
        for left in kept:
            worse = (RANKS.index(left.priority), -int(left.topic[1:])) > (
                RANKS.index(gone.priority),
                -int(gone.topic[1:]),
            )
            assert not worse or int(left.topic[1:]) > int(gone.topic[1:])
    assert len(kept) == min(most, len(priorities))


def test_bytes_are_bounded_too_and_what_is_on_its_way_is_not_dropped() -> None:
    box = Outbox(100, 3000)
    first = Entry("a", b"x" * 1000, "bulk")
    assert not box.add(first)
    assert box.next() is first
    assert box.on_the_way == 1
    assert [one.topic for one in box.add(Entry("b", b"x" * 3000, "interactive"))] == ["b"]
    box.forget_sending()
    assert box.next() is first
    box.put_back(first)
    assert box.next() is first
    assert box.remove(first)
    assert not box.remove(first)
    assert len(box) == 0


@given(st.lists(st.tuples(st.sampled_from(["add", "next", "back", "again"]), st.sampled_from(RANKS)), max_size=40))
def test_whatever_happens_the_oldest_goes_first(steps: list[tuple[str, str]]) -> None:
    box, sent, unsent = Outbox(), [], []
    for what, priority in steps:
        if what == "add":
            entry = Entry("t", b"x", priority)  # type: ignore[arg-type]
            box.add(entry)
            unsent.append(entry)
        elif what == "next":
            found = box.next()
            assert found is (unsent.pop(0) if unsent else None)
            sent += [found] if found is not None else []
        elif what == "back" and sent:
            # The latest that was sent, which all that waits is younger than.
            box.put_back(sent[-1])
            unsent.insert(0, sent.pop())
        elif what == "again":
            box.forget_sending()
            sent, unsent = [], sorted([*sent, *unsent], key=lambda one: one.number)
        assert box.on_the_way == len(sent)


def test_what_expires_is_found_while_it_waits() -> None:
    box = Outbox()
    old, young, sent = Entry("a", b"", expires=5.0), Entry("b", b"", expires=9.0), Entry("c", b"", expires=1.0)
    for entry in (sent, old, young):
        box.add(entry)
    box.next()
    assert list(box.expired(6.0)) == [old]


def row(job: str, **more: object) -> JobRow:
    fields: dict[str, object] = {
        "id": job, "fleet_wide": True, "auto": False, "fingerprint": b"f", "request": b"hello?", "reply_to": "r/1",
        "correlation": b"\0\1", "traceparent": None, "client": "", "priority": "normal", "received": 1.0,
        "deadline": 9e9, "model": "smol", **more,
    }  # fmt: skip
    return JobRow(**fields)  # type: ignore[arg-type]


async def write(journal: Journal, *jobs: JobRow, answer: Entry | None = None, drop: str = "") -> None:
    """Write jobs, the answer to the first of them, and drop one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        for job in jobs:
            await journal.synced(journal.take(job))
        if answer is not None:
            await journal.finish(jobs[0].id, answer)
        if drop:
            journal.drop(drop)
        nursery.cancel_scope.cancel()
    journal.close()


def test_the_journal_gives_back_what_was_written_also_what_waited_at_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lambda: 7.0)
    journal.open()
    answer = Entry("r/1", b"{}", "interactive", correlation=b"\0", user=(("job", "a"),), expires=99.0)
    trio.run(lambda: write(journal, row("a"), row("b"), row("c"), answer=answer, drop="c"))
    assert (tmp_path / FOLDER).stat().st_mode & 0o077 == 0
    opened = Journal(tmp_path).open()
    assert [job.id for job in opened.jobs] == ["a", "b"]
    assert opened.jobs[1] == row("b")
    assert (opened.jobs[0].done, opened.jobs[0].topic, opened.jobs[0].answer) == (7.0, "r/1", b"{}")
    assert opened.outbox == [answer]
    assert opened.next_seq == 2


def test_a_journal_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "journal.db").write_bytes(b"SQLite format 3\0" + b"garbage" * 1000)
    opened = Journal(tmp_path).open()
    assert opened.jobs == []
    assert opened.set_aside is not None
    assert opened.set_aside.exists()


def test_what_is_over_is_taken_out_once_the_disk_takes_something_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    answer = Entry("r/1", b"{}")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            await journal.synced(journal.take(row("a")))
            await journal.synced(journal.take(row("b")))
            await journal.finish("a", answer)
            other = sqlite3.connect(tmp_path / FOLDER / "journal.db", isolation_level=None)
            other.execute("begin exclusive")
            assert journal._connection is not None
            journal._connection.execute("pragma busy_timeout = 1")
            journal.sent(answer)
            journal.drop("b")
            with pytest.raises(JournalError):
                await journal.written(journal.take(row("c")))
            other.execute("rollback")
            other.close()
            nursery.cancel_scope.cancel()

    trio.run(main)
    journal.close()
    opened = Journal(tmp_path).open()
    assert (opened.outbox, [job.id for job in opened.jobs]) == ([], ["a"])
