"""The names of boxes, looked up as every other program on the box looks them up: hosts file, mDNS plugin, DNS.

libp2p's own resolver speaks DNS alone, and so finds nothing that an air-gapped site keeps in /etc/hosts; with its
libraries it also took 14 MB.
"""

from __future__ import annotations

import socket
from typing import Any, Final

import trio

#: What multiaddr.resolvers.dns calls the beginning of a TXT record that holds an address.
PREFIX: Final = "dnsaddr="
_FAMILIES: Final = {"dns4": (socket.AF_INET, "ip4"), "dns6": (socket.AF_INET6, "ip6")}
#: Addresses of one name that are tried, at most.
_MAX_ADDRESSES: Final = 8


class SystemResolver:
    """What libp2p asks for the addresses behind a name, with the interface of multiaddr.resolvers.DNSResolver."""

    async def resolve(self, maddr: Any, options: object = None) -> list[Any]:
        """The multiaddrs that a `/dns4` or `/dns6` one stands for, at most 8; any other stands for itself.

        Raises OSError (socket.gaierror) for a name that nobody knows. Cancelling it leaves the lookup to end by itself
        in its thread.
        """
        family, _, rest = str(maddr).strip("/").partition("/")
        if family not in _FAMILIES:
            return [maddr]
        number, replacement = _FAMILIES[family]
        name, _, tail = rest.partition("/")
        found = await trio.socket.getaddrinfo(name, None, number, socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
        return [type(maddr)(f"/{replacement}/{ip}/{tail}") for ip in list(addresses)[:_MAX_ADDRESSES]]
