"""A fleet of boxes that run the real document and gossip code on a mock clock, in one process.

What is not real: the network is calls with a delay, and of the many copies of an op that boxes hold from the start
there is one in memory. A signature is checked once for all boxes: they would all come to the same answer.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import trio

from fleet.document.op import Op, signature_holds, write_op
from fleet.document.replica import Change, Replica
from fleet.errors import PeerUnreachableError
from fleet.gossip import sync_messages as wire
from fleet.gossip.antientropy import AntiEntropy
from fleet.gossip.broadcast import Broadcast
from fleet.gossip.intake import Intake
from fleet.gossip.sync_server import SyncServer
from fleet.gossip.trees import Trees
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity
from fleet.net.frames import Call, End, encode
from fleet.net.rpc import Router

#: One way, in seconds, give or take a fifth.
LATENCY = 0.05
SPREAD = 0.2
#: Of broadcasts; of other calls a fifth of that, since a link that breaks takes several with it.
LOSS = 0.05
CALL_LOSS = 0.01

Links = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Incoming:
    peer_id: str
    body: object

    async def send(self, event: Mapping[str, object]) -> None:
        raise AssertionError("no call of gossip has events")


class Network:
    """Delays, losses and bytes; `apart` says which two boxes cannot reach one another now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.boxes: dict[str, Box] = {}
        self.sent: dict[str, int] = {}
        self.apart: Callable[[str, str], bool] = lambda a, b: False

    async def cross(self, sender: str, receiver: str, size: int) -> None:
        self.sent[sender] = self.sent.get(sender, 0) + size
        await trio.sleep(LATENCY * self.rng.uniform(1 - SPREAD, 1 + SPREAD))
        if self.apart(sender, receiver):
            raise PeerUnreachableError("apart")


@dataclass(frozen=True)
class SimLink:
    """One end of a link; a `fleet.gossip.peers.Peer`."""

    net: Network
    own: str
    peer_id: str
    outbound: bool

    async def call(
        self, method: str, body: Mapping[str, object], on_event: Callable[[object], Awaitable[None]]
    ) -> object:
        await self.net.cross(self.own, self.peer_id, len(encode(Call(1, method, body))))
        lost = LOSS if method == wire.METHOD_GOSSIP else CALL_LOSS
        if self.net.rng.random() < lost:
            raise PeerUnreachableError("lost")
        handler = self.net.boxes[self.peer_id].router.resolve(self.own, method)
        answer = await handler(Incoming(self.own, dict(body)))
        await self.net.cross(self.peer_id, self.own, len(encode(End(1, answer))))
        return answer


class Box:
    """One box; `arrived` is when it first held each op that is being followed."""

    def __init__(self, net: Network, who: Identity, genesis: Genesis, ops: Sequence[Op], seed: str) -> None:
        self.net = net
        self.who = who
        self.links: list[SimLink] = []
        self.arrived: dict[bytes, float] = {}
        rng = random.Random(seed)
        self.replica = Replica(genesis, ops, wall_ms=lambda: 1 << 24, verify=checked_once)
        self.intake = Intake(self.replica)
        trees = Trees(self.replica)
        self.sync = AntiEntropy(self.replica, trees, self.intake, self.neighbours, rng=rng)
        self.broadcast = Broadcast(self.replica, self.intake, self.neighbours, rng=rng)
        self.router = Router(authorise=lambda peer, scope: True)
        SyncServer(self.replica, trees, self.intake).offer_methods(self.router)
        self.broadcast.offer_methods(self.router)
        self.replica.subscribe(self._note)
        net.boxes[who.peer_id] = self

    def _note(self, change: Change) -> None:
        for op in change.added:
            self.arrived[op.id] = trio.current_time()

    def neighbours(self) -> list[SimLink]:
        return [link for link in self.links if not self.net.apart(link.own, link.peer_id)]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sync.run)
            nursery.start_soon(self.broadcast.run)


_CHECKED: dict[bytes, bool] = {}


def checked_once(op: Op) -> bool:
    key = op.id + op.raw[-64:]
    if key not in _CHECKED:
        _CHECKED[key] = signature_holds(op)
    return _CHECKED[key]


