"""The document over a websocket: real server, real websocket client, a Yjs document at its end; hostile clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.lowlevel
import trio.testing
from hypercorn.protocol import ws_stream
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, open_websocket_url
from wsproto.events import BytesMessage

from agent.config import HttpConfig
from agent.http import connections, document_socket
from agent.http.document_socket import DocumentSocket
from agent.http.server import serve
from agent.http.websocket_fixes import BoundedBuffer, UncompressedHandshake
from fleet.document import yjs
from fleet.document.projection import MAPS, Projection
from tests.http_agent import LIMIT, ScriptedServices
from tests.projected import BOXES, NOW, Copy, Fleet

KEY = "alpha-" * 4


class Served:
    """A server with a document of its own, and clients of it."""

    def __init__(self, port: int, socket: DocumentSocket, fleet: Fleet, projection: Projection) -> None:
        self.port = port
        self.socket = socket
        self.fleet = fleet
        self.projection = projection
        self.url = f"ws://127.0.0.1:{port}/v1/fleet/document"

    def apply(self) -> None:
        self.projection.apply(self.fleet.view())

    def contents(self) -> dict[str, dict[str, str]]:
        return {name: dict(self.projection.entries(name)) for name in MAPS}

    @asynccontextmanager
    async def client(self, copy: Copy | None = None, **options: Any) -> AsyncIterator[Client]:
        async with open_websocket_url(self.url, **options) as websocket:
            yield Client(websocket, copy or Copy())


class Client:
    """What a provider does: asks with its state vector, takes what comes, and answers what it is asked."""

    def __init__(self, websocket: WebSocketConnection, copy: Copy) -> None:
        self.websocket = websocket
        self.copy = copy
        self.asked = 0

    async def ask(self, vector: bytes | None = None) -> None:
        await self.send(0, self.copy.doc.get_state() if vector is None else vector)

    async def send(self, step: int, content: bytes) -> None:
        await self.websocket.send_message(b"\0" + yjs.integer(step) + yjs.byte_string(content))

    async def take(self) -> int:
        """Take one message; returns its step."""
        message = yjs.Reader(await self.websocket.get_message())
        assert message.integer() == 0
        step, content = message.integer(), message.bytes()
        if step == 0:
            self.asked += 1
            await self.send(1, self.copy.doc.get_update(content))
        else:
            self.copy.take(content)
        return step

    async def take_until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self.take()

    async def ended(self) -> tuple[int, str]:
        """Read until the server closes; returns its code and reason."""
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await self.websocket.get_message()
        return closed.value.reason.code, closed.value.reason.reason


def run(test: Callable[[Served], Awaitable[None]], **config: Any) -> None:
    async def main() -> None:
        fleet, projection = Fleet(), Projection(NOW)
        fleet.let_in(BOXES[0])
        fleet.write(BOXES[0], "node", "node", {"name": "pos-1"})
        projection.apply(fleet.view())
        socket = DocumentSocket(lambda: projection)
        http = HttpConfig(**{"listen": "127.0.0.1:0", **config})
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                _, port = await nursery.start(partial(serve, ScriptedServices(), http, socket))
                await test(Served(port, socket, fleet, projection))
                nursery.cancel_scope.cancel()

    trio.run(main)


def handshake(host: str) -> bytes:
    """The head of a websocket's request, for a client that does the rest by hand."""
    lines = [
        "GET /v1/fleet/document HTTP/1.1",
        f"Host: {host}",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


# --- following the document ----------------------------------------------------------------------------------------


def test_a_client_gets_the_document_and_then_every_change() -> None:
    async def test(served: Served) -> None:
        async with served.client() as one, served.client() as other:
            for client in (one, other):
                await client.ask()
                assert await client.take() == 1
                assert client.copy.contents() == served.contents()
            served.fleet.let_in(BOXES[1])
            served.apply()
            served.fleet.write(BOXES[1], "node", "node", {"name": "pos-2"})
            served.apply()
            for client in (one, other):
                assert [await client.take(), await client.take()] == [2, 2]
                assert client.copy.contents() == served.contents()
                assert json.loads(client.copy.maps["members"][BOXES[1].public_key.hex()])["name"] == "pos-2"

    run(test)


def test_a_client_that_comes_back_gets_only_what_it_lacks() -> None:
    async def test(served: Served) -> None:
        copy = Copy()
        async with served.client(copy) as client:
            await client.ask()
            await client.take()
        whole = len(copy.updates[-1])
        served.fleet.write(BOXES[0], "node", "addr", [])
        served.apply()
        async with served.client(copy) as client:
            await client.ask()
            await client.take()
        assert copy.contents() == served.contents()
        assert len(copy.updates[-1]) < whole / 3

    run(test)


def test_a_client_of_the_process_before_is_taken_along() -> None:
    async def test(served: Served) -> None:
        before, earlier = Fleet(), Projection(NOW - 1)
        before.let_in(BOXES[3])
        earlier.apply(before.view())
        copy = Copy().sync(earlier)
        async with served.client(copy) as client:
            await client.ask()
            await client.take()
        assert copy.contents() == served.contents()

    run(test)


def test_a_client_of_a_later_process_is_told_to_start_again() -> None:
    async def test(served: Served) -> None:
        later = Projection(NOW + 1)
        later.apply(served.fleet.view())
        async with served.client(Copy().sync(later)) as client:
            await client.ask()
            code, reason = await client.ended()
        assert code == document_socket.STALE_COPY
        assert "empty" in reason

    run(test)


def test_a_rebuilt_document_takes_clients_along() -> None:
    async def test(served: Served) -> None:
        async with served.client() as client:
            await client.ask()
            await client.take()
            served.projection.rebuild()
            await client.take()
            served.fleet.let_in(BOXES[1])
            served.apply()
            await client.take()
            assert client.copy.contents() == served.contents()

    run(test)


def test_a_slow_client_gets_one_update_for_the_many_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_socket, "MAX_WAITING", 8)

    async def test(served: Served) -> None:
        async with served.client() as client:
            await client.ask()
            await client.take()
            for turn in range(200):  # nobody else runs meanwhile
                served.fleet.write(BOXES[0], "node", f"perf/{turn}", {"decode": 1.0})
                served.apply()
            assert await client.take() == 2
            assert client.copy.contents() == served.contents()
            served.fleet.write(BOXES[0], "node", "addr", ["x"])
            served.apply()
            await client.take()
            assert client.copy.contents() == served.contents()

    run(test)


