"""The way to the broker: connects, comes back after a pause when the connection ends, and sends what is in the outbox.

It tries MQTT 5 first, and 3.1.1 where the broker knows no better. What is subscribed to is said by who uses it, and is
subscribed to anew on every connection.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import structlog
import trio

from agent.mqtt.counts import Counts
from agent.mqtt.ends import session_error_of
from agent.mqtt.granted import Granted
from agent.mqtt.messages import Incoming, Options, Sent, SessionError, Wanted
from agent.mqtt.outbox import Entry, Outbox
from agent.mqtt.session import Session
from agent.mqtt_url import BrokerAddress

#: Seconds to connect, TLS included.
CONNECT_LIMIT: Final = 10.0
#: Seconds before another try, at first and at most; a broker that knows this box's password no more is not pressed.
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
#: A connection that lasts so long starts the pauses anew (seconds).
_STEADY: Final = 20.0
#: Seconds after which a message is tried again that the broker had no room for.
_REFUSED_PAUSE: Final = 2.0
#: Seconds between two looks for entries that nobody wants any more.
_LOOK: Final = 30.0
#: Words of refusals that another try will not change (MQTT 5, 3.4.2.1).
_FINAL: Final = ("Not authorized", "Topic name invalid", "Payload format invalid")

State = Literal["connecting", "connected", "denied", "stopped"]

log = structlog.get_logger("shoal.mqtt")


@dataclass(frozen=True)
class Broker:
    """A broker, and how this box shows who it is. `protocol` is auto, 5 or 3.1.1."""

    address: BrokerAddress
    protocol: str = "auto"
    user: str | None = None
    password: str | None = None
    context: ssl.SSLContext | None = None


class MqttClient:
    """Keeps one connection to a broker. `subscriptions` says what is wanted on a connection that allows so much;
    `on_message` gets every message of it, and neither blocks nor raises; `on_up` is called once topics are subscribed
    to. Belongs to one trio run."""

    def __init__(
        self,
        broker: Broker,
        *,
        client_id: str,
        availability: str,
        outbox: Outbox,
        counts: Counts,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.broker: Final = broker
        self.state: State = "connecting"
        self.problem = ""
        self.granted: Granted | None = None
        #: Topics that the broker does not let this box subscribe to, with its words.
        self.refused: dict[str, str] = {}
        self.subscriptions: Callable[[Granted], Sequence[Wanted]] = lambda granted: ()
        self.on_message: Callable[[Incoming], None] = lambda message: None
        self.on_up: Callable[[], None] = lambda: None
        self.on_down: Callable[[], None] = lambda: None
        #: Told of entries of the outbox that have left it.
        self.on_gone: Callable[[Entry, str], None] = lambda entry, why: None
        self._options = Options(
            client_id, availability, 4 if broker.protocol == "3.1.1" else 5, broker.user, broker.password
        )
        self._availability = availability
        self._outbox = outbox
        self._counts = counts
        self._wall = wall
        self._chance = chance
        self._session: Session | None = None
        self._subscribed: dict[str, Wanted] = {}
        self._more = trio.Event()
        self._resubscribe = trio.Event()
        self._stopping = False
        #: Whether the broker had no room for something, which is tried again after a pause.
        self._put_off = False

    @property
    def session(self) -> Session | None:
        """The connection as it is now, None where there is none."""
        return self._session

    @property
    def subscribed(self) -> Collection[str]:
        """The filters that are subscribed to on this connection."""
        return self._subscribed.keys()

    # --- for who uses it ---------------------------------------------------------------------------------------------

    def send(self, entry: Entry) -> None:
        """Publish with QoS 1, now or once there is a connection; `entry.gone` tells what became of it."""
        for dropped in self._outbox.add(entry):
            self._counts.note("outbox_dropped")
            self._left(dropped, "dropped: more waits for the broker than is kept")
        self._more.set()

    def send_now(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, sent: Sent | None = None
    ) -> bool:
        """Publish where there is a connection that is not crowded, else not at all; says whether it did."""
        session = self._session
        if session is None or session.crowded:
            return False
        session.publish(topic, payload, qos=qos, retain=retain, sent=sent or Sent())
        self._counts.note("published")
        return True

    def subscriptions_changed(self) -> None:
        """`subscriptions` says something else now."""
        self._resubscribe.set()

    async def stop(self, last: bytes) -> None:
        """Say that this box is gone (`last` to its availability), and disconnect; within 2 seconds."""
        self._stopping = True
        self.state = "stopped"
        session, self._session = self._session, None
        if session is not None:
            with trio.move_on_after(1):
                done = trio.Event()
                session.publish(self._availability, last, retain=True, done=lambda why: done.set())
                await done.wait()
            await session.say_goodbye()

    # --- the connection ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and connect again, until cancelled or stopped."""
        pause = PAUSE
        while not self._stopping:
            began = trio.current_time()
            try:
                await self._connection()
            except SessionError as error:
                self._note_end(error)
            except (OSError, ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError) as error:
                self._note_end(SessionError("refused", _words(error)))
            pause = PAUSE if trio.current_time() - began > _STEADY else pause
            # Many boxes lose one broker at the same time, and must not come back at the same time.
            await trio.sleep(pause * (0.5 + self._chance()))
            pause = LONGEST_PAUSE if self.state == "denied" else min(pause * 2, LONGEST_PAUSE)

    def _note_end(self, error: SessionError) -> None:
        was_up = self.state == "connected"
        self._counts.note("connection_lost" if was_up else "connection_failed")
        self.state = "denied" if error.failure == "denied" else "connecting"
        if self.problem != error.reason:
            event = "mqtt.disconnected" if was_up else "mqtt.unreachable"
            log.warning(event, broker=str(self.broker.address), reason=error.reason)
        self.problem = error.reason
        if error.failure == "version" and self.broker.protocol == "auto":
            # In turn: a broker may also have been about to stop.
            version = 4 if self._options.version == 5 else 5
            if version == 4:
                self._counts.note("fell_back_to_3_1_1")
            self._options = replace(self._options, version=version)
        elif self.broker.protocol == "auto" and was_up:
            self._options = replace(self._options, version=5)
        elif error.failure == "no_retain":
            self._options = replace(self._options, will_retain=False)

    async def _connection(self) -> None:
        with trio.fail_after(CONNECT_LIMIT):
            stream, socket = await self._open()
        session = Session(stream, self._options, self._received, socket)
        ended: SessionError | None = None
        try:
            async with trio.open_nursery() as nursery:
                granted: Granted = await nursery.start(session.run)
                self._session, self.granted = session, granted
                self._subscribed = {}
                await self._subscribe(session, granted)
                self.state, self.problem = "connected", ""
                self._counts.note("connected")
                log.info("mqtt.connected", broker=str(self.broker.address), version=granted.version)
                session.publish(self._availability, b"online", retain=True)
                self._outbox.forget_sending()
                self.on_up()
                nursery.start_soon(self._send_outbox, session, granted)
                nursery.start_soon(self._keep_subscribed, session, granted)
        except* SessionError as group:
            ended = session_error_of(group)
        finally:
            self._session = None
            self.on_down()
        if ended is not None:
            raise ended

    async def _open(self) -> tuple[trio.abc.Stream, trio.socket.SocketType]:
        address = self.broker.address
        stream = await trio.open_tcp_stream(address.host, address.port)
        if self.broker.context is None:
            return stream, stream.socket
        secured = trio.SSLStream(stream, self.broker.context, server_hostname=address.host)
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(secured)
            raise
        return secured, stream.socket

    def _received(self, message: Incoming) -> None:
        self._counts.note("received")
        try:
            self.on_message(message)
        except Exception as error:
            # A mistake of ours. Were it to end the connection, a retained message would do so on the next one, too.
            log.exception("mqtt.internal", topic=message.topic[:256], bytes=len(message.payload), error=repr(error))
            message.settle()

    async def _subscribe(self, session: Session, granted: Granted) -> None:
        wanted = {one.filter: one for one in self.subscriptions(granted)}
        gone = [name for name in self._subscribed if name not in wanted]
        new = [one for name, one in wanted.items() if self._subscribed.get(name) != one]
        session.unsubscribe(gone)
        self._subscribed = wanted
        for name in gone:
            self.refused.pop(name, None)
        for one, problem in zip(new, await session.subscribe(new), strict=True):
            if problem:
                log.warning("mqtt.subscription_refused", topic=one.filter, reason=problem)
                self.refused[one.filter] = problem
            else:
                self.refused.pop(one.filter, None)

    async def _keep_subscribed(self, session: Session, granted: Granted) -> None:
        while True:
            await self._resubscribe.wait()
            self._resubscribe = trio.Event()
            await self._subscribe(session, granted)

    # --- the outbox --------------------------------------------------------------------------------------------------

    async def _send_outbox(self, session: Session, granted: Granted) -> None:
        look_at = 0.0
        while True:
            if trio.current_time() >= look_at:
                look_at = trio.current_time() + _LOOK
                for old in list(self._outbox.expired(self._wall())):
                    self._left(old, "expired")
            while self._outbox.on_the_way < granted.window and (entry := self._outbox.next()) is not None:
                self._send(session, entry)
                # As much as the link carries: what lies in memory here is sent anew on the next connection.
                await session.caught_up()
            with trio.move_on_after(_REFUSED_PAUSE if self._put_off else _LOOK):
                await self._more.wait()
            self._more, self._put_off = trio.Event(), False

    def _send(self, session: Session, entry: Entry) -> None:
        expiry = None if entry.expires is None else round(entry.expires - self._wall())
        if expiry is not None and expiry <= 0:
            self._left(entry, "expired")
            return
        sent = Sent(entry.correlation, expiry, entry.user)
        if not session.fits(entry.topic, entry.payload, sent):
            self._counts.note("too_large_for_broker")
            log.warning("mqtt.too_large", topic=entry.topic, bytes=len(entry.payload))
            self._left(entry, "it is larger than the broker takes")
            return

        def done(refused: str) -> None:
            if refused and refused not in _FINAL:
                log.warning("mqtt.put_off", topic=entry.topic, reason=refused)
                self._outbox.put_back(entry)
                self._put_off = True
                return
            if refused:
                self._counts.note("refused_by_broker")
                log.warning("mqtt.refused", topic=entry.topic, reason=refused)
            else:
                self._counts.note("published")
            self._left(entry, refused)
            self._more.set()

        session.publish(entry.topic, entry.payload, retain=entry.retain, sent=sent, done=done)

    def _left(self, entry: Entry, why: str) -> None:
        if self._outbox.remove(entry) or why.startswith("dropped"):
            self.on_gone(entry, why)
            if entry.gone is not None:
                entry.gone(why)


def _words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"it did not answer within {CONNECT_LIMIT:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}; check mqtt.ca_file, and the name in mqtt.url"
    cause = error.__cause__
    if isinstance(error, trio.BrokenResourceError) and cause is not None:
        return _words(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(cause, BaseExceptionGroup):
        return _words(cause.exceptions[0])
    if isinstance(cause, OSError) and cause is not error:
        return _words(cause)
    return str(error) or type(error).__name__
