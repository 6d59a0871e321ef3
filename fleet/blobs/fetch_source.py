"""One source of a fetch: it is followed over its link, told when a turn is wanted, and given a lane when it has one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from fleet.blobs import messages as wire
from fleet.blobs.account import Account
from fleet.blobs.asking import Asking
from fleet.blobs.bitfield import Bitfield
from fleet.blobs.fast_lane import FastLane, LaneError, open_lane
from fleet.blobs.manifest import Manifest
from fleet.blobs.pins import LaneIdentity, PinError
from fleet.blobs.stream_lane import StreamLane
from fleet.blobs.threads import run_until_closed
from fleet.blobs.writing import Writing
from fleet.errors import FleetError, RemoteError
from fleet.net.link import Link
from fleet.net.messages import parse

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: Seconds that a source may take to answer a small call.
ANSWER_LIMIT: Final = 10.0

log = structlog.get_logger("shoal.blobs")


class Fetching(Protocol):
    """What the sources of one fetch have in common."""

    manifest: Manifest
    account: Account
    asking: Asking
    writing: Writing
    identity: LaneIdentity
    fast: bool
    #: Threads that wait for fast lanes, and threads that write what came over links.
    lanes: trio.CapacityLimiter
    writers: trio.CapacityLimiter

    def have(self) -> Bitfield:
        """The blocks that are here."""

    def post(self, act: Callable[[], None]) -> None:
        """Run something in the event loop, soon. From any thread."""


async def _no_event(event: object) -> None:
    """For calls whose answer has no events."""


class FetchSource:
    """A box that is asked for blocks, over one link. It is the `Work` of its lanes."""

    def __init__(self, fetching: Fetching, link: Link) -> None:
        self.peer: Final = link.peer_id
        self.scope: Final = trio.CancelScope()
        self._fetching = fetching
        self._link = link
        self._lane: FastLane | StreamLane | None = None
        self._fast = fetching.fast
        self._words: deque[bool] = deque()
        self._needs_lane = False
        self._said = trio.Event()
        #: Whether it has said what it has.
        self.heard = False

    async def run(self) -> FleetError | None:
        """Fetch from it until it goes, or `scope` is cancelled; gives what ended it."""
        account, ended = self._fetching.account, None
        account.source(self.peer, "connecting", "")
        try:
            with self.scope:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._speak, nursery)
                        await self._follow()
                except* FleetError as group:
                    ended = _first(group)
        finally:
            self._fetching.asking.gone(self.peer)
            account.gone(self.peer)
        return ended

    # --- what it says -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        blob, have = self._fetching.manifest.sha256, self._fetching.have().to_bytes()
        await self._link.call(wire.METHOD_FOLLOW, {"blob": blob, "have": have}, self._heard)
        raise RemoteError("bad_answer", "the source ended what goes on for as long as it is followed")

    async def _heard(self, event: object) -> None:
        shown = parse(wire.Shown, event)
        self.heard = True
        asking, blocks = self._fetching.asking, self._fetching.manifest.blocks
        if shown.bits is not None:
            bits = Bitfield.from_bytes(shown.bits, blocks) if shown.bits else Bitfield(blocks)
            asking.shows(self.peer, bits, self._link.rtt)
            if self._lane is None:
                self._fetching.account.source(self.peer, "waiting")
        if shown.have:
            asking.has_more(self.peer, shown.have)
        if shown.turn:
            asking.turn(self.peer, shown.turn)

    # --- what it is told ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Its lane has something to say. From any thread."""
        lane = self._lane
        if lane is not None:
            lane.wake()
        else:  # a turn that was not wanted, as a super-seeder gives them
            self._needs_lane = True
            self._fetching.post(self._say)

    def say(self, want: bool) -> None:
        """It is to be told that a turn is wanted, or that there is nothing to ask for. From any thread."""
        self._words.append(want)
        self._fetching.post(self._say)

    def _say(self) -> None:
        self._said.set()

    async def _speak(self, nursery: trio.Nursery) -> None:
        while True:
            while not (self._words or self._needs_lane):
                self._said = trio.Event()
                await self._said.wait()
            want = self._words.popleft() if self._words else None
            if (want or self._needs_lane) and self._lane is None:
                await nursery.start(self._run_lane)
            self._needs_lane = False
            if want is None:
                continue
            try:
                await self._ask(wire.METHOD_TURN, {"want": want})
            except RemoteError:
                if want:
                    self._fetching.asking.unheard(self.peer)

    async def _ask(self, method: str, body: dict[str, object]) -> object:
        """A small call. Raises what `Link.call` does, and RemoteError where no answer comes."""
        with trio.move_on_after(ANSWER_LIMIT):
            return await self._link.call(method, {"blob": self._fetching.manifest.sha256, **body}, _no_event)
        raise RemoteError("peer_timeout", f"the source did not answer {method} within {ANSWER_LIMIT:.0f} s")

    # --- its lane -----------------------------------------------------------------------------------------------------

    async def _run_lane(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        fetching = self._fetching
        fast = await self._open_fast() if self._fast else None
        try:
            if fast is not None:
                self._lane = fast
                fetching.account.source(self.peer, "sending", "fast")
                task_status.started()
                error = await run_until_closed(fast.run, fast.close, fetching.lanes)
                if not fast.blocks:
                    self._fast = False  # one that opens and gives nothing would be opened for ever
                log.info("fast_lane.over", peer=self.peer, blocks=fast.blocks, reason=str(error or ""))
            else:
                self._lane = StreamLane(self._link, fetching.manifest, self, fetching.post, fetching.writers)
                fetching.account.source(self.peer, "sending", "stream")
                task_status.started()
                await self._lane.run()
        finally:
            self._lane = None
            if fast is not None:
                fast.dispose()
            fetching.asking.lane_ended(self.peer)

    async def _open_fast(self) -> FastLane | None:
        """A fast lane, or None where there is none: then the link's stream is used for as long as it is up."""
        host = self._link.remote_addr.rpartition(":")[0]
        try:
            if not host:
                raise LaneError("the address of the source is not known")
            certificate = self._fetching.identity.certificate
            offer = parse(wire.LaneOffer, await self._ask(wire.METHOD_LANE, {"certificate": certificate}))
            return await self._connect(host, offer)
        except (LaneError, PinError, RemoteError) as error:
            log.info("fast_lane.none", peer=self.peer, code=error.code, reason=error.message)
            self._fast = False
            return None

    async def _connect(self, host: str, offer: wire.LaneOffer) -> FastLane:
        opened: list[FastLane] = []
        given_up = False

        def connect() -> None:
            lane = open_lane(host, offer, self._fetching.identity, self._fetching.manifest, self)
            opened.append(lane)
            if given_up:
                lane.dispose()

        try:
            await trio.to_thread.run_sync(
                connect,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs that libp2p brings are older than trio
                limiter=self._fetching.lanes,
            )
        except BaseException:
            given_up = True
            raise
        return opened[0]

    # --- what its lanes do --------------------------------------------------------------------------------------------

    def take(self) -> tuple[list[int], list[int]]:
        """The blocks to ask for now, and those to take back."""
        return self._fetching.asking.take(self.peer)

    def refused(self, index: int) -> None:
        """It does not send this block."""
        self._fetching.asking.refused(self.peer, index)

    def moved(self, size: int) -> None:
        """So many bytes of blocks have come."""
        self._fetching.account.moved(self.peer, size)

    def useless(self, size: int) -> None:
        """So many bytes came that nobody needs any more."""
        self._fetching.account.wasted(size)

    def deliver(self, index: int, data: memoryview, done: Callable[[], None]) -> None:
        """A block has come over a fast lane."""
        self._fetching.writing.put(self.peer, index, data, done)

    def write(self, index: int, data: bytearray) -> None:
        """A block has come over the link."""
        self._fetching.writing.write(self.peer, index, data)


def _first(group: BaseExceptionGroup[FleetError]) -> FleetError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FleetError)
    return error
