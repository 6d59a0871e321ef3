"""Folders of state: whose they are, whoever makes them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.document_disk import locked_state_dir
from agent.engine.json_file import write_entries
from agent.engine.sessions import Sessions
from agent.jobs.audit_files import AuditFiles
from fleet.document.store import OpStore
from fleet.durable import make_private
from fleet.identity.keys import load


def _lock(state: Path) -> None:
    with locked_state_dir(state):
        pass


def _open(state: Path) -> None:
    store = OpStore(state / "fleet")
    store.open()
    store.close()


@pytest.mark.parametrize(
    "write",
    [
        _lock,
        _open,
        lambda state: Sessions(state / "sessions" / "ab12", 1, "1"),
        lambda state: AuditFiles(state / "audit", most=1 << 20, keep=1.0).append([b"{}\n"], 0.0),
        lambda state: write_entries(state / "caches" / "figures.json", {}),
        lambda state: load(state / "keys" / "identity.seed", env={}),
    ],
    ids=["lock", "document", "conversations", "audit", "caches", "identity"],
)
def test_b29_every_folder_that_is_made_for_state_is_its_owners_alone(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    before = os.umask(0)
    try:
        write(tmp_path / "above" / "state")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()}
    assert len(modes) >= 2
    assert set(modes.values()) == {0o700}, modes


def test_a_folder_that_is_there_stays_as_it_is_and_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    open_to_all, file = tmp_path / "shared", tmp_path / "file"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    make_private(open_to_all / "own")
    make_private(open_to_all)
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o755
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(OSError, match="file"):
            make_private(path)
