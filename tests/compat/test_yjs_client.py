"""npm's `yjs` and `y-websocket` under node, as a local app uses them, against the real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.config import HttpConfig
from agent.http import document_socket
from agent.http.document_socket import DocumentSocket
from agent.http.server import serve
from fleet.document.projection import MAPS, Projection
from fleet.identity.keys import public_key_from_peer_id
from tests.harness import Agent, agents
from tests.http_agent import ScriptedServices
from tests.projected import BOXES, NOW, Fleet

pytestmark = pytest.mark.node

APP = Path(__file__).parent / "yjs"
LIMIT = 60.0
KEY = "alpha-" * 4


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The packages that package.json names, beside it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is missing; run: sudo apt-get install -y nodejs npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    done = subprocess.run(command, cwd=APP, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class NodeApp:
    """The client as a process: what it says, line by line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._rest = b""
        self.document: dict[str, dict[str, str]] = {}

    async def write(self, *entry: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(entry).encode() + b"\n")

    async def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next thing it says that is wanted."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                assert self.process.stdout is not None
                more = await self.process.stdout.receive_some()
                assert more, "node ended"
                self._rest += more
                continue
            self._rest = rest
            said = json.loads(line)
            self.document = said.get("document", self.document)
            if wanted(said):
                return dict(said)

    async def shows(self, projection: Projection) -> None:
        """Wait until its copy is the document."""
        expected = {name: dict(projection.entries(name)) for name in MAPS}
        if self.document != expected:
            await self.hear(lambda said: said.get("document") == expected)


