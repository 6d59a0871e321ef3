"""The `shoal` command as a user runs it, against files and against an HTTP server that says what a test wants."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent.config_file import load
from fleet.identity.keys import public_key_from_peer_id
from tests.command import run_shoal
from tests.harness import agents, free_port

# The tables of answers are easier to read unbroken; the names of an HTTP handler's methods are http.server's.
# ruff: noqa: E501, N815

LIMIT = 60.0
SELF = {"peer_id": "12D3me", "name": "pos-1", "version": "1.0", "state": "serving", "warnings": []}
PEER = {
    "peer_id": "12D3jetson", "name": "jetson-1", "connected": True, "state": "connected", "addrs": [], "rtt_ms": 1.25,
    "last_error": "", "last_seen_s": 3.2, "version": "1.0",
    "models": [{"name": "smol", "state": "loaded"}, {"name": "big", "state": "loading"}],
}  # fmt: skip
LOST = {
    "peer_id": "12D3lost", "name": "lost-1", "connected": False, "state": "unreachable", "addrs": [], "rtt_ms": None,
    "last_error": "connection refused", "last_seen_s": None, "version": None, "models": [],
}  # fmt: skip
MODEL = {
    "id": "smol", "object": "model",
    "shoal": {
        "hash": "sha256:" + "ab" * 32, "context_tokens": 2048,
        "holders": [
            {"peer_id": "12D3me", "name": "pos-1", "local": True, "state": "idle", "decode_rate": None},
            {"peer_id": "12D3jetson", "name": "jetson-1", "local": False, "state": "loaded", "decode_rate": 71.6},
        ],
    },
}  # fmt: skip
SERVED = {"served_by": "jetson-1", "peer_id": "12D3jetson", "local": False, "route": ["pos-1=does not hold it", "jetson-1=served"]}  # fmt: skip


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(text: str, **more: object) -> bytes:
    return event({"model": "smol", "choices": [{"delta": {"content": text}, "finish_reason": None}], **more})


ENDING = (
    event({"model": "smol", "choices": [{"delta": {}, "finish_reason": "stop"}], "shoal": {"prefill_ms": 1.0, "decode_ms": 2.0}}),
    event({"model": "smol", "choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}),
    b"data: [DONE]\n\n",
)  # fmt: skip
ANSWER = (chunk("", shoal=SERVED), chunk("Hello"), chunk(" wörld"), *ENDING)


@dataclass
class Scripted:
    """Stands for an agent. `answers` maps paths to (status, body); bytes in a tuple are streamed one by one."""

    answers: dict[str, tuple[int, Any]]
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    between: Callable[[int], None] = lambda sent: None
    url: str = ""


def error(status: int, code: str, message: str = "the message", **details: object) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "t", "param": None, "code": code, "details": details}}


@contextmanager
def scripted(answers: Mapping[str, tuple[int, Any]] | None = None) -> Iterator[Scripted]:
    script = Scripted(
        {
            "/v1/fleet/self": (200, SELF),
            "/v1/fleet/peers": (200, {"peers": [PEER, LOST]}),
            "/v1/models": (200, {"object": "list", "data": [MODEL]}),
            "/readyz": (200, {"ready": True, "reasons": []}),
            "/v1/chat/completions": (200, ANSWER),
            **(answers or {}),
        }
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            script.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, answer = script.answers[self.path]
            self.send_response(status)
            self.send_header("X-Shoal-Job", "job-1")
            self.end_headers()
            pieces = answer if isinstance(answer, tuple) else (json.dumps(answer).encode(),)
            try:
                for sent, piece in enumerate(pieces):
                    script.between(sent)
                    self.wfile.write(piece)
            except OSError:
                pass

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object on one line."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


def environment(url: str | None = None, **more: str) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    return {**mine, **({"SHOAL_URL": url} if url else {}), **more}


def shoal(*args: str, url: str | None = None, cwd: Path | None = None, stdin: str = "", **env: str) -> Done:
    """Run the command in this process; whatever happens, it must not end in a traceback."""
    done = run_shoal(args, stdin=stdin.encode("utf-8", "surrogateescape"), env=environment(url, **env), folder=cwd)
    assert "Traceback" not in done.err, done.err
    return Done(done.code, done.out, done.err)


def process(*args: str, url: str | None = None, cwd: Path | None = None, stdin: str = "", **env: str) -> Done:
    """Run the command as a user does, in a process of its own; it must not end in a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", *args],
        input=stdin.encode("utf-8", "surrogateescape"),
        capture_output=True,
        timeout=LIMIT,
        cwd=cwd,
        env=environment(url, PYTHONPATH=str(Path(__file__).resolve().parents[2]), **env),
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err, err
    return Done(done.returncode, out, err)


