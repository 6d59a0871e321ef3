"""Fetching what is missing of a blob, from when it can be written until all is there or the disk refuses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from typing import Final

import structlog
import trio

from fleet.blobs.account import Account
from fleet.blobs.asking import Asking
from fleet.blobs.bitfield import Bitfield
from fleet.blobs.errors import BlobError
from fleet.blobs.fetch_source import FetchSource
from fleet.blobs.nearness import NEIGHBOURS, Candidate, choose_sources
from fleet.blobs.partial import Partial
from fleet.blobs.picker import Picker
from fleet.blobs.serve import Server
from fleet.blobs.sources import Sources
from fleet.blobs.writing import THREADS, Writing

#: Seconds between looks at who is late, and until a source that failed is tried again.
LOOK: Final = 0.5
RETRY: Final = 5.0
#: Whether a box is near is known already: these stand for the sites.
_HERE: Final = "here"
_ELSEWHERE: Final = "elsewhere"

log = structlog.get_logger("shoal.blobs")


class Session:
    """One run over one Partial. `banned` outlasts it: the peers that sent a bad block of this blob."""

    def __init__(
        self,
        partial: Partial,
        *,
        sources: Sources,
        server: Server,
        account: Account,
        fast: bool,
        banned: set[str],
        whole: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.manifest = partial.manifest
        self.account = account
        self.identity = server.identity
        self.fast = fast
        self.lanes = trio.CapacityLimiter(2 * NEIGHBOURS)
        self.writers = trio.CapacityLimiter(THREADS)
        self._partial = partial
        self._choice = sources
        self._server = server
        self._banned = banned
        self._whole = whole
        self._rng = random.Random()  # noqa: S311 - which block comes first is no secret
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        self._error: BlobError | None = None
        self._active: dict[str, FetchSource] = {}
        self._retry_at: dict[str, float] = {}
        have = partial.have
        account.found(have.count, _bytes_of(partial, have))
        picker = Picker(self.manifest.blocks, have, self._rng)
        self.asking = Asking(picker, clock=time.monotonic, wake=self._wake, say=self._say)
        self.writing = Writing(partial, self)

    async def run(self) -> None:
        """Fetch until all blocks are on disk. Raises StorePausedError where the disk takes no more, and BlobGoneError;
        what has come is kept, also when it is cancelled."""
        if not self.asking.remaining:
            return
        async with trio.open_nursery() as threads:
            limiter = trio.CapacityLimiter(THREADS)
            for _ in range(THREADS):
                threads.start_soon(_in_thread, self.writing.run, limiter)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._manage, nursery)
                    nursery.start_soon(self._look)
                    await self._over.wait()
                    nursery.cancel_scope.cancel()
            finally:
                for _ in range(THREADS):
                    self.writing.close()
        if self._error is not None:
            raise self._error

    # --- sources ------------------------------------------------------------------------------------------------------

    async def _manage(self, nursery: trio.Nursery) -> None:
        """Follow the boxes that are worth it, as they come and go."""
        while True:
            links = {link.peer_id: link for link in self._choice.links() if not link.closed.is_set()}
            whole = frozenset(self._whole())
            candidates = [
                Candidate(peer, link.rtt, _HERE if self._server.near(peer) else _ELSEWHERE, complete=peer in whole)
                for peer, link in links.items()
                if peer not in self._banned
            ]
            chosen = choose_sources(candidates, _HERE, self._active, self._rng, lacking=self.asking.lacking)
            for peer, source in self._active.items():
                if peer in links and peer not in chosen:
                    source.scope.cancel()
            now = trio.current_time()
            for peer in chosen:
                if peer not in self._active and self._retry_at.get(peer, 0.0) <= now:
                    self._active[peer] = source = FetchSource(self, links[peer])
                    nursery.start_soon(self._fetch_from, source)
            with trio.move_on_after(RETRY):
                await self._choice.wait_change()

    async def _fetch_from(self, source: FetchSource) -> None:
        try:
            ended = await source.run()
            if ended is not None:
                self._retry_at[source.peer] = trio.current_time() + RETRY
                log.info("blob.source_over", blob=self.manifest.sha256, peer=source.peer, code=ended.code)
        finally:
            del self._active[source.peer]

    async def _look(self) -> None:
        while True:
            self.asking.look()
            waits_for = self._waits_for()
            self.account.enter("waiting" if waits_for else "fetching", waits_for)
            await trio.sleep(LOOK)

    def _waits_for(self) -> str:
        """Why nothing comes, for people; empty where something does or is about to."""
        if self.asking.expecting or any(not source.heard for source in self._active.values()):
            return ""
        if not self._active:
            return "no box that is connected has it"
        if self.asking.lacking:
            return "no box that is connected has the blocks that are missing"
        return "the boxes that have it are busy with others"

    def _wake(self, peer: str) -> None:
        source = self._active.get(peer)
        if source is not None:
            source.wake()

    def _say(self, peer: str, want: bool) -> None:
        source = self._active.get(peer)
        if source is not None:
            source.say(want)

    # --- what the sources have in common ------------------------------------------------------------------------------

    def have(self) -> Bitfield:
        """The blocks that are here."""
        return self._partial.have

    def post(self, act: Callable[[], None]) -> None:
        """Run something in the event loop, soon. From any thread of this session: it ends before the loop does."""
        self._token.run_sync_soon(act)

    # --- what becomes of blocks, in the threads that write ------------------------------------------------------------

    def is_banned(self, peer: str) -> bool:
        """Whether what comes from a source is to be thrown away."""
        return peer in self._banned

    def written(self, peer: str, index: int, size: int) -> None:
        """A block is on disk."""
        if not self.asking.arrived(peer, index):
            self.account.wasted(size)
            return
        self.account.written(size)
        self.account.enter("fetching")
        self.post(lambda: self._server.note_block(self.manifest.sha256, index))
        if not self.asking.remaining:
            self.post(self._over.set)

    def lied(self, peer: str, index: int, size: int) -> None:
        """A block is not what the manifest names: whoever sent it is never asked for this blob again."""
        self.account.wasted(size)
        self.asking.lies(peer, index)
        if peer not in self._banned:
            self._banned.add(peer)
            self.account.source(peer, "banned")
            log.warning("blob.bad_block", blob=self.manifest.sha256, peer=peer, block=index)
            self.post(lambda: self._shut_out(peer))

    def _shut_out(self, peer: str) -> None:
        source = self._active.get(peer)
        if source is not None:
            source.scope.cancel()

    def failed(self, peer: str, index: int, size: int, error: BlobError) -> None:
        """A block could not be written: this run is over."""
        self.account.wasted(size)
        if self._error is None:
            self._error = error
            self.post(self._over.set)


def _bytes_of(partial: Partial, have: Bitfield) -> int:
    manifest = partial.manifest
    last = manifest.blocks - 1
    full = have.count - (1 if have.has(last) else 0)
    return full * manifest.block_size(0) + (manifest.block_size(last) if have.has(last) else 0)


async def _in_thread(run: Callable[[], None], limiter: trio.CapacityLimiter) -> None:
    await trio.to_thread.run_sync(run, limiter=limiter)
