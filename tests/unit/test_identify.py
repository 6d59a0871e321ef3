"""What is looked at where a model's file should be."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agent.engine.identify import HashCache, identify, stamp_of


@pytest.mark.parametrize("name", ["pipe", "zeros"])
def test_what_has_no_end_is_no_model_and_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    path = tmp_path / name
    found = identify(path, HashCache(tmp_path / "hashes.json"), threading.Event())
    assert found.error == "the file cannot be read: it is a device or a pipe"
    assert found.stamp == stamp_of(path)  # until it is another file, nobody looks again
