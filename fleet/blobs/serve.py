"""Giving blocks to peers: who follows which blob, who has a slot, and over which lane they are sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from fleet.blobs.store import BlobStore
from fleet.net.link import Link
from fleet.net.rpc import Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus


@dataclass(frozen=True)
class ServeTerms:
    """What a box gives. `port` of the fast lane: 0 for any, None for none; `host` is the address it listens on.

    `slots` is how many peers are sent blocks of a blob at a time, `rate` bytes a second to all of them, None for no
    limit; it is asked again for every block, so that it can follow a schedule.
    """

    port: int | None = 0
    host: str = "0.0.0.0"
    slots: int = 4
    rate: Callable[[], float | None] = lambda: None


class Server:
    """The upload side of a box: complete files of `store`, and what a running fetch has so far.

    `permitted(peer_id)` is whether a peer may (still) fetch here; `refuses()` says why nothing is given now (draining, a
    schedule), empty where it is; `alone(blob)` whether no other box is known to hold the whole of it; `link` finds the
    link to a peer; `near(peer_id)` whether it is on this box's site.
    """

    def __init__(
        self,
        store: BlobStore,
        terms: ServeTerms,
        *,
        link: Callable[[str], Link | None],
        permitted: Callable[[str], bool],
        refuses: Callable[[], str] = lambda: "",
        alone: Callable[[str], bool] = lambda blob: False,
        near: Callable[[str], bool] = lambda peer_id: False,
    ) -> None: ...

    def offer_methods(self, router: Router) -> None:
        """Answer the calls of peers that hold SCOPE_BLOBS."""

    def recheck(self) -> None:
        """The firewall, or whether anything is given, has changed: cut who is no longer given anything, at once."""

    def note_held(self) -> None:
        """The complete files of the store have changed."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, share out slots and send until cancelled; started once it listens."""