@dataclass(frozen=True)
class Spread:
    """How one update went: seconds until 99 % and all of the boxes had it, bytes sent per box until then."""

    t99: float
    t100: float
    mean: float
    largest: int


@dataclass(frozen=True)
class Measured:
    """What a run of one fleet showed."""

    updates: tuple[Spread, ...]
    with_some_off: Spread
    #: Rounds of anti-entropy until two halves that could not reach each other agree again.
    heal_rounds: float


class RealFleet:
    """Boxes with a document in which every one is a member and has said something of itself."""

    def __init__(self, names: int, seed: int) -> None:
        rng = random.Random(f"fleet {seed}")
        self.rng = rng
        admin = Identity.from_seed(rng.randbytes(32))
        genesis = Genesis("simulated", (), (admin.public_key,), rng.randbytes(16))
        members = [Identity.from_seed(rng.randbytes(32)) for _ in range(names)]
        fleet = genesis.fleet_id
        ops = [
            write_op(admin, fleet, seq=seq, hlc=seq, kind="cert", path=who.public_key.hex(), body="member")
            for seq, who in enumerate(members, 1)
        ]
        ops += [
            write_op(who, fleet, seq=1, hlc=1 << 20, kind="node", path="node", body=fact_body(0)) for who in members
        ]
        self.net = Network(rng)
        self.boxes = [Box(self.net, who, genesis, ops, f"{seed} {who.peer_id}") for who in members]
        self.names = sorted(self.net.boxes)

    def connect(self, links: Links, dialled: Mapping[str, Collection[str]]) -> None:
        for name, linked in links.items():
            box = self.net.boxes[name]
            box.links = [SimLink(self.net, name, other, other in dialled[name]) for other in sorted(linked)]

    async def measure(self, updates: int, off: Collection[str]) -> Measured:
        """Updates one after another, one more with some boxes off, and one on each side of a partition."""
        async with trio.open_nursery() as nursery:
            for box in self.boxes:
                nursery.start_soon(box.run)
            await trio.sleep(10)
            found = [await self._update(set()) for _ in range(updates)]
            some_off = await self._update(set(off))
            self.net.apart = lambda a, b: False
            heal = await self._heal()
            nursery.cancel_scope.cancel()
        return Measured(tuple(found), some_off, heal)

    async def _update(self, off: set[str]) -> Spread:
        self.net.apart = lambda a, b: a in off or b in off
        live = [box for box in self.boxes if box.who.peer_id not in off]
        self.net.sent.clear()
        began = trio.current_time()
        writer = self.rng.choice(live)
        op = await writer.replica.write(writer.who, "node", "node", fact_body(int(began)))
        await until(lambda: all(op.id in box.replica.ops for box in live))
        times = sorted(box.arrived[op.id] - began for box in live)
        sent = [self.net.sent.get(box.who.peer_id, 0) for box in live]
        await trio.sleep(5)
        return Spread(times[int(0.99 * len(times))], times[-1], sum(sent) / len(sent), max(sent))

    async def _heal(self) -> float:
        one_side = set(self.rng.sample(self.names, len(self.names) // 2))
        self.net.apart = lambda a, b: (a in one_side) != (b in one_side)
        ops = []
        for box in self.rng.sample(self.boxes, 6):
            ops.append(await box.replica.write(box.who, "node", "node", fact_body(7)))
            await trio.sleep(1)
        await trio.sleep(20)
        self.net.apart = lambda a, b: False
        healed = trio.current_time()
        for box in self.boxes:
            for link in box.links:
                if (box.who.peer_id in one_side) != (link.peer_id in one_side):
                    box.sync.link_up(link)
        await until(lambda: all(op.id in box.replica.ops for op in ops for box in self.boxes))
        return (trio.current_time() - healed) / 10


def fact_body(number: int) -> object:
    """What a box says of itself, at its usual length."""
    return {
        "name": f"till {number}",
        "version": "0.1.0",
        "labels": {"site": "shop-114", "role": "till"},
        "arch": "aarch64",
        "cpus": 4,
        "memory": 8 << 30,
        "disk": 64 << 30,
        "gpu": "",
        "instance": "f3a9c01d",
    }


async def until(done: Callable[[], bool]) -> None:
    """Look every 50 ms of simulated time."""
    while not done():
        await trio.sleep(0.05)
