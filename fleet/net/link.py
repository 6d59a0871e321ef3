"""A link: one authenticated stream to a peer that carries every call between the two boxes, both ways at once.

A call is a message out, events back, and one end; many run side by side. The reader hands frames over and never
waits for whoever consumes them, because a reader that stalls for 5 s makes Yamux kill the stream (libp2p 0.8.1,
yamux.py `YamuxStream.write`). Docs: docs/adr/ on the multiplexed link.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from fleet.errors import (
    DeniedError,
    FleetError,
    FrameError,
    MessageError,
    PeerUnreachableError,
    RemoteError,
)
from fleet.net import flood
from fleet.net.backlog import Backlog
from fleet.net.frames import (
    Call,
    Cancel,
    End,
    Event,
    Failure,
    Frame,
    FrameDecoder,
    Goodbye,
    HelloFrame,
    Notify,
    Ping,
    Pong,
)
from fleet.net.greeting import greet
from fleet.net.messages import Hello
from fleet.net.outbox import Outbox
from fleet.net.rpc import MAX_CALLS_PER_LINK, Handler, Router

#: A ping is sent when nothing was heard, or sent, for this long. The side that dialled comes first: its pings and the
#: answers to them spare the other its own.
PING_INTERVAL: Final = 1.0
_HEAD_START: Final = 0.25
#: And at least this often, so that each side knows how long a round trip takes.
RTT_INTERVAL: Final = 10.0
#: Nothing received for this long means that the peer is gone: a frozen peer is noticed within 3 s.
SILENCE_LIMIT: Final = 2.5
#: Whoever wakes this much later than it meant to has not been running, and blames nobody for silence.
_STOOD_STILL: Final = 1.25
_GOODBYE_LIMIT: Final = 0.5
_READ_SIZE: Final = 256 * 1024

log = structlog.get_logger("shoal.link")

OnEvent = Callable[[object], Awaitable[None]]


class ByteStream(Protocol):
    """An ordered byte stream to an authenticated peer, as the transport provides it."""

    @property
    def peer_id(self) -> str:
        """The authenticated PeerID of the other end."""

    @property
    def remote_addr(self) -> str:
        """Where the other end is, for people; empty if unknown."""

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte, or none at the end; raises PeerUnreachableError when the stream is broken."""

    async def write(self, data: bytes) -> None:
        """Write all of it; raises PeerUnreachableError when the stream is broken."""

    async def close(self) -> None:
        """Close both directions; bounded in time, raises nothing but Cancelled."""


@dataclass(frozen=True)
class _Incoming:
    """A call the peer made, as its handler sees it."""

    peer_id: str
    body: object
    _id: int
    _outbox: Outbox

    async def send(self, event: Mapping[str, object]) -> None:
        await self._outbox.send(Event(self._id, event))


