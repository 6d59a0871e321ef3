"""Fetching one blob from many boxes at once: sources come and go, blocks are checked, written and offered on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import structlog
import trio

from fleet.blobs import messages as wire
from fleet.blobs.account import Account
from fleet.blobs.errors import AlreadyHeldError, BlobBusyError, BlobError, MissingBlockError, StorePausedError
from fleet.blobs.manifest import Manifest, check_leaves
from fleet.blobs.merkle import HASH
from fleet.blobs.partial import Partial
from fleet.blobs.serve import Server
from fleet.blobs.session import Session
from fleet.blobs.sources import Sources
from fleet.blobs.store import BlobStore
from fleet.errors import FleetError, MessageError
from fleet.net.link import Link
from fleet.net.messages import parse

#: Seconds until a disk that took no more is tried again, until others are asked for leaves, and for one page of them.
PAUSE: Final = 5.0
LEAVES_RETRY: Final = 2.0
PAGE_LIMIT: Final = 30.0
#: Seconds until a blob that another thread is at is tried again.
BUSY_RETRY: Final = 0.5

log = structlog.get_logger("shoal.blobs")


async def fetch(
    manifest: Manifest,
    *,
    store: BlobStore,
    sources: Sources,
    server: Server,
    account: Account,
    fast: bool = True,
    whole: Callable[[], Collection[str]] = tuple,
) -> Path:
    """Fetch a blob and return where its file is; blocks that are there already are kept.

    `account` is filled as it goes, `account.progress()` says how far it is. `server` offers on what has come. With
    `fast` off only the links' own streams are used. `whole` gives the PeerIDs of boxes that are known to hold all of
    it, such as by what they say in the fleet document. One fetch of a blob at a time.

    Waits for as long as nobody has what is missing (state `waiting`) or the disk takes no more (`paused`, also where
    there is no room for it). Cancelling it leaves what has come on disk, and the next fetch goes on from there.

    Raises BadManifestError where all blocks are there and the whole is not what the manifest says,
    MissingAlgorithmError, and BlobGoneError where the blob was removed meanwhile.
    """
    banned: set[str] = set()
    try:
        while (held := store.held().get(manifest.sha256)) is None:
            try:
                partial = await _begin(manifest, store, sources, account)
                server.note_changed(manifest.sha256)
                session = Session(
                    partial, sources=sources, server=server, account=account, fast=fast, banned=banned, whole=whole
                )
                await session.run()
                account.enter("verifying")
                await trio.to_thread.run_sync(partial.finish, _stop_if_cancelled)
            except AlreadyHeldError:
                continue
            except MissingBlockError as error:
                log.warning("blob.block_lost", blob=manifest.sha256, reason=error.message)
            except BlobBusyError:
                await trio.sleep(BUSY_RETRY)
            except StorePausedError as error:
                await _wait_for_the_disk(error, manifest, store, account)
    finally:
        server.note_changed(manifest.sha256)
    account.found(manifest.blocks, manifest.size)
    account.enter("done")
    return held.path


async def _begin(manifest: Manifest, store: BlobStore, sources: Sources, account: Account) -> Partial:
    """The place for a blob on disk; what is there of it from before has been hashed again."""
    blob = manifest.sha256

    def progress(done: int, total: int) -> None:
        account.checked(done)
        trio.from_thread.check_cancelled()

    known = store.partials().get(blob)
    if known is not None and not known.checked and known.manifest == manifest:
        account.enter("checking")
        await trio.to_thread.run_sync(store.reopen, blob, progress)
    partial = store.partial(blob)
    if partial is not None and partial.manifest == manifest:
        return partial
    leaves = await _leaves(manifest, sources, account)
    account.enter("checking")
    return await trio.to_thread.run_sync(store.begin, manifest, leaves, progress)


async def _wait_for_the_disk(error: StorePausedError, manifest: Manifest, store: BlobStore, account: Account) -> None:
    """Return when it is worth trying again."""
    log.warning("blob.paused", blob=manifest.sha256, reason=error.message)
    account.enter("paused", error.message)
    await trio.sleep(PAUSE)
    partial = store.partial(manifest.sha256)
    while partial is not None and partial.trouble:
        try:
            await trio.to_thread.run_sync(partial.recover)
        except StorePausedError as again:
            account.enter("paused", again.message)
            await trio.sleep(PAUSE)


# --- the leaves -------------------------------------------------------------------------------------------------------


async def _leaves(manifest: Manifest, sources: Sources, account: Account) -> tuple[bytes, ...]:
    """The leaves, from whoever has them; waits until somebody does. Who did not answer in time is asked last."""
    liars: set[str] = set()
    slow: set[str] = set()
    account.enter("waiting", "the boxes that are connected are asked for it")
    while True:
        for link in sorted(sources.links(), key=lambda one: one.peer_id in slow):
            if link.peer_id in liars:
                continue
            try:
                raw = await _ask_for_leaves(link, manifest)
                return await trio.to_thread.run_sync(check_leaves, manifest, raw)
            except BlobError as error:
                if error.code == "missing_algorithm":
                    raise
                log.warning("blob.bad_leaves", blob=manifest.sha256, peer=link.peer_id, reason=error.message)
                liars.add(link.peer_id)
            except FleetError as error:
                if isinstance(error, MessageError):
                    slow.add(link.peer_id)
                log.debug("blob.no_leaves", blob=manifest.sha256, peer=link.peer_id, code=error.code)
        account.enter("waiting", "no box that is connected has it")
        with trio.move_on_after(LEAVES_RETRY):
            await sources.wait_change()


async def _ask_for_leaves(link: Link, manifest: Manifest) -> bytes:
    async def no_event(event: object) -> None:
        raise MessageError("leaves come in one piece")

    raw = b""
    while len(raw) < manifest.blocks * HASH:
        body = {"blob": manifest.sha256, "first": len(raw) // HASH}
        page = b""
        with trio.move_on_after(PAGE_LIMIT):
            page = parse(wire.Leaves, await link.call(wire.METHOD_LEAVES, body, no_event)).leaves
        if not page:
            raise MessageError("the source did not answer in time")
        raw += page
        if len(raw) < manifest.blocks * HASH and len(page) < wire.LEAVES_A_PAGE * HASH:
            # Otherwise it could have this box wait for a page for each leaf.
            raise MessageError("the source sent less than a page of leaves, and has more")
    return raw


def _stop_if_cancelled(done: int, total: int) -> None:
    trio.from_thread.check_cancelled()
