"""The audit trail: what a line says, how refusals are taken together, and what the disk can do to it."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agent.errors import BadRequestError
from agent.jobs import audit
from agent.jobs.audit import AuditTrail
from agent.jobs.audit_files import AuditFiles, parts
from agent.jobs.audit_read import PIECE, AuditReader, Wanted, since, wanted
from agent.jobs.outcome import Outcome, ending_of, iso_time, known_code, read_line
from agent.jobs.repeats import MAX_KINDS, ONE_BY_ONE, WINDOW, Repeats

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z
DAY = 86_400.0
DONE = Outcome(at=NOW, job="job-1", role="asker", outcome="ok", peer="12D3KooWpeer", peer_name="jetson", tokens=3)
REFUSED = Outcome(at=NOW, job="job-r", role="lender", outcome="refused", error="denied", peer="12D3KooWpeer")


def facts_of(folder: Path, asked: Wanted | None = None) -> list[dict[str, Any]]:
    reader, found = AuditReader(folder, asked or Wanted()), []
    while (piece := reader.next()) is not None:
        found += [json.loads(line) for line in piece.splitlines()]
    reader.close()
    return found


def test_a_line_says_what_there_is_to_say() -> None:
    line = replace(DONE, queue_ms=1.5, first_token_ms=20.0, total_ms=41.0, tried=(("12D3KooWx", "overloaded"),)).line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert read_line(line) == {
        "at": "2026-11-18T11:06:40.000Z",
        "job": "job-1",
        "role": "asker",
        "outcome": "ok",
        "peer": "12D3KooWpeer",
        "peer_name": "jetson",
        "route": "none",
        "tried": [["12D3KooWx", "overloaded"]],
        "prompt_tokens": 0,
        "tokens": 3,
        "queue_ms": 1.5,
        "first_token_ms": 20.0,
        "total_ms": 41.0,
    }


def test_a_name_cannot_break_a_line_or_bring_in_a_field() -> None:
    line = replace(DONE, peer_name='x",\n"job":"job-2\x1b[31m\u2028').line()
    assert line.count(b"\n") == 1
    assert line.isascii()
    facts = read_line(line)
    assert facts is not None
    assert facts["job"] == "job-1"


@pytest.mark.parametrize("line", [b"", b"{", b'{"at": 3}', b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_line_is_read_as_none(line: bytes) -> None:
    assert read_line(line) is None


def test_codes_of_peers_are_written_only_where_they_are_known() -> None:
    assert [known_code(code) for code in ("overloaded", "model_not_held", "write me a poem", "")] == [
        "overloaded",
        "model_not_held",
        "other",
        "other",
    ]
    assert ending_of("overloaded", 0) == "refused"
    assert ending_of("draining", 7) == "error"
    assert ending_of("engine", 0) == "error"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", 0.0),
        ("90s", NOW - 90),
        ("2h", NOW - 7200),
        ("7d", NOW - 7 * DAY),
        ("2026-11-18", NOW - 40_000),
        ("2026-11-18T11:06:40Z", NOW),
        ("2026-11-18T12:06:40+01:00", NOW),
        ("999999999w", 0.0),
    ],
)
def test_since_is_a_span_or_a_date(text: str, moment: float) -> None:
    assert since(text, NOW) == moment


@pytest.mark.parametrize("text", ["yesterday", "2x", "-2h", "2h ", "2026-13-40", "1" * 300])
def test_since_says_what_it_does_not_understand(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        wanted({"since": text}, NOW)
    assert caught.value.details["param"] == "since"


# --- refusals that repeat --------------------------------------------------------------------------------------------


def test_refusals_of_a_minute_are_told_one_by_one_and_then_as_a_number() -> None:
    repeats = Repeats()
    told = [repeats.take(replace(REFUSED, job=f"job-{n}", at=NOW + n), 0.001 * n) for n in range(1000)]
    assert [len(one) for one in told] == [1] * ONE_BY_ONE + [0] * (1000 - ONE_BY_ONE)
    assert repeats.due(WINDOW - 1) == []
    (number,) = repeats.due(WINDOW)
    assert (number.count, number.job, number.since, number.at) == (1000 - ONE_BY_ONE, "", NOW + ONE_BY_ONE, NOW + 999)
    assert repeats.taken_together == number.count
    assert repeats.wait(WINDOW) is None
    assert repeats.holding == 0


def test_other_kinds_and_all_that_ran_are_told_by_themselves() -> None:
    repeats = Repeats()
    for n in range(2 * ONE_BY_ONE):
        repeats.take(REFUSED, 0.0)
        assert repeats.take(DONE, 0.0) == [DONE], n
    for other in (replace(REFUSED, peer="b"), replace(REFUSED, error="overloaded"), replace(REFUSED, role="asker")):
        assert repeats.take(other, 0.0) == [other]


def test_no_outcome_is_lost_whatever_comes_together() -> None:
    repeats, told = Repeats(), []
    for n in range(20_000):
        told += repeats.take(replace(REFUSED, peer=f"p{n * 7919 % (2 * MAX_KINDS)}"), n * 0.01)
        told += repeats.due(n * 0.01)
    told += repeats.due(0.0, everything=True)
    assert sum(one.count for one in told) == 20_000
    assert repeats.holding == 0


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_private_and_of_bounded_size(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    files = AuditFiles(folder, most=16_000, keep=30 * DAY)
    for n in range(2000):
        files.append([replace(DONE, job=f"job-{n:05d}").line()], NOW)
        if n % 50 == 0:
            assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000
    files.close()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    jobs = [facts["job"] for facts in facts_of(folder)]
    assert jobs == [f"job-{n:05d}" for n in range(2000 - len(jobs), 2000)]
    assert len(jobs) > 50


def test_a_file_a_day_and_old_ones_go(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, most=1 << 20, keep=30 * DAY)
    for day in range(40):
        files.append([replace(DONE, job=f"day-{day}").line()], NOW + day * DAY)
    files.tidy(NOW + 39 * DAY)
    kept = [facts["job"] for facts in facts_of(tmp_path)]
    assert kept == [f"day-{day}" for day in range(9 - 1, 40)]  # day 8 was closed on day 9, 30 days before the last
    files.close()


def test_a_clock_that_learns_the_time_late_loses_nothing(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, most=1 << 20, keep=30 * DAY)
    files.append([replace(DONE, job="in-1970", at=100.0).line()], 100.0)
    files.append([replace(DONE, job="today").line()], NOW)
    files.append([replace(DONE, job="set-back", at=NOW - DAY).line()], NOW - DAY)
    files.tidy(NOW - DAY)
    files.close()
    assert [facts["job"] for facts in facts_of(tmp_path)] == ["in-1970", "today", "set-back"]


def test_a_line_that_was_torn_by_a_kill_is_passed_over_and_nothing_after_it(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, most=1 << 20, keep=DAY)
    files.append([replace(DONE, job="before").line()], NOW)
    files.close()
    (part,) = parts(tmp_path)
    with (tmp_path / part.name).open("ab") as file:
        file.write(DONE.line()[:37])
    assert [facts["job"] for facts in facts_of(tmp_path)] == ["before"]
    again = AuditFiles(tmp_path, most=1 << 20, keep=DAY)
    again.append([replace(DONE, job="after").line()], NOW)
    again.close()
    assert parts(tmp_path) == [part]
    reader = AuditReader(tmp_path, Wanted())
    assert [json.loads(line)["job"] for line in (reader.next() or b"").splitlines()] == ["before", "after"]
    assert reader.unreadable == 1
    reader.close()


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = AuditFiles(tmp_path, most=1 << 20, keep=DAY)
    files.append([replace(DONE, job="before").line()], NOW)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            files.append([replace(DONE, job="lost").line()], NOW)
    files.append([replace(DONE, job="after").line()], NOW)
    files.close()
    assert [facts["job"] for facts in facts_of(tmp_path)] == ["before", "after"]


@pytest.mark.parametrize(
    ("asked", "jobs"),
    [
        ({}, ["a", "b", "c"]),
        ({"job": "b"}, ["b"]),
        ({"peer": "jetson"}, ["a"]),
        ({"peer": "12D3KooWpeer"}, ["a", "b"]),
        ({"model": "smol"}, ["b"]),
        ({"model": "sha256:00"}, ["c"]),
        ({"outcome": "refused"}, ["b"]),
        ({"outcome": "denied"}, ["b"]),
        ({"since": "2026-11-18T11:06:41Z"}, ["b", "c"]),
        ({"outcome": "refused", "job": "a"}, []),
        ({"job": '"a"'}, []),
    ],
)
def test_lines_are_found_by_what_they_say(tmp_path: Path, asked: dict[str, str], jobs: list[str]) -> None:
    files = AuditFiles(tmp_path, most=1 << 20, keep=DAY)
    lines = [
        replace(DONE, job="a"),
        replace(REFUSED, job="b", asked="smol", at=NOW + 1),
        replace(DONE, job="c", at=NOW + 2, peer="", peer_name="", hash="sha256:00"),
    ]
    files.append([line.line() for line in lines], NOW)
    assert [facts["job"] for facts in facts_of(tmp_path, wanted(asked, NOW))] == jobs
    files.close()


def test_a_reader_goes_on_where_the_trail_grows_over_files(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, most=16 * 4000, keep=30 * DAY)
    reader = AuditReader(tmp_path, Wanted())
    assert reader.next() is None
    seen: list[str] = []
    for n in range(60):
        files.append([replace(DONE, job=f"j{n}").line()], NOW + n * DAY / 20)
        while (piece := reader.next()) is not None:
            seen += [json.loads(line)["job"] for line in piece.splitlines()]
    assert seen == [f"j{n}" for n in range(60)]
    assert len(parts(tmp_path)) > 2
    reader.close()
    files.close()


def test_a_file_that_is_no_trail_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "00000001-2026-11-18.jsonl").write_bytes(b"x" * (5 * PIECE) + b"\n" + DONE.line())
    (tmp_path / "notes.txt").write_text("not ours")
    reader, found = AuditReader(tmp_path, Wanted()), []
    while (piece := reader.next()) is not None:
        assert len(reader._rest) <= PIECE
        found += piece.splitlines()
    assert [json.loads(line)["job"] for line in found] == ["job-1"]
    reader.close()


# --- the trail as it runs --------------------------------------------------------------------------------------------


def trail_in(folder: Path) -> AuditTrail:
    return AuditTrail(folder, keep_days=30, max_mib=1, wall=lambda: NOW)


def test_what_is_recorded_is_on_disk_when_the_agent_has_stopped(tmp_path: Path) -> None:
    trail = trail_in(tmp_path)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trail.run)
            trail.record(replace(DONE, job="first"))
            while not trail.written:
                await trail.grown.wait()
            for _ in range(ONE_BY_ONE + 5):
                trail.record(REFUSED)
            trail.record(replace(DONE, job="last"))
            nursery.cancel_scope.cancel()

    trio.run(main)
    found = facts_of(trail.folder)
    assert [facts["job"] for facts in found if facts["outcome"] == "ok"] == ["first", "last"]
    assert sum(facts.get("count", 1) for facts in found if facts["outcome"] == "refused") == ONE_BY_ONE + 5
    assert (trail.written, trail.lost, trail.waiting) == (ONE_BY_ONE + 3, 0, 0)


def test_what_a_full_disk_does_not_take_waits_and_what_is_dropped_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 10)
    trail = trail_in(tmp_path)
    full = True
    append = AuditFiles.append

    def refuse(self: AuditFiles, lines: Any, now: float) -> None:
        if full:
            raise OSError(errno.ENOSPC, "no space")
        append(self, lines, now)

    monkeypatch.setattr(AuditFiles, "append", refuse)

    async def main() -> None:
        nonlocal full
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trail.run)
            for n in range(25):
                trail.record(replace(DONE, job=f"j{n}"))
            await trio.testing.wait_all_tasks_blocked()
            assert (trail.lost, trail.waiting, trail.written) == (15, 10, 0)
            while not trail.problem:  # the thread that writes is none of trio's tasks
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert trail.problem == "no space"
            full = False
            while not trail.written:
                await trail.grown.wait()
            assert trail.problem == ""
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.1))
    found = facts_of(trail.folder)
    assert (found[0]["outcome"], found[0]["count"], found[0]["role"]) == ("lost", 15, "box")
    assert [facts["job"] for facts in found[1:]] == [f"j{n}" for n in range(10)]


def test_a_number_is_written_when_its_minute_is_over(tmp_path: Path) -> None:
    trail = trail_in(tmp_path)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trail.run)
            for _ in range(ONE_BY_ONE + 3):
                trail.record(REFUSED)
            while trail.written < ONE_BY_ONE + 1:
                await trail.grown.wait()
            assert trio.current_time() >= WINDOW
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.1))
    assert facts_of(trail.folder)[-1]["count"] == 3
    assert iso_time(-5.0) == "1970-01-01T00:00:00.000Z"
