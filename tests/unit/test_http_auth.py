"""Keys, and who may come without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from agent.config import HttpConfig
from agent.errors import AgentError, ConfigError, UnauthorizedError
from agent.http.auth import Gate, read_keys
from agent.http.errors import ForbiddenError
from agent.http.exchange import Exchange, Message
from agent.http.server import parse_listen, serve
from tests.http_agent import ScriptedServices

ALPHA, BETA = "alpha-" * 4, "beta-" * 4


def exchange(path: str = "/v1/models", **headers: str) -> Exchange:
    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"method": "GET", "path": path, "http_version": "1.1", "headers": raw}
    return Exchange(scope, receive, send)


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_one_a_line(tmp_path: Path) -> None:
    assert read_keys(key_file(tmp_path, f"# ours\n{ALPHA}\n\n {BETA} \n")) == (ALPHA.encode(), BETA.encode())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_b29_a_key_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, f"{ALPHA}\n", mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_keys(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "x" * 70_000, "fifteen-letters"])
def test_a_key_file_without_a_usable_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read_keys(key_file(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing")


def test_with_keys_one_of_them_is_required() -> None:
    gate = Gate((b"alpha", b"beta"))
    for good in ("Bearer alpha", "bearer beta"):
        gate.check(exchange(authorization=good))
    gate.check(exchange("/healthz"))
    gate.check(exchange("/readyz"))
    for bad in ("", "alpha", "Basic alpha", "Bearer", "Bearer ", "Bearer alph", "Bearer alphaa", "Bearer \xe9"):
        with pytest.raises(UnauthorizedError):
            gate.check(exchange(authorization=bad))
    with pytest.raises(UnauthorizedError):
        gate.check(exchange())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8420", "127.0.0.1", "127.0.0.1:1", "[::1]:8420", "[::1]"])
def test_without_keys_the_names_of_loopback_are_served(host: str) -> None:
    Gate(()).check(exchange(host=host))
    Gate(()).check(exchange(host=host, origin="http://localhost:3000"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "evil.example"},
        {"host": "localhost.evil.example:8420"},
        {"host": "127.0.0.1@evil.example"},
        {"host": "[::1"},
        {"host": "10.0.0.5:8420"},
        {"host": "localhost", "origin": "https://evil.example"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "origin": "http://[::1"},
        {"host": "localhost", "origin": "http://localhost.evil.example"},
    ],
)
def test_without_keys_what_a_web_page_can_send_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ForbiddenError, match="API key"):
        Gate(()).check(exchange(**headers))
    Gate(()).check(exchange("/healthz", **headers))


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "box.example:0"])
def test_b31_an_address_beyond_loopback_needs_a_key(listen: str) -> None:
    with pytest.raises(ConfigError, match="api_key_file"):
        trio.run(serve, ScriptedServices(), HttpConfig(listen=listen))


def test_listen_addresses() -> None:
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:8420") == ("::1", 8420)
    for bad in ("", "8420", ":8420", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:8420"):
        with pytest.raises(ConfigError, match=r"HOST:PORT"):
            parse_listen(bad)


def test_an_address_in_use_is_named() -> None:
    async def main() -> Any:
        async with trio.open_nursery() as nursery:

            async def start(task_status: Any) -> None:
                await serve(ScriptedServices(), HttpConfig(listen="127.0.0.1:0"), task_status=task_status)

            _, port = await nursery.start(start)
            with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*in use"):
                await serve(ScriptedServices(), HttpConfig(listen=f"127.0.0.1:{port}"))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert issubclass(ConfigError, AgentError)
