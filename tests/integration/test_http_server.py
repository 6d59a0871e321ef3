"""The HTTP server against clients that are slow, hostile, gone or too many; health; keys."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.http import connections, exchange
from agent.http.exchange import MAX_BODY
from agent.http.services import Readiness
from agent.jobs.job import Emit, Job
from fleet.net.messages import Delta
from tests.http_agent import LIMIT, Running, ScriptedServices, finished, routed, serving

ALPHA, BETA = "alpha-" * 4, "beta-" * 4
CHAT = {"model": "smol", "messages": [{"role": "user", "content": "hi"}]}


def client_of(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=LIMIT)


def raw(server: Running) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=LIMIT)


def request(body: bytes, *more: str, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *more]
    if length is not None or not any("chunked" in line for line in more):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = sock.recv(65536)
        assert part, f"closed after {data!r}"
        data += part
    return data


async def never(job: Job, emit: Emit) -> None:
    await trio.sleep_forever()


async def first_token_then_never(job: Job, emit: Emit) -> None:
    await emit(routed())
    await emit(Delta(text="a"))
    await trio.sleep_forever()


async def endless(job: Job, emit: Emit) -> None:
    await emit(routed())
    while True:
        await emit(Delta(text="x" * 60_000))
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [never, first_token_then_never])
def test_b19_a_client_that_goes_away_cancels_the_job(script: Any, stream: bool) -> None:
    services = ScriptedServices(script)
    with serving(services) as server:
        with closing(raw(server)) as sock:
            sock.sendall(request(json.dumps({**CHAT, "stream": stream}).encode()))
            if stream and script is first_token_then_never:
                read_until(sock, b'"content":"a"')
            assert services.started.wait(LIMIT)
            assert not services.cancelled.is_set()
        assert services.cancelled.wait(1.0)


def test_b21_every_token_is_flushed_before_the_next_is_made() -> None:
    got: list[threading.Event] = [threading.Event() for _ in range(5)]

    async def script(job: Job, emit: Emit) -> None:
        await emit(routed())
        for event in got:
            await emit(Delta(text="tok"))
            with trio.fail_after(LIMIT):
                await trio.to_thread.run_sync(event.wait, LIMIT)
        await emit(finished(5))

    with serving(ScriptedServices(script)) as server, closing(raw(server)) as sock:
        sock.sendall(request(json.dumps({**CHAT, "stream": True}).encode()))
        for event in got:
            read_until(sock, b'"content":"tok"')
            event.set()
        read_until(sock, b"[DONE]")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/nothing", "/v1/models"])
def test_a_10_mb_body_gets_its_answer_and_harms_nothing(path: str) -> None:
    expected = {"/v1/chat/completions": 413, "/v1/nothing": 404, "/v1/models": 405}[path]

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    with serving(ScriptedServices()) as server, client_of(server) as client:
        for content in (b"x" * 10_000_000, parts()):
            response = client.post(path, content=content)
            assert response.status_code == expected
            if expected == 413:
                assert response.json()["error"]["details"] == {"limit_bytes": MAX_BODY}
                assert str(MAX_BODY) in response.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_body_past_the_limit_is_refused_before_it_is_sent() -> None:
    with serving(ScriptedServices()) as server:
        for length in (MAX_BODY + 1, 10**15):
            with closing(raw(server)) as sock:
                sock.sendall(request(b"x", length=length))
                sock.settimeout(LIMIT)
                answer = read_until(sock, b"request_too_large")
                assert answer.startswith(b"HTTP/1.1 413")
        with closing(raw(server)) as sock:
            sock.sendall(request(b"x", length=10**15))
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)


def test_a_body_of_just_the_limit_is_read() -> None:
    body = json.dumps(CHAT).encode()
    with serving(ScriptedServices()) as server, client_of(server) as client:
        response = client.post("/v1/chat/completions", content=body + b" " * (MAX_BODY - len(body)))
        assert response.status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"null", b'"x"', b'{"model":"m","messages":[{}]}'],
)
def test_a_malformed_body_is_a_400(body: bytes) -> None:
    with serving(ScriptedServices()) as server, client_of(server) as client:
        for path in ("/v1/chat/completions", "/v1/completions"):
            response = client.post(path, content=body, headers={"content-type": "text/plain"})
            assert response.status_code == 400
            assert response.json()["error"]["type"] == "invalid_request_error"


def test_no_body_makes_a_500() -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=8,
    )
    names = ("messages", "model", "stop", "seed", "stream", "stream_options", "prompt", "tools", "max_tokens")
    with serving(ScriptedServices()) as server, client_of(server) as client:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.dictionaries(st.sampled_from(names), values, max_size=4), st.sampled_from(("", "chat/")))
        def check(fields: dict[str, Any], kind: str) -> None:
            body = json.dumps({**CHAT, **fields}).encode("utf-8", "surrogatepass")
            response = client.post(f"/v1/{kind}completions", content=body)
            assert response.status_code in (200, 400)
            if response.status_code == 400:
                assert response.json()["error"]["message"]

        check()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 200,
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_garbage_on_the_port_harms_nobody_else(garbage: bytes) -> None:
    with serving(ScriptedServices()) as server:
        with closing(raw(server)) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            try:
                answer = read_all(sock)
            except ConnectionResetError:
                answer = b""
            assert b"Traceback" not in answer
        with client_of(server) as client:
            assert client.get("/healthz").status_code == 200


def test_a_path_or_method_that_is_not_there_is_json_too() -> None:
    with serving(ScriptedServices()) as server, client_of(server) as client:
        missing = client.get("/v1/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert "/v1/models" in missing.json()["error"]["message"]
        wrong = client.put("/v1/chat/completions", json=CHAT)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        assert client.options("/v1/models").status_code == 405
        assert client.head("/healthz").status_code == 200


def test_health_and_readiness() -> None:
    services = ScriptedServices()
    with serving(services) as server, client_of(server) as client:
        assert client.get("/readyz").json() == {"ready": True, "reasons": []}
        services.ready = Readiness(False, ("model smol is loading",))
        response = client.get("/readyz")
        assert (response.status_code, response.json()["reasons"]) == (503, ["model smol is loading"])
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/fleet/self").json()["name"] == "sensor-1"
        assert client.get("/v1/fleet/peers").json()["peers"][0]["name"] == "jetson-1"


def test_b31_with_a_key_file_every_request_but_health_needs_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{ALPHA}\n{BETA}\n")
    keys.chmod(0o600)
    services = ScriptedServices()
    with serving(services, listen="0.0.0.0:0", api_key_file=keys) as server:
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url, timeout=LIMIT) as client:
            refused = client.post("/v1/chat/completions", json=CHAT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/v1/models", headers={"Authorization": "Bearer gamma"}).status_code == 401
            assert client.get("/nothing").status_code == 401
            assert not services.jobs
            assert client.get("/healthz").status_code == 200
            for key in (ALPHA, BETA):
                headers = {"Authorization": f"Bearer {key}", "Host": "box.example"}
                assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


def test_without_a_key_other_names_and_origins_are_refused() -> None:
    services = ScriptedServices()
    with serving(services) as server, client_of(server) as client:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            response = client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "denied")
            assert "access-control-allow-origin" not in response.headers
        assert not services.jobs


def test_b31_a_model_is_unloaded_or_tried_again_by_whoever_may_use_the_api() -> None:
    services = ScriptedServices()
    with serving(services) as server, client_of(server) as client:
        unload, retry = "/v1/fleet/models/unload", "/v1/fleet/models/retry"
        assert client.post(unload, json={"model": "smol"}).json() == {"model": "smol", "unloaded": True}
        assert client.post(retry, json={"model": "smol"}).json() == {"model": "smol", "retried": False}
        busy = client.post(unload, json={"model": "big"})
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "model_busy")
        long = json.dumps({"model": "x" * 257})
        for body in ("", "[]", "{}", '{"model": 7}', '{"model": ""}', '{"model": "x", "y": 1}', long):
            assert client.post(unload, content=body).status_code == 400
        evil = client.post(unload, json={"model": "smol"}, headers={"Origin": "https://evil.example"})
        assert evil.status_code == 403
        assert client.get(unload).status_code == 405


def test_http2_without_tls_is_served_too() -> None:
    with serving(ScriptedServices()) as server:
        url = server.url
        with httpx.Client(base_url=url, timeout=LIMIT, http1=False, http2=True) as client:
            response = client.post("/v1/chat/completions", json=CHAT)
            assert (response.http_version, response.status_code) == ("HTTP/2", 200)
            assert client.post("/v1/completions", content=b"x" * 6_000_000).status_code == 413


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed a connection, within a short wait; what it says before is thrown away."""
    sock.settimeout(1.0)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def answered(sock: socket.socket) -> tuple[int, Any]:
    """The status of an answer, and its JSON error object."""
    head, _, body = read_until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += sock.recv(length - len(body))
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


