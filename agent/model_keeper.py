"""The models of this box as the fleet wants them: the store, what is given to others, what is fetched, who is gone.

Here the parts meet: `fleet.blobs` moves blocks, `agent.reconcile` decides and acts, the document says what is wanted.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import structlog
import trio

from agent.config import Config
from agent.engine.memory import size_of
from agent.engine.pool import EnginePool
from agent.links import worth_dialling
from agent.membership import Membership, peer_id_of
from agent.own_facts import Room, Stored
from agent.reconcile.absence import to_tell
from agent.reconcile.execute import Executor
from agent.reconcile.homes import SCOPE_BLOBS, STEP, held_part
from agent.reconcile.look import SETTLE, Rules
from agent.reconcile.pins import Pins
from agent.reconcile.schedule import Window, own_window, window_for
from agent.reconcile.situation import Boxes, Situation, situation_of
from agent.reconcile.transfers import Transfers
from fleet.blobs.account import Account
from fleet.blobs.keeping import Keeping
from fleet.blobs.manifest import Manifest
from fleet.blobs.serve import Server, ServeTerms
from fleet.blobs.store import BlobStore
from fleet.blobs.swarm import fetch
from fleet.document.facts import Box
from fleet.document.replica import Change
from fleet.errors import FleetError
from fleet.gossip.neighbours import DEGREE
from fleet.identity.keys import public_key_from_peer_id
from fleet.net.link import Link
from fleet.net.node import Node
from fleet.net.rpc import Router

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: The folder in the state folder that has the files of models.
FOLDER: Final = "blobs"
#: The label that says which boxes are near one another.
_SITE: Final = "site"
#: Boxes that a fetch dials besides the neighbours that there are.
_DIALLED: Final = 8
#: Seconds between looks at who is out of reach.
_LOOK: Final = 5.0

log = structlog.get_logger("shoal.models")


class _Members:
    """The linked boxes of the fleet, as sources of blocks."""

    def __init__(self, node: Node, membership: Membership) -> None:
        self._node = node
        self._membership = membership

    def links(self) -> Iterable[Link]:
        """One link for each."""
        return [link for link in self._node.links() if self._membership.is_member(link.peer_id)]

    async def wait_change(self) -> None:
        """Return at the next link that comes up or goes down."""
        await self._node.wait_change()


class ModelKeeper:
    """Keeps the models of one box. Implements `agent.reconcile.execute.Fleet`.

    `last_heard` has when each box spoke last to this process, on trio's clock, by PeerID.
    """

    def __init__(
        self,
        config: Config,
        *,
        membership: Membership,
        node: Node,
        pool: EnginePool,
        draining: Callable[[], bool],
        last_heard: Callable[[], Mapping[str, float]],
        name_of: Callable[[str], str],
    ) -> None:
        self._config = config
        self._membership = membership
        self._node = node
        self._pool = pool
        self._draining = draining
        self._last_heard = last_heard
        self._name_of = name_of
        self._own = membership.identity.public_key
        self._sources = _Members(node, membership)
        self._window = self._settings()
        self._boxes = Boxes()
        self._seen: tuple[object, frozenset[str], Situation] | None = None
        self._gone: frozenset[bytes] = frozenset()
        self._token: trio.lowlevel.TrioToken | None = None
        #: Told when what this box says of itself in the document may have changed.
        self.on_change: Callable[[], None] = lambda: None
        disk = psutil.disk_usage(str(config.state_dir)).total
        self.store = BlobStore(config.state_dir / FOLDER, keep_free=size_of(config.transfer.keep_free, disk))
        self.pins = Pins(config.state_dir / "pinned-models.json")
        self.transfers = Transfers()
        lane = config.net.fast_lane_port
        self.server = Server(
            self.store,
            ServeTerms(
                port=lane if isinstance(lane, int) else None,
                host=lane_host(config.net.listen),
                slots=config.transfer.slots,
                rate=lambda: self._window.rate,
            ),
            permitted=self._permitted,
            refuses=self._refuses,
            alone=self._is_alone,
            near=self._is_near,
            lost=self._lost,
        )
        rules = Rules(config.transfer.surplus_after, min(SETTLE, config.transfer.gone_after))
        self.executor = Executor(self.store, pool, self, self.pins, self.transfers, rules)
        self.keeping = Keeping(lambda blob: blob in self.store.held().keys() - self.executor.leaving, self._sources)
        membership.subscribe(self._document_changed)

    @property
    def own(self) -> bytes:
        """This box's key."""
        return self._own

    def offer_methods(self, router: Router) -> None:
        """Answer the calls of peers for manifests and blocks."""
        self.server.offer_methods(router)
        self.keeping.offer_methods(router)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep models until cancelled; started once the store is open and blocks can be asked for.

        Raises FleetError where the store cannot be opened.
        """
        self._token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self.store.open)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.server.run)
                task_status.started()
                nursery.start_soon(self.executor.run)
                nursery.start_soon(self._watch_others)
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.store.close)

    def recheck(self) -> None:
        """Who may be given blocks may have changed: whoever may not is cut off now."""
        self.server.recheck()

    # --- what the executor asks ---------------------------------------------------------------------------------------

    async def situation(self) -> Situation | None:
        """What the document means for this box now; None where it belongs to no fleet. Worked out in a thread."""
        replica = self._membership.replica
        if replica is None:
            return None
        view, pins = replica.view, self.pins.all()
        if self._seen is None or self._seen[0] is not view or self._seen[1] != pins:
            found = await trio.to_thread.run_sync(situation_of, view, self._own, pins, self._boxes)
            self._seen = (view, pins, found)
        return self._seen[2]

    def window(self, situation: Situation) -> Window:
        """When models may travel to and from this box."""
        box = situation.view.box(self._own)
        self._window = window_for(self._settings(), situation.view.settings, box)
        self.server.recheck()  # an hour may have begun or ended
        return self._window

    async def fetch(self, manifest: Manifest, account: Account) -> Path:
        """Fetch a blob, from neighbours and from boxes that are dialled for it; see `fleet.blobs.swarm.fetch`."""
        dialled = self._dial(manifest.sha256)
        try:
            return await fetch(
                manifest,
                store=self.store,
                sources=self._sources,
                server=self.server,
                account=account,
                fast=self._config.net.fast_lane_port != "off",
                whole=lambda: self._holding(manifest.sha256),
            )
        finally:
            for peer_id in dialled:
                self._node.forget(peer_id)

    async def kept_elsewhere(self, blob: str) -> bool:
        """Whether another box, asked just now, keeps its whole copy; those that say that they have one are dialled."""
        situation = self.executor.situation
        if situation is None:
            return False
        dialled = self._dial(blob)
        try:
            holders = {peer_id_of(key) for key in situation.present_holders(blob, self.missed())}
            return await self.keeping.somebody(blob, holders) is not None
        finally:
            for peer_id in dialled:
                self._node.forget(peer_id)

    def name_of(self, peer_id: str) -> str:
        """What people call a box."""
        return self._name_of(peer_id)

    def note_change(self) -> None:
        """What this box holds has changed."""
        for blob in (*self.store.held(), *self.store.partials()):
            self.server.note_changed(blob)
        self.on_change()

    # --- what the document is told ------------------------------------------------------------------------------------

    def stored(self) -> Sequence[Stored]:
        """The models of the store that the fleet knows, whole ones first; of those that are not whole, in quarters."""
        situation = self.executor.situation
        if situation is None:
            return ()
        models, leaving = situation.wishes.models, self.executor.leaving
        told = [
            Stored(blob, models[blob].name, held.manifest.size, 1.0)
            for blob, held in self.store.held().items()
            if blob in models and blob not in leaving
        ]
        for blob, state in self.store.partials().items():
            part = int(state.blocks / state.manifest.blocks / STEP) * STEP
            if blob in models and blob not in leaving and state.checked and STEP <= part < 1:
                told.append(Stored(blob, models[blob].name, state.manifest.size, part))
        return told

    def room(self) -> Room | None:
        """What there is for more models; None before the store is open."""
        if self.executor.situation is None:
            return None
        space = 0 if self._settings().never else max(0, self.executor.actual.free)
        return Room(space, self._pool.capacity())

    def gone(self) -> frozenset[bytes]:
        """The boxes that this one cannot reach for long."""
        return self._gone

    # --- inside -------------------------------------------------------------------------------------------------------

    def _settings(self) -> Window:
        transfer = self._config.transfer
        rate = transfer.upload_rate
        return own_window(transfer.hours, transfer.metered, None if rate is None else size_of(rate, 0))

    def _document_changed(self, change: Change) -> None:
        if change.governance:
            self.server.recheck()
        if change.governance or any(op.path.partition("/")[0] in _MATTERS for op in change.added):
            self.executor.note_change()

    def _permitted(self, peer_id: str) -> bool:
        return self._membership.authorise(peer_id, SCOPE_BLOBS)

    def _refuses(self) -> str:
        if self._draining():
            return "this box is shutting down"
        return self._window.closed(datetime.now().astimezone())

    def _lost(self, blob: str) -> None:
        """Rot was found in a file, in some thread: it is withdrawn, and fetched again where it is wanted."""
        log.error("model.damaged", hash=blob)
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.executor.note_change)

    def _is_alone(self, blob: str) -> bool:
        situation = self.executor.situation
        return situation is not None and not situation.present_holders(blob)

    def _holding(self, blob: str) -> list[str]:
        """The boxes that say that they hold all of it."""
        situation = self.executor.situation
        return [] if situation is None else [peer_id_of(key) for key in situation.holders(blob)]

    def _is_near(self, peer_id: str) -> bool:
        situation = self.executor.situation
        if situation is None:
            return False
        own, other = (_site(situation.boxes.get(key)) for key in (self._own, _key_of(peer_id)))
        return bool(own) and own == other

    def _dial(self, blob: str) -> tuple[str, ...]:
        """Dial some boxes that have blocks and are no neighbours, near ones first; gives the new ones."""
        situation = self.executor.situation
        if situation is None:
            return ()
        boxes = situation.boxes
        site = _site(boxes.get(self._own))
        known = {one.peer_id for one in self._node.neighbours()}
        able = [
            (_site(box) != site, hashlib.blake2b(self._own + key, digest_size=8).digest(), key)
            for key, box in boxes.items()
            if key != self._own and key not in situation.gone and held_part(box, blob) >= STEP
        ]
        dialled = []
        for _, _, key in sorted(able)[:_DIALLED]:
            peer_id = peer_id_of(key)
            if peer_id in known or self._node.link(peer_id) is not None:
                continue
            addrs = worth_dialling(peer_id, boxes[key].addrs, self._node.addrs())
            if addrs:
                self._node.keep(peer_id, addrs)
                dialled.append(peer_id)
        return tuple(dialled)

    async def _watch_others(self) -> None:
        """Find out which boxes are to be told of as gone, until cancelled."""
        pause = min(_LOOK, self._config.transfer.gone_after / 4)
        while True:
            await trio.sleep(pause)
            situation = self.executor.situation
            if situation is None:
                continue
            found = self._absent(situation)
            if found != self._gone:
                for key in found - self._gone:
                    log.warning("box.gone", box=situation.boxes[key].node.name, peer=peer_id_of(key))
                self._gone = found
                self.on_change()

    def missed(self) -> Mapping[bytes, float]:
        """The boxes that this one cannot reach now, and since when: neighbours that do not answer, and, where each box
        is linked to every other, those that cannot be dialled and are not there."""
        situation = self.executor.situation
        if situation is None:
            return {}
        members = {peer_id_of(key): key for key in situation.boxes if key != self._own}
        linked = {link.peer_id for link in self._node.links()}
        silent = {
            members[one.peer_id]: one.down_since
            for one in self._node.neighbours()
            if one.state in ("unreachable", "connecting") and one.peer_id in members and one.peer_id not in linked
        }
        if len(members) <= DEGREE:
            for peer_id, at in self._last_heard().items():
                if peer_id in members and peer_id not in linked:
                    silent.setdefault(members[peer_id], at)
        return silent

    def _absent(self, situation: Situation) -> frozenset[bytes]:
        """The boxes that the fleet is to be told of."""
        others = {peer_id_of(key) for key in situation.boxes if key != self._own}
        if len(others) > 1 and not others & {link.peer_id for link in self._node.links()}:
            return self._gone  # it is this box that is cut off, as far as it can tell
        return to_tell(
            self.missed(),
            relevant=situation.matters(),
            told=situation.gone,
            own_word=self._gone,
            own=self._own,
            after=self._config.transfer.gone_after,
            now=trio.current_time(),
        )


#: What has to change in the document for this box to look again at what is wanted of it.
_MATTERS: Final = frozenset(("node", "hold", "gone", "here", "perf"))


def lane_host(listen: Sequence[str]) -> str:
    """The address on which blocks are given: that of the links, where they have a single one."""
    hosts = {addr.split("/")[2] for addr in listen if addr.count("/") >= 2}
    if len(hosts) == 1:
        (host,) = hosts
        return str(ipaddress.ip_address(host))
    return "0.0.0.0" if hosts else "127.0.0.1"


def _site(box: Box | None) -> str:
    return dict(box.node.labels).get(_SITE, "") if box is not None else ""


def _key_of(peer_id: str) -> bytes:
    try:
        return public_key_from_peer_id(peer_id)
    except FleetError:
        return b""
