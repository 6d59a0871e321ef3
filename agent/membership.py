"""This box's part in a fleet: the document it keeps, whom it lets in because of it, and how it came to belong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.document_disk import FOLDER
from agent.errors import ConfigError
from fleet.document.firewall import Standing
from fleet.document.invites import Token, read_token
from fleet.document.replica import Change, Outcome, Replica
from fleet.document.store import OpStore
from fleet.errors import FleetError, PeerUnreachableError, RefusedOpError, RemoteError
from fleet.gossip.joining import SCOPE_JOIN, Welcome, join, offer_of
from fleet.gossip.sync_messages import SCOPE_SYNC
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity, peer_id_from_public_key, public_key_from_peer_id
from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream, Link, run_link
from fleet.net.messages import Hello
from fleet.net.rpc import Router

TOKEN_ENV: Final = "SHOAL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_ENV: Final = "SHOAL_JOIN_TOKEN_FILE"  # noqa: S105
_MAX_TOKEN_FILE: Final = 64 * 1024
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_NOBODY: Final = Standing(False, frozenset(), "this box belongs to no fleet yet")

log = structlog.get_logger("shoal.membership")


class Membership:
    """Holds the replica once this box belongs to a fleet; until then every key is refused."""

    def __init__(self, state_dir: Path, identity: Identity) -> None:
        self.identity: Final = identity
        self.store: Final = OpStore(state_dir / FOLDER)
        self.replica: Replica | None = None
        self._belongs = trio.Event()
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
                remedy="nothing to do: the document comes again from other boxes; remove the file when it has",
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
        """Make this box part of a fleet whose first ops are at hand; returns what became of them.

        The genesis is written last: a crash before leaves a box that belongs to none, and can join again. Raises
        StoreError where the box belongs to another fleet.
        """
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
        if self.standing(peer_id).admitted:
            return True
        return self.knocks(peer_id)

    def knocks(self, peer_id: str) -> bool:
        """Whether a peer's key is the secret of an invite that has not expired."""
        return self.replica is not None and offer_of(self.replica, peer_id) is not None

    def authorise(self, peer_id: str, scope: str) -> bool:
        """Whether a peer may call methods of a scope."""
        if scope == SCOPE_JOIN:
            return self.knocks(peer_id)
        standing = self.standing(peer_id)
        if scope == SCOPE_SYNC:
            return standing.admitted and self._is_member(peer_id)
        return standing.admitted and scope in standing.scopes

    def _is_member(self, peer_id: str) -> bool:
        if self.replica is None:
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

    # --- how it came to belong -------------------------------------------------------------------------------------

    async def join_until_in(self, token: Token, hello: Callable[[], Hello], connect_timeout: float) -> None:
        """Knock at the token's addresses until one lets this box in; returns once it belongs, however that came about.

        Raises ConfigError for a token that will never do (used up, expired, bound to another key).
        """
        pause = _FIRST_PAUSE
        while not self._belongs.is_set():
            problems = []
            for addr in token.addrs:
                try:
                    await self._join_at(addr, token, hello, connect_timeout)
                    return
                except RemoteError as error:
                    if error.remote_code == "denied":
                        raise ConfigError(f"the join token is no use: {error.message}") from None
                    problems.append(f"{addr}: {error.message}")
                except RefusedOpError as error:
                    raise ConfigError(f"the join token is no use: {error.message}") from None
                except FleetError as error:
                    problems.append(f"{addr}: {error.message}")
            log.warning("join.waiting", pause_s=pause, problems=problems)
            with trio.move_on_after(pause):
                await self._belongs.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _join_at(self, addr: str, token: Token, hello: Callable[[], Hello], connect_timeout: float) -> None:
        member = addr.rsplit("/p2p/", 1)[-1]
        public_key_from_peer_id(member)
        host = Host(token.secret.seed, listen=[], gate=Gate(lambda peer_id: peer_id == member), on_link=_hang_up)
        result: Welcome | FleetError = PeerUnreachableError("the connection broke while joining")
        # Errors are carried out by hand: a nursery would wrap them in groups.
        async with host.run():
            try:
                stream = await host.open_link(member, [addr], timeout=connect_timeout)
                result = await _welcomed(token, self.identity, stream, hello())
            except FleetError as error:
                result = error
        if isinstance(result, FleetError):
            raise result
        outcomes = await self.found(token.genesis, [*result.ops, result.join.raw])
        refused = sum(outcome.state == "refused" for outcome in outcomes)
        log.info("join.done", member=member, ops=len(outcomes), refused=refused)


async def _welcomed(token: Token, identity: Identity, stream: ByteStream, hello: Hello) -> Welcome:
    """Join over a fresh stream; raises FleetError."""
    result: Welcome | FleetError = PeerUnreachableError("the connection broke while joining")
    async with trio.open_nursery() as nursery:

        async def ask(link: Link) -> None:
            nonlocal result
            try:
                result = await join(token, identity, link.call)
            except FleetError as error:
                result = error
            nursery.cancel_scope.cancel()

        try:
            await run_link(
                stream,
                outbound=True,
                hello=hello,
                router=Router(authorise=lambda peer_id, scope: False),
                on_up=lambda link: nursery.start_soon(ask, link),
                on_down=lambda link: None,
                on_notify=lambda link, topic, body: None,
            )
        except FleetError as error:
            result = error
    if isinstance(result, FleetError):
        raise result
    return result


async def _hang_up(stream: ByteStream) -> None:
    await stream.close()


def find_token(env: Mapping[str, str] = os.environ) -> Token | None:
    """The join token in SHOAL_JOIN_TOKEN or in the file SHOAL_JOIN_TOKEN_FILE names; None where there is neither.

    Raises ConfigError for one that cannot be read or used.
    """
    source, text = TOKEN_ENV, env.get(TOKEN_ENV, "")
    if not text and env.get(TOKEN_FILE_ENV):
        source = env[TOKEN_FILE_ENV]
        try:
            with Path(source).open("r", encoding="ascii", errors="replace") as file:
                text = file.read(_MAX_TOKEN_FILE)
        except OSError as error:
            raise ConfigError(f"cannot read the join token {source}: {error.strerror}") from None
    if not text.strip():
        return None
    try:
        return read_token(text)
    except FleetError as error:
        raise ConfigError(f"{source}: {error.message}") from None


def peer_id_of(key: bytes) -> str:
    """The PeerID of a public key, as the document names boxes."""
    return peer_id_from_public_key(key)
