"""Inference servers for tests: real HTTP on loopback, with the answers that Ollama, LM Studio, llama-server, vLLM and
plain OpenAI-compatible servers give, and with all that can go wrong on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Seconds after which a fake gives up waiting for its test, so that a failed test ends.
_PATIENCE = 30.0

PIECES = ("Once", " upon", " a", " time", ",", " there", " was", " a", " box", ".")


def digest_of(name: str) -> str:
    """The digest that the fake Ollama gives a model."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Asked:
    """One request that a fake got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any = None


@dataclass
class Fake:
    """One server. Change its fields while it runs; `trouble` names what it does instead of answering as it should.

    `list_trouble` is the same for everything but jobs. With `gate`, each piece waits until it is released once.
    """

    kind: str
    models: list[str] = field(default_factory=lambda: ["tiny-model"])
    pieces: Sequence[str] = PIECES
    finish_reason: str | None = "stop"
    trouble: str = ""
    list_trouble: str = ""
    key: str = ""
    context: int = 2048
    slots: int = 2
    gate: threading.Semaphore | None = None
    asked: list[Asked] = field(default_factory=list)
    #: Set when a client has closed its connection while it was being answered.
    left: threading.Event = field(default_factory=threading.Event)
    #: Set when a job has been asked for.
    got_job: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    most_busy: int = 0
    url: str = ""
    port: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def jobs(self) -> list[Asked]:
        """The jobs that were posted."""
        return [asked for asked in self.asked if "completions" in asked.path]


@contextlib.contextmanager
def serving(fake: Fake, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Fake]:
    """Run a fake on loopback, on a port of its own unless one is given."""
    server = _Server(("127.0.0.1", port), _handler_of(fake))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    fake.port = server.server_address[1]
    fake.url = f"http{'s' if tls else ''}://127.0.0.1:{fake.port}"
    fake.stopping.clear()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes is what some tests are about."""


class _GoneError(Exception):
    """The client has closed its connection."""


