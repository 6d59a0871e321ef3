"""Keeping account of what this box does: the audit trail, the metrics, and who did how much for others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio

from agent.config import Config
from agent.contributions import Contributions
from agent.engine.pool import EnginePool
from agent.jobs.active import ActiveJobs
from agent.jobs.audit import AuditTrail
from agent.jobs.audit_read import AuditReader, wanted
from agent.jobs.observer import Observer
from agent.membership import Membership
from agent.mqtt.gauges import MqttGauges
from agent.observe.counts import JobCounts
from agent.observe.metrics import Gauges, Metrics
from agent.reconcile.gauges import ModelGauges
from agent.version import VERSION
from fleet.document.replica import Change
from fleet.net.gate import Gate
from fleet.net.node import Node
from fleet.net.rpc import Router

#: Seconds between two signs of life to whoever follows a trail in which nothing happens.
HEARTBEAT: Final = 15.0


class Bookkeeping:
    """The books of one agent. Made before the parts that it watches; `watch` is told of those that come later."""

    def __init__(self, config: Config, membership: Membership, name_of: Callable[[str], str]) -> None:
        self.contributions: Final = Contributions(membership)
        self.trail: Final = AuditTrail(config.state_dir, keep_days=config.audit.keep_days, max_mib=config.audit.max_mib)
        self.counts: Final = JobCounts()
        self.observer: Final = Observer(name_of, (lambda outcome, seen: self.trail.record(outcome), self.counts.note))
        self._membership = membership
        #: How much of models moves; whoever makes the part that moves them sets it.
        self.models: Callable[[], ModelGauges] = ModelGauges
        self._ops_accepted = 0
        self._metrics: Metrics | None = None
        membership.subscribe(self._note_ops)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Write the trail while the block runs, and what is left of it afterwards: jobs may end as the block does."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.trail.run)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    def watch(
        self,
        *,
        node: Node,
        pool: EnginePool,
        router: Router,
        gate: Gate,
        active: ActiveJobs,
        refused: Mapping[str, int],
        mqtt: Callable[[], tuple[MqttGauges, Mapping[str, int]]],
    ) -> None:
        """Take the parts that the metrics are of; `refused` are counters besides the router's, `mqtt` gives those of
        that side."""
        router.on_refused = self.observer.turned_away

        def look() -> Gauges:
            replica = self._membership.replica
            mqtt_now, mqtt_events = mqtt()
            return Gauges(
                version=VERSION,
                running=active.running,
                held=pool.models(),
                links=Counter("outbound" if link.outbound else "inbound" for link in node.links()),
                neighbours=Counter(neighbour.state for neighbour in node.neighbours()),
                gate=gate.counts,
                refused=router.refused + Counter(refused),
                ops=len(replica.ops) if replica is not None else 0,
                ops_accepted=self._ops_accepted,
                ops_refused=replica.refused if replica is not None else {},
                audit_lines=self.trail.written,
                audit_waiting=self.trail.waiting,
                audit_lost=self.trail.lost,
                audit_taken_together=self.trail.taken_together,
                mqtt=mqtt_now,
                mqtt_events=mqtt_events,
                models=self.models(),
            )

        self._metrics = Metrics(self.counts, look)

    def _note_ops(self, change: Change) -> None:
        self._ops_accepted += len(change.added)

    def metrics(self) -> bytes:
        """The page of metrics; empty before `watch`."""
        return b"" if self._metrics is None else self._metrics.text()

    async def audit(self, asked: Mapping[str, str], *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Lines of the trail that are asked for, some at a time, oldest first; with `follow`, also those to come.

        An empty line is a sign of life. Raises BadRequestError for what cannot be understood, and OSError. Cancel-safe;
        to be closed with `aclose`.
        """
        reader = AuditReader(self.trail.folder, wanted(asked, time.time()))
        if follow:
            yield b"\n"
        try:
            while True:
                grown = self.trail.grown
                piece = await trio.to_thread.run_sync(reader.next)
                if piece:
                    yield piece
                elif piece is None:
                    if not follow:
                        return
                    with trio.move_on_after(HEARTBEAT) as quiet:
                        await grown.wait()
                    if quiet.cancelled_caught:
                        yield b"\n"
        finally:
            reader.close()