# --- read-only -----------------------------------------------------------------------------------------------------


def test_what_clients_write_is_dropped_and_counted() -> None:
    async def test(served: Served) -> None:
        held = served.contents()
        async with served.client() as vandal, served.client() as reader:
            for client in (vandal, reader):
                await client.ask()
                await client.take()
            with vandal.copy.doc.transaction():
                vandal.copy.maps["firewall"][BOXES[3].public_key.hex()] = '{"admitted":true}'
                del vandal.copy.maps["members"][BOXES[0].public_key.hex()]
            update = vandal.copy.doc.get_update()
            await vandal.send(1, update)
            await vandal.send(2, update)
            await vandal.websocket.send_message(b"\1\1\0")  # awareness
            await vandal.websocket.send_message(b"\3")
            await vandal.send(1, b"\0\0")
            served.fleet.let_in(BOXES[1])
            await vandal.ask()
            await vandal.take()
            assert served.contents() == held
            assert served.socket.dropped == {"write": 2, "awareness": 1, "awareness_query": 1}
            served.apply()
            await reader.take()
            assert reader.copy.contents() == served.contents()

    run(test)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", document_socket.NOT_YJS),
        (b"\0", document_socket.NOT_YJS),
        (b"\0\0", document_socket.NOT_YJS),
        (b"\0\0\5\1", document_socket.NOT_YJS),
        (b"\0\0\1\5", document_socket.NOT_YJS),
        (b"\0\0" + yjs.byte_string(yjs.integer(1 << 32) + b"\1\1"), document_socket.NOT_YJS),
        (b"\0\7\1\0", document_socket.NOT_YJS),
        (b"\0\1\0", document_socket.NOT_YJS),
        (b"\xff" * 20, document_socket.NOT_YJS),
        ("text", document_socket.NOT_BINARY),
        (b"\0" * (document_socket.MAX_MESSAGE + 1), document_socket.TOO_BIG),
        (b"\0" * 5_000_000, document_socket.TOO_BIG),
        ("x" * 5_000_000, document_socket.TOO_BIG),
    ],
)
def test_a_client_that_speaks_something_else_is_told_and_harms_nobody(message: Any, code: int) -> None:
    async def test(served: Served) -> None:
        async with served.client() as good:
            async with served.client() as bad:
                await bad.websocket.send_message(message)
                ended, reason = await bad.ended()
                assert (ended, bool(reason)) == (code, True)
            await good.ask()
            await good.take()
            assert good.copy.contents() == served.contents()

    run(test)


# --- who may -------------------------------------------------------------------------------------------------------


