"""Inbound connections that are not admitted yet: how many there may be, and which of them goes when there are too many.

Pure bookkeeping; whoever enters one says how to drop it. A stranger can open connections for nothing, so what he holds
must never be what a member lacks: his connections are counted apart from those of peers that were admitted, and the
one that is dropped is one that has shown least.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

#: Inbound connections that may be in their handshake at once, in all and from one address.
MAX_HALF_OPEN: Final = 128
MAX_HALF_OPEN_PER_ADDRESS: Final = 32


class Stage(IntEnum):
    """What a connection has shown. The least is dropped first."""

    REFUSED = 0  # its key is not allowed; it is only kept until it has read so
    SILENT = 1  # not a byte came: costs its sender nothing
    SPEAKING = 2


@dataclass
class _Entry:
    network: str
    drop: Callable[[], None]
    stage: Stage = Stage.SILENT


class HalfOpen:
    """The connections in their handshake, oldest first."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, key: Hashable, host: str, drop: Callable[[], None]) -> Stage | None:
        """Add a connection from `host`; to make room another one may be dropped, whose stage is returned.

        From an address that has its full share, one of that address goes; else, when all places are taken, one of the
        address that has most. Among these it is the oldest of those that have shown least: an honest peer speaks at
        once and needs milliseconds.
        """
        network = network_of(host)
        victim = self._victim(network)
        stage = None
        if victim is not None:
            dropped = self._entries.pop(victim)
            stage = dropped.stage
            dropped.drop()
        self._entries[key] = _Entry(network, drop)
        return stage

    def _victim(self, network: str) -> Hashable | None:
        share = Counter(entry.network for entry in self._entries.values())
        if share[network] < MAX_HALF_OPEN_PER_ADDRESS:
            if len(self._entries) < MAX_HALF_OPEN:
                return None
            network = share.most_common(1)[0][0]
        candidates = [key for key, entry in self._entries.items() if entry.network == network]
        return min(candidates, key=lambda key: self._entries[key].stage)

    def show(self, key: Hashable, stage: Stage) -> None:
        """Note what a connection has shown, if it is still here."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.stage = stage

    def leave(self, key: Hashable) -> None:
        """The connection is admitted, or gone."""
        self._entries.pop(key, None)


def network_of(host: str) -> str:
    """Whose addresses count as one: an IPv4 address, or the /64 that every IPv6 host may choose from."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)
