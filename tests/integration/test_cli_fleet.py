"""The commands that run a fleet, as an operator types them: against running agents, and on stopped ones' disks."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet.document.bundle import write_bundle
from fleet.document.invites import read_token
from fleet.identity.keys import public_key_from_peer_id
from tests.command import run_shoal
from tests.harness import Agent, Fleet, free_port, peer_id_of, seed_of

LIMIT = 60.0
#: No box has this key, but one could.
STRANGER = peer_id_of("a stranger")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


@dataclass(frozen=True)
class Shoal:
    """The command on one box. Its admin key lies beside the box, unless `keys` names another folder."""

    box: Agent
    keys: Path

    def text(self, *args: str, stdin: str = "", **env: str) -> Done:
        """The command in this process, which has imported everything already."""
        return in_this_process(self.argv(*args)[3:], stdin, self.env(**env), self.box.folder)

    def process(self, *args: str, **env: str) -> Done:
        """The command in a process of its own."""
        done = subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=LIMIT, env=self.env(**env), cwd=self.box.folder
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *args: str, code: int = 0, stdin: str = "", **env: str) -> dict[str, Any]:
        """The command's JSON; it must end with `code`."""
        done = self.text(*args, "-o", "json", stdin=stdin, **env)
        assert done.code == code, (args, done)
        value = done.json
        assert ("error" in value) == (code not in (0, 5)), value
        error: dict[str, Any] = value.get("error", value)
        return error if code not in (0, 5) else value

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "agent.cli.main", *args, "--config", str(self.box.config_file)]

    def env(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        return {
            **clean,
            "SHOAL_IDENTITY_SEED": seed_of(self.box.name).hex(),
            "SHOAL_ADMIN_KEY_FILE": str(self.keys / "admin.key"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            **more,
        }

    def at_a_terminal(self, *args: str, typed: str) -> Done:
        """The command with a person at it, who types something; all it prints comes back as `out`."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            self.argv(*args), stdin=theirs, stdout=theirs, stderr=theirs, env=self.env(), cwd=self.box.folder
        ) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            printed = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how Linux says that the other end is closed
                    break
                if not piece:
                    break
                printed += piece
            process.wait(LIMIT)
        os.close(ours)
        return Done(process.returncode, printed.decode(), "")

    def init(self, name: str = "shops") -> dict[str, Any]:
        return self.json("fleet", "init", "--name", name, "--keys", str(self.keys))

    def invite(self, *args: str) -> str:
        """A token for a box, with an address where nobody needs to answer."""
        made = self.json("invite", "--addr", self.box.p2p_addr, *args)
        return str(made["token"])

    def standing(self, key: str) -> str:
        return str(self.json("firewall", "explain", key)["standing"])

    def op_count(self) -> int:
        return int(self.json("history", "--limit", "0")["total"])


def in_this_process(args: Sequence[str], stdin: str, env: Mapping[str, str], folder: Path) -> Done:
    ended = run_shoal(args, stdin=stdin.encode(), env=env, folder=folder)
    return Done(ended.code, ended.out, ended.err)


def shoal(tmp_path: Path, name: str, keys: Path | None = None, **env: str) -> Shoal:
    """The command on a box of its own, which does not run."""
    box = Agent(tmp_path / name, name, {}, env)
    return Shoal(box, keys or tmp_path / name / "keys")


@pytest.fixture
def here(tmp_path: Path) -> Shoal:
    """A stopped box that has founded a fleet."""
    made = shoal(tmp_path, "till-1")
    made.init()
    return made


@pytest.fixture
def elsewhere(here: Shoal, tmp_path: Path) -> Shoal:
    """A second stopped box of that fleet, which never meets the first; its admin is another one."""
    other = shoal(tmp_path, "till-2")
    here.json("admin", "add", make_key(other))
    here.json("firewall", "allow", other.box.peer_id)
    carry(here, other, "--join-fleet")
    return other


def make_key(owner: Shoal, name: str = "admin.key") -> str:
    """An admin's key beside a box; returns its PeerID."""
    env = owner.env(SHOAL_ADMIN_KEY_FILE=str(owner.keys / name))
    done = in_this_process(["admin", "key", "--create", "-o", "json"], "", env, owner.box.folder)
    return str(done.json["key"])


def carry(source: Shoal, target: Shoal, *args: str, code: int = 0) -> dict[str, Any]:
    """Take the document from one box to another as a file."""
    bundle = source.text("export").out
    return target.json("import", "-", *args, stdin=bundle, code=code)


def until(what: Callable[[], bool], limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, f"not within {limit} s"
        time.sleep(0.1)


@contextmanager
def running(*boxes: Agent) -> Iterator[None]:
    try:
        yield
    finally:
        for box in boxes:
            box.kill()


# --- one story with agents that run --------------------------------------------------------------------------------


def test_a_fleet_from_its_founding_to_a_stolen_box(tmp_path: Path) -> None:
    one = shoal(tmp_path, "till-1")
    with running(one.box):
        one.box.start()
        assert one.json("fleet", "show", code=1)["code"] == "no_fleet"
        founded = one.init("shops")
        assert founded["box"] == one.box.peer_id
        assert one.json("fleet", "show")["fleet"]["id"] == founded["fleet"]

        token_file = tmp_path / "token"
        one.text("invite", "--label", "site=berlin", "--ttl", "1h", "--file", str(token_file))
        token = read_token(token_file.read_text())
        assert token.addrs == (one.box.p2p_addr,)
        assert dict(token.invite.labels) == {"site": "berlin"}

        two = shoal(tmp_path, "till-2", keys=one.keys, SHOAL_JOIN_TOKEN=token.text())
        three = shoal(tmp_path, "till-3", keys=one.keys)
        with running(two.box, three.box):
            # One joins with a token in its environment, one is told to while it does not run, and then starts.
            two.box.start()
            second = one.json("invite")["token"]
            later = three.json("join", "--token-file", "-", stdin=second)
            assert (later["joined"], later["state"]) == (False, "at_next_start")
            assert stat.S_IMODE(Path(later["file"]).stat().st_mode) == 0o600
            three.box.start()
            for box in (one, two, three):
                until(lambda box=box: names_of(box) == {"till-1", "till-2", "till-3"})  # type: ignore[misc]
            listed = one.json("boxes")
            assert listed["source"] == "agent"
            assert [box["name"] for box in listed["boxes"] if box["self"]] == ["till-1"]
            assert {box["version"] for box in listed["boxes"]} != {""}
            assert "till-2" in one.text("boxes").out
            assert {made["state"] for made in one.json("invite", "ls")["invites"]} == {"used up"}

            # A deny written on one box works on another, and is lifted again.
            one.json("firewall", "deny", "till-3", "--yes")
            until(lambda: two.standing(three.box.peer_id) == "denied by the firewall")
            until(lambda: not connected(two, "till-3"))
            assert one.json("firewall", "allow", "till-3", code=2)["details"]["lifted_denies"]
            assert one.json("firewall", "allow", "till-3", "--yes")["after"]["admitted"]
            until(lambda: two.standing(three.box.peer_id) == "member")
            until(lambda: connected(two, "till-3"))

            # The stolen box goes for good.
            gone = one.json("revoke", "till-3", "--yes")
            assert [change["after"] for change in gone["changes"]] == ["revoked"]
            until(lambda: names_of(two) == {"till-1", "till-2"})
            until(lambda: not connected(two, three.box.peer_id))
            assert two.json("firewall", "allow", three.box.peer_id, "--yes")["after"]["reason"] == "revoked"

            told = two.json("history")
            assert [op["kind"] for op in told["ops"]][:2] == ["cert", "cfg"]
            assert {"fw", "revoke", "join"} <= {op["kind"] for op in told["ops"]}
            assert all(op["signature"] for op in told["ops"])
            about = two.json("history", "--of", three.box.peer_id)["ops"]
            assert [op["kind"] for op in about if op["kind"] != "join"] == ["fw", "fw", "revoke"]

            # The box keeps what it knows when its agent stops, and can be worked on without anybody else.
            two.box.stop()
            one.box.kill()
            offline = two.json("boxes")
            assert offline["source"] == "disk"
            assert {box["connected"] for box in offline["boxes"]} == {None}
            assert {box["name"] for box in offline["boxes"]} == {"till-1", "till-2"}
            two.json("firewall", "deny", STRANGER, "--yes")
            assert two.standing(STRANGER) == "denied by the firewall"


def names_of(box: Shoal) -> set[str]:
    done = box.text("boxes", "-o", "json")
    return {one["name"] for one in done.json["boxes"]} if done.code == 0 else set()


def connected(box: Shoal, name: str) -> bool:
    return any(peer["connected"] for peer in peers_of(box) if name in (peer["name"], peer["peer_id"]))


def peers_of(box: Shoal) -> list[dict[str, Any]]:
    done = in_this_process(["peers", "--url", box.box.url, "-o", "json"], "", box.env(), box.box.folder)
    peers: list[dict[str, Any]] = done.json["peers"]
    return peers


def test_a_running_box_joins_at_once_or_says_why_not(tmp_path: Path) -> None:
    one, two, three = (shoal(tmp_path, f"till-{number}") for number in (1, 2, 3))
    with running(one.box, two.box, three.box):
        for box in (one, two, three):
            box.box.spawn()
        for box in (one, two, three):
            box.box.wait_line("agent.ready")
        one.init()
        token = one.invite()
        assert two.json("join", SHOAL_JOIN_TOKEN=token)["joined"]
        assert two.json("join", token)["state"] == "member"  # again, and it is no error
        used_up = three.json("join", token, code=4)
        assert "used up" in used_up["message"]
        bound = one.invite("--for", two.box.peer_id)
        assert "bound" in three.json("join", bound, code=4)["message"]
        nobody = one.invite("--addr", f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}")
        withdrawn = read_token(nobody).invite_id
        one.json("invite", "withdraw", withdrawn[:8], "--yes")
        assert "withdrawn" in three.json("join", nobody, code=4)["message"]
        assert {made["state"] for made in one.json("invite", "ls")["invites"]} == {"used up", "withdrawn", "open"}


def test_watching_shows_every_change_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    one = shoal(tmp_path, "till-1")
    one.init()
    with running(one.box):
        one.box.start()
        with subprocess.Popen(
            one.argv("boxes", "--watch", "-o", "json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=one.env(),
        ) as watch:
            assert watch.stdout is not None
            first = json.loads(watch.stdout.readline())
            assert [box["peer_id"] for box in first["boxes"]] == [one.box.peer_id]
            one.json("fleet", "show")
            one.json("firewall", "deny", one.box.peer_id, "--yes")
            for line in watch.stdout:
                if json.loads(line)["boxes"][0]["standing"] == "denied by the firewall":
                    break
            watch.send_signal(signal.SIGINT)
            assert watch.wait(LIMIT) == 0
            assert watch.stderr is not None
            assert watch.stderr.read() == ""


# --- founding, keys ------------------------------------------------------------------------------------------------


def test_founding_makes_private_keys_and_never_overwrites_them(tmp_path: Path) -> None:
    one = shoal(tmp_path, "till-1")
    founded = one.init("shops")
    files = [Path(founded[which]) for which in ("admin_key", "recovery_key")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
    assert founded["made"] == [str(path) for path in files]
    before = [path.read_bytes() for path in files]
    assert one.json("fleet", "init", "--name", "again", "--keys", str(one.keys), code=1)["code"] == "fleet_exists"
    other = shoal(tmp_path, "till-2", keys=one.keys).init("another")
    assert other["made"] == []
    assert other["fleet"] != founded["fleet"]
    assert [path.read_bytes() for path in files] == before


def test_founding_says_what_to_keep_where(tmp_path: Path) -> None:
    one = shoal(tmp_path, "till-1")
    said = one.text("fleet", "init", "--name", "shops", "--keys", str(one.keys)).out
    assert "offline" in said
    assert str(one.keys / "recovery.key") in said


@pytest.mark.parametrize("name", ["", "x" * 65, "a\tb"])
def test_a_bad_name_makes_no_keys(tmp_path: Path, name: str) -> None:
    one = shoal(tmp_path, "till-1")
    one.json("fleet", "init", "--name", name, "--keys", str(one.keys), code=1)
    assert not one.keys.exists()


def test_a_key_that_others_can_read_is_refused(here: Shoal) -> None:
    (here.keys / "admin.key").chmod(0o644)
    error = here.json("firewall", "allow", STRANGER, code=2)
    assert (error["code"], "chmod 600" in error["message"]) == ("identity", True)


def test_a_key_of_no_admin_changes_nothing(here: Shoal) -> None:
    stranger = make_key(here, "stranger.key")
    before = here.op_count()
    error = here.json("firewall", "allow", STRANGER, "--admin-key", str(here.keys / "stranger.key"), code=4)
    assert stranger in error["message"]  # what an admin needs to make it one
    assert here.op_count() == before


def test_two_commands_at_once_never_use_one_number_twice(here: Shoal) -> None:
    keys = [peer_id_of(f"guest {number}") for number in range(4)]
    commands = [
        subprocess.Popen(here.argv("firewall", "allow", key), env=here.env(), stderr=subprocess.PIPE) for key in keys
    ]
    for command in commands:
        command.communicate(timeout=LIMIT)
    admins = here.json("admin", "ls")["admins"]
    assert all(one["forked_at"] is None for one in admins)
    allowed = {entry["key"] for entry in here.json("firewall", "ls")["entries"]}
    succeeded = {key for key, command in zip(keys, commands, strict=True) if command.returncode == 0}
    assert allowed == succeeded
    assert succeeded


# --- invites and tokens --------------------------------------------------------------------------------------------


def test_an_invite_is_shown_once_and_taken_back(here: Shoal, tmp_path: Path) -> None:
    path = tmp_path / "token"
    addr = ("--addr", here.box.p2p_addr)
    made = here.json("invite", *addr, "--uses", "3", "--for", STRANGER, "--file", str(path))
    assert made["token"] is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    terms = read_token(path.read_text()).invite
    assert (terms.uses, terms.bound_to) == (3, public_key_from_peer_id(STRANGER))
    assert here.json("invite", *addr, "--file", str(path), code=2)["code"] == "usage"
    (listed,) = here.json("invite", "ls")["invites"]
    assert (listed["state"], listed["uses"], listed["for"]) == ("open", 3, STRANGER)
    assert here.json("invite", "withdraw", made["invite"][:6], code=2)["code"] == "usage"
    assert here.json("invite", "withdraw", made["invite"][:6], "--yes")["withdrawn"]
    assert [one["state"] for one in here.json("invite", "ls")["invites"]] == ["withdrawn"]
    assert not here.json("invite", "withdraw", made["invite"], "--yes")["withdrawn"]
    assert here.json("invite", "withdraw", "ffff", "--yes", code=2)["code"] == "usage"


def test_a_token_goes_to_standard_output_alone(here: Shoal) -> None:
    done = here.text("invite", "--addr", here.box.p2p_addr)
    assert read_token(done.out).addrs == (here.box.p2p_addr,)
    assert done.out.count("\n") == 1
    assert "shoal-join-1." not in done.err


def test_a_token_as_a_qr_code_is_not_also_printed(here: Shoal) -> None:
    drawn = here.process("invite", "--qr", "--addr", here.box.p2p_addr, PYTHONIOENCODING="utf-8").out
    assert "shoal-join-1." not in drawn
    rows = [line for line in drawn.splitlines() if any(block in line for block in "▀▄█")]
    # A code of N modules takes half as many lines, two modules in each, with a border of 2 around it.
    assert len(rows) > 40
    ascii_only = here.process("invite", "--qr", "--addr", here.box.p2p_addr, PYTHONIOENCODING="ascii")
    assert ascii_only.code == 1


def test_without_addresses_there_is_no_invite(tmp_path: Path) -> None:
    one = shoal(tmp_path, "till-1")
    one.init()
    config = one.box.config_file.read_text().replace("/ip4/127.0.0.1/", "/ip4/0.0.0.0/")
    one.box.config_file.write_text(config)
    assert "--addr" in one.json("invite", code=2)["message"]
    one.json("invite", "--addr", one.box.p2p_addr)


@pytest.mark.parametrize(
    "args",
    [
        ["--ttl", "soon"],
        ["--ttl", "400d"],
        ["--label", "berlin"],
        ["--label", "a=b", "--label", "a=c"],
        ["--label", "a b=c"],
        ["--uses", "0"],
        ["--for", "till-9"],
        ["--addr", "10.0.0.7:4210"],
        ["--addr", "/ip4/10.0.0.7/tcp/4210"],
    ],
    ids=" ".join,
)
def test_terms_of_an_invite_that_cannot_be(here: Shoal, args: list[str]) -> None:
    before = here.op_count()
    assert here.json("invite", *args, code=2)["code"] == "usage"
    assert here.op_count() == before


def test_tokens_that_are_no_use_are_refused_before_anything_is_written(here: Shoal, tmp_path: Path) -> None:
    fresh = shoal(tmp_path, "till-9")
    state = tmp_path / "till-9" / "state"
    token = here.invite()
    expired = Fleet("another").invite(here.box.p2p_addr, ttl=-1).text()
    table = [
        (token[:-9], 2, "token"),
        (token[:40], 2, "token"),
        (token.replace("a", "b", 1), 2, "token"),
        ("hello", 2, "token"),
        (expired, 4, "expired"),
        ("", 2, "usage"),
    ]
    for text, code, said in table:
        assert fresh.json("join", code=code, SHOAL_JOIN_TOKEN=text)["code"] == said, text
    assert not state.exists()
    other = Fleet("another").invite(here.box.p2p_addr).text()
    assert here.json("join", other, code=4)["code"] == "other_fleet"
    assert fresh.json("join", token, "--token-file", "x", code=2)["code"] == "usage"
    assert fresh.json("join", "--token-file", str(tmp_path / "none"), code=2)["code"] == "usage"


def test_joining_needs_a_box(here: Shoal, tmp_path: Path) -> None:
    nobody = shoal(tmp_path, "till-9")  # it has a configuration, and no identity
    error = nobody.json("join", here.invite(), code=2, SHOAL_IDENTITY_SEED="")
    assert (error["code"], "shoal init" in error["message"]) == ("identity", True)


# --- firewall ------------------------------------------------------------------------------------------------------


def test_denies_add_up_and_an_allow_lifts_them_all(here: Shoal) -> None:
    box = here.box.peer_id
    here.json("firewall", "deny", box, "--scope", "blobs", "--yes")
    here.json("firewall", "deny", box, "--scope", "models", "--yes")
    explained = here.json("firewall", "explain", box)
    assert explained["scopes"] == ["infer"]
    assert [op["kind"] for op in explained["ops"]] == ["cert", "fw"]
    assert here.json("firewall", "deny", box, "--scope", "models", "--yes")["ops"] == []  # it says so already
    here.json("firewall", "deny", box, "--yes")
    assert here.standing(box) == "denied by the firewall"
    assert here.json("firewall", "deny", box, "--scope", "infer", "--yes")["ops"] == []
    lifted = here.json("firewall", "allow", box, "--yes")
    assert len(lifted["lifted_denies"]) == 1
    assert lifted["after"]["scopes"] == ["blobs", "infer", "models"]
    everything = here.json("firewall", "explain", box, "--all")["ops"]
    assert [op["counts"] for op in everything] == [True, False, False, False, True]
    assert all("replaced by" in op["why_not"] for op in everything if not op["counts"])


def test_a_guest_is_allowed_by_name_for_a_few_things(here: Shoal) -> None:
    allowed = here.json("firewall", "allow", public_key_from_peer_id(STRANGER).hex(), "--scope", "infer")
    assert allowed["key"] == STRANGER
    assert (allowed["before"]["admitted"], allowed["after"]["scopes"]) == (False, ["infer"])
    (entry,) = here.json("firewall", "ls")["entries"]
    assert (entry["key"], entry["verdict"], entry["scopes"]) == (STRANGER, "allow", ["infer"])
    assert STRANGER[-8:] in here.text("firewall", "ls").out
    assert here.json("firewall", "deny", STRANGER[-8:], "--scope", "infer", "--yes")["after"]["admitted"] is False


@pytest.mark.parametrize(
    "key",
    ["till-9", "", "12D3KooW", "zz" * 32, peer_id_of("till-1")[:-1] + "x"],
    ids=["name", "empty", "short", "hex", "typo"],
)
def test_a_key_that_is_none_is_named(here: Shoal, key: str) -> None:
    error = here.json("firewall", "deny", key, "--yes", code=2)
    assert error["code"] == "usage"
    assert here.json("firewall", "ls")["entries"] == []


# --- consent -------------------------------------------------------------------------------------------------------


def test_nothing_is_destroyed_without_consent(here: Shoal) -> None:
    invite = here.json("invite", "--addr", here.box.p2p_addr)["invite"]
    here.json("apply", "-f", "-", stdin="kind: Model\nname: smol\nspec: {source: x}\n")
    before = here.op_count()
    for command in (
        ["revoke", here.box.peer_id],
        ["firewall", "deny", here.box.peer_id],
        ["invite", "withdraw", invite],
        ["delete", "model/smol"],
    ):
        for form in (["-o", "json"], []):
            done = here.text(*command, *form)
            assert done.code == 2, command
            assert "--yes" in done.out + done.err
    assert here.op_count() == before


def test_a_person_is_shown_what_happens_and_asked(here: Shoal) -> None:
    before = here.op_count()
    refused = here.at_a_terminal("revoke", here.box.peer_id, typed="n\n")
    assert refused.code == 1
    assert "member [blobs, infer, models] -> revoked" in refused.out
    assert here.op_count() == before
    assert here.at_a_terminal("revoke", here.box.peer_id, typed="y\n").code == 0
    assert here.standing(here.box.peer_id) == "revoked"


# --- admins --------------------------------------------------------------------------------------------------------


def test_a_rogue_admin_is_cut_off_with_the_recovery_key(here: Shoal) -> None:
    here.json("firewall", "deny", STRANGER, "--yes")  # op 2 of the first admin; the certificate was its op 1
    rogue = here.json("admin", "ls")["admins"][1]["key"]
    error = here.json("revoke", rogue, code=2)
    assert [op["seq"] for op in error["details"]["ops"]] == [1, 2]
    new = make_key(here, "new.key")
    recovery = str(here.keys / "recovery.key")
    options = ["--recovery-key", recovery, "--new-admin", new, "--revoke", rogue]
    assert here.json("admin", "recover", *options, "--yes", code=2)["details"]["highest_seq"] == 2
    assert here.json("admin", "recover", *options, "--keep", "1", code=2)["details"]["changes"]
    here.json("admin", "recover", *options, "--keep", "1", "--yes")
    assert here.json("firewall", "allow", STRANGER, code=4)["code"] == "denied"
    assert here.json("firewall", "ls")["entries"] == []  # op 2 counts no more
    here.json("firewall", "allow", STRANGER, "--admin-key", str(here.keys / "new.key"))
    admins = {one["key"]: one for one in here.json("admin", "ls")["admins"]}
    assert (admins[new]["rank"], admins[new]["counts"]) == (1, True)
    assert (admins[rogue]["cut_at"], admins[rogue]["counts"]) == (1, False)
    reasons = [op["why_not"] for op in here.json("history")["ops"] if op["kind"] == "fw"]
    assert reasons == ["its author was revoked, and only its ops up to 1 count", ""]


def test_only_a_recovery_key_recovers(here: Shoal) -> None:
    new = make_key(here, "new.key")
    wrong = str(here.keys / "admin.key")
    assert here.json("admin", "recover", "--recovery-key", wrong, "--new-admin", new, code=4)["code"] == "denied"


def test_a_lower_admin_does_not_revoke_a_higher_one(here: Shoal) -> None:
    lower = make_key(here, "lower.key")
    here.json("admin", "add", lower)
    assert here.json("admin", "add", lower)["ops"] == []
    higher = here.json("admin", "ls")["admins"][1]["key"]
    before = here.op_count()
    error = here.json("revoke", higher, "--keep", "0", "--yes", "--admin-key", str(here.keys / "lower.key"), code=4)
    assert error["code"] == "denied"
    assert here.op_count() == before


def test_revoking_a_box_names_those_it_let_in(tmp_path: Path) -> None:
    one, two = shoal(tmp_path, "till-1"), shoal(tmp_path, "till-2")
    with running(one.box, two.box):
        one.box.start()
        one.init()
        two.box.start()
        two.json("join", one.invite())
        until(lambda: two.box.peer_id in {box["peer_id"] for box in one.json("boxes")["boxes"]})
        assert one.json("revoke", one.box.peer_id, "--yes")["let_in_by_it"] == [two.box.peer_id]


# --- bundles -------------------------------------------------------------------------------------------------------


def test_boxes_that_never_meet_agree_by_file(here: Shoal, tmp_path: Path) -> None:
    there = shoal(tmp_path, "till-2", keys=here.keys)
    assert carry(here, there, code=1)["code"] == "no_fleet"
    first = carry(here, there, "--join-fleet")
    assert (first["new"], first["joined"]) == (1, True)
    here.json("firewall", "deny", STRANGER, "--yes")
    path = tmp_path / "fleet.ops"
    assert here.json("export", "--file", str(path), "--no-facts")["ops"] == 2
    # The order of a bundle does not matter.
    header, genesis, *ops = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(ops), genesis]))
    taken = there.json("import", str(path))
    assert (taken["new"], taken["held"], taken["refused"]) == (1, 1, 0)
    assert there.standing(STRANGER) == "denied by the firewall"
    assert there.json("fleet", "show")["fleet"]["id"] == here.json("fleet", "show")["fleet"]["id"]
    assert there.json("import", str(path))["held"] == 2


def test_a_bundle_of_another_fleet_is_refused_whole(here: Shoal, tmp_path: Path) -> None:
    other = shoal(tmp_path, "till-2")
    other.init("another")
    assert carry(other, here, code=4)["code"] == "other_fleet"
    # Without its genesis, the ops themselves are refused.
    bundle = "\n".join(line for line in other.text("export").out.splitlines() if not line.startswith("genesis"))
    done = here.text("import", "-", "-o", "json", stdin=bundle)
    assert (done.code, done.json["reasons"]) == (1, {"other_fleet": 1})


def test_what_was_tampered_with_is_named_and_the_rest_taken_in(here: Shoal, tmp_path: Path) -> None:
    fleet = Fleet("mine")
    first, second = fleet.certify(here.box.peer_id, STRANGER)
    forged = second.raw[:-1] + bytes([second.raw[-1] ^ 1])
    bundle = "".join(write_bundle(fleet.genesis, [forged, first.raw]))
    there = shoal(tmp_path, "till-2")
    taken = there.json("import", "-", "--join-fleet", stdin=bundle, code=5)
    assert (taken["new"], taken["reasons"]) == (1, {"signature": 1})
    assert taken["refused_ops"] == [{"record": 1, "op": second.id.hex(), "reason": "signature"}]


@pytest.mark.parametrize("text", ["", "hello\n", "shoal-ops-1\nop !!!\n", "shoal-ops-1\nnothing\n"])
def test_a_file_that_is_no_bundle_is_refused_with_its_line(here: Shoal, text: str) -> None:
    error = here.json("import", "-", stdin=text, code=2)
    assert error["code"] == "bundle"


# --- desired state -------------------------------------------------------------------------------------------------

MODEL = "kind: Model\nname: smol\nspec:\n  source: https://example.com/smol.gguf\n"
PLACEMENT = "kind: Placement\nname: all-tills\nspec: {model: smol, replicas: all}\n"


def test_applying_writes_only_what_differs(here: Shoal, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "smol.yaml").write_text(MODEL)
    (folder / "placements.yml").write_text(PLACEMENT)
    planned = here.json("diff", "-f", str(folder))
    assert [(step["path"], step["action"]) for step in planned["steps"]] == [
        ("model/smol", "create"),
        ("place/all-tills", "create"),
    ]
    assert here.json("apply", "-f", str(folder), "--dry-run")["ops"] == []
    assert len(here.json("apply", "-f", str(folder))["ops"]) == 2
    assert here.json("apply", "-f", str(folder))["ops"] == []
    (folder / "models" / "smol.yaml").write_text(MODEL + "  quant: q4_k_m\n")
    changed = here.json("apply", "-f", str(folder))
    assert (changed["changes"], len(changed["ops"])) == (1, 1)
    # What is printed can be applied again, and changes nothing.
    printed = here.text("get").out
    assert here.json("apply", "-f", "-", stdin=printed)["changes"] == 0
    (model,) = here.json("get", "Model")["settings"]
    assert model["spec"] == {"source": "https://example.com/smol.gguf", "quant": "q4_k_m"}
    (folder / "placements.yml").unlink()
    assert here.json("apply", "-f", str(folder))["changes"] == 0
    assert here.json("apply", "-f", str(folder), "--prune", "yes", code=2)["code"] == "usage"
    assert here.json("apply", "-f", str(folder), "--prune", "yes", "--yes")["changes"] == 1
    assert [one["path"] for one in here.json("get")["settings"]] == ["model/smol"]
    here.json("delete", "Model/smol", "--yes")
    assert here.json("get")["settings"] == []
    assert here.json("delete", "model/smol", "--yes", code=2)["code"] == "usage"
    here.json("apply", "-f", "-", stdin=MODEL)
    assert [one["path"] for one in here.json("get", "model/smol")["settings"]] == ["model/smol"]


def test_a_policy_that_shuts_boxes_out_needs_consent(here: Shoal) -> None:
    policy = "kind: Policy\nname: firewall\nspec: {mode: allow-list}\n"
    error = here.json("apply", "-f", "-", stdin=policy, code=2)
    assert any("member" in risk for risk in error["details"]["risks"])
    here.json("apply", "-f", "-", "--yes", stdin=policy)
    assert "asks for an allow by name" in here.standing(here.box.peer_id)
    # Without the policy every member would be in again: leaving out a file must not do that.
    assert here.json("apply", "-f", "-", "--prune", "yes", stdin=MODEL)["changes"] == 1
    assert "asks for an allow by name" in here.standing(here.box.peer_id)


def test_admins_that_contradict_one_another_are_both_shown(here: Shoal, elsewhere: Shoal) -> None:
    here.json("apply", "-f", "-", stdin=MODEL + "  quant: q4_k_m\n")
    elsewhere.json("apply", "-f", "-", stdin=MODEL + "  quant: q8_0\n")
    carry(elsewhere, here)
    carry(here, elsewhere)
    (setting,) = here.json("get", "model/smol")["settings"]
    quants = {setting["spec"]["quant"], *(rival["spec"]["quant"] for rival in setting["rivals"])}
    assert quants == {"q4_k_m", "q8_0"}
    assert here.json("fleet", "show")["fleet"]["conflicts"] == ["model/smol"]
    wanted = MODEL + f"  quant: {setting['spec']['quant']}\n"
    error = here.json("apply", "-f", "-", stdin=wanted, code=2)
    (step,) = error["details"]["steps"]
    assert (step["action"], len(step["conflicts_with"])) == ("settle", 1)
    here.json("apply", "-f", "-", "--yes", stdin=wanted)
    carry(here, elsewhere)
    assert elsewhere.json("fleet", "show")["fleet"]["conflicts"] == []
    lost = [op for op in elsewhere.json("history", "--of", "model/smol")["ops"] if not op["counts"]]
    assert len(lost) == 2


def test_mistakes_in_manifests_stop_everything(here: Shoal, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL)
    (tmp_path / "b.yaml").write_text("kind: Placement\nname: x\nspec:\n  modle: smol\n")
    before = here.op_count()
    files = ["-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml")]
    error = here.json("apply", *files, code=2)
    assert error["code"] == "manifest"
    assert f"{tmp_path}/b.yaml:4: unknown key 'modle' in spec; did you mean 'model'?" in error["message"]
    assert here.op_count() == before
    assert here.json("apply", "-f", str(tmp_path / "none.yaml"), code=2)["code"] == "manifest"
    (tmp_path / "empty").mkdir()
    assert here.json("apply", "-f", str(tmp_path / "empty"), code=2)["code"] == "manifest"


# --- history, places -----------------------------------------------------------------------------------------------


def test_history_shows_what_a_disk_was_made_to_say(here: Shoal) -> None:
    here.json("firewall", "deny", STRANGER, "--yes")
    database = here.box.folder / "state" / "fleet" / "document.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        for identifier, raw in connection.execute("select id, raw from op").fetchall():
            connection.execute("update op set raw = ? where id = ?", (raw[:-1] + bytes([raw[-1] ^ 1]), identifier))
    assert [op["signature"] for op in here.json("history")["ops"]] == [False, False]
    assert "tampered" in here.text("history").out


def test_history_is_limited_and_filtered(here: Shoal) -> None:
    for number in range(3):
        here.json("firewall", "allow", peer_id_of(f"guest {number}"))
    latest = here.json("history", "--limit", "2")
    assert (latest["total"], len(latest["ops"])) == (4, 2)
    guest = peer_id_of("guest 1")
    assert [op["subject"] for op in here.json("history", "--of", guest)["ops"]] == [guest]
    assert here.json("history", "--of", "model/none")["ops"] == []
    assert here.json("history", "--of", "nobody", code=2)["code"] == "usage"


def test_a_url_alone_never_touches_this_machines_disk(here: Shoal) -> None:
    (here.box.folder / "shoal").mkdir()
    (here.box.folder / "shoal" / "state").symlink_to(here.box.folder / "state")  # the default state folder
    allow = ["firewall", "allow", STRANGER, "-o", "json"]
    done = in_this_process([*allow, "--url", here.box.url], "", here.env(), here.box.folder)
    assert (done.code, done.error["code"]) == (3, "agent_unreachable")
    assert here.json("firewall", "ls")["entries"] == []
    # Named by its state folder, the same box is written to without its configuration.
    done = in_this_process([*allow, "--state-dir", str(here.box.folder / "state")], "", here.env(), here.box.folder)
    assert done.code == 0
    assert len(here.json("firewall", "ls")["entries"]) == 1


def test_options_of_a_command_with_subcommands_belong_behind_them(here: Shoal) -> None:
    done = in_this_process(["invite", "--uses", "3", "ls"], "", here.env(), here.box.folder)
    assert done.code == 2
    assert "behind the word 'ls'" in done.err


def test_the_commands_of_the_documentation_run_in_their_order(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "cli-fleet.md").read_text("utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    (tmp_path / "manifests").symlink_to(root / "manifests")
    env = {**shoal(tmp_path, "unused").env(SHOAL_HTTP_LISTEN=f"127.0.0.1:{free_port()}")}
    del env["SHOAL_ADMIN_KEY_FILE"], env["SHOAL_IDENTITY_SEED"]
    assert len(commands) > 15
    for command in commands:
        name, *args = shlex.split(command)
        assert name == "shoal"
        done = in_this_process(args, "", env, tmp_path)
        assert done.code == 0, (command, done)


def test_a_box_whose_genesis_is_damaged_is_mended_with_another_boxs_copy(
    here: Shoal, elsewhere: Shoal, tmp_path: Path
) -> None:
    bundle = elsewhere.text("export").out
    token = elsewhere.invite()
    ops = here.op_count()
    folder = here.box.folder / "state" / "fleet"
    sound = (folder / "genesis.cbor").read_bytes()
    (folder / "genesis.cbor").write_bytes(b"zz")
    # Whatever is tried says what helps.
    for args, stdin in ((("boxes",), ""), (("import", "--join-fleet", "-"), bundle), (("join", token), "")):
        done = here.text(*args, stdin=stdin)
        assert done.code == 1, (args, done)
        assert "doctor --repair" in done.err
    stopped = here.process("run")
    assert stopped.code != 0
    assert "doctor --repair" in stopped.out + stopped.err
    found = {warning["code"]: warning for warning in json.loads(here.text("doctor", "-o", "json").out)["warnings"]}
    assert "doctor --repair" in found["document_unreadable"]["remedy"]

    report = here.json("doctor", "--repair", code=5)
    assert (report["fleet"], report["ops"]) == (None, ops)
    assert report["fleet_id"] == elsewhere.json("fleet", "show")["fleet"]["id"]
    assert Path(report["genesis_set_aside"]).read_bytes() == b"zz"
    told = here.text("doctor", "--repair")
    assert told.code == 5
    assert f"shoal import --join-fleet --config {here.box.config_file} FILE" in told.out
    found = {warning["code"]: warning for warning in json.loads(here.text("doctor", "-o", "json").out)["warnings"]}
    assert "doctor --repair" in found["genesis_missing"]["remedy"]

    # Its ops hold it to its fleet.
    stranger = shoal(tmp_path, "stranger")
    stranger.init("another")
    refused = here.json("import", "--join-fleet", "-", stdin=stranger.text("export").out, code=1)
    assert "of another fleet" in refused["message"]
    assert here.json("boxes", code=1)["code"] == "no_fleet"

    again = here.json("import", "--join-fleet", "-", stdin=bundle)
    assert (again["joined"], again["refused"]) == (True, 0)
    assert (folder / "genesis.cbor").read_bytes() == sound
    assert here.json("doctor", "--repair")["fleet"] == "shops"
    assert here.standing(here.box.peer_id) == "member"


def test_a_box_whose_genesis_is_damaged_gets_another_with_a_token(here: Shoal, tmp_path: Path) -> None:
    other = shoal(tmp_path, "till-2")
    carry(here, other, "--join-fleet")
    here.json("admit", other.box.peer_id, "--yes")
    carry(here, other)
    (other.box.folder / "state" / "fleet" / "genesis.cbor").write_bytes(b"zz")
    assert other.text("doctor", "--repair").code == 5
    token = here.invite()
    with running(here.box, other.box):
        here.box.start()
        other.box.start()
        assert other.json("join", token)["joined"]
        assert other.standing(other.box.peer_id) == "member"
        other.box.stop()
    assert other.json("doctor", "--repair")["fleet"] == "shops"


def test_a_token_in_a_file_that_others_can_read_is_warned_of(here: Shoal, tmp_path: Path) -> None:
    for mode, warned in ((0o644, True), (0o600, False)):
        path = tmp_path / f"token-{mode:o}"
        path.touch()
        path.chmod(mode)
        with path.open("w") as file:
            done = subprocess.run(
                here.argv("invite", "--addr", here.box.p2p_addr),
                stdout=file, stderr=subprocess.PIPE, text=True, timeout=LIMIT, env=here.env(), cwd=here.box.folder,
            )  # fmt: skip
        assert read_token(path.read_text()).invite.uses == 1
        assert ("mode 0644" in done.stderr) == warned, done.stderr
    assert "warning" not in here.text("invite", "--addr", here.box.p2p_addr).err


def test_a_token_that_leads_only_to_this_box_is_refused_there(here: Shoal, tmp_path: Path) -> None:
    fresh = shoal(tmp_path, "fresh")
    own, other = (here.json("invite", "--addr", box.p2p_addr)["token"] for box in (fresh.box, here.box))
    fresh.box.folder.joinpath("state").mkdir(exist_ok=True)
    assert "only this box" in fresh.json("join", own, code=4)["message"]
    assert fresh.json("join", other)["state"] == "at_next_start"
    with running(fresh.box):
        fresh.box.start()
        assert "only this box" in fresh.json("join", own, code=4)["message"]


def test_a_token_of_an_admin_who_was_cut_off_is_refused_with_the_reason(here: Shoal, tmp_path: Path) -> None:
    other = shoal(tmp_path, "till-2")
    carry(here, other, "--join-fleet")
    token = here.invite()
    admin = make_key(here)  # it is there, and only read
    new = make_key(here, "new.key")
    recovery = ("--recovery-key", str(here.keys / "recovery.key"))
    here.json("admin", "recover", *recovery, "--new-admin", new, "--revoke", admin, "--keep", "1", "--yes")
    carry(here, other)
    assert "was revoked" in other.json("join", token, code=4)["message"]
    with running(other.box):
        other.box.start()
        assert "was revoked" in other.json("join", token, code=4)["message"]


def test_an_allow_is_shown_only_once_it_is_written(here: Shoal) -> None:
    folder = here.box.folder / "state" / "fleet"
    with closing(sqlite3.connect(folder / "document.db")) as database:
        database.execute("create trigger full before insert on op begin select raise(abort, 'full'); end")
        database.commit()
    failed = here.text("firewall", "allow", STRANGER)
    assert (failed.code, failed.out) == (1, "")
    with closing(sqlite3.connect(folder / "document.db")) as database:
        database.execute("drop trigger full")
        database.commit()
    assert here.text("firewall", "allow", STRANGER).out.startswith("allow ")


def test_the_ops_of_an_admin_are_listed_by_the_names_of_those_they_are_about(here: Shoal) -> None:
    here.json("firewall", "allow", STRANGER)
    listed = here.json("revoke", make_key(here), "--yes", code=2)["message"]
    assert f"fw …{STRANGER[-8:]}: allow" in listed
    assert public_key_from_peer_id(STRANGER).hex() not in listed


def test_a_record_that_is_no_op_is_named_by_its_place(here: Shoal) -> None:
    done = here.text("import", "-", stdin="shoal-ops-1\nop AAAA\n")
    assert done.code == 1
    assert "record 1 (too short for an op): size" in done.out
