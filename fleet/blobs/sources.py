"""Whom a fetch may ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fleet.net.link import Link


class Sources(Protocol):
    """The boxes that may be asked for a blob; a `fleet.net.node.Node` is one, of all that are connected."""

    def links(self) -> Iterable[Link]:
        """One live link for each: best of boxes that have some of the blob, or fetch it too."""

    async def wait_change(self) -> None:
        """Return when `links` may have changed. It is cancelled, and called anew, now and then."""
