"""A box that gives and fetches one blob, as a process of its own: `python -m tests.blob_box` with its orders as JSON.

What it says are lines of JSON on standard output: `ready`, then `progress` again and again, `done`, and `stats` for
each line it reads, of which the first lets it begin where it waits. It ends with its standard input. Faults are part of
the orders.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import trio

from fleet.blobs import fast_lane, giving
from fleet.blobs.account import Account
from fleet.blobs.manifest import Manifest, read_manifest
from fleet.blobs.serve import Server, ServeTerms
from fleet.blobs.store import BlobStore
from fleet.blobs.swarm import fetch
from fleet.net.gate import Gate
from fleet.net.messages import Hello, Presence
from fleet.net.node import Node, NodeEvents
from fleet.net.rpc import Router
from tests.harness import free_port, peer_id_of, seed_of

LIMIT = 90.0


# --- the process ------------------------------------------------------------------------------------------------------


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def cpu() -> float:
    """Seconds of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def break_it(fault: str) -> None:
    """Let this box lie, or have a port that cannot be reached."""
    if fault == "corrupt":
        sound = giving.Giving.read

        def rotten(self: giving.Giving, index: int) -> bytes | None:
            data = sound(self, index)
            return None if data is None else bytes([data[0] ^ 0xFF]) + data[1:]

        giving.Giving.read = rotten  # type: ignore[method-assign]
    elif fault == "blocked":

        def unreachable(*args: Any, **kwargs: Any) -> Any:
            raise TimeoutError(errno.ETIMEDOUT, "as where a firewall drops what comes to the port")

        fast_lane.socket.create_connection = unreachable  # type: ignore[assignment]
    elif fault:
        raise ValueError(fault)


async def main(orders: Mapping[str, Any]) -> None:
    break_it(orders["fault"])
    with BlobStore(Path(orders["folder"]), keep_free=orders["keep_free"]) as store:
        manifest = store.adopt(Path(orders["adopt"])).manifest if orders["adopt"] else None
        router = Router(authorise=lambda peer_id, scope: True)
        rate = orders["rate"]
        terms = ServeTerms(port=orders["lane_port"], host="127.0.0.1", rate=lambda: rate)
        server = Server(store, terms, permitted=lambda peer_id: True, alone=lambda blob: orders["alone"])
        server.offer_methods(router)
        name = orders["name"]
        presence = Presence(seq=1, name=name, version="test")
        node = Node(
            seed_of(name),
            listen=[f"/ip4/127.0.0.1/tcp/{orders['port']}"],
            targets={peer: tuple(addrs) for peer, addrs in orders["peers"].items()},
            mdns=False,
            gate=Gate(lambda peer_id: True),
            router=router,
            hello=lambda: Hello(name=name, version="test", presence=presence),
            events=NodeEvents(up=lambda link: None, down=lambda link: None, notify=lambda link, topic, body: None),
            connect_timeout=5.0,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            await nursery.start(node.run)
            say("ready", manifest=manifest and manifest.body(), addrs=node.addrs())
            go = trio.Event()
            nursery.start_soon(_answer, server, nursery, go)
            if orders["fetch"]:
                while len(node.links()) < len(orders["peers"]):
                    await node.wait_change()
                if orders["wait"]:
                    say("linked")
                    await go.wait()
                await _fetch(read_manifest(orders["fetch"]), store, node, server, orders)
            await trio.sleep_forever()


async def _answer(server: Server, nursery: trio.Nursery, go: trio.Event) -> None:
    while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        go.set()
        say("stats", given=server.given, refused=dict(server.refused), cpu=cpu())
    nursery.cancel_scope.cancel()


async def _fetch(manifest: Manifest, store: BlobStore, node: Node, server: Server, orders: Mapping[str, Any]) -> None:
    account = Account(manifest)
    began, used = time.perf_counter(), cpu()

    async def tell() -> None:
        while True:
            say("progress", **asdict(account.progress()))
            await trio.sleep(orders["tell_every"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        path = await fetch(manifest, store=store, sources=node, server=server, account=account, fast=orders["fast"])
        nursery.cancel_scope.cancel()
    seconds = time.perf_counter() - began
    say("done", path=str(path), seconds=seconds, cpu=cpu() - used, **asdict(account.progress()))


# --- the test's side --------------------------------------------------------------------------------------------------


@dataclass
class BlobBox:
    """A box's process, under a test's control."""

    folder: Path
    name: str
    orders: dict[str, Any]
    said: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peer_id = peer_id_of(self.name)
        self.port = free_port()
        self.addr = f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{self.peer_id}"
        self.errors = self.folder.with_suffix(".err")
        self._lines: Queue[dict[str, Any] | None] = Queue()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, **orders: Any) -> BlobBox:
        """Start the process, once more perhaps, with other orders."""
        whole = {
            "name": self.name,
            "folder": str(self.folder),
            "port": self.port,
            "adopt": None,
            "fetch": None,
            "peers": {},
            "fault": "",
            "rate": None,
            "fast": True,
            "lane_port": 0,
            "alone": False,
            "keep_free": 0,
            "tell_every": 0.02,
            "wait": False,
            **self.orders,
            **orders,
        }
        self._lines = Queue()
        with self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.blob_box", json.dumps(whole)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str], lines: Queue[dict[str, Any] | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                self.said.append(found)
                lines.put(found)
        lines.put(None)

    def wait(self, event: str, limit: float = LIMIT, **fields: Any) -> dict[str, Any]:
        """The next thing it says of this kind, with these fields."""
        return self.until(lambda said: said["event"] == event and fields.items() <= said.items(), event, limit)

    def until(self, holds: Any, what: str, limit: float = LIMIT) -> dict[str, Any]:
        """The next thing it says of which `holds` is true."""
        deadline = time.monotonic() + limit
        while True:
            try:
                said = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"{self.name}: no {what} within {limit} s; last: {self.said[-1:]}") from None
            if said is None:
                raise AssertionError(f"{self.name} ended before {what}\n{self.errors.read_text()[-4000:]}")
            if holds(said):
                return said

    def at(self, fraction: float) -> dict[str, Any]:
        """Wait until so much of the blob is here."""
        return self.until(
            lambda said: said["event"] == "progress" and said["bytes"] >= fraction * said["size"], f"{fraction:.0%}"
        )

    def stats(self) -> dict[str, Any]:
        """What it has given so far."""
        self.go()
        return self.wait("stats", 30)

    def go(self) -> None:
        """Begin, where it was told to wait."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._reader is not None
            self._reader.join()  # before its pipe is closed: the number of that may be another pipe's next
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()


@contextmanager
def boxes(folder: Path, source: Path, sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[BlobBox], BlobBox]]:
    """Boxes that hold `source`, each with its own orders, started; and one that is not started, and is to fetch it."""
    folder.mkdir(exist_ok=True)
    made = [BlobBox(folder / f"source-{n}", f"source-{n}", dict(orders)) for n, orders in enumerate(sources)]
    getter = BlobBox(folder / "getter", "getter", {})
    try:
        for box in made:
            box.start(adopt=str(source))
        manifests = [box.wait("ready")["manifest"] for box in made]
        getter.orders.update(fetch=manifests[0], peers={box.peer_id: [box.addr] for box in made})
        yield made, getter
    finally:
        for box in (*made, getter):
            box.kill()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    trio.run(main, json.loads(sys.argv[1]))
