"""Boxes with real replicas and real links over memory, for tests of gossip."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

import fleet.document.replica
from fleet.document.op import Kind, Op, write_op
from fleet.document.replica import Replica
from fleet.errors import FleetError
from fleet.gossip.antientropy import AntiEntropy
from fleet.gossip.broadcast import Broadcast
from fleet.gossip.intake import Intake
from fleet.gossip.sync_server import SyncServer
from fleet.gossip.trees import Trees
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity
from fleet.net.link import Link, run_link
from fleet.net.messages import Hello, Presence
from fleet.net.rpc import Handler, IncomingCall, Router
from tests.sim.streams import MemoryStream, pair

ADMIN = Identity.from_seed(b"admin".ljust(32, b"."))
GENESIS = Genesis("test", (), (ADMIN.public_key,), bytes(16))
FLEET = GENESIS.fleet_id
HOUR = 1 << 40


def identity(name: str) -> Identity:
    return Identity.from_seed(hashlib.blake2b(name.encode(), digest_size=32).digest())


def op(
    author: Identity, seq: int, kind: Kind, path: str, body: object, *, hlc: int | None = None, fleet: bytes = FLEET
) -> Op:
    return write_op(author, fleet, seq=seq, hlc=HOUR + seq if hlc is None else hlc, kind=kind, path=path, body=body)


def cert(member: Identity, seq: int, role: str = "member", by: Identity = ADMIN) -> Op:
    return op(by, seq, "cert", member.public_key.hex(), role)


def fact(author: Identity, seq: int, path: str = "", size: int = 60) -> Op:
    return op(author, seq, "node", path or f"hold/{seq}", {"name": "x" * size})


def plain_fact(author: bytes, seq: int) -> Op:
    """A fact that was never signed: for filling a replica that takes it from its own disk."""
    path = f"hold/{seq}"
    op_id = hashlib.blake2b(author + path.encode(), digest_size=32).digest()
    return Op(op_id, FLEET, author, seq, HOUR, "node", path, b"\xa0", (), bytes(300))


def members(count: int) -> list[Identity]:
    return [identity(f"member {number}") for number in range(count)]


def certs(of: Iterable[Identity]) -> list[Op]:
    return [cert(member, seq) for seq, member in enumerate(of, 1)]


@dataclass
class Counted:
    """Calls of one method at one box."""

    handler: Handler
    count: int = 0
    bodies: list[object] = field(default_factory=list)

    async def __call__(self, call: IncomingCall) -> Mapping[str, object]:
        self.count += 1
        self.bodies.append(call.body)
        return await self.handler(call)


class CountingStream(MemoryStream):
    """Counts what is written; `break_at` breaks the stream after so many bytes."""

    sent = 0
    largest = 0
    break_at: int | None = None
    bytes_per_second: int | None = None

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), 1024) if self.bytes_per_second else ():
            piece = data[start : start + 1024]
            await trio.sleep(len(piece) / self.bytes_per_second)
            self.sent += len(piece)
            await super().write(piece)
        if self.bytes_per_second:
            return
        self.sent += len(data)
        self.largest = max(self.largest, len(data))
        if self.break_at is not None and self.sent > self.break_at:
            await self.close()
        await super().write(data)


class GossipBox:
    """One box: its replica, and everything of `fleet.gossip` that keeps it up to date."""

    def __init__(
        self, who: Identity, ops: Iterable[Op] = (), *, verify: Callable[[Op], bool] | None = None, seed: int = 0
    ) -> None:
        more = {} if verify is None else {"verify": verify}
        self.who = who
        self.replica = Replica(GENESIS, ops, wall_ms=lambda: 1 << 24, **more)
        self.trees = Trees(self.replica)
        self.intake = Intake(self.replica)
        self.links: list[Link] = []
        rng = random.Random(f"{who.peer_id} {seed}")
        self.sync = AntiEntropy(self.replica, self.trees, self.intake, self.neighbours, rng=rng)
        self.broadcast = Broadcast(self.replica, self.intake, self.neighbours, rng=rng)
        self.server = SyncServer(self.replica, self.trees, self.intake)
        self.router = Router(authorise=lambda peer, scope: scope == "sync")
        self.server.offer_methods(self.router)
        self.broadcast.offer_methods(self.router)
        self.up = trio.Event()

    def neighbours(self) -> list[Link]:
        return [link for link in self.links if not link.closed.is_set()]

    def count(self, method: str) -> Counted:
        """Count the calls of a method from here on."""
        _, handler = self.router._methods[method]
        counted = Counted(handler)
        self.router.add(method, "sync", counted)
        return counted

    async def write(self, kind: Kind, path: str, body: object) -> Op:
        return await self.replica.write(self.who, kind, path, body)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sync.run)
            nursery.start_soon(self.broadcast.run)

    async def hold_link(self, stream: MemoryStream, outbound: bool) -> None:
        def on_up(link: Link) -> None:
            self.links.append(link)
            self.up.set()
            self.sync.link_up(link)

        greeting = Hello(name="box", version="0", presence=Presence(seq=0, name="box", version="0"))
        with contextlib.suppress(FleetError):
            await run_link(
                stream,
                outbound=outbound,
                hello=greeting,
                router=self.router,
                on_up=on_up,
                on_down=self.links.remove,
                on_notify=lambda link, topic, body: None,
            )


@dataclass
class Wire:
    """Both ends of a link, `a`'s and `b`'s."""

    a: CountingStream
    b: CountingStream

    @property
    def sent(self) -> int:
        return self.a.sent + self.b.sent

    async def cut(self) -> None:
        await self.a.close()
        await self.b.close()


async def connect(nursery: trio.Nursery, a: GossipBox, b: GossipBox) -> Wire:
    """Link two boxes; `a` dials. Returns when both ends are up."""
    left, right = pair(a.who.peer_id, b.who.peer_id)
    wire = Wire(CountingStream(left._stream, left.peer_id), CountingStream(right._stream, right.peer_id))
    a.up, b.up = trio.Event(), trio.Event()
    nursery.start_soon(a.hold_link, wire.a, True)
    nursery.start_soon(b.hold_link, wire.b, False)
    await a.up.wait()
    await b.up.wait()
    return wire


def simulate(scenario: Callable[[trio.Nursery], Awaitable[None]], seconds: float = 3600) -> None:
    """Run a scenario on a clock that jumps; what it started in the nursery ends with it."""

    async def main() -> None:
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                await scenario(nursery)
                nursery.cancel_scope.cancel()

    inline = fleet.document.replica._INLINE
    # While a thread works, a mock clock sees nobody busy and jumps to the next deadline: check signatures in place.
    fleet.document.replica._INLINE = 1 << 30
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        fleet.document.replica._INLINE = inline


def held(box: GossipBox) -> set[bytes]:
    return {one.id for one in box.replica.ops.ops()}


def in_step(*boxes: GossipBox) -> bool:
    return all(held(box) == held(boxes[0]) for box in boxes)


def two(a_ops: Sequence[Op], b_ops: Sequence[Op]) -> tuple[GossipBox, GossipBox]:
    one, other = members(2)
    base = certs([one, other])
    return GossipBox(one, [*base, *a_ops]), GossipBox(other, [*base, *b_ops])


def answering(body: Mapping[str, object]) -> Handler:
    """A handler that always answers the same."""

    async def handle(call: IncomingCall) -> Mapping[str, object]:
        return body

    return handle
