"""The containers' health check, against what may answer in the place of an agent."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docker" / "healthcheck.py"


@contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """A server's address, and the requests it got: it gives one answer a connection, or with None keeps it waiting."""
    requests: list[bytes] = []
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                client, _ = server.accept()
                kept.append(client)
                requests.append(client.recv(65536))
                if answer is not None:
                    client.sendall(answer)
                    client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", requests
        finally:
            thread.join()
            for client in kept:
                client.close()


def checked(address: str, *arguments: str, **env: str) -> tuple[int, str]:
    """As the image runs it: without the packages of any environment."""
    command = [sys.executable, "-I", "-S", str(FILE), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"SHOAL_HTTP_LISTEN": address, **env}, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def test_a_box_that_is_ready_and_knows_the_model_is_healthy(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the tills\n\nsecret-1\nsecret-2\n")
    models = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"data": [{"id": "small"}]}'
    with answering(b"HTTP/1.1 200 OK\r\n\r\n{}", models) as (address, requests):
        assert checked(address, "small", SHOAL_API_KEYS=str(keys)) == (0, "healthy")
    assert [one.splitlines()[0] for one in requests] == [b"GET /readyz HTTP/1.0", b"GET /v1/models HTTP/1.0"]
    assert b"\r\nAuthorization: Bearer secret-1\r\n" in requests[1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'HTTP/1.1 503 no\r\n\r\n{"reasons": ["it drains", "no engine"]}', "not ready: it drains; no engine"),
        (b"HTTP/1.1 500 no\r\n\r\n<html>", "not ready: HTTP 500"),
        (b"SSH-2.0-OpenSSH\r\n", "what answers at {} is no agent"),
        (b"", "what answers at {} is no agent"),
    ],
)
def test_what_is_wrong_is_said(answer: bytes, said: str) -> None:
    with answering(answer) as (address, _):
        assert checked(address) == (1, said.format(address))


def test_a_model_that_no_box_has_is_named() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", b'HTTP/1.1 200 OK\r\n\r\n{"data": []}') as (address, _):
        assert checked(address, "small") == (1, "no box is known yet that has small")


def test_an_agent_that_hangs_is_unhealthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("healthcheck", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with answering(None) as (address, _):
        monkeypatch.setattr(module, "_PATIENCE", 0.05)
        monkeypatch.setenv("SHOAL_HTTP_LISTEN", address)
        monkeypatch.setattr(sys, "argv", ["healthcheck.py"])
        assert module.main() == 1
    assert capsys.readouterr().out == f"the agent does not answer at {address}: timed out\n"


def test_a_check_imports_what_a_socket_needs_and_nothing_else() -> None:
    # It is most of what an idle box computes: with http.client it took half as long again.
    def imported(code: str) -> set[str]:
        command = [sys.executable, "-I", "-S", "-c", f"import sys; {code}; print(*sys.modules)", str(FILE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return set(done.stdout.split())

    assert imported("exec(open(sys.argv[1]).read(), {'__name__': 'it'})") <= imported("import os, socket")
