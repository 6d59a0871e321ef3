"""Addresses of inference servers, and the configuration that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import EngineConfig
from agent.config_file import parse
from agent.engine.external.engines import settings_of
from agent.engine_url import WELL_KNOWN, EngineUrl, engine_url_problem, parse_engine_url
from agent.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("http://127.0.0.1:11434", EngineUrl(False, "127.0.0.1", 11434), "http://127.0.0.1:11434"),
        ("http://127.0.0.1:11434/v1/", EngineUrl(False, "127.0.0.1", 11434), "http://127.0.0.1:11434"),
        ("HTTP://LocalHost", EngineUrl(False, "localhost", 80), "http://localhost"),
        (
            "https://gpu.example./engines/a/v1",
            EngineUrl(True, "gpu.example", 443, "/engines/a"),
            "https://gpu.example/engines/a",
        ),
        ("http://[::1]:8080/", EngineUrl(False, "::1", 8080), "http://[::1]:8080"),
        ("http://box_1:80", EngineUrl(False, "box_1", 80), "http://box_1"),
    ],
)
def test_urls_that_can_be_used(text: str, expected: EngineUrl, shown: str) -> None:
    assert parse_engine_url(text) == expected
    assert str(expected) == shown
    assert parse_engine_url(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:11434",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://",
        "http://:80",
        "http://a:0",
        "http://a:70000",
        "http://user:pass@a",
        "http://user@a",
        "http://@a",
        "http://a?x=1",
        "http://a/#",
        "http://a/v1?",
        "http://a/../b",
        "http://a/b//c",
        "http://a/b%2f",
        "http://a b",
        "http://a\\b",
        "http://a\tb",
        "http://a\nb",
        "http://ä.example",
        "http://127.1",
        "http://0x7f000001",
        "http://2130706433",
        "http://-a",
        "http://a-",
        "http://a..b",
        "http://[::1",
        "http://[fe80::1%25eth0]",
        "http://" + "a" * 64,
        "http://" + "a." * 200,
        "http://a/" + "b" * 600,
    ],
)
def test_urls_that_cannot(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|has|is no"):
        parse_engine_url(text)
    assert engine_url_problem(text, has_key=False)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("http://127.0.0.1", True),
        ("http://127.8.9.1:1", True),
        ("http://[::1]", True),
        ("http://localhost", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("http://[::ffff:10.0.0.1]", False),
    ],
)
def test_a_key_goes_in_the_clear_to_this_machine_alone(text: str, loopback: bool) -> None:
    assert parse_engine_url(text).is_loopback is loopback
    assert (engine_url_problem(text, has_key=True) is None) is loopback
    assert engine_url_problem(text.replace("http:", "https:"), has_key=True) is None
    assert engine_url_problem(text, has_key=False) is None


def read(text: str) -> Any:
    return parse("name: a\n" + text, "shoal.yaml", Path("/etc/shoal"), {})


def test_a_configuration_with_engines() -> None:
    config = read(
        "engines:\n"
        "  - url: http://127.0.0.1:11434\n"
        "  - {kind: vllm, url: 'https://gpu.example', api_key_file: key, models: [a, b], slots: 3, lend: false}\n"
        "  - {url: 'http://10.0.0.1:8000', enabled: false}\n"
        "engine:\n  detect: true\n  context_tokens: 777\n  max_queue: 5\n"
    )
    first, second, *detected = settings_of(config.engines, config.engine)
    assert (first.kind, first.wanted, first.lend, first.detected) == ("auto", None, True, False)
    assert (first.usual_context, first.max_queue) == (777, 5)
    assert second.key_file == Path("/etc/shoal/key")
    assert (second.kind, second.wanted, second.slots, second.lend) == ("vllm", ("a", "b"), 3, False)
    # What is configured is not looked for again, and what is not enabled is not used.
    assert [str(one.url) for one in detected] == [f"http://127.0.0.1:{port}" for port in (1234, 8080, 8000)]
    assert all(one.detected for one in detected)


def test_nothing_is_looked_for_unless_it_is_wanted() -> None:
    assert read("").engine.detect is False
    assert settings_of((), EngineConfig()) == []
    assert len(settings_of((), EngineConfig(detect=True))) == len(WELL_KNOWN) == 4
    assert all(url.is_loopback for url in WELL_KNOWN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engines:\n  - {url: 'http://a?b'}\n", "shoal.yaml:3: engines[0].url: 'http://a?b' must have nothing after"),
        (
            "engines:\n  - url: http://10.0.0.1\n    api_key_file: k\n",
            "shoal.yaml:3: engines[0].url: 'http://10.0.0.1' would",
        ),
        (
            "engines:\n  - url: http://localhost:1\n  - url: http://127.0.0.1:1/v1\n",
            "shoal.yaml:4: engines[1].url: engines[0] is the same",
        ),
        ("engines:\n  - kind: ollama\n", "shoal.yaml:3: engines[0].url is missing"),
        ("engines:\n  - {url: 'http://a', kind: olama}\n", "shoal.yaml:3: engines[0].kind: must be 'auto', 'ollama'"),
        (
            "engines:\n  - {url: 'http://a', lends: true}\n",
            "shoal.yaml:3: unknown key 'lends' in engines[0]; did you mean 'lend'",
        ),
        ("engines: [" + ", ".join(f"{{url: 'http://a{n}'}}" for n in range(9)) + "]\n", "shoal.yaml:2: engines: "),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.message.startswith(expected)
    assert "\n" not in caught.value.message
