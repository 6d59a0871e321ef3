"""What a broker allows, as it says in its CONNACK (MQTT 5, 3.2.2.3), with bounds of our own. Pure.

A broker may say anything. What would make this box useless or busy without end is read as what still works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

#: Messages with QoS 1 that may be on their way to the broker at a time, and how many it may have on their way here.
WINDOW: Final = 64
#: Seconds between two signs of life.
KEEP_ALIVE: Final = 30
_MOST_PACKET: Final = 268_435_455


@dataclass(frozen=True)
class Granted:
    """`version` is 5 or 4 (3.1.1); `most_packet` in bytes; `keep_alive` in seconds; `session` is whether the broker had
    kept messages for this box, `numbers` whether subscriptions may have some."""

    version: int = 5
    session: bool = False
    window: int = WINDOW
    most_packet: int = _MOST_PACKET
    most_qos: int = 1
    retains: bool = True
    shares: bool = True
    numbers: bool = True
    keep_alive: int = KEEP_ALIVE


def granted(version: int, session: bool, properties: object) -> Granted:
    """What holds on a connection; `properties` is paho's, of the CONNACK."""
    if version < 5:
        # Not every broker of 3.1.1 has shared subscriptions, and one that has none says nothing. So every box is sent
        # every job there, and claims say whose it is.
        return Granted(version, session, shares=False, numbers=False)

    def said(name: str, otherwise: int, least: int, most: int) -> int:
        value: Any = getattr(properties, name, otherwise)
        return min(max(value, least), most) if isinstance(value, int) else otherwise

    return Granted(
        version,
        session,
        window=said("ReceiveMaximum", WINDOW, 1, WINDOW),
        # Less than this holds no message of ours, and none can be sent.
        most_packet=said("MaximumPacketSize", _MOST_PACKET, 1024, _MOST_PACKET),
        most_qos=said("MaximumQoS", 1, 0, 1),
        retains=bool(said("RetainAvailable", 1, 0, 1)),
        shares=bool(said("SharedSubscriptionAvailable", 1, 0, 1)),
        numbers=bool(said("SubscriptionIdentifierAvailable", 1, 0, 1)),
        # 0 turns signs of life off, and a broker that is gone would never be missed.
        keep_alive=said("ServerKeepAlive", KEEP_ALIVE, 0, KEEP_ALIVE) or KEEP_ALIVE,
    )