@pytest.fixture(scope="module")
def well() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


# init and id


def test_init_writes_a_configuration_that_loads_and_an_identity(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    done = shoal("init", "--name", "jetson-1", "--model", "m.gguf", "--listen", "/ip4/127.0.0.1/tcp/4999", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    config = load(tmp_path / "shoal/shoal.yaml", {})
    assert (config.name, config.net.listen) == ("jetson-1", ("/ip4/127.0.0.1/tcp/4999",))
    assert [model.path for model in config.models] == [tmp_path / "m.gguf"]
    seed = tmp_path / "shoal/state/identity.seed"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    assert stat.S_IMODE(seed.parent.stat().st_mode) == 0o700
    shown = shoal("id", "-o", "json", cwd=tmp_path).json
    public_key_from_peer_id(shown["peer_id"])
    assert "shoal fleet init" in done.out
    assert f"/ip4/127.0.0.1/tcp/4999/p2p/{shown['peer_id']}" in done.out
    assert shown["addrs"] == [f"/ip4/127.0.0.1/tcp/4999/p2p/{shown['peer_id']}"]
    assert seed.read_text().strip() not in done.out


def test_init_never_overwrites_unasked_and_never_an_identity(tmp_path: Path) -> None:
    first = shoal("init", "--name", "one", "-o", "json", cwd=tmp_path).json
    again = shoal("init", "--name", "two", cwd=tmp_path)
    assert again.code == 2
    assert "--force" in again.err
    assert load(tmp_path / "shoal/shoal.yaml", {}).name == "one"
    forced = shoal("init", "--name", "two", "--force", "-o", "json", cwd=tmp_path).json
    assert load(tmp_path / "shoal/shoal.yaml", {}).name == "two"
    assert forced["peer_id"] == first["peer_id"]
    assert sorted(path.name for path in (tmp_path / "shoal").iterdir()) == ["shoal.yaml", "state"]


@pytest.mark.parametrize(
    "args",
    [
        ("--name", "a b"),
        ("--name", ""),
        ("--listen", "nowhere"),
        ("--model", "missing.gguf"),
        ("--name", 'x"\nhttp: {listen: 0.0.0.0:1}\n#'),
    ],
)
def test_init_with_what_cannot_work_writes_nothing(args: tuple[str, str], tmp_path: Path) -> None:
    done = shoal("init", *args, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("shoal: ")
    assert not list(tmp_path.iterdir())


def test_init_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = shoal("init", "--dir", "file/x", "--name", "a", cwd=tmp_path)
    assert done.code == 1
    assert "cannot write file/x/shoal.yaml" in done.err


def test_id_needs_a_configuration(tmp_path: Path) -> None:
    done = shoal("id", "-o", "json", cwd=tmp_path)
    assert done.code == 2
    assert done.json["error"]["code"] == "config"
    assert "shoal init" in done.json["error"]["message"]
    assert shoal("id", "--dir", "a", "--config", "b", cwd=tmp_path).code == 2


def test_b29_a_seed_that_others_can_read_is_refused_with_the_command(tmp_path: Path) -> None:
    shoal("init", cwd=tmp_path)
    seed = tmp_path / "shoal/state/identity.seed"
    seed.chmod(0o644)
    for name in ("id", "run"):
        done = shoal(name, cwd=tmp_path)
        assert done.code == 2
        assert f"chmod 600 {seed}" in done.err


# run, version, usage


@pytest.mark.parametrize("form", ["text", "json"])
def test_run_with_a_typo_in_the_configuration_names_it(tmp_path: Path, form: str) -> None:
    (tmp_path / "shoal.yaml").write_text("name: a\nhttp:\n  lisen: 127.0.0.1:1\n")
    done = shoal("run", "--config", "shoal.yaml", "-o", form, cwd=tmp_path)
    message = "shoal.yaml:3: unknown key 'lisen' in http; did you mean 'listen'?"
    assert done.code == 2
    if form == "json":
        assert done.json == {"error": {"code": "config", "message": message, "details": {}}}
    else:
        assert (done.out, done.err) == ("", f"shoal: {message}\n")


def test_version_names_what_it_stands_on() -> None:
    assert shoal("version").out.startswith("shoal ")
    assert set(process("version", "-o", "json").json) == {"shoal", "python", "libp2p", "llama-cpp-python"}


@pytest.mark.parametrize("args", [("nonsense",), ("chat",), ("peers", "--bad"), ("chat", "x", "--offload", "maybe"), ("peers", "-o", "xml")])  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error(args: tuple[str, ...]) -> None:
    done = shoal(*args)
    assert done.code == 2
    assert done.out == ""
    assert "--help" in done.err


def test_a_wrong_command_line_is_json_where_json_is_wanted() -> None:
    done = shoal("chat", "-o", "json")
    assert done.code == 2
    assert done.json["error"]["code"] == "usage"
    assert "TEXT" in done.json["error"]["message"]


# asking an agent


def test_peers_are_listed(well: Scripted) -> None:
    done = shoal("peers", url=well.url)
    assert done.code == 0
    header, jetson, lost = done.out.splitlines()
    assert header.split()[:2] == ["NAME", "STATE"]
    for word in ("jetson-1", "connected", "1.2 ms", "3 s ago", "12D3jetson", "smol, big (loading)"):
        assert word in jetson
    for word in ("lost-1", "unreachable", "never", "connection refused"):
        assert word in lost
    assert shoal("peers", "-o", "json", url=well.url).json == {"peers": [PEER, LOST]}


def test_models_are_listed_with_their_holders(well: Scripted) -> None:
    done = shoal("models", url=well.url)
    assert done.code == 0
    for word in ("smol", "2048", "abababababab", "pos-1 (this box) [idle]", "jetson-1 [loaded, 72 tok/s]"):
        assert word in done.out.splitlines()[1]
    listed = shoal("models", "-o", "json", url=well.url).json
    assert listed == {"models": [{"name": "smol", **MODEL["shoal"]}]}


def test_nothing_to_list_is_said_in_words() -> None:
    with scripted({"/v1/fleet/peers": (200, {"peers": []}), "/v1/models": (200, {"data": []})}) as script:
        assert "shoal invite" in shoal("peers", url=script.url).out
        assert "shoal doctor" in shoal("models", url=script.url).out
        asked = shoal("chat", "hi", "-o", "json", url=script.url)
        assert (asked.code, asked.json["error"]["code"]) == (3, "no_capable_peer")


def test_chat_streams_the_answer_and_says_who_gave_it(well: Scripted) -> None:
    done = shoal("chat", "hi", "--system", "be brief", "--max-tokens", "5", "--temperature", "0", url=well.url)
    assert (done.code, done.out) == (0, "Hello wörld\n")
    (footer,) = done.err.splitlines()
    for word in ("jetson-1 served smol", "pos-1=does not hold it", "jetson-1=served", "first token after", "2 tokens"):
        assert word in footer
    path, headers, body = well.requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["x-shoal-on-interrupt"] == "error"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("smol", 5, 0.0)
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert "seed" not in body


def test_chat_as_json_is_one_object(well: Scripted) -> None:
    done = process("chat", "-", "--model", "smol", "--offload", "require", "-o", "json", url=well.url, stdin="häi\n")
    assert (done.code, done.err) == (0, "")
    answer = done.json
    assert answer.pop("ttft_ms") > 0
    answer.pop("tok_s")
    assert answer == {
        "text": "Hello wörld", "model": "smol", **SERVED, "job": "job-1", "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
        "prefill_ms": 1.0, "decode_ms": 2.0, "resumed_from": [],
    }  # fmt: skip
    assert well.requests[-1][1]["x-shoal-offload"] == "require"
    assert well.requests[-1][2]["messages"] == [{"role": "user", "content": "häi\n"}]
    assert shoal("chat", "hi", "--no-stream", url=well.url).out == "Hello wörld\n"


def test_what_a_chat_wishes_for_is_asked_of_the_box(well: Scripted) -> None:
    wishes = ("--substitution", "family", "--priority", "bulk", "--deadline", "2.5", "--conversation", "till 4")
    assert shoal("chat", "hi", *wishes, url=well.url).code == 0
    headers, body = well.requests[-1][1:]
    asked = {name: headers[f"x-shoal-{name}"] for name in ("substitution", "priority", "deadline")}
    assert asked == {"substitution": "family", "priority": "bulk", "deadline": "2.5"}
    assert body["prompt_cache_key"] == "till 4"
    assert shoal("chat", "hi", url=well.url).code == 0
    headers, body = well.requests[-1][1:]
    assert not {"x-shoal-offload", "x-shoal-substitution", "x-shoal-priority", "x-shoal-deadline"} & set(headers)
    assert "prompt_cache_key" not in body


def test_b21_each_piece_is_printed_when_it_comes() -> None:
    with scripted() as script:
        release = threading.Event()
        script.between = lambda sent: None if sent < 2 else (release.wait(LIMIT), None)[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli.main", "chat", "hi", "--model", "smol"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(script.url),
        )
        assert process.stdout is not None
        assert process.stdout.read(5) == b"Hello"
        release.set()
        assert process.communicate(timeout=LIMIT)[0].decode() == " wörld\n"
        assert process.returncode == 0


def test_ctrl_c_ends_a_chat_quietly() -> None:
    with scripted() as script:
        release = threading.Event()
        script.between = lambda sent: None if sent < 2 else (release.wait(LIMIT), None)[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli.main", "chat", "hi", "--model", "smol"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(script.url),
        )
        assert process.stdout is not None
        assert process.stdout.read(5) == b"Hello"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
        release.set()
        assert process.returncode == 130
        assert err.strip() == b""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ((event({"error": {"code": "interrupted", "message": "jetson-1 went away"}}),), "interrupted"),
        ((), "interrupted"),
    ],
)
def test_b18_an_answer_that_breaks_off_is_a_failure_and_keeps_its_text(form: str, ending: Any, code: str) -> None:
    with scripted({"/v1/chat/completions": (200, (*ANSWER[:2], *ending))}) as script:
        done = shoal("chat", "hi", "-o", form, url=script.url)
    assert done.code == 1
    if form == "json":
        assert done.json["error"]["code"] == code
        assert done.json["error"]["details"]["partial_text"] == "Hello"
    else:
        assert done.out == "Hello\n"
        assert done.err.startswith("shoal: ")
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("states", "exit_code", "code"),
    [
        (["refused"], 4, "refused"),
        (["connecting", "connecting", "refused"], 4, "refused"),
        (["unreachable"], 1, "interrupted"),
        (["connecting", "connected"], 1, "interrupted"),
    ],
)
def test_an_answer_that_breaks_off_because_this_box_was_shut_out_is_a_refusal(
    states: list[str], exit_code: int, code: str
) -> None:
    def peers_in(state: str) -> tuple[int, Any]:
        return 200, {"peers": [{**PEER, "peer_id": SERVED["peer_id"], "state": state}]}

    broken = (*ANSWER[:2], event({"error": {"code": "interrupted", "message": "send the request again"}}))
    with scripted({"/v1/chat/completions": (200, broken)}) as script:
        left = list(states)

        def seen(_sent: int) -> None:
            if script.requests[-1][0] == "/v1/fleet/peers":
                script.answers["/v1/fleet/peers"] = peers_in(left.pop(0) if left else "unreachable")

        script.answers["/v1/fleet/peers"] = peers_in(left.pop(0))
        script.between = seen
        done = shoal("chat", "hi", "-o", "json", url=script.url)
    assert (done.code, done.json["error"]["code"]) == (exit_code, code)
    assert done.json["error"]["details"]["partial_text"] == "Hello"
    assert ("send" in done.json["error"]["message"]) == (code == "interrupted")


