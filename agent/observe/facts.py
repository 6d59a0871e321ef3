"""Gathering from a running agent what the warnings are judged from."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

import psutil
import trio

from agent.config import Config
from agent.engine.pool import EnginePool
from agent.fleet_view import FleetView
from agent.observe.warnings import Facts, KnockFact, ModelFact, PeerFact
from agent.version import VERSION
from fleet.net.dialler import Neighbour
from fleet.net.gate import Gate
from fleet.net.node import Node

_ENGINE_INSTALLED: Final = find_spec("llama_cpp") is not None


def gather(config: Config, *, node: Node, view: FleetView, pool: EnginePool, gate: Gate) -> Facts:
    """The facts as they stand now; takes well under a millisecond."""
    memory = psutil.virtual_memory()
    return Facts(
        peer_id=node.peer_id,
        name=config.name,
        version=VERSION,
        addrs=node.addrs(),
        allowed=tuple(entry.key for entry in config.net.allow),
        targets=tuple(neighbour.peer_id for neighbour in node.neighbours()),
        mdns=config.net.mdns,
        models=tuple(ModelFact(held.name, held.state, held.error) for held in pool.models()),
        peers=tuple(_peer(neighbour, node, view) for neighbour in node.neighbours()),
        knocks=tuple(
            KnockFact(refusal.peer_id, refusal.remote_addr, refusal.count)
            for refusal in gate.refusals()
            if refusal.direction == "inbound"
        ),
        memory_free=memory.available / memory.total,
        engine_installed=_ENGINE_INSTALLED,
    )


def _peer(neighbour: Neighbour, node: Node, view: FleetView) -> PeerFact:
    connected = node.link(neighbour.peer_id) is not None
    seen = view.presence.last(neighbour.peer_id)
    return PeerFact(
        peer_id=neighbour.peer_id,
        name=view.name_of(neighbour.peer_id),
        state="connected" if connected else neighbour.state,
        last_error=neighbour.last_error,
        down_for=None if connected else trio.current_time() - neighbour.down_since,
        version=seen.presence.version if connected and seen else None,
    )