@asynccontextmanager
async def node_app(port: int, key: str = "") -> AsyncIterator[NodeApp]:
    process = await trio.lowlevel.open_process(
        ["node", str(APP / "client.js"), f"ws://127.0.0.1:{port}/v1/fleet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "SHOAL_API_KEY": key},
    )
    try:
        yield NodeApp(process)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def serving(projection: Projection, port: int = 0, **config: Any) -> AsyncIterator[tuple[int, DocumentSocket]]:
    socket = DocumentSocket(lambda: projection)
    http = HttpConfig(**{"listen": f"127.0.0.1:{port}", **config})
    async with trio.open_nursery() as nursery:
        _, port = await nursery.start(partial(serve, ScriptedServices(), http, socket))
        yield port, socket
        nursery.cancel_scope.cancel()


def plant() -> tuple[Fleet, Projection]:
    fleet, projection = Fleet(), Projection(NOW)
    fleet.let_in(BOXES[0])
    fleet.write(BOXES[0], "node", "node", {"name": "pos-1", "labels": {"site": "shop-1"}})
    projection.apply(fleet.view())
    return fleet, projection


def run(test: Callable[[], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT):
            await test()

    trio.run(main)


def test_an_app_sees_a_box_join_live() -> None:
    async def test() -> None:
        fleet, projection = plant()
        async with serving(projection) as (port, _), node_app(port) as app:
            await app.hear(lambda said: said.get("synced") is True)
            await app.shows(projection)
            newcomer = BOXES[1].public_key.hex()
            assert newcomer not in app.document["members"]
            fleet.let_in(BOXES[1])
            projection.apply(fleet.view())
            fleet.write(BOXES[1], "node", "node", {"name": "pos-2", "labels": {"site": "shop-2"}})
            projection.apply(fleet.view())
            await app.shows(projection)
            member = json.loads(app.document["members"][newcomer])
            assert member == {"how": "cert", "name": "pos-2", "labels": {"site": "shop-2"}}
            assert json.loads(app.document["firewall"][newcomer])["admitted"] is True
            fleet.write(BOXES[1], "node", "node", None)
            projection.apply(fleet.view())
            await app.shows(projection)

    run(test)


def test_an_app_that_stays_through_a_restart_shows_the_new_document() -> None:
    async def test() -> None:
        _, before = plant()
        fleet, after = Fleet(), Projection(NOW + 1000)
        fleet.let_in(BOXES[2], BOXES[3])
        fleet.write(BOXES[2], "node", "node", {"name": "pos-3"})
        after.apply(fleet.view())
        async with AsyncExitStack() as stack:
            async with serving(before) as (port, _):
                app = await stack.enter_async_context(node_app(port))
                await app.shows(before)
                before.rebuild()
                await app.hear(lambda said: "document" in said)
                await app.shows(before)
            async with serving(after, port):
                await app.shows(after)
                fleet.write(BOXES[3], "node", "node", {"name": "pos-4"})
                after.apply(fleet.view())
                await app.shows(after)

    run(test)


def test_an_app_whose_copy_is_from_the_future_is_told_and_stops_asking() -> None:
    async def test() -> None:
        _, later = plant()
        earlier = Projection(NOW - 1000)
        earlier.apply(Fleet().view())
        async with AsyncExitStack() as stack:
            async with serving(later) as (port, _):
                app = await stack.enter_async_context(node_app(port))
                await app.shows(later)
            async with serving(earlier, port):
                said = await app.hear(lambda said: "closed" in said)
                assert said["closed"] == document_socket.STALE_COPY
                assert "empty" in said["reason"]

    run(test)


def test_what_an_app_writes_stays_with_it() -> None:
    async def test() -> None:
        fleet, projection = plant()
        async with serving(projection) as (port, socket), node_app(port) as app, node_app(port) as other:
            await app.shows(projection)
            await other.shows(projection)
            await app.write("firewall", BOXES[3].public_key.hex(), '{"admitted":true}')
            await app.hear(lambda said: BOXES[3].public_key.hex() in said.get("document", {}).get("firewall", {}))
            fleet.let_in(BOXES[1])
            projection.apply(fleet.view())
            await other.shows(projection)
            assert BOXES[3].public_key.hex() not in projection.entries("firewall")
            while not socket.dropped["write"]:
                await trio.sleep(0.01)

    run(test)


class Asking(Projection):
    """Says when its clients have been asked often enough."""

    def __init__(self, wall_ms: int, times: int) -> None:
        super().__init__(wall_ms)
        self._left = times
        self.enough = trio.Event()

    def vector(self) -> bytes:
        self._left -= 1
        if self._left <= 0:
            self.enough.set()
        return super().vector()


def test_an_app_in_a_fleet_where_nothing_happens_answers_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_socket, "ASK_EVERY", 0.2)
    monkeypatch.setattr(document_socket, "MAX_SILENCE", 1.0)

    async def test() -> None:
        fleet, projection = Fleet(), Asking(NOW, 15)  # for three times the silence that would end it
        projection.apply(fleet.view())
        async with serving(projection) as (port, socket), node_app(port) as app:
            await app.shows(projection)
            (client,) = socket._clients
            await projection.enough.wait()
            assert socket._clients == {client}
            fleet.let_in(BOXES[1])
            projection.apply(fleet.view())
            await app.shows(projection)

    run(test)


def test_an_app_with_a_key_gets_in(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)

    async def test() -> None:
        _, projection = plant()
        async with serving(projection, api_key_file=keys) as (port, _), node_app(port, KEY) as app:
            await app.shows(projection)

    run(test)


def test_an_app_beside_a_running_agent_sees_a_box_join_live_and_be_revoked(tmp_path: Path) -> None:
    with agents(tmp_path, {"pos-1": {}}) as (one,):
        token = one.fleet.invite(one.p2p_addr)
        one.offer(token.op)
        new = Agent(tmp_path / "pos-2", "pos-2", {}, {"SHOAL_JOIN_TOKEN": token.text()}, one.fleet)
        key = public_key_from_peer_id(new.peer_id).hex()

        async def scenario() -> None:
            with trio.fail_after(LIMIT):
                async with node_app(one.http_port) as app:
                    await app.hear(lambda said: "pos-1" in json.dumps(said.get("document", {}).get("members", {})))
                    assert key not in app.document["members"]
                    await trio.to_thread.run_sync(new.start)
                    await app.hear(lambda said: "pos-2" in said.get("document", {}).get("members", {}).get(key, ""))
                    assert json.loads(app.document["firewall"][key])["admitted"] is True
                    await trio.to_thread.run_sync(one.offer, one.fleet.revoke(new.peer_id))
                    await app.hear(lambda said: key not in said.get("document", {}).get("members", {key: ""}))
                    assert json.loads(app.document["firewall"][key])["admitted"] is False

        try:
            trio.run(scenario)
        finally:
            new.kill()