@contextmanager
def busy(server: Running, services: ScriptedServices, count: int) -> Iterator[None]:
    """That many requests that are not answered."""
    with ExitStack() as stack:
        for _ in range(count):
            before = len(services.jobs)
            sock = stack.enter_context(closing(raw(server)))
            sock.sendall(request(json.dumps(CHAT).encode()))
            deadline = time.monotonic() + LIMIT
            while len(services.jobs) == before:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        yield


def test_connections_past_the_limit_are_told_so_and_health_checks_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    services = ScriptedServices(never)
    with serving(services) as server, busy(server, services, 2):
        with closing(raw(server)) as sock:
            sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answered(sock) == (429, ANY)
        for path in ("healthz", "readyz"):
            with closing(raw(server)) as sock:
                sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert read_until(sock, b"}").startswith(b"HTTP/1.1 200 ")
    assert services.cancelled.wait(LIMIT)


def test_connections_that_say_nothing_are_bounded_when_all_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(connections, "MAX_REFUSALS", 3)
    monkeypatch.setattr(connections, "_REFUSAL_SECONDS", LIMIT)
    services = ScriptedServices(never)
    with serving(services) as server, busy(server, services, 2), ExitStack() as stack:
        idle = [stack.enter_context(closing(raw(server))) for _ in range(20)]
        with ThreadPoolExecutor(len(idle)) as pool:
            assert sum(not gone for gone in pool.map(closed, idle)) == 3


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le", HEALTH])
def test_the_connection_that_has_no_request_for_the_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    with serving(ScriptedServices()) as server, ExitStack() as stack:
        held = []
        for _ in range(12):
            held.append(stack.enter_context(closing(raw(server))))
            held[-1].sendall(begun)
            if begun == HEALTH:
                read_until(held[-1], b"}")
        with client_of(server) as client:
            for _ in range(3):
                assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
            with ThreadPoolExecutor(len(held)) as pool:
                assert [not gone for gone in pool.map(closed, held)] == [False] * 9 + [True] * 3


