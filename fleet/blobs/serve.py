"""Giving blocks to peers: the calls that a box answers about blobs, and the port of its fast lanes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
import trio

from fleet.blobs import messages as wire
from fleet.blobs.bandwidth import Bandwidth
from fleet.blobs.fast_listener import FastListener
from fleet.blobs.giving import Follower, Giving, Terms
from fleet.blobs.held import Held
from fleet.blobs.partial import Partial
from fleet.blobs.pins import LaneIdentity, new_identity
from fleet.blobs.slots import MAX_SLOTS
from fleet.blobs.store import BlobStore
from fleet.errors import RemoteError
from fleet.net.messages import parse
from fleet.net.rpc import IncomingCall, Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: Blobs that one peer may follow here at a time.
MAX_FOLLOWED: Final = 32
#: Seconds between looks at turns that are not used.
LOOK: Final = 0.5

log = structlog.get_logger("shoal.blobs")


@dataclass(frozen=True)
class ServeTerms:
    """What a box gives. `port` of the fast lane: 0 for any, None for none; `host` is the address it listens on, empty
    for all.

    `slots` (2 to 4) is how many peers are sent blocks of a blob at a time. `rate` gives the bytes a second for all of
    them, None for no limit; it is asked again and again, from any thread, so that it can follow a schedule.
    """

    port: int | None = 0
    host: str = ""
    slots: int = MAX_SLOTS
    rate: Callable[[], float | None] = lambda: None


@dataclass(frozen=True)
class Upload:
    """A peer that follows a blob here, and how many bytes of it were sent to it."""

    peer_id: str
    blob: str
    bytes: int


class Server:
    """The upload side of a box: complete files of `store`, and what a running fetch has so far.

    `permitted(peer_id)` is whether a peer may (still) fetch here; `refuses()` says why nothing is given now (draining,
    a schedule), empty where it is; `alone(blob)` whether no other box is known to hold the whole of it; `near(peer_id)`
    whether it is on this box's site. `lost(blob)` is called, from any thread, when rot was found: the blob is a partial
    then, and to be fetched again.
    """

    def __init__(
        self,
        store: BlobStore,
        terms: ServeTerms,
        *,
        permitted: Callable[[str], bool],
        refuses: Callable[[], str] = lambda: "",
        alone: Callable[[str], bool] = lambda blob: False,
        near: Callable[[str], bool] = lambda peer_id: True,
        lost: Callable[[str], None] = lambda blob: None,
    ) -> None:
        self.identity: Final[LaneIdentity] = new_identity()
        self._store = store
        self._terms = terms
        self._permitted = permitted
        self._refuses = refuses
        self.near: Final = near
        self._refused_by = refuses()
        self._token: trio.lowlevel.TrioToken | None = None
        self._bandwidth = Bandwidth(terms.rate)
        self._listener = FastListener(self.identity, self._bandwidth, self._open)
        self._giving: dict[str, Giving] = {}
        self._giving_terms = Terms(
            find=self._find,
            alone=alone,
            closed=lambda: bool(self._refused_by),
            lost=lost,
            post=self._post,
            clock=time.monotonic,
            given=self._note_given,
            slots=terms.slots,
        )
        #: Bytes of blocks that were sent, over either lane.
        self.given = 0

    # --- what others in this box ask and say --------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The port of the fast lanes; None where there is none."""
        return self._listener.port

    @property
    def refused(self) -> Mapping[str, int]:
        """What was refused at the fast lanes' port, by reason (see `FastListener.counts`)."""
        return dict(self._listener.counts)

    def uploads(self) -> tuple[Upload, ...]:
        """Who follows which blob here."""
        return tuple(
            Upload(follower.peer, giving.blob, follower.given)
            for giving in self._giving.values()
            for follower in giving.followers.values()
        )

    def recheck(self) -> None:
        """The firewall, or whether anything is given, has changed: whoever may no longer fetch is cut off at once.

        The calls of such a peer are ended by its link.
        """
        cut = self._listener.end(lambda peer, blob: not self._permitted(peer))
        if cut:
            log.warning("fast_lane.cut", lanes=cut, reason="the key is no longer allowed to fetch here")
        refused_by = self._refuses()
        if refused_by != self._refused_by:
            self._refused_by = refused_by
            for giving in list(self._giving.values()):
                giving.changed()

    def note_changed(self, blob: str) -> None:
        """A blob was begun, completed, removed, or turned out to be damaged."""
        giving = self._giving.get(blob)
        if giving is not None:
            giving.changed()

    def note_block(self, blob: str, index: int) -> None:
        """One more block of a blob is here."""
        giving = self._giving.get(blob)
        if giving is not None:
            giving.note_block(index)

    def offer_methods(self, router: Router) -> None:
        """Answer the calls of peers that hold SCOPE_BLOBS; before `run`."""
        router.add(wire.METHOD_LEAVES, wire.SCOPE_BLOBS, self._leaves)
        router.add(wire.METHOD_FOLLOW, wire.SCOPE_BLOBS, self._follow)
        router.add(wire.METHOD_TURN, wire.SCOPE_BLOBS, self._turn)
        router.add(wire.METHOD_GET, wire.SCOPE_BLOBS, self._get)
        router.add(wire.METHOD_LANE, wire.SCOPE_BLOBS, self._lane)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, share out turns and send until cancelled; started once it listens.

        A port that cannot be listened on is logged, and blocks go over the links' own streams alone.
        """
        self._token = trio.lowlevel.current_trio_token()
        if self._terms.port is not None:
            try:
                self._listener.listen(self._terms.host, self._terms.port)
            except OSError as error:
                log.warning("fast_lane.off", port=self._terms.port, reason=str(error))
        async with trio.open_nursery() as nursery:
            if self._listener.port is not None:
                nursery.start_soon(self._listener.run)
            nursery.start_soon(self._look)
            task_status.started()

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK)
            self.recheck()
            for giving in list(self._giving.values()):
                giving.look()

    # --- what peers ask -----------------------------------------------------------------------------------------------

    async def _leaves(self, call: IncomingCall) -> Mapping[str, object]:
        asked = parse(wire.LeavesAsked, call.body)
        found = self._find(asked.blob)
        if found is None:
            raise RemoteError("missing_blob", "this box has nothing of that blob", retryable=True)
        page = found.leaves[asked.first : asked.first + wire.LEAVES_A_PAGE]
        if not page:
            raise RemoteError("bad_request", "the blob has fewer leaves")
        return {"leaves": b"".join(page)}

    async def _follow(self, call: IncomingCall) -> Mapping[str, object]:
        asked = parse(wire.Follow, call.body)
        peer = call.peer_id
        followed = sum(peer in giving.followers for giving in self._giving.values())
        giving = self._giving.setdefault(asked.blob, Giving(asked.blob, self._giving_terms))
        if followed >= MAX_FOLLOWED and peer not in giving.followers:
            self._forget_idle(giving)
            raise RemoteError(
                "overloaded", f"a box follows at most {MAX_FOLLOWED} blobs here at a time", retryable=True
            )
        follower = Follower(peer, self.near(peer))
        giving.join(follower, asked.have)
        try:
            while True:
                shown = await follower.next(giving.bits)
                await call.send(shown.model_dump(exclude_defaults=True))
        finally:
            giving.leave(follower)
            self._forget_idle(giving)
            if peer not in giving.followers:
                self._listener.end(lambda one, blob: one == peer and blob == asked.blob)

    async def _turn(self, call: IncomingCall) -> Mapping[str, object]:
        asked = parse(wire.Turn, call.body)
        self._followed(call, asked.blob).want(call.peer_id, asked.want)
        return {}

    async def _get(self, call: IncomingCall) -> Mapping[str, object]:
        asked = parse(wire.Get, call.body)
        giving = self._followed(call, asked.blob)
        if not giving.asked(call.peer_id, asked.index):
            raise RemoteError("no_turn", "it is not your turn (any more); ask for one", retryable=True)
        size = 0
        try:
            async with giving.followers[call.peer_id].sending:
                data = await trio.to_thread.run_sync(giving.read, asked.index)
                if data is None:
                    raise RemoteError("missing_block", "the block is not here (any more)", retryable=True)
                step = min(wire.PIECE, self._bandwidth.slice(len(data)))
                for at in range(0, len(data), step):
                    piece = data[at : at + step]
                    await trio.sleep(self._bandwidth.take(len(piece)))
                    await call.send({"data": piece})
            size = len(data)
        finally:
            giving.sent(call.peer_id, asked.index, size)
        return {}

    async def _lane(self, call: IncomingCall) -> Mapping[str, object]:
        asked = parse(wire.LaneAsked, call.body)
        self._followed(call, asked.blob)
        return self._listener.offer(call.peer_id, asked.blob, asked.certificate).model_dump()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _find(self, blob: str) -> Held | Partial | None:
        return self._store.held().get(blob) or self._store.partial(blob)

    def _followed(self, call: IncomingCall, blob: str) -> Giving:
        giving = self._giving.get(blob)
        if giving is None or call.peer_id not in giving.followers:
            raise RemoteError("not_following", "follow a blob before asking for it")
        return giving

    def _forget_idle(self, giving: Giving) -> None:
        if not giving.followers:
            self._giving.pop(giving.blob, None)

    def _open(self, peer: str, blob: str) -> Giving | None:
        """What a peer that has come over a fast lane may have. In the lane's thread."""
        giving = self._giving.get(blob)
        return giving if giving is not None and peer in giving.followers else None

    def _post(self, act: Callable[[], None]) -> None:
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):  # a lane's last words, after the end
                self._token.run_sync_soon(act)

    def _note_given(self, size: int) -> None:
        self.given += size
