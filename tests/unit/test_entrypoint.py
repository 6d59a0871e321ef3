"""The first thing that runs in a container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ENTRYPOINT = Path(__file__).parents[2] / "docker" / "entrypoint"


def entered(tmp_path: Path, keys: str) -> subprocess.CompletedProcess[str]:
    """Enter with a `shoal` in the way that says that it ran."""
    (tmp_path / "shoal").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "shoal").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SHOAL_API_KEYS": keys}
    return subprocess.run(
        [ENTRYPOINT, "shoal", "run"], capture_output=True, text=True, timeout=60, env=env, check=False
    )


def test_an_api_key_is_made_once_and_for_the_agent_alone(tmp_path: Path) -> None:
    keys = tmp_path / "api-keys"
    assert entered(tmp_path, str(keys)).stdout == "ran\n"
    made = keys.read_text()
    assert len(made.strip()) >= 43
    assert keys.stat().st_mode & 0o777 == 0o600
    assert entered(tmp_path, str(keys)).stdout == "ran\n"
    assert keys.read_text() == made


def test_a_state_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    # What is not there is what root cannot write to either.
    done = entered(tmp_path, f"{tmp_path}/none/api-keys")
    assert done.returncode == 1
    assert f"uid {os.geteuid()} cannot write to {tmp_path}/none: " in done.stderr
    assert f"--entrypoint chown IMAGE -R {os.geteuid()}:{os.getegid()} /state" in done.stderr
