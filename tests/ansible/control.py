"""The control machine: an inventory, the fleet's keys, and the playbooks as they are typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.ansible.machine import Machine

ROOT: Final = Path(__file__).parents[2]
#: Where the commands of this environment are.
BIN: Final = Path(sys.executable).parent
#: What each play printed is kept here, to be read after a failure.
_LOGS: Final = ROOT / "build" / "ansible"
_RECAP: Final = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """What a playbook did: its exit code, what it printed, and the counts of each box."""

    rc: int
    text: str
    seconds: float

    @property
    def changed(self) -> dict[str, int]:
        """Tasks that changed something, by box."""
        return {name: int(changed) for name, _, changed, *_ in _RECAP.findall(self.text)}

    @property
    def failed(self) -> set[str]:
        """The boxes that failed or were out of reach."""
        return {name for name, _, _, away, failed in _RECAP.findall(self.text) if int(away) or int(failed)}

    def good(self) -> Played:
        """Itself, where nothing failed."""
        assert self.rc == 0, self.text
        return self


class Control:
    """A folder of its own beside the playbooks of the tree: what a test does leaves no trace there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = folder / "fleet"
        self._key = folder / "id"
        self._played = 0
        for old in _LOGS.glob("*.log"):
            old.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        self.public_key = self._key.with_suffix(".pub").read_text().strip()
        # No file for known hosts: the machines of the next run have the addresses of these.
        self._env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
            "ANSIBLE_HOST_KEY_CHECKING": "false",
        }

    def inventory(self, machines: Iterable[Machine], common: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Write the inventory: `common` variables, and `own` ones by box."""
        hosts = {
            one.name: {"ansible_host": one.address, "shoal_address": one.address, **own.get(one.name, {})}
            for one in machines
        }
        everyone = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._key),
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_python_interpreter": "/usr/bin/python3",
            "shoal_fleet_dir": str(self.fleet),
            **common,
        }
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"shoal": {"hosts": hosts, "vars": everyone}}))

    def play(self, playbook: str, *arguments: str, limit: float = 600.0, **variables: Any) -> Played:
        """`ansible-playbook PLAYBOOK ARGUMENTS -e VARIABLES`, in the folder of the playbooks."""
        extra = ["-e", json.dumps(variables)] if variables else []
        command = [str(BIN / "ansible-playbook"), "-i", str(self.folder / "hosts.yml"), playbook, *arguments, *extra]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT / "ansible",
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        seconds = time.monotonic() - began
        self._played += 1
        _LOGS.mkdir(parents=True, exist_ok=True)
        (_LOGS / f"{self._played:02}.log").write_text(f"$ {shlex.join(command)}\n{done.stdout}\n{seconds:.0f} s\n")
        return Played(done.returncode, done.stdout, seconds)

    def shoal(self, *command: str) -> str:
        """What a command prints that works on the fleet's folder."""
        done = subprocess.run(
            [BIN / "shoal", *command],
            cwd=self.folder,
            env={**self._env, "SHOAL_ADMIN_KEY_FILE": str(self.fleet / "keys" / "admin.key")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr or done.stdout
        return done.stdout

    def found(self, name: str) -> None:
        """Found the fleet, as the playbook says where there is none."""
        self.shoal("init", "--dir", str(self.fleet), "--name", "control")
        state, keys = str(self.fleet / "state"), str(self.fleet / "keys")
        self.shoal("fleet", "init", "--name", name, "--state-dir", state, "--keys", keys)

    def peer_id(self, box: str) -> str:
        """The PeerID of a box, as the first play noted it."""
        return str(json.loads((self.fleet / "boxes" / f"{box}.json").read_text())["peer_id"])