async def refusal(served: Served, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(ConnectionRejected) as refused:
        async with served.client(**options):
            pass
    return refused.value.status_code, json.loads(refused.value.body)["error"]


def test_without_a_key_web_pages_of_other_origins_and_other_names_are_refused() -> None:
    async def test(served: Served) -> None:
        for headers in ([("Origin", "https://evil.example")], [("Origin", "null")]):
            status, error = await refusal(served, extra_headers=headers)
            assert (status, error["code"]) == (403, "denied")
        async with served.client(extra_headers=[("Origin", "http://localhost:3000")]) as page:
            await page.ask()
            await page.take()
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        head = (
            "GET /v1/fleet/document HTTP/1.1\r\nHost: rebound.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        )
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        await stream.send_all(head.encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 403")
        await stream.aclose()

    run(test)


def test_with_a_key_file_a_key_is_needed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)

    async def test(served: Served) -> None:
        for headers in ([], [("Authorization", "Bearer wrong")]):
            status, error = await refusal(served, extra_headers=headers)
            assert (status, error["code"]) == (401, "unauthorized")
        async with served.client(extra_headers=[("Authorization", f"Bearer {KEY}")]) as client:
            await client.ask()
            await client.take()

    run(test, api_key_file=keys)


def test_other_paths_and_boxes_without_a_fleet_have_no_document() -> None:
    async def test(served: Served) -> None:
        served.url = f"ws://127.0.0.1:{served.port}/v1/fleet/nothing"
        status, error = await refusal(served)
        assert (status, error["code"]) == (404, "not_found")
        assert document_socket.PATH in error["message"]

    run(test)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            http = HttpConfig(listen="127.0.0.1:0")
            _, port = await nursery.start(partial(serve, ScriptedServices(), http))
            status, error = await refusal(Served(port, DocumentSocket(lambda: None), Fleet(), Projection(NOW)))
            assert (status, error["code"]) == (404, "not_found")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_clients_past_the_limit_are_refused_until_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_socket, "MAX_CLIENTS", 2)

    async def test(served: Served) -> None:
        async with served.client() as first:
            async with served.client():
                status, error = await refusal(served)
                assert (status, error["code"]) == (429, "overloaded")
            await first.ask()
            await first.take()
            while len(served.socket._clients) > 1:
                await trio.testing.wait_all_tasks_blocked(0.01)
            async with served.client() as third:
                await third.ask()
                await third.take()

    run(test)


# --- its life ------------------------------------------------------------------------------------------------------


def test_a_client_that_lives_is_asked_and_stays_and_one_that_is_silent_is_sent_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(document_socket, "ASK_EVERY", 0.1)
    monkeypatch.setattr(document_socket, "MAX_SILENCE", 1.0)

    async def test(served: Served) -> None:
        async with served.client() as living, served.client() as dead:
            await living.ask()

            async def live() -> None:
                await living.take_until(lambda: False)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                code, _ = await dead.ended()
                assert code == document_socket.TRY_AGAIN
                nursery.cancel_scope.cancel()
            assert living.asked > 1
            assert not served.socket.dropped
            served.fleet.let_in(BOXES[1])
            served.apply()
            await living.take_until(lambda: living.copy.contents() == served.contents())

    run(test)


def test_a_websocket_ping_is_answered() -> None:
    async def test(served: Served) -> None:
        async with served.client() as client:
            await client.websocket.ping(b"x")

    run(test)


def test_draining_says_goodbye_and_takes_no_more() -> None:
    async def test(served: Served) -> None:
        async with served.client() as client, served.client() as silent:
            await client.ask()
            await client.take()
            served.socket.drain()
            for one in (client, silent):
                assert (await one.ended())[0] == document_socket.RESTARTING
            status, error = await refusal(served)
            assert (status, error["code"]) == (503, "draining")
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"http://127.0.0.1:{served.port}/healthz")).status_code == 200

    run(test)


def test_a_client_that_reads_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT", 0.5)

    async def test(served: Served) -> None:
        for number in range(250):
            served.fleet.write(BOXES[0], "node", f"perf/{number}", "x" * 2000)
        served.apply()
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(handshake("localhost"))
        assert b"101" in await stream.receive_some()
        question = b"\x82\x84\0\0\0\0" + b"\0\0\1\0"
        try:
            while True:  # every answer is half a megabyte, and none of them is read
                await stream.send_all(question)
                await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError:
            pass
        async with served.client() as good:
            await good.ask()
            await good.take()
            assert good.copy.contents() == served.contents()

    run(test)


# --- hypercorn's defects -------------------------------------------------------------------------------------------


OFFER = "permessage-deflate; client_max_window_bits"


def accepted(handshake: Any) -> bytes:
    headers = [(b"sec-websocket-extensions", OFFER.encode()), (b"sec-websocket-key", b"x"), (b"upgrade", b"websocket")]
    _, answer, _ = handshake(headers, "1.1").accept(None, [])
    return dict(answer).get(b"sec-websocket-extensions", b"")


def test_compression_is_declined_which_hypercorn_would_take() -> None:
    assert b"permessage-deflate" in accepted(UncompressedHandshake.__base__)
    assert accepted(UncompressedHandshake) == b""

    async def test(served: Served) -> None:
        assert ws_stream.Handshake is UncompressedHandshake
        async with open_websocket_url(served.url, extra_headers=[("Sec-WebSocket-Extensions", OFFER)]) as websocket:
            assert "sec-websocket-extensions" not in {name.lower() for name, _ in websocket.handshake_headers}

    run(test)


def test_a_message_without_end_is_not_stored_which_hypercorn_would_do() -> None:
    part = BytesMessage(data=b"x" * 1000, frame_finished=True, message_finished=False)
    theirs, ours = BoundedBuffer.__base__(100), BoundedBuffer(100)
    for _ in range(50):
        with pytest.raises(ws_stream.FrameTooLargeError):
            theirs.extend(part)
        ours.extend(part)
    assert len(theirs.value.getvalue()) == 50_000
    assert len(ours.value.getvalue()) == 101
