"""The token that a box finds at its start, and what is there instead of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from agent.errors import ConfigError
from agent.joining import find_token, token_at_start
from agent.membership import Membership
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of


def _named(path: Path) -> dict[str, str]:
    return {"SHOAL_JOIN_TOKEN_FILE": str(path)}


def test_a_token_is_read_from_the_file_that_is_named(tmp_path: Path) -> None:
    token = Fleet().invite("/ip4/10.0.0.1/tcp/4210")
    (tmp_path / "token").write_text(token.text() + "\n")
    assert find_token(tmp_path, _named(tmp_path / "token")) == token


@pytest.mark.parametrize("name", ["/dev/null", "empty"])
def test_no_token_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").touch()
    assert find_token(tmp_path, _named(tmp_path / name)) is None


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "missing"):
        with pytest.raises(ConfigError, match=f"cannot read the join token {tmp_path / name}: "):
            find_token(tmp_path, _named(tmp_path / name))


def test_a_member_starts_beside_a_token_that_is_no_use_and_no_other_box_does(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("shoal-join-1.cut-off")
    box = Identity.from_seed(seed_of("till-2"))
    stranger = Membership(tmp_path / "a", box)
    stranger.open()
    with pytest.raises(ConfigError, match="damaged"):
        token_at_start(tmp_path, stranger, _named(tmp_path / "token"))

    Fleet().certify_in(tmp_path / "b", box.peer_id)

    async def started() -> None:
        member = Membership(tmp_path / "b", box)
        member.open()
        assert token_at_start(tmp_path, member, _named(tmp_path / "token")) is None
        member.close()

    trio.run(started)
