"""One connection to a broker, from CONNECT to its end: paho speaks MQTT, trio moves the bytes.

paho-mqtt 2.x reads and writes memory (`agent.mqtt.wire`); it opens no socket and starts no thread, and lives as long as
one connection: what has to outlast that is kept by `agent.mqtt.outbox` and `agent.mqtt.journal`, not by paho.
"""

from __future__ import annotations

import contextlib
import socket as socket_module
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.mqtt import properties
from agent.mqtt.ends import refusal, session_error_of, words_of
from agent.mqtt.granted import KEEP_ALIVE, Granted, granted
from agent.mqtt.messages import PLAIN, Failure, Incoming, Options, Sent, SessionError, Wanted, nothing
from agent.mqtt.window import Window
from agent.mqtt.wire import Pipe, WireError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: Seconds a broker may take for CONNACK, for SUBACK, and to take a piece of what is sent to it, of so many bytes.
ANSWER_LIMIT: Final = 10.0
SEND_LIMIT: Final = 30.0
_PIECE: Final = 16 * 1024
_QUICK_ACK: Final[int | None] = getattr(socket_module, "TCP_QUICKACK", None)
#: Bytes that are read at a time: what is in them is handled before anything else runs.
_READ: Final = 16 * 1024
#: Bytes that wait to be sent, past which deltas are left out, and answers wait for others to have gone.
CROWDED: Final = 1024 * 1024
#: Messages that may wait for our acknowledgement; a broker that sends more breaks its word.
_MOST_UNACKED: Final = 4096
#: What paho 2.1 and 2.2 raise for bytes that are no MQTT, besides what they turn into an error code.
_PARSER_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MQTTException,
    TypeError,
    ValueError,
    struct.error,
)


class _Paho(Client):
    """paho's client over memory. `_create_socket` is private to paho: tests hold the allowed versions to it."""

    pipe: Pipe

    def _create_socket(self) -> Any:
        return self.pipe


