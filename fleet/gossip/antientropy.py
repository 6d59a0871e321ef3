"""Comparing documents with one neighbour after another, so that all boxes come to hold the same ops in the end.

What broadcasts lose, what was written while a box was off or cut off, and what a new box lacks, comes this way. One
exchange goes both ways: it fetches what this box lacks and pushes what the peer lacks, what governs first. Every
batch is committed before the next is asked for, so an exchange that breaks off has not been for nothing.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import structlog
import trio

from fleet.document.op import MAX_OP, SIGNATURE_BYTES, op_id
from fleet.document.replica import Change, Replica
from fleet.errors import FleetError, MessageError, RemoteError
from fleet.gossip import sync_messages as wire
from fleet.gossip.digest_tree import ID_BYTES
from fleet.gossip.intake import Intake, RefusedIds
from fleet.gossip.peers import Neighbours, Peer, ask
from fleet.gossip.rate_limit import Buckets, Rate
from fleet.gossip.trees import Trees
from fleet.gossip.walk import AskNodes, Walk

log = structlog.get_logger("shoal.gossip")

#: Seconds between exchanges with random neighbours, give or take JITTER of it.
INTERVAL: Final = 10.0
JITTER: Final = 0.3
#: Seconds for the first answer, for one that carries a batch of ids or ops, and for one exchange.
CALL_LIMIT: Final = 10.0
BATCH_LIMIT: Final = 30.0
EXCHANGE_LIMIT: Final = 60.0
#: With more differences than this somebody is catching up: the ops are no news to most, and are not broadcast.
BULK: Final = 100
#: To the boxes behind one that caught up they may be: it compares with so many neighbours soon, a second apart.
EAGER_ROUNDS: Final = 3
EAGER_INTERVAL: Final = 1.0
#: Bytes pushed to one peer: a peer that says for ever that it lacks everything does not get it for ever.
GIVEN: Final = Rate(per_second=64 * 1024, burst=64 * 1024 * 1024)
#: A peer with which an exchange failed or led to nothing is left alone, up to this many seconds.
MAX_PAUSE: Final = 300.0
#: Batches begin small and double while the link is quick, so that one fits the deadline on the slowest links.
FIRST_BATCH: Final = 32 * 1024
#: Bytes of a small op: no fewer are in a batch than fit it if all are small.
_SMALL_OP: Final = 200
_QUICK: Final = 2.0
_SLOW: Final = 10.0


@dataclass
class Report:
    """What an exchange did: ops taken in, ops given, whether there was any difference, and whether more is left."""

    peer_id: str
    new: int = 0
    given: int = 0
    differed: bool = False
    more: bool = False
    error: str = ""

    @property
    def useful(self) -> bool:
        """Whether this exchange gives no reason to leave the peer alone for a while."""
        return not self.error and (not self.differed or self.new > 0 or self.given > 0)


@dataclass
class _Pace:
    """How often exchanges with a peer came to nothing, and until when it is left alone."""

    failures: int = 0
    until: float = 0.0


class AntiEntropy:
    """Runs the exchanges of one box, until `close`. `neighbours()` are the boxes that are connected at the moment.

    Nothing is pushed to a peer that `may_have` refuses.
    """

    def __init__(
        self,
        replica: Replica,
        trees: Trees,
        intake: Intake,
        neighbours: Neighbours,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = trio.current_time,
        may_have: Callable[[str], bool] = lambda peer_id: True,
    ) -> None:
        self._replica = replica
        self._may_have = may_have
        self._trees = trees
        self._intake = intake
        self._neighbours = neighbours
        self._rng = rng or random.SystemRandom()
        self._clock = clock
        self._due: deque[str] = deque()
        self._eager = 0
        self._next_round = 0.0
        self._wake = trio.Event()
        self._paces: OrderedDict[str, _Pace] = OrderedDict()
        self._not_taken = RefusedIds()
        self._given: Buckets[str] = Buckets(GIVEN)
        #: The last exchange with each peer, for `doctor`; bounded as the number of neighbours is.
        self.last: Final[OrderedDict[str, Report]] = OrderedDict()
        self.close: Final[Callable[[], None]] = replica.subscribe(self._changed)

    def link_up(self, peer: Peer) -> None:
        """A link has come up: compare at once. The side that dialled does it; one exchange serves both."""
        if peer.outbound:
            self._paces.pop(peer.peer_id, None)
            self._add_due(peer.peer_id)

    def _changed(self, change: Change) -> None:
        """What came in bulk goes on by comparing, and soon: the box may be the bridge between two halves."""
        origins = (self._intake.origin(op.id) for op in change.added)
        if any(origin is not None and not origin.relay for origin in origins):
            self._eager = EAGER_ROUNDS
            self._next_round = min(self._next_round, self._clock() + self._gap())
            self._wake.set()

    def _gap(self) -> float:
        """Seconds until the next round."""
        base = EAGER_INTERVAL if self._eager else INTERVAL
        return base * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _add_due(self, peer_id: str) -> None:
        if peer_id not in self._due and len(self._due) < 4096:
            self._due.append(peer_id)
            self._wake.set()

    async def run(self) -> None:
        """Compare with new neighbours at once and with a random one every 10 s, one at a time, until cancelled."""
        self._next_round = self._clock() + self._rng.uniform(0, INTERVAL)
        while True:
            if not self._due:
                self._wake = trio.Event()
                with trio.move_on_at(self._next_round):
                    await self._wake.wait()
            if self._clock() >= self._next_round:
                self._eager = max(0, self._eager - 1)
                self._next_round = self._clock() + self._gap()
                self._choose()
            if self._due:
                peer_id = self._due.popleft()
                peer = next((one for one in self._neighbours() if one.peer_id == peer_id), None)
                if peer is not None:
                    report = await self.exchange(peer)
                    if report.more and report.new:
                        self._add_due(peer_id)  # behind the others, so that no peer keeps this box busy alone

    def _choose(self) -> None:
        now = self._clock()
        connected = [peer.peer_id for peer in self._neighbours()]
        rested = [one for one in connected if one not in self._paces or self._paces[one].until <= now]
        if rested:
            self._add_due(self._rng.choice(rested))

    async def exchange(self, peer: Peer) -> Report:
        """Compare with one peer and even out what differs, within a minute.

        Whatever the peer does ends up in the report; nothing is raised but Cancelled, and then what was committed so
        far stays.
        """
        run = _Exchange(
            self._replica, self._trees, self._intake, self._not_taken, self._given, self._rng, self._clock,
            self._may_have, peer,
        )  # fmt: skip
        with trio.move_on_after(EXCHANGE_LIMIT) as scope:
            try:
                await run.run()
            except FleetError as error:
                code = error.remote_code if isinstance(error, RemoteError) else error.code
                run.report.error = code
                log.info("sync.failed", peer=peer.peer_id, code=code, reason=error.message)
        if scope.cancelled_caught:
            run.report.more = True
        self._note(run.report)
        return run.report

    def _note(self, report: Report) -> None:
        self.last[report.peer_id] = report
        self.last.move_to_end(report.peer_id)
        if report.useful:
            self._paces.pop(report.peer_id, None)
        else:
            pace = self._paces.setdefault(report.peer_id, _Pace())
            pace.failures += 1
            pause = min(INTERVAL * 2.0 ** min(pace.failures - 1, 10), MAX_PAUSE)
            pace.until = self._clock() + pause * self._rng.uniform(1 - JITTER, 1)
            self._paces.move_to_end(report.peer_id)
        for table in (self.last, self._paces):
            if len(table) > 1024:
                table.popitem(last=False)


@dataclass
class _Exchange:
    """One exchange with one peer."""

    replica: Replica
    trees: Trees
    intake: Intake
    not_taken: RefusedIds
    given: Buckets[str]
    rng: random.Random
    clock: Callable[[], float]
    may_have: Callable[[str], bool]
    peer: Peer
    batch: int = FIRST_BATCH
    took: float = 0.0
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.peer.peer_id)

    async def run(self) -> None:
        """Both trees, what governs first."""
        roots: dict[str, object] = {name: self.trees[name].root for name in wire.TREES}
        answer = await ask(self.peer, wire.METHOD_ROOTS, roots, CALL_LIMIT)
        for name in wire.TREES:
            if name in answer:
                self.report.differed = True
                walk = Walk(self.trees[name], lambda one: self.intake.unwanted(self.peer.peer_id, one), self.rng)
                walk.start(wire.read_listing(answer[name], ""))
                await self._even_out(name, walk)

    async def _even_out(self, name: wire.TreeName, walk: Walk) -> None:
        while True:
            question = walk.question(self.batch)
            if question is None:
                if not walk.wanted:
                    break
                await self._fetch(walk)
                continue
            prefixes = question.prefixes
            body = {"t": name, "p": list(prefixes)}
            if isinstance(question, AskNodes):
                answer = await self._batch(wire.METHOD_NODES, body)
                walk.nodes(question, wire.read_listings(answer.get("n"), prefixes))
            else:
                answer = await self._batch(wire.METHOD_IDS, body)
                lists = wire.read_id_lists(answer.get("i"), prefixes)
                self._adapt(sum(ID_BYTES * len(ids) for ids in lists if ids))
                walk.ids(question, lists)
        self.report.more |= walk.cut_short
        if self.may_have(self.peer.peer_id):
            await self._push(walk)

    async def _fetch(self, walk: Walk) -> None:
        """Fetch what is wanted, a batch at a time, each committed before the next is asked for."""
        left = dict.fromkeys(walk.wanted[-wire.MAX_IDS :])
        del walk.wanted[-wire.MAX_IDS :]
        while left:
            # Not many more than fit the answer: those left over have to be named again.
            asked = islice(left, max(1, self.batch // _SMALL_OP))
            body = {"i": wire.pack_ids(asked), "max": self.batch}
            answer = await self._batch(wire.METHOD_OPS, body)
            before = len(left)
            raws: list[bytes] = []
            for raw in wire.read_ops(answer.get("o")):
                identifier = op_id(raw[:-SIGNATURE_BYTES])
                if identifier in left:
                    del left[identifier]
                    raws.append(raw)
            for gone in wire.read_ids(answer.get("gone")):
                if gone in left:
                    del left[gone]
                    self.intake.forgo(self.peer.peer_id, gone)
            if len(left) == before:
                raise MessageError("the peer listed ops that it neither sends nor says are gone")
            self._adapt(sum(map(len, raws)))
            taken = await self.intake.take(self.peer.peer_id, raws, relay=walk.differing <= BULK)
            self.report.new += taken.new

    async def _push(self, walk: Walk) -> None:
        """Push what the peer lacks, unless it has refused it before or this box has dropped it meanwhile."""
        version = self.replica.ops.authority_version
        ops = [
            op
            for identifier in walk.offered
            if not self.not_taken.holds(self.peer.peer_id, identifier, version)
            and (op := self.replica.ops.get(identifier)) is not None
        ]
        ops.sort(key=lambda op: (op.hlc, op.id))
        bulk = walk.differing > BULK
        start = 0
        while start < len(ops):
            end, size = start, 0
            while end < len(ops) and end - start < wire.MAX_BATCH_OPS:
                size += len(ops[end].raw)
                if size > self.batch:
                    break
                end += 1
            chosen = ops[start:end]
            if not self.given.take(self.peer.peer_id, self.clock(), sum(len(op.raw) for op in chosen)):
                self.report.more = True
                return
            answer = await self._batch(wire.METHOD_PUSH, {"o": [op.raw for op in chosen], "bulk": bulk})
            refused = set(wire.read_ids(answer.get("x"), len(chosen))) & {op.id for op in chosen}
            self._adapt(sum(len(op.raw) for op in chosen))
            for identifier in refused:
                self.not_taken.add(self.peer.peer_id, identifier, version)
            self.report.given += len(chosen) - len(refused)
            start = end

    async def _batch(self, method: str, body: Mapping[str, object]) -> Mapping[object, object]:
        """A call that carries a batch one way."""
        began = self.clock()
        answer = await ask(self.peer, method, body, BATCH_LIMIT)
        self.took = self.clock() - began
        return answer

    def _adapt(self, carried: int) -> None:
        """Carry more next time where a full batch went quickly, less where it took long."""
        if self.took > _SLOW:
            self.batch = max(self.batch // 2, MAX_OP)
        elif self.took < _QUICK and carried >= self.batch // 2:
            self.batch = min(2 * self.batch, wire.MAX_BATCH)
