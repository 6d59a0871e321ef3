"""The port of a box's fast lanes: offers that are good once and for seconds, and a thread for each that is taken.

Strangers cost little: whoever connects names an offer first, in clear, and is dropped before any cryptography unless
that offer was made, over the authenticated link, a few seconds ago.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import structlog
import trio

from fleet.blobs import messages as wire
from fleet.blobs.bandwidth import Bandwidth
from fleet.blobs.fast_giver import FastGiver, Giving, Offer
from fleet.blobs.pins import LaneIdentity, PinError, giving_context
from fleet.blobs.threads import run_until_closed
from fleet.errors import MessageError, RemoteError

#: Seconds that an offer is good for, and how many may be open.
OFFER_LIMIT: Final = 10.0
MAX_OFFERS: Final = 256
#: Connections that have not named an offer yet; the oldest goes when one more comes. Seconds that one may take.
MAX_NAMELESS: Final = 64
NAME_LIMIT: Final = 2.0
#: Lanes at a time: each is a thread. And offers and lanes of one peer, which takes one for each blob that it fetches.
MAX_LANES: Final = 64
MAX_OF_ONE: Final = 8
#: Seconds until the next look where the system does not give a connection, for want of file descriptors.
_ACCEPT_PAUSE: Final = 0.1

log = structlog.get_logger("shoal.blobs")


class FastListener:
    """Made once a process. `counts` says what was refused, by reason: `nameless`, `unknown_offer`, `wrong_pin`,
    `wrong_token`, `handshake`, `protocol`, `too_many_lanes`, `accept`.

    `open_giving(peer, blob)` is asked, in a thread, when a peer has come and proved itself.
    """

    def __init__(
        self, identity: LaneIdentity, bandwidth: Bandwidth, open_giving: Callable[[str, str], Giving | None]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._identity = identity
        self._bandwidth = bandwidth
        self._open = open_giving
        self._offers: OrderedDict[bytes, Offer] = OrderedDict()
        self._nameless: OrderedDict[int, trio.CancelScope] = OrderedDict()
        self._lanes: set[FastGiver] = set()
        self._socket: socket.socket | None = None
        self._counting = threading.Lock()
        self._limiter = trio.CapacityLimiter(MAX_LANES)

    @property
    def port(self) -> int | None:
        """The port it listens on; None while it does not."""
        return None if self._socket is None else int(self._socket.getsockname()[1])

    def listen(self, host: str, port: int) -> None:
        """Listen on a port, 0 for any, of one address or of all (empty). Raises OSError."""
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            made = socket.create_server((host, port), family=family, backlog=MAX_NAMELESS)
        elif socket.has_dualstack_ipv6():
            made = socket.create_server(("", port), family=socket.AF_INET6, backlog=MAX_NAMELESS, dualstack_ipv6=True)
        else:
            made = socket.create_server(("", port), backlog=MAX_NAMELESS)
        made.setblocking(False)
        self._socket = made

    def offer(self, peer: str, blob: str, certificate: bytes) -> wire.LaneOffer:
        """Expect a peer, for a few seconds, that will show this certificate.

        Raises RemoteError `no_fast_lane` where this box has none to give, MessageError for what is no certificate.
        """
        port, now = self.port, trio.current_time()
        self._take_back(lambda one: one.until < now)
        of_peer = sum(one.peer == peer for one in self._offers.values()) + sum(one.peer == peer for one in self._lanes)
        if port is None or len(self._lanes) >= MAX_LANES or of_peer >= MAX_OF_ONE:
            raise RemoteError("no_fast_lane", "this box has no fast lane to give now; use the link")
        try:
            context = giving_context(self._identity, certificate)
        except PinError as error:
            raise MessageError(error.message) from None
        name, token = secrets.token_bytes(wire.OFFER), secrets.token_bytes(wire.TOKEN)
        fingerprint = hashlib.sha256(certificate).digest()
        self._offers[name] = Offer(peer, blob, context, fingerprint, token, now + OFFER_LIMIT)
        if len(self._offers) > MAX_OFFERS:
            self._offers.popitem(last=False)
        return wire.LaneOffer(port=port, offer=name, fingerprint=self._identity.fingerprint, token=token)

    def end(self, which: Callable[[str, str], bool]) -> int:
        """End at once the lanes, and take back the offers, of some (peer, blob); how many lanes that were."""
        self._take_back(lambda one: which(one.peer, one.blob))
        lanes = [lane for lane in self._lanes if which(lane.peer, lane.blob)]
        for lane in lanes:
            lane.close()
        return len(lanes)

    def _take_back(self, which: Callable[[Offer], bool]) -> None:
        for name in [name for name, one in self._offers.items() if which(one)]:
            del self._offers[name]

    async def run(self) -> None:
        """Accept until cancelled; every lane ends with it. `listen` comes before."""
        listening = self._socket
        assert listening is not None
        try:
            async with trio.open_nursery() as nursery:
                await self._accept(listening, nursery)
        finally:
            self._socket = None
            listening.close()

    async def _accept(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        number = 0
        while True:
            await trio.lowlevel.wait_readable(listening.fileno())
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                continue
            except OSError:
                self._note("accept")
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            connection.setblocking(False)
            number += 1
            scope = self._nameless[number] = trio.CancelScope(deadline=trio.current_time() + NAME_LIMIT)
            if len(self._nameless) > MAX_NAMELESS:
                self._nameless.popitem(last=False)[1].cancel()
            nursery.start_soon(self._meet, connection, scope, number)

    async def _meet(self, connection: socket.socket, scope: trio.CancelScope, number: int) -> None:
        """Find out whom a connection is of, then give it a thread."""
        with connection:
            try:
                with scope:
                    name = await _read_name(connection)
            finally:
                self._nameless.pop(number, None)
            if scope.cancelled_caught or len(name) < wire.OFFER:
                self._note("nameless")
                return
            offer = self._offers.pop(name, None)
            if offer is None or offer.until < trio.current_time():
                self._note("unknown_offer")
                return
            if len(self._lanes) >= MAX_LANES:
                self._note("too_many_lanes")
                return
            lane = FastGiver(connection, offer, self._bandwidth, self._open, self._note)
            self._lanes.add(lane)
            try:
                await run_until_closed(lane.run, lane.close, self._limiter)
            finally:
                self._lanes.discard(lane)
                lane.dispose()

    def _note(self, reason: str) -> None:
        """Count something, from any thread; logged at each doubling."""
        with self._counting:
            self.counts[reason] += 1
            count = self.counts[reason]
        if count & (count - 1) == 0:
            log.warning("fast_lane.refused", reason=reason, count=count)


async def _read_name(connection: socket.socket) -> bytes:
    """The offer that a connection names; shorter where it ends before."""
    name = b""
    while len(name) < wire.OFFER:
        await trio.lowlevel.wait_readable(connection.fileno())
        try:
            more = connection.recv(wire.OFFER - len(name))
        except BlockingIOError:
            continue
        except OSError:
            break
        if not more:
            break
        name += more
    return name
