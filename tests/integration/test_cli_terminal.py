"""The commands in a terminal of a given size, and which box they mean without being told."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.cli.boxes import _on_one_page
from agent.cli.columns import cells
from fleet.document.op import MAX_SEQ, write_op
from fleet.identity.keys import Identity
from fleet.net.half_open import MAX_HALF_OPEN_PER_ADDRESS
from tests.harness import agents, peer_id_of, seed_of
from tests.integration.test_admission import at, warnings_of
from tests.integration.test_cli_fleet import Shoal, in_this_process, shoal, until


def in_a_terminal(box: Shoal, columns: int, *args: str) -> list[str]:
    """The lines that a command prints into a terminal that wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in box.env().items() if name not in ("COLUMNS", "LINES")}
    printed = b""
    with subprocess.Popen(box.argv(*args), stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            printed += piece
        process.wait(60)
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode().splitlines()


@pytest.fixture
def here(tmp_path: Path) -> Shoal:
    made = shoal(tmp_path, "till-1")
    made.init()
    made.json("invite", "--addr", made.box.p2p_addr, "--label", "site=" + "x" * 60)
    made.json("firewall", "allow", peer_id_of("a stranger"))
    return made


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", ["history", "boxes", "invite ls", "firewall ls", "admin ls"])
def test_tables_fit_the_terminal(here: Shoal, command: str, columns: int) -> None:
    lines = in_a_terminal(here, columns, *command.split())
    table = [line for line in lines if not line.startswith(("(read from", "policy:"))]
    assert len(table) >= 2
    assert max(map(cells, table)) <= columns


def test_nothing_is_cut_for_who_reads_no_terminal(here: Shoal) -> None:
    invite = here.json("invite", "ls")["invites"][0]["invite"]
    cut = "\n".join(in_a_terminal(here, 70, "history"))
    assert f"invite/{invite}" not in cut
    assert "…" in cut
    assert f"invite/{invite}" in here.text("history").out
    assert f"invite/{invite}" in {op["path"] for op in here.json("history")["ops"]}


def test_peers_models_and_chat_ask_the_box_of_the_configuration(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}, "pos-2": {}}) as (one, two):
        box = at(one)
        until(lambda: [peer["connected"] for peer in box.json("peers")["peers"]] == [True])
        assert [peer["peer_id"] for peer in box.json("peers")["peers"]] == [two.peer_id]
        assert box.json("models") == {"models": []}
        assert box.json("chat", "hello", code=3)["code"] == "no_capable_peer"
        # Without being told, the box of shoal/shoal.yaml is meant; a URL means another one.
        (tmp_path / "shoal").symlink_to(one.folder)
        env = box.env()
        done = in_this_process(["peers", "-o", "json"], "", env, tmp_path)
        assert [peer["peer_id"] for peer in done.json["peers"]] == [two.peer_id]
        done = in_this_process(["peers", "-o", "json", "--url", two.url], "", env, tmp_path)
        assert [peer["peer_id"] for peer in done.json["peers"]] == [one.peer_id]
        done = in_this_process(["models", "-o", "json"], "", {**env, "SHOAL_URL": "http://127.0.0.1:1"}, tmp_path)
        assert (done.code, done.error["code"]) == (3, "agent_unreachable")


def test_a_corrupt_document_is_named_and_mended_while_the_agent_is_stopped(here: Shoal) -> None:
    bundle = here.text("export").out
    before = here.json("history")["ops"]
    database = here.box.folder / "state" / "fleet" / "document.db"
    with database.open("r+b") as file:
        file.write(b"this was a disk once")
    broken = here.json("boxes", code=1)
    assert broken["code"] == "store"
    assert "shoal doctor --repair" in broken["message"]
    found = json.loads(here.text("doctor", "-o", "json").out)["warnings"]
    (said,) = [warning for warning in found if warning["code"] == "document_unreadable"]
    assert "--repair" in said["remedy"]

    mended = here.text("doctor", "--repair")
    assert mended.code == 0
    assert "document.db.corrupt-1" in mended.out
    assert "shoal import FILE" in mended.out
    assert here.json("history")["ops"] == []
    assert here.json("import", "-", stdin=bundle)["refused"] == 0
    assert here.json("history")["ops"] == before
    # The key goes on counting where it was: two ops with one number would end its standing.
    here.json("firewall", "deny", peer_id_of("a stranger"), "--yes")
    assert all(admin["counts"] for admin in here.json("admin", "ls")["admins"])


def test_what_is_watched_neither_wraps_nor_scrolls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "6")
    text = "\n".join(f"{number} " + "x" * 30 for number in range(9))
    page = _on_one_page(text)
    assert len(page) < 6
    assert max(map(cells, page)) == 20
    assert page[-1].startswith("(5 lines more")
    assert _on_one_page("a\nb") == ["a", "b"]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, agent.cli.chat, agent.cli.lists, agent.cli.admit;"
        "print(sorted({'libp2p', 'llama_cpp', 'trio', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done


def test_doctor_tells_of_a_flood_and_of_a_key_without_numbers(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}}) as (one,), ExitStack() as strangers:
        assert warnings_of(one).keys().isdisjoint({"flooded", "numbers_used_up"})
        for _ in range(MAX_HALF_OPEN_PER_ADDRESS + 3):
            strangers.enter_context(socket.create_connection(("127.0.0.1", one.p2p_port)))
        until(lambda: "flooded" in warnings_of(one))
        assert "in mid-handshake" in warnings_of(one)["flooded"]["text"]

        own = Identity.from_seed(seed_of("pos-1"))
        last = write_op(own, one.fleet.genesis.fleet_id, seq=MAX_SEQ - 1000, hlc=1, kind="node", path="addr", body=[])
        assert [outcome["state"] for outcome in one.offer(last)] == ["new"]
        said = warnings_of(one)["numbers_used_up"]
        assert f"shoal revoke {one.peer_id}" in said["remedy"]
        doctor = at(one).text("doctor", "-o", "json")
        assert doctor.code == 5
        found: dict[str, Any] = json.loads(doctor.out)
        assert {"flooded", "numbers_used_up"} <= {warning["code"] for warning in found["warnings"]}
        assert httpx.get(f"{one.url}/healthz", timeout=10).status_code == 200