class Link:
    """One live connection to a peer. Made by `run_link`; usable until `closed` is set."""

    def __init__(self, stream: ByteStream, *, outbound: bool, router: Router) -> None:
        self.peer_id: Final = stream.peer_id
        self.remote_addr: Final = stream.remote_addr
        self.outbound: Final = outbound
        self.closed: Final = trio.Event()
        self.close_reason = ""
        self.rtt: float | None = None
        self.hello: Hello
        self._stream = stream
        self._router = router
        self._outbox = Outbox(self._overflowed)
        self._pace = flood.Pace()
        self._bad = flood.BadMessages()
        self._calls = Backlog()
        self._next_call = 1
        self._handling: dict[int, tuple[str, trio.CancelScope]] = {}
        self._highest_seen = 0
        self._last_heard = 0.0
        self._pings: dict[int, float] = {}
        self._scope = trio.CancelScope()
        self._closing = False

    @property
    def busy(self) -> bool:
        """True while a call of either side is running."""
        return bool(self._calls or self._handling)

    async def call(self, method: str, body: Mapping[str, object], on_event: OnEvent) -> object:
        """Call the peer; await `on_event` with each event and return the body of the answer.

        Raises RemoteError with the peer's own code, PeerUnreachableError when the link is over or breaks, FrameError
        when `body` is past a frame's limit, and BacklogError when the answer comes faster than `on_event` takes it and
        more of it waits than a call may hold (see fleet.net.backlog). There is no time-out here: cancel it, and the
        peer is told to stop.
        """
        call_id, self._next_call = self._next_call, self._next_call + 1
        pending = self._calls.open(call_id)
        ended = False
        try:
            if self.closed.is_set():
                raise self._broken()
            await self._outbox.send(Call(call_id, method, body))
            while True:
                match await pending.next():
                    case Event(_, event):
                        await on_event(event)
                    case End(_, answer):
                        ended = True
                        return answer
                    case Failure(_, code, message, retryable, details):
                        ended = True
                        raise RemoteError(code, message, retryable=retryable, details=details)
        finally:
            ended = ended or pending.failed  # a call that failed here has been cancelled there
            self._calls.close(call_id)
            if not ended and not self._over():
                self._outbox.send_now(Cancel(call_id))

    def _broken(self) -> PeerUnreachableError:
        return PeerUnreachableError(f"the connection broke during the call ({self.close_reason})")

    def notify(self, topic: str, body: Mapping[str, object]) -> None:
        """Send a message that has no answer; dropped silently when the link is over."""
        if not self._over():
            self._outbox.send_now(Notify(topic, body))

    def _over(self) -> bool:
        return self._closing or self.closed.is_set()

    def close(self, reason: str) -> None:
        """End the link once what is queued, and a goodbye, have been written; in half a second at the latest.

        Calls that are in flight then fail on both sides. Returns at once; `closed` is set when it is done.
        """
        if self.closed.is_set() or self._closing:
            return
        self._closing = True
        self.close_reason = self.close_reason or reason
        self._outbox.send_now(Goodbye(reason))
        self._outbox.close()
        self._scope.deadline = trio.current_time() + _GOODBYE_LIMIT

    def _overflowed(self) -> None:
        self._closing = True
        self.close_reason = self.close_reason or "the other side does not read what it is sent"
        self._scope.cancel()

    def recheck(self) -> None:
        """End the calls of the peer that it may no longer make; it is told `denied` for each."""
        for call_id, (method, scope) in list(self._handling.items()):
            if not self._router.permits(self.peer_id, method):
                self._router.refused["denied"] += 1
                self._outbox.send_now(_failure(call_id, DeniedError("your key is no longer allowed to do this here")))
                scope.cancel()

    # --- the tasks of a running link -------------------------------------------------------------------------------

    async def run(self, on_notify: Callable[[Link, str, object], None], decoder: FrameDecoder) -> None:
        """Read, write and keep alive until the link is over; every handler of a peer's call ends with it."""
        self._last_heard = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_alive)
                    nursery.start_soon(self._read, nursery, on_notify, decoder)
        except* FleetError as group:
            self.close_reason = self.close_reason or _first_message(group)
        finally:
            self.closed.set()
            self.close_reason = self.close_reason or "closed"
            self._calls.fail_all(self._broken())
            self._outbox.close()
            with trio.CancelScope(shield=True):
                await self._stream.close()

    async def _write(self) -> None:
        await self._outbox.run(self._stream)
        self._scope.cancel()

    async def _read(
        self, nursery: trio.Nursery, on_notify: Callable[[Link, str, object], None], decoder: FrameDecoder
    ) -> None:
        while True:
            data = await self._stream.read(_READ_SIZE)
            if not data:
                if decoder.partial:
                    self._router.refused["partial_frame"] += 1
                raise PeerUnreachableError(self.close_reason or "the peer closed the connection")
            self._last_heard = trio.current_time()
            try:
                for turn, frame in enumerate(decoder.feed(data), 1):
                    if self._closing:
                        return
                    self._handle(frame, decoder.payload, nursery, on_notify)
                    if turn % flood.FRAMES_A_TURN == 0:
                        await self._give_way()
            except FrameError as error:
                self._router.refused["bad_frame"] += 1
                self.close(f"the other side broke the protocol: {error.message}")
                return
            if self._pace.pause(self._last_heard):
                await self._give_way()

    async def _give_way(self) -> None:
        """Let other tasks have their turn, and a peer that asks too much wait for its own."""
        await trio.sleep(self._pace.pause(trio.current_time()))
        # What it sent meanwhile is still to be read, so it is not silent.
        self._last_heard = trio.current_time()

    def _handle(
        self, frame: Frame, payload: bytes, nursery: trio.Nursery, on_notify: Callable[[Link, str, object], None]
    ) -> None:
        match frame:
            case Event() | End() | Failure():
                if frame.id not in self._calls:
                    self._pace.charge(flood.CHEAP)
                    return  # a late answer to a call that was cancelled here
                given_up = self._calls.put(frame, payload)
                if given_up is not None:
                    self._router.refused["backlog"] += 1
                    self._outbox.send_now(Cancel(given_up))
            case Call(call_id, method, body):
                self._accept(call_id, method, body, nursery)
            case Cancel(call_id):
                handling = self._handling.get(call_id)
                self._pace.charge(flood.CHEAP if handling is None else flood.ABANDONED_CALL)
                if handling is not None:
                    handling[1].cancel()
            case Ping(nonce):
                self._pace.charge(flood.CHEAP)
                self._outbox.send_now(Pong(nonce))
            case Pong(nonce):
                self._pace.charge(flood.CHEAP)
                sent = self._pings.pop(nonce, None)
                if sent is not None:
                    self.rtt = trio.current_time() - sent
            case Notify(topic, body):
                self._pace.charge(flood.NOTIFY)
                try:
                    on_notify(self, topic, body)
                except MessageError as error:
                    self._router.refused["bad_notify"] += 1
                    self._note_bad("notify.refused", topic, error)
            case Goodbye(reason):
                self.close_reason = self.close_reason or f"the peer said: {reason[:200]}"
            case HelloFrame():
                raise FrameError("a second hello")

    def _note_bad(self, event: str, what: str, error: MessageError) -> None:
        """A message that cannot be used: logged at its doublings, and the end of the link when there are many."""
        count = self._router.seldom.worth_a_line((event, self.peer_id))
        if count:
            log.warning(event, peer=self.peer_id, what=what, reason=error.message, count=count)
        if self._bad.note(trio.current_time()):
            self._router.refused["too_many_bad"] += 1
            self.close(f"the other side sent {flood.MAX_BAD} messages of no use within {flood.BAD_WINDOW:.0f} s")

    def _accept(self, call_id: int, method: str, body: object, nursery: trio.Nursery) -> None:
        """Start a handler for a peer's call, or refuse the call; the link stays in either case."""
        if call_id <= self._highest_seen:
            self._router.refused["replayed"] += 1
            raise FrameError("a call id was used twice")
        self._highest_seen = call_id
        try:
            if len(self._handling) >= MAX_CALLS_PER_LINK:
                self._router.refused["too_many_calls"] += 1
                raise RemoteError("overloaded", "too many calls at once on this connection", retryable=True)
            handler = self._router.resolve(self.peer_id, method)
        except FleetError as error:
            self._pace.charge(flood.REFUSED_CALL)
            self._router.on_refused(self.peer_id, method, body, error)
            self._outbox.send_now(_failure(call_id, error))
            if isinstance(error, MessageError):
                self._note_bad("call.refused", method, error)
            return
        self._pace.charge(flood.CALL)
        scope = trio.CancelScope()
        self._handling[call_id] = (method, scope)
        nursery.start_soon(self._run_handler, call_id, handler, body, scope)

    async def _run_handler(self, call_id: int, handler: Handler, body: object, scope: trio.CancelScope) -> None:
        failure: Failure | None = None
        try:
            with scope:
                try:
                    result = await handler(_Incoming(self.peer_id, body, call_id, self._outbox))
                    await self._outbox.send(End(call_id, result))
                except FleetError as error:
                    failure = _failure(call_id, error)
                except Exception:
                    # The peer learns that it failed, never how: texts of unexpected errors name files and code.
                    if self._router.seldom.worth_a_line(("handler.failed", self.peer_id)):
                        log.exception("handler.failed", peer=self.peer_id)
                    failure = Failure(call_id, "internal", "the box failed to handle the call", retryable=True)
        finally:
            del self._handling[call_id]
        if failure is not None and not self._over():
            self._outbox.send_now(failure)

    async def _keep_alive(self) -> None:
        nonce, asked = 0, -math.inf
        interval = PING_INTERVAL if self.outbound else PING_INTERVAL + _HEAD_START
        while not self._closing:
            # Whoever is silent himself pings too: a peer that asks more than is read here hears no answer for a while.
            quiet_since = max(min(self._last_heard, self._outbox.last_write), asked)
            due = min(quiet_since + interval, asked + RTT_INTERVAL)
            if trio.current_time() >= due:
                nonce, asked = nonce + 1, trio.current_time()
                self._pings = {n: at for n, at in self._pings.items() if n > nonce - 8}
                self._pings[nonce] = asked
                self._outbox.send_now(Ping(nonce))
                continue
            due = min(due, self._last_heard + SILENCE_LIMIT)
            await trio.sleep_until(due)
            woke = trio.current_time()
            if woke - due > _STOOD_STILL:
                # This process itself stood still (suspended, starved): what the peer sent is still in the socket.
                self._last_heard, asked = woke, -math.inf
            elif woke >= self._last_heard + SILENCE_LIMIT:
                self.close_reason = f"nothing heard for {woke - self._last_heard:.1f} s"
                raise PeerUnreachableError(self.close_reason)


def _failure(call_id: int, error: FleetError) -> Failure:
    code = error.remote_code if isinstance(error, RemoteError) else error.code
    return Failure(call_id, code, error.message, error.retryable, error.details)


def _first_message(group: BaseExceptionGroup[FleetError]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.message if isinstance(error, FleetError) else str(error)


async def run_link(
    stream: ByteStream,
    *,
    outbound: bool,
    hello: Hello,
    router: Router,
    on_up: Callable[[Link], None],
    on_down: Callable[[Link], None],
    on_notify: Callable[[Link, str, object], None],
) -> None:
    """Greet the peer, then run the link to its end.

    Both sides send their Hello at once and expect the other's within 3 s. `on_up` is called when both are there,
    `on_down` once for every `on_up`. Returns when the link is over, whatever ended it; a greeting that fails raises
    the FleetError. Cancelling it closes the stream.
    """
    link = Link(stream, outbound=outbound, router=router)
    decoder = FrameDecoder()
    try:
        link.hello = await greet(stream, hello, decoder, router.refused)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await stream.close()
        raise
    on_up(link)
    try:
        await link.run(on_notify, decoder)
    finally:
        on_down(link)
