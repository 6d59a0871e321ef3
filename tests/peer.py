"""A peer under a test's control: a real node on the real network that says and does what the test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from fleet.errors import RemoteError
from fleet.gossip.sync_messages import METHOD_ROOTS, METHOD_SEQ, SCOPE_SYNC
from fleet.net.gate import Gate
from fleet.net.link import Link
from fleet.net.messages import METHOD_INFER, Hello, ModelPresence, Presence
from fleet.net.node import Node, NodeEvents
from fleet.net.rpc import Handler, IncomingCall, Router
from tests.harness import Agent, seed_of

HASH = "sha256:" + "a" * 64


def fake_model(name: str = "fake-model", rate: float = 100.0) -> ModelPresence:
    """A holding that only the test's peer has."""
    return ModelPresence(hash=HASH, name=name, state="loaded", context_tokens=2048, decode_rate=rate)


@dataclass
class Peer:
    """A running test peer."""

    node: Node
    router: Router
    ups: list[str] = field(default_factory=list)
    downs: list[str] = field(default_factory=list)

    async def link_to(self, box: Agent, limit: float = 10.0) -> Link:
        """The link to an agent, once it is up."""
        with trio.fail_after(limit):
            while True:
                link = self.node.link(box.peer_id)
                if link is not None:
                    return link
                await self.node.wait_change()

    async def infer(self, box: Agent, body: dict[str, Any]) -> tuple[list[Any], RemoteError | None]:
        """Call `infer` with any body; returns the events and the error, if there was one."""
        events: list[Any] = []

        async def on_event(event: object) -> None:
            events.append(event)

        link = await self.link_to(box)
        try:
            await link.call(METHOD_INFER, body, on_event)
        except RemoteError as error:
            return events, error
        return events, None


async def _no_difference(call: IncomingCall) -> Mapping[str, object]:
    return {}


async def _no_op(call: IncomingCall) -> Mapping[str, object]:
    return {"o": None}


@asynccontextmanager
async def peer(
    name: str,
    boxes: Sequence[Agent] = (),
    *,
    models: Sequence[ModelPresence] = (),
    infer: Handler | None = None,
    listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    allowed: Callable[[str], bool] = lambda peer_id: True,
    seed: bytes | None = None,
) -> AsyncIterator[Peer]:
    """Run a peer with the key of `name`, or of `seed`, that dials `boxes`."""
    router = Router(authorise=lambda peer_id, scope: True)
    # As a box whose document is the same: nothing is given to one that nobody has been compared with.
    router.add(METHOD_ROOTS, SCOPE_SYNC, _no_difference)
    router.add(METHOD_SEQ, SCOPE_SYNC, _no_op)
    if infer is not None:
        router.add(METHOD_INFER, "infer", infer)
    presence = Presence(seq=1, name=name, version="test", models=tuple(models))
    ups: list[str] = []
    downs: list[str] = []
    node = Node(
        seed or seed_of(name),
        listen=listen,
        targets={box.peer_id: (box.p2p_addr,) for box in boxes},
        mdns=False,
        gate=Gate(allowed),
        router=router,
        hello=lambda: Hello(name=name, version="test", presence=presence),
        events=NodeEvents(
            up=lambda link: ups.append(link.peer_id),
            down=lambda link: downs.append(link.peer_id),
            notify=lambda link, topic, body: None,
        ),
        connect_timeout=3.0,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield Peer(node, router, ups, downs)
        nursery.cancel_scope.cancel()
