"""Fetching one blob from many boxes at once: sources come and go, blocks are checked, written and offered on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fleet.blobs.account import Account
from fleet.blobs.manifest import Manifest
from fleet.blobs.serve import Server
from fleet.blobs.store import BlobStore
from fleet.net.link import Link


class Sources(Protocol):
    """The boxes that may be asked; a `fleet.net.node.Node` is one."""

    def links(self) -> Iterable[Link]:
        """One live link for every box that may be asked."""

    async def wait_change(self) -> None:
        """Return when `links` may have changed."""


async def fetch(
    manifest: Manifest, *, store: BlobStore, sources: Sources, server: Server, account: Account, fast: bool = True
) -> Path:
    """Fetch a blob and return where its file is; blocks that are there already are kept.

    `account` is filled as it goes, `account.progress()` says how far it is. `server` offers on what has come. With
    `fast` off only the links' own streams are used.

    Waits for as long as nobody has what is missing (state `waiting`) or the disk takes no more (`paused`). Cancelling
    it leaves what has come on disk, and the next fetch goes on from there. Raises BlobError where all blocks are there
    and the whole is not what the manifest says.
    """
    raise NotImplementedError
