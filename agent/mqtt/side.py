"""The MQTT side of an agent, or nothing: a box without a broker neither loads paho nor what speaks to it.

That spares a box that does nothing but borrow 13 MB, and a fifth of what its imports take.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import trio

from agent.config import MqttConfig
from agent.mqtt.around import Agent, Box
from agent.mqtt.counts import Counts
from agent.mqtt.gauges import MqttGauges


class MqttSide(Protocol):
    """See `agent.mqtt.room.MqttRoom`."""

    @property
    def counts(self) -> Counts:
        """What was counted."""

    @property
    def gauges(self) -> MqttGauges:
        """How much there is of what."""

    def note_change(self) -> None:
        """Models came or went, or something else of the status changed."""

    def note_document(self) -> None:
        """The fleet document changed."""

    def facts(self) -> Mapping[str, object] | None:
        """What this box says of it; None where no broker is configured."""

    async def run(self) -> None:
        """Serve until cancelled."""

    async def stop(self) -> None:
        """Tell the broker that this box goes."""


class NoBroker:
    """The side of a box that has no broker: it does nothing, and has nothing to say."""

    def __init__(self) -> None:
        self.counts: Final = Counts()
        self.gauges: Final = MqttGauges()

    def note_change(self) -> None:
        """Nobody is told."""

    def note_document(self) -> None:
        """Nobody is told."""

    def facts(self) -> None:
        """None: no broker is configured."""
        return

    async def run(self) -> None:
        """Returns at once."""
        await trio.lowlevel.checkpoint()

    async def stop(self) -> None:
        """Returns at once."""
        await trio.lowlevel.checkpoint()


def mqtt_side(config: MqttConfig, box: Box, agent: Agent, state_dir: Path) -> MqttSide:
    """The side that a configuration asks for. Reads passwords and certificates; raises ConfigError."""
    if config.url is None:
        return NoBroker()
    from agent.mqtt.room import MqttRoom

    return MqttRoom(config, box, agent, state_dir)
