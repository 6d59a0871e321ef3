"""Conversations on disk: what comes back is what was saved, or nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.engine.sessions import Sessions

TOKENS, STATE = [1, 2, 49_000], b"memory of a model" * 100


def saved(folder: Path, *names: str, budget: int = 1 << 20, build: str = "1") -> Sessions:
    sessions = Sessions(folder, budget, build)
    for at, name in enumerate(names):
        sessions.save("me", name, TOKENS, STATE)
        sessions.wait_written()
        path = newest(folder)
        os.utime(path, ns=(at, at))
    return sessions


def newest(folder: Path) -> Path:
    return max(folder.glob("*.kv"), key=lambda path: path.stat().st_mtime_ns)


def test_a_conversation_outlives_the_process_and_is_its_owners_alone(tmp_path: Path) -> None:
    saved(tmp_path / "s", "talk")
    later = Sessions(tmp_path / "s", 1 << 20, "1")
    found = later.load("me", "talk")
    assert found is not None
    assert (found.tokens, found.state) == (TOKENS, STATE)
    assert later.load("them", "talk") is None
    assert later.load("m", "etalk") is None
    assert later.load("me", "other") is None
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert stat.S_IMODE(newest(tmp_path / "s").stat().st_mode) == 0o600


def test_what_the_engine_has_itself_is_not_read(tmp_path: Path) -> None:
    sessions = saved(tmp_path, "talk")
    sessions.note_resident("me", "talk", here=True)
    assert sessions.load("me", "talk") is None
    sessions.note_resident("me", "talk", here=False)
    assert sessions.load("me", "talk") is not None


@pytest.mark.parametrize("damage", ["cut", "longer", "a bit", "a bit of a token", "empty", "magic", "count"])
def test_a_damaged_file_is_as_none_and_goes(tmp_path: Path, damage: str) -> None:
    sessions = saved(tmp_path, "talk")
    path = newest(tmp_path)
    raw = bytearray(path.read_bytes())
    match damage:
        case "cut":
            del raw[-10:]
        case "longer":
            raw += b"x"
        case "a bit":
            raw[-50] ^= 1
        case "a bit of a token":
            raw[16 + 40] ^= 1
        case "empty":
            raw.clear()
        case "magic":
            raw[0] ^= 1
        case "count":
            raw[16 + 32 : 16 + 36] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(raw))
    assert sessions.load("me", "talk") is None
    assert not path.exists()


def test_another_model_or_version_reads_nothing_of_it(tmp_path: Path) -> None:
    saved(tmp_path, "talk", build="1")
    assert Sessions(tmp_path, 1 << 20, "2").load("me", "talk") is None


def test_those_used_longest_ago_make_room(tmp_path: Path) -> None:
    size = len(STATE) + 200
    sessions = saved(tmp_path, "one", "two", "three", budget=4 * size)
    assert sessions.load("me", "one") is not None  # used now
    sessions.save("me", "four", TOKENS, STATE)
    sessions.save("me", "five", TOKENS, STATE)
    sessions.wait_written()
    assert {name for name in ("one", "two", "three", "four", "five") if sessions.load("me", name)} == {
        "one", "three", "four", "five",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in tmp_path.glob("*.kv")) <= 4 * size


def test_a_conversation_too_large_for_the_budget_is_not_kept(tmp_path: Path) -> None:
    sessions = saved(tmp_path, "small", budget=4 * len(STATE))
    sessions.save("me", "large", TOKENS, STATE * 3)
    sessions.wait_written()
    assert sessions.load("me", "large") is None
    assert sessions.load("me", "small") is not None


@pytest.mark.parametrize("when", ["before", "later"])
def test_a_disk_that_takes_nothing_costs_the_conversation_and_is_told_once(tmp_path: Path, when: str) -> None:
    folder, heard = tmp_path / "s", list[str]()
    if when == "before":
        folder.write_text("in the way")
    sessions = Sessions(folder, 1 << 20, "1", heard.append)
    if when == "later":
        assert heard == []
        folder.rmdir()
        folder.write_text("in the way")
    for name in ("lost", "lost too"):
        sessions.save("me", name, TOKENS, STATE)
        sessions.wait_written()
        assert sessions.load("me", name) is None
    assert len(heard) == 1
    assert heard[0]
    folder.unlink()
    sessions.save("me", "kept", TOKENS, STATE)
    sessions.wait_written()
    assert sessions.load("me", "kept") is not None
    assert [path.suffix for path in folder.iterdir()] == [".kv"]
    assert heard[1:] == [""]
