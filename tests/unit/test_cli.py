"""The parts of the command line that need no agent: what it imports, how it prints, what it makes of a stream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import exits
from agent.cli.chat import Answer, read_answer
from agent.cli.client import MAX_LINE, AgentClient, ClientError, EventStream
from agent.cli.main import _COMMANDS
from agent.cli.output import printable, table, wants_json
from agent.errors import HTTP_STATUS

#: What a command that only prints its help has no business importing.
HEAVY = {
    "libp2p",
    "llama_cpp",
    "starlette",
    "hypercorn",
    "pydantic",
    "httpx",
    "trio",
    "structlog",
    "yaml",
    "nacl",
    "psutil",
}

_LIST_IMPORTS = """
import sys
from agent.cli.main import main
sys.argv[1:] = {argv!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(" ".join(sorted(name.partition(".")[0] for name in sys.modules)))
"""


@pytest.mark.parametrize("argv", [["--help"], [], *[[command, "--help"] for command in _COMMANDS if command != "demo"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = _LIST_IMPORTS.format(argv=argv or ["-h"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: shoal" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_every_command_has_a_line_in_the_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    for command, (_, _, line) in _COMMANDS.items():
        assert any(row.split(maxsplit=1) == [command, line] for row in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Grüße, 世界 🐟 👩‍🔬", "Grüße, 世界 🐟 👩‍🔬"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("a\rb\x00\x7f", "a\\rb\\x00\\x7f"),
        ("a\u202eb", "a\\u202eb"),
        ("a\ud800b", "a\\ud800b"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("soft\u00adhyphen no\u00a0break", "soft\u00adhyphen no\u00a0break"),
    ],
)
def test_control_characters_are_spelled_out(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_line_breaks_are_kept_where_they_belong() -> None:
    assert printable("a\nb\t\x1bc", keep_lines=True) == "a\nb\t\\x1bc"


@given(st.text())
def test_nothing_printed_can_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 0xA0 for c in shown)
    shown.encode("utf-8")


def test_a_table_is_aligned_and_has_no_trailing_space() -> None:
    lines = table(("NAME", "STATE"), [("jetson-1", "up"), ("a", ""), ("x\ny", "down")]).splitlines()
    assert lines == ["NAME      STATE", "jetson-1  up", "a", "x\\ny      down"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["peers", "-o", "json"], True),
        (["-o", "json"], True),
        (["peers", "--output", "json", "--bad"], True),
        (["peers", "--output=json"], True),
        (["peers", "-ojson"], True),
        (["peers", "-o", "text"], False),
        (["chat", "json"], False),
        (["chat", "-o"], False),
        ([], False),
    ],
)
def test_the_wanted_form_is_known_before_the_command_line_is_parsed(argv: list[str], expected: bool) -> None:
    assert wants_json(argv) is expected


def test_each_kind_of_error_has_its_exit_code() -> None:
    assert (exits.OK, exits.FAILED, exits.USAGE, exits.UNREACHABLE, exits.DENIED, exits.DEGRADED) == (0, 1, 2, 3, 4, 5)
    by_exit = {
        code: exits.exit_code(code) for code in (*HTTP_STATUS, "agent_unreachable", "usage", "config", "identity")
    }
    assert {code for code, exit_code in by_exit.items() if exit_code == exits.DENIED} == {
        "unauthorized",
        "denied",
        "refused",
        "other_fleet",
    }
    assert {code for code, exit_code in by_exit.items() if exit_code == exits.USAGE} == {"usage", "config", "identity"}
    assert {code for code, exit_code in by_exit.items() if exit_code == exits.UNREACHABLE} == {
        "agent_unreachable", "no_capable_peer", "peer_unreachable",
    }  # fmt: skip
    assert by_exit["interrupted"] == exits.exit_code("a code of a newer agent") == exits.FAILED


def stream_of(*pieces: bytes) -> EventStream:
    return EventStream({"x-shoal-job": "job-1"}, iter(pieces))


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_events_are_found_wherever_the_network_cut_them() -> None:
    whole = event({"a": "ü"}) + b": a comment\r\n\r\n" + event({"b": 1}) + DONE + event({"after": "the end"})
    for size in (1, 2, 3, 7, len(whole)):
        pieces = (whole[start : start + size] for start in range(0, len(whole), size))
        assert list(EventStream({}, pieces)) == [{"a": "ü"}, {"b": 1}]


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ((event({"a": 1}),), "interrupted"),
        ((), "interrupted"),
        ((event({"a": 1}), b"data: [DONE"), "interrupted"),
        ((event({"error": {"code": "overloaded", "message": "m", "details": {"n": 1}}}), DONE), "overloaded"),
        ((event({"error": "text"}),), "failed"),
        ((event({"error": {}}),), "failed"),
        ((b"data: {\n\n",), "bad_answer"),
        ((b"data: [1]\n\n",), "bad_answer"),
        ((b"data: " + b"[" * 100_000 + b"\n\n",), "bad_answer"),
        ((b"data: \xff\n\n",), "bad_answer"),
    ],
)
def test_a_stream_that_does_not_end_well_is_an_error(pieces: tuple[bytes, ...], code: str) -> None:
    with pytest.raises(ClientError) as caught:
        list(stream_of(*pieces))
    assert caught.value.code == code
    assert caught.value.message


def test_a_line_without_end_is_refused() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    with pytest.raises(ClientError, match=str(MAX_LINE)):
        list(EventStream({}, endless()))


def chunk(text: str | None = None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"model": "smol", "choices": [{"delta": delta, "finish_reason": more.pop("reason", None)}], **more})


def read(*pieces: bytes) -> tuple[Answer, list[str]]:
    answer, seen = Answer("asked"), []
    read_answer(answer, stream_of(*pieces), 0.0, seen.append)
    return answer, seen


def test_an_answer_says_who_served_it_and_how_fast() -> None:
    answer, seen = read(
        chunk(
            "",
            shoal={"served_by": "jetson-1", "peer_id": "P", "local": False, "route": ["pos-1=no", "jetson-1=served"]},
        ),
        chunk("Hel"),
        chunk("lo"),
        chunk(reason="stop", shoal={"prefill_ms": 5.0, "decode_ms": 9.0}),
        event({"model": "smol", "choices": [], "usage": {"completion_tokens": 2}}),
        DONE,
    )
    assert seen == ["Hel", "lo"]
    printed = answer.as_json()
    assert printed.pop("ttft_ms") > 0
    assert printed.pop("tok_s") is None or answer.tok_s
    assert printed == {
        "text": "Hello", "model": "smol", "served_by": "jetson-1", "peer_id": "P", "local": False,
        "route": ["pos-1=no", "jetson-1=served"], "job": "job-1", "finish_reason": "stop",
        "usage": {"completion_tokens": 2}, "prefill_ms": 5.0, "decode_ms": 9.0, "resumed_from": [],
    }  # fmt: skip
    for word in ("jetson-1 served smol", "pos-1=no", "first token after", "2 tokens"):
        assert word in answer.footer()


def test_b18_a_resumed_answer_says_so() -> None:
    answer, _ = read(
        chunk("", shoal={"served_by": "jetson-1", "route": []}),
        chunk("a"),
        chunk(shoal={"resumed_from": "jetson-1", "served_by": "jetson-2", "route": []}),
        chunk("b", reason="stop"),
        DONE,
    )
    assert answer.as_json()["resumed_from"] == ["jetson-1"]
    assert answer.footer().startswith("[jetson-2 served smol; went on after jetson-1 failed")


def test_an_answer_without_text_has_no_speed() -> None:
    answer, seen = read(chunk("", shoal={"served_by": "a"}), chunk(reason="stop"), DONE)
    assert (seen, answer.ttft_ms, answer.tok_s) == ([], None, None)


def test_what_an_agent_of_another_kind_sends_is_no_crash() -> None:
    client = AgentClient("http://127.0.0.1:1")
    for broken in ({"choices": [{}]}, {"choices": 5}, {}, {"choices": [], "shoal": "x"}):
        with pytest.raises(ClientError, match="no agent of this version"), client.understood():
            read(event(broken), DONE)


@pytest.mark.parametrize(
    "url", ["", "x", "127.0.0.1:8420", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://[::1"]
)
def test_a_url_that_cannot_be_asked_is_a_usage_error(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        AgentClient(url)
    assert caught.value.code == "usage"
