"""What goes between a session with a broker and those who use it: messages, subscriptions, and how a session ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, Literal

Failure = Literal["lost", "version", "denied", "no_retain", "refused"]


class SessionError(Exception):
    """The connection cannot be had, or has ended. `failure` says what another try may do differently."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure: Final = failure
        self.reason: Final = reason


def nothing() -> None:
    """A message that the broker does not send again needs no acknowledgement."""


@dataclass(frozen=True)
class Incoming:
    """A message of the broker. `reply_to`, `correlation`, `expiry` (seconds) and `user` are MQTT 5's, None and empty
    elsewhere; `numbers` are those of the subscriptions that it was sent for, empty where none is known. `settle`
    acknowledges it, once: until then the broker sends it again on the next connection."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    reply_to: str | None = None
    correlation: bytes | None = None
    expiry: int | None = None
    user: Mapping[str, str] = field(default_factory=dict)
    numbers: Set[int] = frozenset()
    settle: Callable[[], None] = field(default=nothing, compare=False)


@dataclass(frozen=True)
class Wanted:
    """A subscription. `live` is for topics of which kept messages are not wanted, and where it matters that a message
    was sent to be kept. `number`, where there is one, comes with every message that is sent for this subscription
    (MQTT 5): a message that two of them mean comes twice."""

    filter: str
    qos: int = 1
    live: bool = False
    number: int = 0


@dataclass(frozen=True)
class Options:
    """How a broker is spoken to. `version` is 5 or 4 (3.1.1)."""

    client_id: str
    will_topic: str
    version: int = 5
    user: str | None = None
    password: str | None = None
    #: Seconds the broker keeps messages for this box while it is away, and until the will is told (MQTT 5): a short
    #: break is no news. Not longer: of a shared subscription mosquitto 2.0 gives a box that is away its part, too.
    away: int = 5
    will_retain: bool = True


@dataclass(frozen=True)
class Sent:
    """What goes along with a message in MQTT 5, and is left out in 3.1.1. `expiry` is in seconds."""

    correlation: bytes | None = None
    expiry: int | None = None
    user: tuple[tuple[str, str], ...] = ()


#: Nothing goes along.
PLAIN: Final = Sent()
