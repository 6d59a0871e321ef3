"""Who may use the HTTP endpoint: an API key, or being on this very machine without a browser in between."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.config import HttpConfig
from agent.errors import AgentError, ConfigError, UnauthorizedError

_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
#: Answered without a key: they say nothing but whether the process lives and is ready.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})


class DeniedHostError(AgentError):
    """A request that came through a foreign name or from a foreign page: a browser was tricked into sending it."""

    code = "denied"


def listen_address(listen: str) -> tuple[str, int]:
    """Host and port of `http.listen`; raises ConfigError if it is not HOST:PORT."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise ConfigError(f"http.listen {listen!r} is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def load_keys(config: HttpConfig) -> tuple[bytes, ...]:
    """The API keys; empty where none are needed.

    Raises ConfigError when the endpoint is open to others without a key, or the file is readable by others.
    """
    host, _ = listen_address(config.listen)
    if config.api_key_file is None:
        if not is_loopback(host):
            raise ConfigError(
                f"http.listen {config.listen} can be reached from other machines; set http.api_key_file to a file"
                " with a key in it (mode 0600), or listen on 127.0.0.1"
            )
        return ()
    return _read_keys(config.api_key_file)


def _read_keys(path: Path) -> tuple[bytes, ...]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_bytes()[: 64 * 1024].splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read http.api_key_file {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"others can read the API keys in {path} (mode {mode:04o}); run: chmod 600 {path}")
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith(b"#"))
    if not keys or any(len(key) < 16 for key in keys):
        raise ConfigError(f"{path} must hold one API key a line, each of at least 16 characters")
    return keys


def check(path: str, headers: Mapping[str, str], keys: tuple[bytes, ...]) -> None:
    """Raise UnauthorizedError or DeniedHostError unless the request may proceed.

    Without keys the endpoint is on loopback, and the danger is a web page that makes this machine's browser call it:
    a foreign Host (DNS rebinding) or Origin is refused.
    """
    if path in OPEN_PATHS:
        return
    if keys:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [hmac.compare_digest(given.strip().encode("utf-8", "replace"), key) for key in keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise UnauthorizedError("a valid API key is needed: send 'Authorization: Bearer KEY'")
        return
    if not _is_local_name(headers.get("host", "")):
        raise DeniedHostError("this endpoint answers to localhost and 127.0.0.1 only; set http.api_key_file to open it")
    origin = headers.get("origin")
    if origin is not None and not _is_local_name(origin.partition("://")[2]):
        raise DeniedHostError("requests from web pages of other origins are not answered")


def _is_local_name(authority: str) -> bool:
    name, separator, port = authority.rpartition(":")
    if not separator or not port.isdigit():
        name = authority
    return name.lower() in _LOCAL_NAMES
