"""How much models move to and from this box, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.reconcile.execute import Executor
from fleet.blobs.serve import Server
from fleet.blobs.store import BlobStore


@dataclass(frozen=True)
class ModelGauges:
    """Bytes of blocks that came, that came for nothing, and that were given, since the agent started; fetches by what
    became of them, and lanes that were refused by reason, since then too; whole models in the store, fetches that run,
    and boxes that fetch here, now."""

    received: int = 0
    wasted: int = 0
    given: int = 0
    fetches: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    stored: int = 0
    fetching: int = 0
    followers: int = 0


def model_gauges(executor: Executor, server: Server, store: BlobStore) -> ModelGauges:
    """As things are now."""
    accounts = [one.progress() for one in executor.running()]
    return ModelGauges(
        received=executor.ended.received + sum(one.moved for one in accounts),
        wasted=executor.ended.wasted + sum(one.wasted for one in accounts),
        given=server.given,
        fetches=dict(executor.ended.fetches),
        refused=server.refused,
        stored=len(store.held()),
        fetching=len(accounts),
        followers=len({one.peer_id for one in server.uploads()}),
    )