@pytest.mark.parametrize(
    ("answer", "exit_code", "code"),
    [
        (error(401, "unauthorized"), 4, "unauthorized"),
        (error(403, "denied"), 4, "denied"),
        (error(404, "model_not_found"), 1, "model_not_found"),
        (error(400, "context_length_exceeded", prompt_tokens=9, context_tokens=8), 1, "context_length_exceeded"),
        (error(429, "overloaded"), 1, "overloaded"),
        (error(503, "no_capable_peer"), 3, "no_capable_peer"),
        (error(502, "peer_unreachable"), 3, "peer_unreachable"),
        (error(503, "no_local_model"), 1, "no_local_model"),
        ((500, (b"<html>",)), 1, "bad_answer"),
        ((200, (b"not a stream",)), 1, "interrupted"),
        ((200, (event({"choices": [{}]}),)), 1, "bad_answer"),
        ((302, {}), 1, "bad_answer"),
    ],
)
def test_an_error_of_the_agent_has_its_exit_code(answer: tuple[int, Any], exit_code: int, code: str) -> None:
    with scripted({"/v1/chat/completions": answer}) as script:
        done = shoal("chat", "hi", "-o", "json", url=script.url)
        told = shoal("chat", "hi", url=script.url)
    assert (done.code, done.json["error"]["code"]) == (exit_code, code)
    assert told.code == exit_code
    assert told.err.startswith("shoal: ")


