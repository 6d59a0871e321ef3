"""Telling neighbours of new ops at once: each box passes what it learns to six of its neighbours, once a second.

It is a call, not a message without an answer: while one is on its way to a neighbour, that neighbour gets no other, so
a slow link holds one message and not a queue of them.

A broadcast may be lost: a link breaks, a peer is slow, a limit is reached, more comes than may wait. Nothing is
repeated here; anti-entropy brings what was lost. That is what keeps memory and traffic bounded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from fleet.document.op import ADMIN_KINDS, SIGNATURE_BYTES, Op, op_id, read_op
from fleet.document.replica import Change, Replica
from fleet.errors import FleetError, RefusedOpError
from fleet.gossip import sync_messages as wire
from fleet.gossip.intake import Intake
from fleet.gossip.peers import Neighbours, Peer, ask
from fleet.gossip.rate_limit import Buckets, Rate
from fleet.net.rpc import IncomingCall, Router

log = structlog.get_logger("shoal.gossip")

#: Neighbours that are told. With three of them 10,000 boxes took 14 to 17 s in simulation, with six 0.3 s.
FANOUT: Final = 6
#: Seconds between two messages of one box: the first news after a quiet second goes out at once.
INTERVAL: Final = 1.0
#: Seconds for a neighbour to take a message; until then it gets no other.
SEND_LIMIT: Final = 10.0
#: Bytes of ops that wait to be sent.
MAX_PENDING: Final = 1024 * 1024

#: Messages of one neighbour; it sends one a second where it runs this code.
MESSAGES: Final = Rate(per_second=2, burst=20)
#: Ops of one neighbour that are new here: it passes on the news of the whole fleet.
OF_PEER: Final = Rate(per_second=200, burst=2000)
#: New facts of one box, which says some dozens of things when it starts, and of one admin, who may bring a manifest.
FACTS_OF_AUTHOR: Final = Rate(per_second=2, burst=128)
GOVERNING_OF_AUTHOR: Final = Rate(per_second=20, burst=512)
#: What a malformed or wrongly signed op costs its sender, in ops.
BAD_COST: Final = 20


@dataclass(frozen=True)
class _News:
    """An op to be passed on, and who is known to have it."""

    op: Op
    known_to: set[str]


class Broadcast:
    """Passes on the new ops of one replica, until `close`. `lost` counts, by reason, what was left to anti-entropy."""

    def __init__(
        self, replica: Replica, intake: Intake, neighbours: Neighbours, *, rng: random.Random | None = None
    ) -> None:
        self._replica = replica
        self._intake = intake
        self._neighbours = neighbours
        self._rng = rng or random.SystemRandom()
        self._pending: dict[bytes, _News] = {}
        self._pending_bytes = 0
        self._news = trio.Event()
        self._sending: set[str] = set()
        self._messages: Buckets[str] = Buckets(MESSAGES)
        self._of_peer: Buckets[str] = Buckets(OF_PEER)
        self._facts: Buckets[bytes] = Buckets(FACTS_OF_AUTHOR)
        self._governing: Buckets[bytes] = Buckets(GOVERNING_OF_AUTHOR)
        self.lost: Final[Counter[str]] = Counter()
        self.close: Final[Callable[[], None]] = replica.subscribe(self._changed)

    def offer_methods(self, router: Router) -> None:
        """Take the broadcasts of peers that hold SCOPE_SYNC."""
        router.add(wire.METHOD_GOSSIP, wire.SCOPE_SYNC, self.receive)

    # --- sending ---------------------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        for op in change.dropped:
            self._forget(op.id)
        for op in change.added:
            origin = self._intake.origin(op.id)
            if origin is not None and not origin.relay:
                continue
            if self._pending_bytes + len(op.raw) > MAX_PENDING:
                self.lost["overflow"] += 1
                continue
            self._pending[op.id] = _News(op, set() if origin is None else {origin.peer_id})
            self._pending_bytes += len(op.raw)
        if self._pending:
            self._news.set()

    def _forget(self, identifier: bytes) -> None:
        news = self._pending.pop(identifier, None)
        if news is not None:
            self._pending_bytes -= len(news.op.raw)

    async def run(self) -> None:
        """Send what is new, at most one message a second to each of six neighbours, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._pending:
                    self._news = trio.Event()
                    await self._news.wait()
                self._flush(nursery)
                await trio.sleep(INTERVAL)  # the pace itself: nothing is waited for

    def _flush(self, nursery: trio.Nursery) -> None:
        neighbours = self._neighbours()
        free = [peer for peer in neighbours if peer.peer_id not in self._sending]
        if neighbours and not free:
            return  # every neighbour is still busy with an earlier message; what waits is bounded
        news = self._next()
        concerned = [peer for peer in free if any(peer.peer_id not in one.known_to for one in news)]
        for peer in self._rng.sample(concerned, min(FANOUT, len(concerned))):
            raws = [one.op.raw for one in news if peer.peer_id not in one.known_to]
            self._sending.add(peer.peer_id)
            nursery.start_soon(self._send, peer, raws)

    def _next(self) -> list[_News]:
        """Take out what fits one message."""
        chosen: list[_News] = []
        size = 0
        for one in self._pending.values():
            size += len(one.op.raw)
            if size > wire.MAX_BATCH or len(chosen) >= wire.MAX_BATCH_OPS:
                break
            chosen.append(one)
        for one in chosen:
            self._forget(one.op.id)
        return chosen

    async def _send(self, peer: Peer, raws: Sequence[bytes]) -> None:
        try:
            await ask(peer, wire.METHOD_GOSSIP, {"o": raws}, SEND_LIMIT)
        except FleetError as error:
            self.lost["failed"] += len(raws)
            log.debug("broadcast.failed", peer=peer.peer_id, reason=error.message)
        finally:
            self._sending.discard(peer.peer_id)

    # --- receiving -------------------------------------------------------------------------------------------------

    async def receive(self, call: IncomingCall) -> Mapping[str, object]:
        """Take a neighbour's news in; the answer is empty and says that the next may be sent.

        What is past a limit is dropped and counted. Raises MessageError for a malformed message.
        """
        raws = wire.read_ops(wire.read_map(call.body).get("o"))
        now = trio.current_time()
        if not self._messages.take(call.peer_id, now):
            self.lost["messages_of_peer"] += len(raws)
            return {}
        ops = self._within_limits(call.peer_id, raws, now)
        if ops:
            taken = await self._intake.take(call.peer_id, [op.raw for op in ops], relay=True)
            if taken.bad:
                self._of_peer.charge(call.peer_id, now, BAD_COST * taken.bad)
            for op in ops:
                if op.id in self._replica.ops:
                    # Only now is it certain who wrote it: nobody uses up another's share with forgeries.
                    self._of_author(op).charge(op.author, now, 1)
        return {}

    def _within_limits(self, peer_id: str, raws: Sequence[bytes], now: float) -> list[Op]:
        """The ops that are not held and may be taken in; those of one author in one message count together."""
        ops: list[Op] = []
        here: Counter[bytes] = Counter()
        for raw in raws:
            identifier = op_id(raw[:-SIGNATURE_BYTES])
            if identifier in self._replica.ops:
                if identifier in self._pending:
                    self._pending[identifier].known_to.add(peer_id)
                continue
            if self._intake.unwanted(peer_id, identifier):
                continue
            if not self._of_peer.take(peer_id, now):
                self.lost["limit_of_peer"] += 1
                continue
            try:
                op = read_op(raw)
            except RefusedOpError as error:
                self._intake.refused[error.reason] += 1
                self._of_peer.charge(peer_id, now, BAD_COST)
                continue
            if self._of_author(op).level(op.author, now) < here[op.author] + 1:
                self.lost["limit_of_author"] += 1
                continue
            here[op.author] += 1
            ops.append(op)
        return ops

    def _of_author(self, op: Op) -> Buckets[bytes]:
        return self._governing if op.kind in ADMIN_KINDS else self._facts
