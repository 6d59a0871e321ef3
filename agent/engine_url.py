"""The address of an inference server that this box may use: what it may be, and where it leads. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

#: Characters of a URL.
MAX_URL: Final = 512

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_FORM: Final = "write http://127.0.0.1:11434, or https://HOST:PORT for another machine"


@dataclass(frozen=True)
class EngineUrl:
    """Where a server is. `prefix` is the path before `/v1`, without a slash at its end; often empty."""

    tls: bool
    host: str
    port: int
    prefix: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def place(self) -> tuple[str, int]:
        """What two addresses of one server have in common; all spellings of loopback count as one."""
        return ("loopback" if self.is_loopback else self.host, self.port)

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


#: Where the servers that are looked for listen unless told otherwise: Ollama, LM Studio, llama-server, vLLM.
WELL_KNOWN: Final = tuple(EngineUrl(False, "127.0.0.1", port) for port in (11434, 1234, 8080, 8000))


def parse_engine_url(text: str) -> EngineUrl:
    """The server that a URL names, with or without `/v1` at its end. Raises ValueError that says what is wrong.

    No user, query or fragment, and no name that is not plain ASCII: what is shown must be where it leads.
    """
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError(f"is no plain URL of at most {MAX_URL} characters; {_FORM}")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise ValueError(f"has no valid host or port; {_FORM}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"must begin with http:// or https://; {_FORM}")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password; put the key into a file and name that as api_key_file")
    if "?" in text or "#" in text:
        raise ValueError(f"must have nothing after its path; {_FORM}")
    if not _is_host(host) or port == 0:
        raise ValueError(f"has no valid host or port; {_FORM}")
    if not _PATH.fullmatch(parts.path) or any(part in (".", "..") for part in parts.path.split("/")):
        raise ValueError(f"has a path of other characters than letters, digits, '.', '_', '~' and '-'; {_FORM}")
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1")
    tls = parts.scheme == "https"
    return EngineUrl(tls, host, port or (443 if tls else 80), prefix)


def engine_url_problem(text: str, *, has_key: bool) -> str | None:
    """Why a URL cannot be used for an engine; None if it can. A key is sent in the clear to this machine alone."""
    try:
        url = parse_engine_url(text)
    except ValueError as error:
        return str(error)
    if has_key and not url.tls and not url.is_loopback:
        return "would carry the API key over the network in the clear; use https://, or a tunnel that ends on 127.0.0.1"
    return None


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host)) and "%" not in host
    except ValueError:
        labels = host.split(".")
    # What looks like a number and is no address is read as one by some resolvers (127.1, 0x7f000001).
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1][:1].isdigit()
