"""How much there is of what on the MQTT side, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MqttGauges:
    """Whether there is a connection; jobs that run and wait; messages that wait for the broker."""

    connected: bool = False
    running: int = 0
    waiting: int = 0
    outbox: int = 0
