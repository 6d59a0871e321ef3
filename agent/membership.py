"""This box's part in a fleet: the document it keeps, whom it lets in because of it, and how it came to belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.document_disk import FOLDER
from fleet.document.firewall import Standing
from fleet.document.replica import Change, Outcome, Replica
from fleet.document.store import OpStore
from fleet.errors import FleetError
from fleet.gossip.joining import SCOPE_JOIN, offer_of
from fleet.gossip.sync_messages import SCOPE_SYNC
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity, peer_id_from_public_key, public_key_from_peer_id

_NOBODY: Final = Standing(False, frozenset(), "this box belongs to no fleet yet")

log = structlog.get_logger("shoal.membership")


class Membership:
    """Holds the replica once this box belongs to a fleet; until then every key is refused."""

    def __init__(self, state_dir: Path, identity: Identity) -> None:
        self.identity: Final = identity
        self.store: Final = OpStore(state_dir / FOLDER)
        self.replica: Replica | None = None
        #: The boxes that this one's configuration names: it may ask them for news although it does not know them.
        self.configured: frozenset[str] = frozenset()
        #: Whether no member is linked now.
        self.alone: Callable[[], bool] = lambda: False
        self._belongs = trio.Event()
        self._founding = trio.Lock()
        self._listeners: list[Callable[[Change], None]] = []

    def open(self) -> None:
        """Read the document from disk, if there is one. Raises StoreError with the remedy."""
        genesis = self.store.genesis()
        if genesis is not None:
            self._start(self._read(genesis))

    def _read(self, genesis: Genesis) -> Replica:
        opened = self.store.open()
        if opened.set_aside is not None:
            log.error(
                "document.set_aside",
                file=str(opened.set_aside),
                remedy="it comes again from boxes in net.peers or on the LAN; else: shoal import FILE",
            )
        if opened.damaged:
            log.error("document.damaged", records=opened.damaged, remedy="they are fetched again from other boxes")
        return Replica(genesis, opened.ops, self.store)

    def _start(self, replica: Replica) -> None:
        self.replica = replica
        for listener in self._listeners:
            replica.subscribe(listener)
        genesis = replica.genesis
        log.info("document.open", fleet=genesis.name, fleet_id=genesis.fleet_id.hex(), ops=len(replica.ops))
        self._belongs.set()

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    @property
    def belongs(self) -> bool:
        """Whether this box is part of a fleet."""
        return self.replica is not None

    async def wait_belongs(self) -> Replica:
        """The replica, once this box belongs to a fleet."""
        await self._belongs.wait()
        if self.replica is None:
            raise AssertionError("belonging starts with a replica")
        return self.replica

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        """Call `listener` after every change of the document, also of one that is yet to come."""
        self._listeners.append(listener)
        if self.replica is not None:
            self.replica.subscribe(listener)

    async def found(self, genesis: Genesis, ops: Sequence[bytes]) -> Sequence[Outcome]:
        """Make this box part of a fleet whose first ops are at hand; returns what became of them. One at a time.

        The genesis is written last: a crash before leaves a box that belongs to none, and can join again. Raises
        StoreError where the box belongs to another fleet.
        """
        # Two at once would each open the database, and keep a document of its own over it.
        async with self._founding:
            known = await trio.to_thread.run_sync(self.store.genesis)
            if self.replica is not None or known is not None:
                await trio.to_thread.run_sync(self.store.found, genesis)  # refuses another fleet, in words
                return await (await self.wait_belongs()).offer(ops)
            replica = await trio.to_thread.run_sync(self._read, genesis)
            outcomes = await replica.offer(ops)
            await trio.to_thread.run_sync(self.store.found, genesis)
            self._start(replica)
            return outcomes

    # --- whom this box lets in -------------------------------------------------------------------------------------

    def standing(self, peer_id: str) -> Standing:
        """What a peer may do here, by the document as it is now."""
        if self.replica is None:
            return _NOBODY
        try:
            key = public_key_from_peer_id(peer_id)
        except FleetError:
            return _NOBODY
        return self.replica.governance.firewall.standing(key)

    def allowed(self, peer_id: str) -> bool:
        """Whether a peer gets past the handshake: it has a scope here, or knocks with an invite that is good now."""
        if self.standing(peer_id).admitted or self.is_bare:
            return True
        return self.knocks(peer_id) or self.may_tell(peer_id)

    def may_tell(self, peer_id: str) -> bool:
        """Whether a peer that this box does not know is linked to all the same, and asked what it knows.

        Those that the configuration names are, while none of the other members that this box knows is there: they may
        have joined while it was away. Nothing is run for them, given to them or told them; what they say is signed, and
        checked. A key that the document names is none of them.
        """
        if self.replica is None or peer_id not in self.configured or not self.alone():
            return False
        if len(self.replica.governance.authority.members) < 2:
            return False
        governance, key = self.replica.governance, public_key_from_peer_id(peer_id)
        known = key in governance.authority.members or key in governance.authority.revoked
        return not known and key not in governance.firewall.named()

    @property
    def is_bare(self) -> bool:
        """Whether this box knows its fleet and has lost the document: it then knows nobody, and serves nobody.

        It still links to boxes that it finds, and fetches the document from them. What they send is signed, and checked
        from the genesis on, so it does not matter who they are.
        """
        return self.replica is not None and not self.replica.governance.authority.members

    def knocks(self, peer_id: str) -> bool:
        """Whether a peer's key is the secret of an invite that has not expired."""
        return self.replica is not None and offer_of(self.replica, peer_id) is not None

    def authorise(self, peer_id: str, scope: str) -> bool:
        """Whether a peer may call methods of a scope."""
        if scope == SCOPE_JOIN:
            return self.knocks(peer_id)
        if scope == SCOPE_SYNC:
            return self.is_member(peer_id)
        standing = self.standing(peer_id)
        return standing.admitted and scope in standing.scopes

    def is_member(self, peer_id: str) -> bool:
        """Whether a peer is a box of this fleet that is admitted now; guests that are allowed by name are not."""
        if self.replica is None or not self.standing(peer_id).admitted:
            return False
        return public_key_from_peer_id(peer_id) in self.replica.governance.authority.members

    def name_of(self, peer_id: str) -> str:
        """What the document calls a box; empty where it says nothing."""
        if self.replica is None:
            return ""
        try:
            return self.replica.view.box(public_key_from_peer_id(peer_id)).node.name
        except FleetError:
            return ""


def peer_id_of(key: bytes) -> str:
    """The PeerID of a public key, as the document names boxes."""
    return peer_id_from_public_key(key)
