"""What goes along with messages in MQTT 5, from and to paho's objects. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt.granted import WINDOW
from agent.mqtt.messages import Incoming, Sent

#: User properties of a message that are looked at.
_MOST_USER: Final = 16


def of_connect(away: int) -> Properties:
    """For CONNECT; `away` is for how many seconds the broker keeps what is for this box."""
    made = _made(PacketTypes.CONNECT)
    made.SessionExpiryInterval = away
    made.ReceiveMaximum = WINDOW
    return made


def of_will(delay: int) -> Properties:
    """For the will, which is told after `delay` seconds."""
    made = _made(PacketTypes.WILLMESSAGE)
    made.WillDelayInterval = delay
    return made


def of_subscribe(number: int) -> Properties | None:
    """For a subscription by whose number messages are told apart; None where it has none."""
    if not number:
        return None
    made = _made(PacketTypes.SUBSCRIBE)
    made.SubscriptionIdentifier = number
    return made


def of_goodbye() -> Properties:
    """For DISCONNECT: nothing is to be kept."""
    made = _made(PacketTypes.DISCONNECT)
    made.SessionExpiryInterval = 0
    return made


def of_publish(sent: Sent) -> Properties:
    """For PUBLISH."""
    made = _made(PacketTypes.PUBLISH)
    if sent.correlation is not None:
        made.CorrelationData = sent.correlation
    if sent.expiry is not None:
        made.MessageExpiryInterval = max(1, min(sent.expiry, 0xFFFFFFFF))
    if sent.user:
        made.UserProperty = list(sent.user)
    return made


def incoming(message: MQTTMessage, settle: Callable[[], None]) -> Incoming:
    """A message as the broker sent it. A topic that is no UTF-8 is empty."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    properties = message.properties
    reply_to = getattr(properties, "ResponseTopic", None)
    correlation = getattr(properties, "CorrelationData", None)
    expiry = getattr(properties, "MessageExpiryInterval", None)
    numbers = getattr(properties, "SubscriptionIdentifier", None)
    return Incoming(
        topic,
        bytes(message.payload),
        message.qos,
        bool(message.retain),
        bool(message.dup),
        reply_to if isinstance(reply_to, str) else None,
        bytes(correlation) if isinstance(correlation, bytes) else None,
        expiry if isinstance(expiry, int) else None,
        dict(list(getattr(properties, "UserProperty", ()) or ())[:_MOST_USER]),
        frozenset(one for one in numbers if isinstance(one, int)) if isinstance(numbers, list) else frozenset(),
        settle,
    )


def _made(kind: int) -> Properties:
    made: Properties = Properties(kind)  # type: ignore[no-untyped-call]  # paho has no types there
    return made