def test_a_head_that_goes_on_arriving_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.3)
    with serving(ScriptedServices()) as server:
        with closing(raw(server)) as sock:
            sock.sendall(HEALTH)
            read_until(sock, b"}")
            sock.settimeout(0.05)
            began = time.monotonic()
            answer = b""
            while not answer:
                assert time.monotonic() - began < LIMIT
                sock.sendall(b"G")
                with suppress(TimeoutError):
                    answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"request_timeout"' in answer + read_all(sock)
        with closing(raw(server)) as sock:
            assert b"408" in read_all(sock)


MALFORMED = [
    (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "bad_request"),
    (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
    (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400, "bad_request"),
    (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        400,
        "bad_request",
    ),
    (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        400,
        "bad_request",
    ),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 400 + b"\r\n\r\n", 400, "bad_request"),
    *[
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * size + b"\r\n\r\n", 431, "head_too_large")
        for size in (33_000, 40_000, 60_000, 100_000)
    ],
    (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "head_too_large"),
]


@pytest.mark.parametrize(("sent", "status", "code"), MALFORMED)
def test_what_is_no_request_is_refused_with_the_json_error_of_every_refusal(
    sent: bytes, status: int, code: str
) -> None:
    with serving(ScriptedServices()) as server, closing(raw(server)) as sock:
        sock.sendall(sent)
        got, error = answered(sock)
        assert (got, error["code"]) == (status, code)
        assert error["message"]


def test_a_head_of_just_the_limit_is_read() -> None:
    with serving(ScriptedServices()) as server, closing(raw(server)) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 32_000 + b"\r\n\r\n")
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 200 ")


def test_a_client_that_closes_its_sending_side_counts_as_gone() -> None:
    services = ScriptedServices(never)
    with serving(services) as server, closing(raw(server)) as sock:
        sock.sendall(request(json.dumps(CHAT).encode()))
        assert services.started.wait(LIMIT)
        sock.shutdown(socket.SHUT_WR)
        assert services.cancelled.wait(1.0)
        assert read_all(sock) == b""


def test_a_body_that_does_not_arrive_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_TIMEOUT", 0.2)
    monkeypatch.setattr(exchange, "LINGER_SECONDS", 0.2)
    with serving(ScriptedServices()) as server, closing(raw(server)) as sock:
        sock.sendall(request(b"{", length=100))
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer


def test_a_client_that_reads_nothing_loses_its_job_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT", 0.5)
    services = ScriptedServices(endless)
    with serving(services) as server, closing(raw(server)) as sock:
        sock.sendall(request(json.dumps({**CHAT, "stream": True}).encode()))
        assert services.cancelled.wait(LIMIT)


def test_stopping_does_not_wait_for_clients() -> None:
    services = ScriptedServices(endless)
    with serving(services) as server:
        stalled, idle = raw(server), raw(server)
        stalled.sendall(request(json.dumps({**CHAT, "stream": True}).encode()))
        assert services.started.wait(LIMIT)
        read_until(stalled, b"data: ")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(server.stop).result(timeout=connections.WRITE_TIMEOUT / 2)
        assert services.cancelled.is_set()
        stalled.close()
        assert idle.recv(1) == b""
        idle.close()
