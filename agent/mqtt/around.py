"""What the MQTT side is told of the box that it is of, and what it asks of the agent around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import AgentError
from agent.jobs.job import Emit, Job

if TYPE_CHECKING:
    from agent.mqtt.pipeline import Wish

Run = Callable[[Job, Emit], Awaitable[None]]


@dataclass(frozen=True)
class Box:
    """The box that the MQTT side is of."""

    name: str
    peer_id: str
    public_key: bytes
    version: str


@dataclass(frozen=True)
class Agent:
    """What the MQTT side asks of the agent around it.

    `run` runs a client's job; `refused` is told of requests that became none, by their id; `fleet` gives the fleet's
    name once this box belongs to one; `models` are what can be asked for, those held here first, with name, here and
    state; `wishes` the pipelines of the fleet document; `why_not` says why one is not this box's, empty where it is;
    `draining` is whether the box takes no more jobs.
    """

    run: Run
    refused: Callable[[str, AgentError], None]
    fleet: Callable[[], Awaitable[str]]
    models: Callable[[], Sequence[Mapping[str, object]]]
    wishes: Callable[[], Sequence[Wish]]
    why_not: Callable[[Wish], str]
    draining: Callable[[], bool]
