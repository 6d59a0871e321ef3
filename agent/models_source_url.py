"""Where a model is brought in from: a file of this machine, a URL, or a file of a hub. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from agent.errors import BadRequestError

#: The hub that `hf:` means unless another is named; HF_ENDPOINT is the variable that its own tools go by.
HUB: Final = "https://huggingface.co"
HUB_VARIABLE: Final = "HF_ENDPOINT"
#: Characters of a source; signed URLs are long.
MAX_SOURCE: Final = 4096

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,() -]{0,254}")
_HUB_FORM: Final = "write hf:ORG/REPO/FILE, or hf:ORG/REPO@REVISION/FILE"
_URL_FORM: Final = "write https://HOST/PATH"


@dataclass(frozen=True)
class LocalSource:
    """A file of the machine that the agent runs on."""

    path: Path

    @property
    def shown(self) -> str:
        """For people and logs."""
        return str(self.path)


@dataclass(frozen=True)
class WebSource:
    """A file behind a URL; `hub` is whether that is a hub's, whose word on the file's SHA-256 is asked for."""

    url: str
    hub: bool = False

    @property
    def shown(self) -> str:
        """For people and logs: without the query, which may hold a signature that lets whoever has it read."""
        return shown_url(self.url)


Source = LocalSource | WebSource


def parse_source(text: str, *, hub: str = HUB) -> Source:
    """What `shoal models add` was given: a URL, `hf:ORG/REPO/FILE`, or else the path of a file.

    Raises BadRequestError that says what is wrong with it. A path must be absolute: the agent has another working
    folder than whoever asks.
    """
    if not 0 < len(text) <= MAX_SOURCE:
        raise _bad(f"a model's source has 1 to {MAX_SOURCE} characters")
    if text.startswith("hf:"):
        return WebSource(_hub_url(text[3:], hub), hub=True)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        check_url(text)
        return WebSource(text)
    if "\0" in text or not Path(text).is_absolute():
        raise _bad("the path of a model's file must be absolute, as the agent has another working folder than you")
    return LocalSource(Path(text))


def check_url(text: str) -> None:
    """Raises BadRequestError for a URL that nothing is fetched from.

    It is https, or http to this very machine; it holds no user or password, which would be shown in logs, and nothing
    that could be read in two ways.
    """
    if len(text) > MAX_SOURCE or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise _bad(f"the URL is not plain ASCII of at most {MAX_SOURCE} characters; {_URL_FORM}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _bad(f"the URL has no valid host or port; {_URL_FORM}") from None
    if parts.scheme not in ("http", "https"):
        raise _bad(f"models are fetched over https; {_URL_FORM}")
    if not host or port == 0:
        raise _bad(f"the URL has no valid host or port; {_URL_FORM}")
    if "@" in parts.netloc:
        raise _bad("the URL must not hold a user or password; they would be seen in logs")
    if parts.scheme == "http" and not is_loopback(text):
        raise _bad("over http anybody on the way can change the model; use https")


def follow(url: str, location: str) -> str:
    """Where a redirect leads. Raises BadRequestError where it must not be followed: to anything that `check_url`
    refuses, from https to http, or from another machine to this one, whose own services trust it."""
    if not location.isascii() or not location.isprintable():  # of which `urljoin` would leave some out
        raise _bad(f"{shown_url(url)} redirects to something that is no URL")
    try:
        target = urljoin(url, location).partition("#")[0]
    except ValueError:
        raise _bad(f"{shown_url(url)} redirects to something that is no URL") from None
    check_url(target)
    if url.startswith("https:") and target.startswith("http:"):
        raise _bad(f"{shown_url(url)} redirects from https to http, which is not followed")
    if is_loopback(target) and not is_loopback(url):
        raise _bad(f"{shown_url(url)} redirects to this machine, which is not followed")
    return target


def is_loopback(url: str) -> bool:
    """Whether a URL means this machine."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or address.is_unspecified or (mapped is not None and mapped.is_loopback)


def shown_url(url: str) -> str:
    """A URL without its query."""
    return url.partition("?")[0].partition("#")[0]


def _hub_url(text: str, hub: str) -> str:
    org, _, rest = text.partition("/")
    repo, _, file = rest.partition("/")
    repo, at, revision = repo.partition("@")
    if not all(map(_PART.fullmatch, (org, repo, revision if at else "main"))):
        raise _bad(f"that names no repository of a hub; {_HUB_FORM}")
    if not file or not all(_FILE.fullmatch(part) for part in file.split("/")):
        raise _bad(f"that names no file of a repository; {_HUB_FORM}")
    url = f"{hub.rstrip('/')}/{org}/{repo}/resolve/{revision or 'main'}/{quote(file)}"
    check_url(url)
    return url


def _bad(message: str) -> BadRequestError:
    return BadRequestError(message, details={"param": "source"})
