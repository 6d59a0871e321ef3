"""Who may use the HTTP API: holders of a key, or, on loopback without one, programs of this box alone."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agent.errors import ConfigError, UnauthorizedError
from agent.http.errors import ForbiddenError
from agent.http.exchange import Exchange

#: Paths that tell nothing but life and readiness; container health checks have no key.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
MAX_KEY_FILE: Final = 64 * 1024
#: Characters; a shorter key can be guessed over the network.
MIN_KEY: Final = 16


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The API keys in a file, one a line; empty lines and those that start with # are skipped.

    Raises ConfigError where the file is missing, readable by others than its owner, too large, without a key, or
    holds one shorter than MIN_KEY.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigError(f"http.api_key_file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"http.api_key_file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    if len(text) > MAX_KEY_FILE:
        raise ConfigError(f"http.api_key_file {path} is larger than {MAX_KEY_FILE} bytes; it holds one key a line")
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        raise ConfigError(f"http.api_key_file {path} has no key; write one a line, such as from: openssl rand -hex 32")
    if any(len(key) < MIN_KEY for key in keys):
        raise ConfigError(
            f"http.api_key_file {path} has a key of fewer than {MIN_KEY} characters; make one, such as from:"
            " openssl rand -hex 32"
        )
    return keys


def is_loopback(host: str) -> bool:
    """True for `localhost` and for addresses that never leave this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Decides whether a request may go on. With keys, one of them is required; without, see `_local_only`."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._keys = keys

    def check(self, exchange: Exchange) -> None:
        """Raise UnauthorizedError or ForbiddenError where the request must not go on."""
        if exchange.path in OPEN_PATHS:
            return
        if self._keys:
            self._check_key(exchange.header("authorization"))
        else:
            _local_only(exchange)

    def _check_key(self, header: str | None) -> None:
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise UnauthorizedError("this box needs an API key: send Authorization: Bearer KEY")
        candidate = given.strip().encode("latin-1")
        # Every key is compared, in constant time each: how long it takes tells nothing.
        if not sum(hmac.compare_digest(candidate, key) for key in self._keys):
            raise UnauthorizedError("the API key is not one of this box's; see http.api_key_file on the box")


def _local_only(exchange: Exchange) -> None:
    """Refuse what a web page can make a browser send to loopback: by a name of its own, or from a foreign origin."""
    host = _hostname("//" + (exchange.header("host") or ""))
    if host is None or not is_loopback(host):
        raise ForbiddenError(
            "without an API key this box answers only under localhost, 127.0.0.1 or [::1], so that no web page can"
            " reach it under a name of its own; use one of these in the URL, or set http.api_key_file"
        )
    origin = exchange.header("origin")
    if origin is not None:
        origin_host = _hostname(origin)
        if origin_host is None or not is_loopback(origin_host):
            raise ForbiddenError(
                "without an API key this box does not answer web pages of other origins; set http.api_key_file"
            )


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
