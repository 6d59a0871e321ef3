"""Where a broker is: mqtt://HOST[:PORT] or mqtts://HOST[:PORT]. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]{1,253}")


@dataclass(frozen=True)
class BrokerAddress:
    """A broker's host and port, and whether it is spoken to over TLS."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def address_problem(url: str) -> str | None:
    """Why a text is no broker's address, None where it is one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no address; write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"
    if parts.scheme not in _PORTS or not parts.hostname or not _HOST.fullmatch(parts.hostname) or port == 0:
        return "is no broker's address; write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"
    if parts.username or parts.password:
        return "has a user or a password in it; put them under mqtt.user and mqtt.password_file"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return "has something after the port; leave it out"
    return None


def parse_address(url: str) -> BrokerAddress:
    """The address in a text for which `address_problem` has nothing to say."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return BrokerAddress(parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme == "mqtts")