def _handler_of(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.fake = fake
    return Handler


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self._answer(json.loads(self.rfile.read(length)))

    def _answer(self, body: Any) -> None:
        fake = self.fake
        headers = {name.lower(): value for name, value in self.headers.items()}
        fake.asked.append(Asked(self.command, self.path, headers, body))
        is_job = "completions" in self.path
        trouble = fake.trouble if is_job else fake.list_trouble
        with fake.lock:
            fake.busy += is_job
            fake.most_busy = max(fake.most_busy, fake.busy)
        try:
            if is_job:
                fake.got_job.set()
            if fake.key and headers.get("authorization") != f"Bearer {fake.key}":
                self._json(401, {"error": {"message": "invalid api key", "code": 401}})
            elif trouble and self._misbehave(trouble):
                pass
            elif is_job:
                self._job(body, trouble)
            else:
                self._list(body)
        except (_GoneError, BrokenPipeError, ConnectionResetError):
            fake.left.set()
        finally:
            self.close_connection = True
            with fake.lock:
                fake.busy -= is_job

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _misbehave(self, trouble: str) -> bool:
        """Do what the trouble says; False for one that begins within a stream."""
        match trouble.split(":"):
            case ["hang"]:
                self._wait(_PATIENCE)
            case ["status", status, *after]:
                extra = {"Retry-After": after[0]} if after else {}
                self._json(int(status), {"error": {"message": f"status {status}"}}, extra)
            case ["error", text]:
                self._json(400, json.loads(text.replace("|", ":")))
            case ["redirect"]:
                self._json(307, {}, {"Location": f"http://127.0.0.1:{self.fake.port}/v1/other"})
            case ["html"]:
                self._plain(200, b"<html>hello</html>", "text/html")
            case ["not-json"]:
                self._plain(200, b"{nothing", "application/json")
            case ["deep"]:
                self._plain(200, b"[" * 100_000, "application/json")
            case ["garbage"]:
                self.wfile.write(b"\x00\x01\x02 this is no HTTP \xff\r\n\r\n" * 10)
            case ["huge-header"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self._flood(b"X-Long: " + b"a" * 8000 + b"\r\n")
            case ["interim"]:
                self._flood(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            case ["huge-body"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
                self._flood(b" " * 65536)
            case ["half-body"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            case ["shut"]:
                pass  # the connection is closed without an answer
            case _:
                return False
        return True

    def _flood(self, piece: bytes) -> None:
        """Send without end, until the client has had enough."""
        sent = 0
        while not self.fake.stopping.is_set():
            self.wfile.write(piece)
            sent += len(piece)
            assert sent < 200 << 20, "the client takes anything"

    # --- answers ----------------------------------------------------------------------------------------------------

    def _plain(self, status: int, body: bytes, content_type: str, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, body: Any, extra: dict[str, str] | None = None) -> None:
        self._plain(status, json.dumps(body).encode(), "application/json", extra)

    def _list(self, body: Any) -> None:
        answer = _LISTS[self.fake.kind](self.fake, self.path, body)
        if answer is not None:
            self._json(200, answer)
        elif self.fake.kind == "lmstudio":
            # LM Studio answers what it does not know with 200 and an error.
            self._json(200, {"error": f"Unexpected endpoint or method. ({self.command} {self.path})"})
        else:
            self._json(404, {"error": {"message": "not found"}})

    def _job(self, body: Any, trouble: str) -> None:
        fake = self.fake
        if body["model"] not in fake.models:
            self._json(404, {"error": {"message": f"model {body['model']!r} not found", "code": "model_not_found"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = "/chat/" in self.path
        if chat:
            self._event(_chunk(chat, {"role": "assistant", "content": ""}))
        for number, piece in enumerate(fake.pieces, 1):
            if fake.gate is not None:
                self._pass(fake.gate)
            self._event({**_chunk(chat, {"content": piece}), **_counts(fake.kind, number)})
            if number == 3 and trouble not in ("", "no-end", "stays"):
                self._spoil(trouble)
                return
        if trouble == "no-end":
            self._chunked(b"")
            return
        self._event(_chunk(chat, {}, fake.finish_reason))
        if trouble == "stays":
            self._wait(_PATIENCE)
        usage = {"prompt_tokens": 21, "completion_tokens": len(fake.pieces), "total_tokens": 21 + len(fake.pieces)}
        if body.get("stream_options", {}).get("include_usage"):
            self._event({**_chunk(chat, {}), "choices": [], "usage": usage})
        self._chunked(b"data: [DONE]\n\n")
        self._chunked(b"")

    def _spoil(self, trouble: str) -> None:
        """Go wrong in the middle of a stream."""
        match trouble:
            case "cut":
                self.connection.shutdown(socket.SHUT_RDWR)
            case "stalls":
                self._wait(_PATIENCE)
            case "error-event":
                self._event({"error": {"message": "out of memory in /srv/engine", "code": 500}})
            case "context-event":
                self._event({"error": {"message": "too long", "type": "exceed_context_size_error", "n_ctx": 9}})
            case "no-json":
                self._chunked(b"data: {oops\n\n")
            case "huge-line":
                self._chunked(b"data: ")
                while not self.fake.stopping.is_set():
                    self._chunked(b"x" * 65536)
            case "comments":
                while not self.fake.stopping.is_set():
                    self._chunked(b": still here\n" * 4000)
            case "empty":
                while not self.fake.stopping.is_set():
                    self._chunked(b"data: {}\n\n" * 4000)
            case "tail":
                # Sizes that pass alone, of text that counts for nothing.
                while not self.fake.stopping.is_set():
                    self._event({**_chunk(True, {"content": "x"}), "pad": "y" * 200_000})
            case "endless":
                while not self.fake.stopping.is_set():
                    self._event(_chunk(True, {"content": "more "}))
            case "bad-chunk":
                self.wfile.write(b"zzz\r\nno length\r\n")
            case _:
                self._chunked(b"")

    def _event(self, event: Any) -> None:
        self._chunked(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunked(self, data: bytes) -> None:
        self._look()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    # --- waiting, with an eye on the client -------------------------------------------------------------------------

    def _look(self, wait: float = 0.0) -> None:
        """Raise _GoneError if the client has closed."""
        if select.select([self.connection], [], [], wait)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise _GoneError

    def _wait(self, seconds: float) -> None:
        steps = int(seconds / 0.02)
        for _ in range(steps):
            if self.fake.stopping.is_set():
                return
            self._look(0.02)

    def _pass(self, gate: threading.Semaphore) -> None:
        for _ in range(int(_PATIENCE / 0.02)):
            if self.fake.stopping.is_set() or gate.acquire(timeout=0.02):
                return
            self._look()


def _chunk(chat: bool, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
    return {"id": "x", "object": "chat.completion.chunk" if chat else "text_completion", "choices": [choice]}


def _counts(kind: str, number: int) -> dict[str, Any]:
    """What llama-server and vLLM say with every piece where they are asked to."""
    if kind == "llama-server":
        return {"timings": {"cache_n": 9, "prompt_n": 12, "predicted_n": number}}
    if kind == "vllm":
        return {"usage": {"prompt_tokens": 21, "completion_tokens": number, "total_tokens": 21 + number}}
    return {}


def _openai_list(fake: Fake, path: str, owner: str, **more: Any) -> dict[str, Any] | None:
    if path != "/v1/models":
        return None
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": owner, **more} for name in fake.models]
    return {"object": "list", "data": rows}


def _ollama(fake: Fake, path: str, body: Any) -> Any:
    details = {"family": "llama", "parameter_size": "134.5M", "quantization_level": "Q4_1"}
    rows = [
        {"name": name, "model": name, "digest": digest_of(name), "size": 98_000_000, "details": details}
        for name in fake.models
    ]
    match path:
        case "/v1/models":
            return _openai_list(fake, path, "library")
        case "/api/version":
            return {"version": "0.12.3"}
        case "/api/tags":
            cloud = {"name": "big:cloud", "digest": digest_of("big"), "remote_host": "https://cloud.example"}
            return {"models": [*rows, cloud]}
        case "/api/ps":
            return {"models": [{**rows[0], "context_length": fake.context}] if rows else []}
        case "/api/show":
            embeds = "embed" in body["model"]
            return {
                "capabilities": ["embedding"] if embeds else ["completion", "tools"],
                "parameters": 'num_ctx                        8192\nstop    "<|im_end|>"',
                "model_info": {"general.architecture": "llama", "llama.context_length": 6000},
                "license": "x" * 50_000,
            }
    return None


def _lmstudio(fake: Fake, path: str, body: Any) -> Any:
    if path == "/api/v0/models":
        rows = [
            {"id": name, "object": "model", "type": "embeddings" if "embed" in name else "llm", "publisher": "some",
             "arch": "llama", "compatibility_type": "gguf", "quantization": "Q4_K_M",
             "state": "loaded" if index == 0 else "not-loaded", "max_context_length": 131072,
             **({"loaded_context_length": fake.context} if index == 0 else {})}
            for index, name in enumerate(fake.models)
        ]  # fmt: skip
        return {"object": "list", "data": rows}
    return _openai_list(fake, path, "organization_owner")


def _llama_server(fake: Fake, path: str, body: Any) -> Any:
    if path == "/props":
        return {"total_slots": fake.slots, "default_generation_settings": {"n_ctx": fake.context}, "model_path": "/m"}
    if path == "/api/tags":
        return {"models": [{"name": name, "model": name, "digest": "", "size": ""} for name in fake.models]}
    meta = {"n_params": 134515008, "size": 98_000_000, "n_vocab": 49152, "n_embd": 576, "n_ctx_train": 8192}
    found = _openai_list(fake, path, "llamacpp", meta=meta)
    # As it does, for clients of Ollama.
    return {**found, "models": [{"name": name} for name in fake.models]} if found else None


def _vllm(fake: Fake, path: str, body: Any) -> Any:
    return _openai_list(fake, path, "vllm", max_model_len=fake.context, root="some/model", parent=None)


def _openai(fake: Fake, path: str, body: Any) -> Any:
    return _openai_list(fake, path, "me")


def _shoal(fake: Fake, path: str, body: Any) -> Any:
    return _openai_list(fake, path, "shoal")


_LISTS = {
    "ollama": _ollama,
    "lmstudio": _lmstudio,
    "llama-server": _llama_server,
    "vllm": _vllm,
    "openai": _openai,
    "shoal": _shoal,
}
KINDS = ("ollama", "lmstudio", "llama-server", "vllm", "openai")