class Session:
    """One connection over `stream`. `run` drives it; the other methods are for between its start and its end.

    `on_message` gets every message, in order, in the reading task: it must neither block nor raise. Each message is
    to be settled once.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        options: Options,
        on_message: Callable[[Incoming], None],
        socket: trio.socket.SocketType | None = None,
    ) -> None:
        """`socket` is what is below the stream, where that is TCP."""
        self._stream = stream
        self._socket = socket
        self._options = options
        self._on_message = on_message
        self.granted = Granted(options.version)
        self._pipe = Pipe()
        self._opened: str | ReasonCode | None = None
        self._connected = trio.Event()
        self._wake = trio.Event()
        self._reason = ""
        self._sent_at = -SEND_LIMIT
        self._roomy = trio.Event()
        #: What the broker waits for us to acknowledge, by its number, which is used again then: so each has a mark.
        self._unacked: dict[int, object] = {}
        #: Who waits for the acknowledgement of a subscription.
        self._subscribing: dict[int, tuple[trio.Event, list[str]]] = {}
        self._window = Window()
        self._paho = self._make()

    def _make(self) -> _Paho:
        five = self._options.version == 5
        paho = _Paho(
            CallbackAPIVersion.VERSION2,
            client_id=self._options.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            # 3.1.1 knows no expiry: a session that is kept there would be kept for a box that never comes back.
            clean_session=None if five else True,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        paho.pipe = self._pipe
        paho.max_inflight_messages = 0  # the window is kept by who publishes
        if self._options.user is not None:
            paho.username_pw_set(self._options.user, self._options.password)
        will = properties.of_will(self._options.away) if five else None
        retain = self._options.will_retain
        paho.will_set(self._options.will_topic, b"offline", qos=1 if retain else 0, retain=retain, properties=will)
        paho.on_connect = self._on_connect
        paho.on_disconnect = self._on_disconnect
        paho.on_message = self._on_publish_of_broker
        paho.on_publish = self._on_acked
        paho.on_subscribe = self._on_subscribed
        return paho

    # --- the connection ----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[Granted] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, tell what the broker allows, and go on until the connection ends, which raises SessionError.

        Cancelling it closes the connection as a cut would; `say_goodbye` is for a clean end.
        """
        # What is raised within `except*` would be a group once more.
        ended: SessionError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read)
                self._send_connect()
                with trio.move_on_after(ANSWER_LIMIT) as limit:
                    await self._connected.wait()
                if limit.cancelled_caught:
                    raise SessionError("version", f"it did not answer within {ANSWER_LIMIT:g} s")
                task_status.started(self.granted)
                nursery.start_soon(self._stay_alive)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as group:
            ended = SessionError(self._how(), self._reason or words_of(group))
        except* SessionError as group:
            ended = session_error_of(group)
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await trio.aclose_forcefully(self._stream)
        if ended is not None:
            raise ended

    def _how(self) -> Failure:
        return "lost" if self._connected.is_set() else "version"

    def _send_connect(self) -> None:
        if self._options.version == 5:
            about = properties.of_connect(self._options.away)
            self._paho.connect("broker", 1883, KEEP_ALIVE, clean_start=False, properties=about)
        else:
            self._paho.connect("broker", 1883, KEEP_ALIVE)
        self._flush()

    async def _read(self) -> None:
        while True:
            data = await self._stream.receive_some(_READ)
            self._acknowledge()
            if not data:
                raise SessionError(self._how(), self._reason or "it closed the connection")
            try:
                self._pipe.feed(data)
                self._understand()
            except WireError as error:
                raise SessionError(self._how(), str(error)) from None
            except _PARSER_ERRORS as error:
                raise SessionError(self._how(), f"it sent what is no MQTT ({type(error).__name__})") from None

    def _acknowledge(self) -> None:
        """Have the kernel acknowledge what came at once, where it can.

        mosquitto 2.0 leaves Nagle's algorithm on unless set_tcp_nodelay is given: after a PUBACK it then holds the next
        message back until that is acknowledged, which the kernel here puts off by 40 ms. Linux forgets the wish.
        """
        if self._socket is not None and _QUICK_ACK is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket_module.IPPROTO_TCP, _QUICK_ACK, 1)

    def _understand(self) -> None:
        """Let paho read what there is. Raises SessionError at the end of the connection."""
        while self._pipe.waiting and not self._pipe.closed:
            before = self._pipe.waiting
            self._paho.loop_read()
            if self._pipe.waiting == before:
                break
        if self._opened is not None and not self._connected.is_set():
            refused = refusal(self._opened)
            if refused is not None:
                raise refused
            self._connected.set()
        if self._pipe.closed:
            raise SessionError(self._how(), self._reason or "it sent what is no MQTT")
        if len(self._unacked) > _MOST_UNACKED:
            raise SessionError("lost", f"it sent {len(self._unacked)} messages before one was acknowledged")
        self._flush()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._pipe.out:
                # In pieces: a link that is slow is no link that is dead.
                data = bytes(self._pipe.out[:_PIECE])
                del self._pipe.out[:_PIECE]
                with trio.move_on_after(SEND_LIMIT) as limit:
                    await self._stream.send_all(data)
                if limit.cancelled_caught:
                    raise SessionError("lost", f"it took nothing for {SEND_LIMIT:g} s")
                self._sent_at = trio.current_time()
                if len(self._pipe.out) <= CROWDED:
                    self._roomy.set()

    async def _stay_alive(self) -> None:
        while True:
            await trio.sleep(self.granted.keep_alive / 3)
            if self._pipe.out and trio.current_time() - self._sent_at < self.granted.keep_alive:
                # A ping would wait behind what is being sent, and its answer be missed though the broker is there.
                continue
            self._paho.loop_misc()
            if self._pipe.closed:
                raise SessionError("lost", f"it gave no sign of life for {self.granted.keep_alive} s")
            self._flush()

    def _flush(self) -> None:
        if self._paho.want_write():
            self._paho.loop_write()
        if self._pipe.out:
            self._wake.set()

    # --- what is said to the broker ----------------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Whether much is waiting to be sent."""
        return len(self._pipe.out) > CROWDED or self._window.crowded

    @property
    def is_behind(self) -> bool:
        """Whether as many bytes wait to be sent as should; see `caught_up`."""
        return len(self._pipe.out) > CROWDED

    async def caught_up(self) -> None:
        """Return when fewer bytes wait to be sent. Cancel-safe."""
        while self.is_behind:
            self._roomy = trio.Event()
            await self._roomy.wait()

    def fits(self, topic: str, payload: bytes, sent: Sent = PLAIN) -> bool:
        """Whether the broker takes a message of this size."""
        more = len(sent.correlation or b"") + sum(len(k) + len(v) + 5 for k, v in sent.user) + 64
        return len(topic.encode()) + len(payload) + more <= self.granted.most_packet

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        sent: Sent = PLAIN,
        done: Callable[[str], None] | None = None,
    ) -> None:
        """Send a message, as soon as the broker takes one. `done` is called when it has it, with its reason where it
        refuses it; at once where it grants QoS 0 alone, and never where the connection ends before.
        """
        qos = min(qos, self.granted.most_qos)
        if qos and self._window.is_full(self.granted.window):
            self._window.hold(lambda: self.publish(topic, payload, qos=qos, retain=retain, sent=sent, done=done))
            return
        about = properties.of_publish(sent) if self._options.version == 5 else None
        info = self._paho.publish(topic, payload, qos, retain and self.granted.retains, about)
        if qos:
            self._window.sent(info.mid, done)
        elif done is not None:
            done("")
        self._flush()

    def _settle(self, mid: int, qos: int, mark: object) -> None:
        """Tell the broker that a message need not be sent again; once, whoever says it how often."""
        if self._unacked.get(mid) is mark and not self._pipe.closed:
            del self._unacked[mid]
            self._paho.ack(mid, qos)
            self._flush()

    async def subscribe(self, wanted: Sequence[Wanted]) -> list[str]:
        """Subscribe; for each its problem in the broker's words, empty where it was granted.

        Raises SessionError where the broker does not answer. Cancel-safe.
        """
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for index, one in enumerate(wanted):
            groups[one.number if self.granted.numbers else 0].append(index)
        asked: list[tuple[int, list[int], trio.Event, list[str]]] = []
        for number, indexes in groups.items():
            topics = [self._subscription(wanted[index]) for index in indexes]
            code, mid = self._paho.subscribe(topics, properties=properties.of_subscribe(number))
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
                raise SessionError("lost", "it went away while topics were subscribed to")
            done, said = self._subscribing[mid] = trio.Event(), []
            asked.append((mid, indexes, done, said))
        self._flush()
        problems = [""] * len(wanted)
        with trio.move_on_after(ANSWER_LIMIT) as limit:
            for _, indexes, done, said in asked:
                await done.wait()
                if len(said) != len(indexes):
                    raise SessionError("lost", "it answered another subscription than it was asked for")
                for index, problem in zip(indexes, said, strict=True):
                    problems[index] = problem
        for mid, *_ in asked:
            self._subscribing.pop(mid, None)
        if limit.cancelled_caught:
            raise SessionError("lost", "it did not answer a subscription")
        return problems

    def _subscription(self, one: Wanted) -> tuple[str, Any]:
        qos = min(one.qos, 1)
        if self._options.version != 5:
            return one.filter, qos
        keep = 2 if one.live and not one.filter.startswith("$share/") else 0
        return one.filter, SubscribeOptions(qos=qos, retainAsPublished=one.live, retainHandling=keep)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions; nobody waits for that."""
        if filters:
            self._paho.unsubscribe(list(filters))
            self._flush()

    async def say_goodbye(self) -> None:
        """Disconnect cleanly, within a second: no will, and the broker keeps nothing for this box."""
        self._paho.disconnect(properties=properties.of_goodbye() if self._options.version == 5 else None)
        if self._paho.want_write():
            self._paho.loop_write()
        data = bytes(self._pipe.out)
        self._pipe.out.clear()
        with trio.move_on_after(1) as scope:
            scope.shield = True
            try:
                await self._stream.send_all(data)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                return

    # --- what paho tells; called while it reads ----------------------------------------------------------------------

    def _on_connect(self, _client: object, _data: object, flags: Any, code: ReasonCode, about: object) -> None:
        if self._opened is None:
            self._opened = code
            self.granted = granted(self._options.version, bool(flags.session_present), about)
            # A server's own value has been taken over by paho unchecked: 0 would end the signs of life.
            self._paho._keepalive = self.granted.keep_alive

    def _on_disconnect(self, _client: object, _data: object, _flags: object, code: ReasonCode, _more: object) -> None:
        self._reason = f"it ended the connection: {code}" if self._connected.is_set() else ""
        self._pipe.close()

    def _on_publish_of_broker(self, _client: object, _data: object, message: MQTTMessage) -> None:
        settle = nothing
        if message.qos:
            mark = self._unacked[message.mid] = object()
            settle = partial(self._settle, message.mid, message.qos, mark)
        self._on_message(properties.incoming(message, settle))

    def _on_acked(self, _client: object, _data: object, mid: int, code: ReasonCode, _properties: object) -> None:
        self._window.acknowledged(mid, str(code) if code.is_failure else "")

    def _on_subscribed(
        self, _client: object, _data: object, mid: int, codes: Sequence[ReasonCode], _properties: object
    ) -> None:
        found = self._subscribing.get(mid)
        if found is not None:
            done, problems = found
            problems += [str(code) if code.is_failure else "" for code in codes]
            done.set()
