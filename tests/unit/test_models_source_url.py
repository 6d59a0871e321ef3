"""What a model may be brought in from, and where a redirect may lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BadRequestError
from agent.models_source_url import LocalSource, WebSource, follow, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/srv/a b.gguf", LocalSource(Path("/srv/a b.gguf"))),
        ("https://models.example/x.gguf?sig=1", WebSource("https://models.example/x.gguf?sig=1")),
        ("http://127.0.0.1:8000/x.gguf", WebSource("http://127.0.0.1:8000/x.gguf")),
        ("http://[::1]:8000/x.gguf", WebSource("http://[::1]:8000/x.gguf")),
        (
            "hf:org/some-repo/sub/model.Q4_0.gguf",
            WebSource("https://huggingface.co/org/some-repo/resolve/main/sub/model.Q4_0.gguf", hub=True),
        ),
        (
            "hf:org/repo@v1.2/a (1).gguf",
            WebSource("https://huggingface.co/org/repo/resolve/v1.2/a%20%281%29.gguf", hub=True),
        ),
    ],
)
def test_a_source_is_a_path_a_url_or_a_file_of_a_hub(text: str, source: object) -> None:
    assert parse_source(text) == source


def test_another_hub_can_be_named() -> None:
    found = parse_source("hf:a/b/c.gguf", hub="http://127.0.0.1:9/hub/")
    assert found == WebSource("http://127.0.0.1:9/hub/a/b/resolve/main/c.gguf", hub=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.gguf",
        "/srv/\0",
        "x" * 5000,
        "http://models.example/x.gguf",
        "ftp://models.example/x.gguf",
        "file:///etc/passwd",
        "https://user:secret@models.example/x.gguf",
        "https://models.example\\@evil.example/x",
        "https://:443/x",
        "https://models.example:0/x",
        "https://models.example:99999/x",
        "https://models.exämple/x",
        "https://[::1/x",
        "hf:org/repo",
        "hf:org/repo/",
        "hf:org//x.gguf",
        "hf:../repo/x.gguf",
        "hf:org/repo/../../x.gguf",
        "hf:org/repo/a/./x.gguf",
        "hf:org/repo@/x.gguf",
        "hf:org/repo/x.gguf?download=1",
        "hf:org/repo/x\n.gguf",
    ],
)
def test_what_is_none_of_these_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError):
        parse_source(text)


def test_a_redirect_is_followed_to_where_a_source_may_be() -> None:
    assert follow("https://a.example/x", "/y#z") == "https://a.example/y"
    assert follow("https://a.example/x", "https://cdn.example/y?s=1") == "https://cdn.example/y?s=1"
    assert follow("http://127.0.0.1:1/x", "http://localhost:2/y") == "http://localhost:2/y"


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example/x",
        "http://127.0.0.1/x",
        "https://127.0.0.1/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://0.0.0.0/x",
        "https://box.localhost./x",
        "file:///etc/passwd",
        "https://user@b.example/x",
        "//[/x",
    ],
)
def test_a_redirect_to_the_clear_or_to_this_machine_is_not_followed(location: str) -> None:
    with pytest.raises(BadRequestError):
        follow("https://a.example/x", location)


def test_what_is_shown_of_a_source_has_no_signature_in_it() -> None:
    found = parse_source("https://models.example/x.gguf?sig=secret")
    assert found.shown == "https://models.example/x.gguf"
