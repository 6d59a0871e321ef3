"""A machine for Ansible: a container with sshd and Python that can run an engine of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.containers.engine import LABELS, RUN, docker

HERE: Final = Path(__file__).parent
BARE: Final = "shoal-test/bare"
WITH_ENGINE: Final = "shoal-test/target"

_LABELS: Final = [option for item in LABELS.items() for option in ("--label", "=".join(item))]

#: What an engine within a container needs, where the outer one cannot give everything (--privileged).
_CAPABILITIES: Final = ("SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "MKNOD", "IPC_LOCK")
_UNCONFINED: Final = ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined")
_SYS_RESOURCE: Final = 24


def build(image: str, *packages: str) -> None:
    """Build the image of a machine, with further packages of Debian."""
    base = "shoal-base/python:3.11"
    if not docker("image", "inspect", "--format", "{{.Id}}", base, check=False):
        base = "python:3.11-slim-bookworm"
    arguments = [f"DEBIAN_IMAGE={base}", f"DOCKER={' '.join(packages)}"]
    options = [option for one in arguments for option in ("--build-arg", one)]
    docker(
        "buildx", "build", "--quiet", "--load", *options, "-t", image, "-f", str(HERE / "target.Dockerfile"), str(HERE)
    )


def _powers() -> list[str]:
    status = Path("/proc/self/status").read_text()
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")), 16)
    if bounding >> _SYS_RESOURCE & 1:
        return ["--privileged"]
    added = [option for name in _CAPABILITIES for option in ("--cap-add", name)]
    return [*added, *(f"--security-opt={one}" for one in _UNCONFINED), "--device-cgroup-rule=a *:* rwm"]


def _plugins() -> list[Path]:
    """Where this machine has compose and buildx."""
    said = docker("info", "--format", "{{range .ClientInfo.Plugins}}{{.Path}}\n{{end}}")
    return [Path(line) for line in said.split() if Path(line).name in ("docker-compose", "docker-buildx")]


class Machine:
    """One machine; it has the name that Ansible knows it by, and its engine's state is a volume of its own."""

    def __init__(self, name: str, network: str, image: str, public_key: str) -> None:
        self.name = name
        self.container = f"{name}-{RUN}"
        docker(
            *("run", "--detach", "--name", self.container, "--hostname", name, *_LABELS, *_powers()),
            *("--network", network, "--volume", "/var/lib/docker", "--tmpfs", "/run"),
            *("--env", f"AUTHORIZED_KEY={public_key}", image),
        )
        (found,) = json.loads(docker("inspect", self.container))
        self.address = str(found["NetworkSettings"]["Networks"][network]["IPAddress"])
        if image == WITH_ENGINE:
            self.run("mkdir", "-p", "/usr/local/lib/docker/cli-plugins")
            for plugin in _plugins():
                docker("cp", "--follow-link", str(plugin), f"{self.container}:/usr/local/lib/docker/cli-plugins/")

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> str:
        """What a command prints on the machine."""
        done = subprocess.run(
            ["docker", "exec", "--interactive", self.container, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def shoal(self, *command: str) -> Any:
        """What `shoal COMMAND -o json` says on the box."""
        return json.loads(self.run("docker", "exec", "shoal-agent-1", "shoal", *command, "-o", "json"))

    def derive(self, image: str, tag: str, *lines: str) -> None:
        """Make an image on this machine's own engine out of one that it has, as if it had been pulled."""
        self.run("docker", "build", "--quiet", "-t", tag, "-", stdin="\n".join([f"FROM {image}", *lines, ""]))

    def running(self) -> set[str]:
        """The names of the containers that run."""
        return set(self.run("docker", "ps", "--format", "{{.Names}}").split())


@contextmanager
def machines(names: dict[str, str], public_key: str) -> Iterator[dict[str, Machine]]:
    """Machines by their names, each of an image, in one network. They go with the sweep of the run."""
    network = f"shoal-ansible-{RUN}"
    docker("network", "create", *_LABELS, network)
    yield {name: Machine(name, network, image, public_key) for name, image in names.items()}