@pytest.mark.parametrize("args", [("peers",), ("models",), ("chat", "hi"), ("doctor",)])
def test_without_an_agent_the_command_to_start_one_is_named(args: tuple[str, ...], tmp_path: Path) -> None:
    done = shoal(*args, url=f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert done.code == 3
    assert "shoal run --config FILE" in done.out + done.err
    as_json = shoal(*args, "-o", "json", url=f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert as_json.code == 3
    assert "agent_unreachable" in json.dumps(as_json.json)


@pytest.mark.parametrize("name", ["peers", "models", "doctor"])
@pytest.mark.parametrize("answer", [(200, {}), (200, {"peers": 5, "data": [5], "warnings": [5]}), (200, (b"x" * 100,)), (200, ()), (200, [])])  # fmt: skip
def test_whatever_else_lives_at_the_url_is_no_crash(name: str, answer: tuple[int, Any], tmp_path: Path) -> None:
    with scripted(dict.fromkeys(("/v1/fleet/peers", "/v1/models", "/v1/fleet/self"), answer)) as script:
        done = shoal(name, url=script.url, cwd=tmp_path)
    assert done.code == 1
    assert "no agent of this version" in done.out + done.err


def test_the_api_key_is_sent_from_its_file_or_the_environment(well: Scripted, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("# comment\n\nfrom-file\nsecond\n")
    shoal("models", "--api-key-file", str(tmp_path / "key"), url=well.url)
    assert well.requests[-1][1]["authorization"] == "Bearer from-file"
    shoal("models", url=well.url, SHOAL_API_KEY="from-env")
    assert well.requests[-1][1]["authorization"] == "Bearer from-env"
    shoal("models", url=well.url)
    assert "authorization" not in well.requests[-1][1]
    (tmp_path / "empty").write_text("# nothing\n")
    for args in (("--api-key-file", str(tmp_path / "none")), ("--api-key-file", str(tmp_path / "empty"))):
        assert shoal("models", *args, url=well.url).code == 2
    assert shoal("models", url=well.url, SHOAL_API_KEY="schlüssel").code == 2


def test_standard_input_past_the_limit_or_not_text_is_refused(well: Scripted) -> None:
    for text, word in (("x" * (1024 * 1024 + 1), "1048576"), ("\udcff", "UTF-8")):
        done = shoal("chat", "-", url=well.url, stdin=text)
        assert done.code == 2
        assert word in done.err


def test_what_peers_and_models_say_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2J\x9b\r\nx"
    answers = {
        "/v1/fleet/peers": (200, {"peers": [{**PEER, "name": evil, "models": [{"name": evil, "state": "loaded"}]}]}),
        "/v1/chat/completions": (
            200,
            (chunk("", shoal={**SERVED, "served_by": evil}), chunk(f"a{evil}\ud800"), *ENDING),
        ),
        "/v1/fleet/self": (200, {**SELF, "name": evil, "warnings": [warning("error", evil)]}),
    }
    with scripted(answers) as script:
        for args in (("peers",), ("chat", "hi"), ("doctor",)):
            done = shoal(*args, url=script.url)
            assert not {"\x1b", "\x9b", "\r"} & set(done.out + done.err)
            assert "\\x1b[2J" in done.out + done.err


def test_output_that_nobody_reads_any_more_is_no_crash(well: Scripted) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli.main", "peers", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(well.url),
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(LIMIT) == 1
    assert err == b""


def test_a_terminal_that_lacks_a_letter_gets_the_rest() -> None:
    answer = (chunk("", shoal=SERVED), chunk("a\ud800b \u4e16 c"), *ENDING)
    with scripted({"/v1/chat/completions": (200, answer)}) as script:
        for encoding in ("ascii", "iso8859-15", "utf-8"):
            for form in ("text", "json"):
                done = process("chat", "hi", "-o", form, url=script.url, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
                assert done.code == 0
                assert " c" in done.out


# doctor


def warning(severity: str, text: str = "the text") -> dict[str, str]:
    return {"code": f"c_{severity}", "severity": severity, "title": "the title", "text": text, "remedy": "the remedy"}


@pytest.mark.parametrize(
    ("severities", "ready", "code"),
    [((), True, 0), (("info",), True, 0), (("warning",), True, 5), (("info", "error"), True, 5), ((), False, 5)],
)
def test_doctor_tells_what_is_wrong_and_exits_with_5_if_something_is(
    severities: tuple[str, ...], ready: bool, code: int, tmp_path: Path
) -> None:
    answers = {
        "/v1/fleet/self": (200, {**SELF, "warnings": [warning(severity) for severity in severities]}),
        "/readyz": (200 if ready else 503, {"ready": ready, "reasons": [] if ready else ["model smol is loading"]}),
    }
    with scripted(answers) as script:
        done = shoal("doctor", url=script.url, cwd=tmp_path)
        as_json = shoal("doctor", "-o", "json", url=script.url, cwd=tmp_path)
    assert done.code == as_json.code == code
    assert "pos-1 (12D3me), version 1.0, serving" in done.out
    for severity in severities:
        assert f"[c_{severity}]" in done.out
        assert "-> the remedy" in done.out
    assert ("nothing is wrong" in done.out) == (not severities and ready)
    assert ("model smol is loading" in done.out) == (not ready)
    codes = [found["code"] for found in as_json.json["warnings"]]
    assert codes == [f"c_{severity}" for severity in severities] + ([] if ready else ["not_ready"])
    assert as_json.json["agent"]["peer_id"] == "12D3me"


def test_doctor_without_access_exits_with_4(tmp_path: Path) -> None:
    with scripted({"/v1/fleet/self": error(401, "unauthorized", "this box needs an API key")}) as script:
        done = shoal("doctor", url=script.url, cwd=tmp_path)
    assert done.code == 4
    assert "--api-key-file" in done.out


def test_b34_doctor_looks_at_files_and_ports_when_no_agent_runs(tmp_path: Path) -> None:
    shoal("init", cwd=tmp_path)
    path = tmp_path / "shoal/shoal.yaml"
    (tmp_path / "shoal/state/identity.seed").chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = path.read_text().replace("127.0.0.1:8420", f"127.0.0.1:{free_port()}")
        text = text.replace("/ip4/0.0.0.0/tcp/4210", f"/ip4/127.0.0.1/tcp/{port}")
        path.write_text(text.replace("models: []", "models:\n  - path: gone.gguf"))
        done = shoal("doctor", "-o", "json", cwd=tmp_path)
    found = {warning["code"]: warning for warning in done.json["warnings"]}
    assert done.code == 3
    assert set(found) == {"agent_unreachable", "identity", "model_missing", "port"}
    assert found["identity"]["remedy"].startswith("chmod 600 ")
    assert f"127.0.0.1 port {port}" in found["port"]["text"]
    assert "gone.gguf" in found["model_missing"]["text"]
    path.write_text(path.read_text() + "\nmodles: []\n")
    broken = shoal("doctor", "--config", str(path), url=f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert "did you mean 'models'?" in broken.out


def test_doctor_asks_the_agent_that_the_configuration_describes(tmp_path: Path) -> None:
    with scripted() as script:
        shoal("init", cwd=tmp_path)
        path = tmp_path / "shoal/shoal.yaml"
        path.write_text(path.read_text().replace("127.0.0.1:8420", script.url.removeprefix("http://")))
        done = shoal("doctor", cwd=tmp_path)
    assert done.code == 0
    assert "nothing is wrong" in done.out


# a real agent


def test_the_commands_agree_with_a_real_agent(tmp_path: Path) -> None:
    boxes: dict[str, dict[str, Any]] = {"sensor-1": {}, "pos-1": {}}
    with agents(tmp_path, boxes, fresh=True) as (sensor, pos):
        sensor.wait_line("link.up")
        listed = process("peers", "-o", "json", url=sensor.url).json["peers"]
        assert [(peer["name"], peer["peer_id"], peer["state"]) for peer in listed] == [
            ("pos-1", pos.peer_id, "connected")
        ]
        assert "pos-1" in process("peers", url=sensor.url).out
        assert process("models", "-o", "json", url=sensor.url).json == {"models": []}
        asked = process("chat", "hi", "--model", "none", "-o", "json", url=sensor.url)
        assert asked.code != 0
        assert asked.json["error"]["code"] in ("model_not_found", "no_capable_peer")
        doctor = process("doctor", "-o", "json", url=sensor.url, cwd=tmp_path)
        assert doctor.code == 0
        assert doctor.json["agent"]["name"] == "sensor-1"
        assert [found["code"] for found in doctor.json["warnings"]] == ["loopback_only"]


@pytest.mark.parametrize(
    "args", [("chat", "hi"), ("chat", "hi", "--no-stream"), ("chat", "hi", "-o", "json"), ("peers",)]
)
def test_output_that_cannot_be_written_is_one_line_and_no_traceback(args: tuple[str, ...]) -> None:
    with scripted() as script, Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agent.cli.main", *args],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=LIMIT, env=environment(script.url),
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "shoal: No space left on device"
    assert "Traceback" not in done.stderr.decode()
    assert "Exception" not in done.stderr.decode()


def test_a_chat_with_nobody_but_boxes_that_refuse_us_is_a_denial() -> None:
    nothing = {"/v1/models": (200, {"object": "list", "data": []})}
    refused = {"/v1/fleet/peers": (200, {"peers": [{**LOST, "state": "refused"}]})}
    with scripted({**nothing, **refused}) as script:
        done = shoal("chat", "hi", url=script.url)
    assert (done.code, "refuses its key" in done.err) == (4, True)
    with scripted(nothing) as script:
        assert shoal("chat", "hi", url=script.url).code == 3
