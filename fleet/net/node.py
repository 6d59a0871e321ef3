"""This box on the network: the host, its gate, the links that are up, and the neighbours it keeps dialling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
import trio

from fleet.errors import FleetError
from fleet.net.dialler import Dialler, Neighbour
from fleet.net.discovery import discover
from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream, Link, run_link
from fleet.net.messages import Hello
from fleet.net.rpc import Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

log = structlog.get_logger("shoal.node")

#: Neighbours found by mDNS beyond this many are ignored: the LAN is not trusted to be small.
MAX_DISCOVERED: Final = 512
#: Seconds the links of a peer that is shut out are given for their goodbyes.
_FAREWELL_LIMIT: Final = 1.0


@dataclass(frozen=True)
class NodeEvents:
    """What the owner of a node is told, synchronously and in order; the callbacks must not block.

    `up` comes after the greetings, `down` once for every `up`, `notify` for each message that has no answer; the
    latter may raise MessageError, which is counted and logged.
    """

    up: Callable[[Link], None]
    down: Callable[[Link], None]
    notify: Callable[[Link, str, object], None]


class Node:
    """Owns every connection of this box.

    `allowed(peer_id)` is the default-deny allow-list, asked at the handshake, for every stream and by `router` for
    every call. `targets` maps the PeerIDs of configured neighbours to their multiaddrs. `announce` are multiaddrs that
    others are told in place of those that are listened on.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        listen: Sequence[str],
        targets: Mapping[str, tuple[str, ...]],
        mdns: bool,
        gate: Gate,
        router: Router,
        hello: Callable[[], Hello],
        events: NodeEvents,
        connect_timeout: float,
        announce: Sequence[str] = (),
    ) -> None:
        self._targets = dict(targets)
        self._mdns = mdns
        self._router = router
        self._hello = hello
        self._events = events
        self._connect_timeout = connect_timeout
        self._links: dict[str, list[Link]] = {}
        self._changed = trio.Event()
        self._gate = gate
        self._host = Host(seed, listen=listen, announce=announce, gate=gate, on_link=self._serve)
        self._dialler = Dialler(
            connect=self._connect, connected=lambda peer: self.link(peer) is not None, wait_gone=self._wait_gone
        )
        self._found_at: dict[str, tuple[str, ...]] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> str:
        """This box's PeerID."""
        return self._host.peer_id

    def addrs(self) -> tuple[str, ...]:
        """The multiaddrs others can dial, each ending in /p2p/PEERID; known once `run` has started."""
        return self._host.addrs()

    def link(self, peer_id: str) -> Link | None:
        """The peer's oldest live link."""
        return next((link for link in self._links.get(peer_id, ()) if not link.closed.is_set()), None)

    def links(self) -> tuple[Link, ...]:
        """One live link for every connected peer."""
        found = (self.link(peer) for peer in self._links)
        return tuple(link for link in found if link is not None)

    def neighbours(self) -> tuple[Neighbour, ...]:
        """The boxes this one dials by itself, configured or discovered."""
        return self._dialler.neighbours()

    def broadcast(self, topic: str, body: Mapping[str, object]) -> None:
        """Send a message that has no answer to every connected peer."""
        for link in self.links():
            link.notify(topic, body)

    def keep(self, peer_id: str, addrs: tuple[str, ...]) -> None:
        """Dial a box from now on, also at the addresses that the configuration or mDNS gave for it.

        Known only while `run` runs; this box itself and keys that the gate refuses are passed over.
        """
        if self._nursery is None or peer_id == self.peer_id or not self._gate.allowed(peer_id):
            return
        known = (*self._targets.get(peer_id, ()), *self._found_at.get(peer_id, ()), *addrs)
        if known:
            self._dialler.learn(peer_id, tuple(dict.fromkeys(known)), self._nursery)

    def forget(self, peer_id: str) -> None:
        """Stop dialling a box that `keep` or mDNS brought; a configured one stays."""
        if peer_id not in self._targets:
            self._found_at.pop(peer_id, None)
            self._dialler.forget(peer_id)

    def recheck(self) -> None:
        """The firewall has changed: end every connection, and every running call, that it no longer allows.

        Returns at once; a peer that is shut out is cut off within two seconds, whatever it does.
        """
        for links in list(self._links.values()):
            for link in links:
                if self._gate.allowed(link.peer_id):
                    link.recheck()
                else:
                    link.close("the key is no longer allowed here")
        if self._nursery is not None:
            for peer_id in self._host.connected():
                if not self._gate.allowed(peer_id):
                    self._nursery.start_soon(self._shut_out, peer_id)

    async def _shut_out(self, peer_id: str) -> None:
        """Close every connection of a peer once its links have said goodbye."""
        with trio.move_on_after(_FAREWELL_LIMIT):
            for link in self._links.get(peer_id, ()):
                await link.closed.wait()
        await self._host.disconnect(peer_id)

    def dial_now(self) -> None:
        """Dial neighbours that are down at once instead of at their next turn."""
        self._dialler.kick()

    async def wait_change(self) -> None:
        """Return at the next link that comes up or goes down."""
        await self._changed.wait()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def close_links(self, reason: str) -> None:
        """Say goodbye on every link and wait (at most 2 s) until they are down."""
        for links in list(self._links.values()):
            for link in links:
                link.close(reason)
        with trio.move_on_after(2):
            while self._links:
                await self.wait_change()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial and discover until cancelled; `task_status` starts once the box listens."""
        async with self._host.run(), trio.open_nursery() as nursery:
            self._nursery = nursery
            for peer_id, addrs in self._targets.items():
                self._dialler.learn(peer_id, addrs, nursery)
            if self._mdns:
                nursery.start_soon(discover, self.peer_id, self.addrs, self._found)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _found(self, peer_id: str, addrs: tuple[str, ...]) -> None:
        """A box seen on the LAN. One that is not allowed is not dialled: it would only be closed by our own gate."""
        if peer_id == self.peer_id or not self._gate.allowed(peer_id):
            return
        if peer_id not in self._found_at and len(self._found_at) >= MAX_DISCOVERED:
            return
        self._found_at[peer_id] = addrs
        self.keep(peer_id, ())

    async def _connect(self, peer_id: str, addrs: tuple[str, ...], up: Callable[[], None]) -> None:
        stream = await self._host.open_link(peer_id, addrs, timeout=self._connect_timeout)
        try:
            await self._run_link(stream, outbound=True, on_up=up)
        finally:
            if self.link(peer_id) is None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._host.disconnect(peer_id)

    async def _serve(self, stream: ByteStream) -> None:
        """An inbound link. What goes wrong with it is the peer's affair and ends here."""
        try:
            await self._run_link(stream, outbound=False, on_up=lambda: None)
        except FleetError as error:
            if self._router.seldom.worth_a_line(("link.refused", stream.peer_id)):
                log.info("link.refused", peer=stream.peer_id, reason=error.message)

    async def _run_link(self, stream: ByteStream, *, outbound: bool, on_up: Callable[[], None]) -> None:
        def came_up(link: Link) -> None:
            others = [other for other in self._links.get(link.peer_id, ()) if not other.closed.is_set()]
            self._links.setdefault(link.peer_id, []).append(link)
            on_up()
            log.info("link.up", peer=link.peer_id, name=link.hello.name, outbound=outbound)
            self._events.up(link)
            self._settle_duplicates([*others, link])
            self._note_change()

        def went_down(link: Link) -> None:
            remaining = [other for other in self._links[link.peer_id] if other is not link]
            if remaining:
                self._links[link.peer_id] = remaining
            else:
                del self._links[link.peer_id]
            log.info("link.down", peer=link.peer_id, name=link.hello.name, reason=link.close_reason)
            self._events.down(link)
            self._note_change()

        await run_link(
            stream,
            outbound=outbound,
            hello=self._hello(),
            router=self._router,
            on_up=came_up,
            on_down=went_down,
            on_notify=self._events.notify,
        )

    def _settle_duplicates(self, links: list[Link]) -> None:
        """When two boxes dialled each other at once, the one with the larger PeerID takes its own dial back."""
        if len(links) > 1 and self.peer_id > links[0].peer_id and any(not link.outbound for link in links):
            for link in links:
                if link.outbound and not link.busy:
                    link.close("duplicate connection")

    async def _wait_gone(self, peer_id: str) -> None:
        while self.link(peer_id) is not None:
            await self.wait_change()
