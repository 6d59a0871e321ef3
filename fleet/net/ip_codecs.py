"""IP addresses in multiaddrs, by the standard library.

multiaddr's own codecs import netaddr, and with it the registry of the makers of network cards: a twentieth of a box's
start. They also take `127.1` for an address; these do not.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from multiaddr.codecs import CodecBase
from multiaddr.exceptions import BinaryParseError


class IPv4Codec(CodecBase):  # type: ignore[misc]  # multiaddr has no types
    """Four bytes, as `10.0.0.1`."""

    SIZE = 32
    IS_PATH = False

    def to_bytes(self, proto: Any, string: str) -> bytes:
        """Raises ValueError for what is no address."""
        return ipaddress.IPv4Address(string).packed

    def to_string(self, proto: Any, buf: bytes) -> str:
        """Raises BinaryParseError unless there are four bytes."""
        return _text(ipaddress.IPv4Address, buf, "ip4")


class IPv6Codec(CodecBase):  # type: ignore[misc]
    """Sixteen bytes, as `fe80::1`, without a zone."""

    SIZE = 128
    IS_PATH = False

    def to_bytes(self, proto: Any, string: str) -> bytes:
        """Raises ValueError for what is no address, and for one with a zone."""
        address = ipaddress.IPv6Address(string)
        if address.scope_id is not None:
            raise ValueError("an address in a multiaddr has no zone")
        return address.packed

    def to_string(self, proto: Any, buf: bytes) -> str:
        """Raises BinaryParseError unless there are sixteen bytes."""
        return _text(ipaddress.IPv6Address, buf, "ip6")


def _text(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address], buf: bytes, name: str) -> str:
    try:
        return str(kind(bytes(buf)))
    except ValueError as error:
        raise BinaryParseError("not the bytes of an IP address", buf, name) from error
