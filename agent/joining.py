"""How a box that has a token becomes part of the fleet: it knocks at the token's addresses until one lets it in.

The same for a box that knows its fleet and is no member: one whose claim of an invite lost, or that was shut out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.claims import is_member, leads_nowhere, useless_because
from agent.errors import ConfigError
from agent.membership import Membership
from fleet.document.invites import Token, read_token
from fleet.errors import FleetError, PeerUnreachableError, RefusedOpError, RemoteError
from fleet.gossip.joining import Welcome, join
from fleet.identity.keys import Identity, public_key_from_peer_id
from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream, Link, run_link
from fleet.net.messages import Hello
from fleet.net.rpc import Router

TOKEN_ENV: Final = "SHOAL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_ENV: Final = "SHOAL_JOIN_TOKEN_FILE"  # noqa: S105
#: In the state folder: what `shoal join` leaves there for an agent that does not run.
TOKEN_FILE: Final = "join-token"  # noqa: S105
_MAX_TOKEN_FILE: Final = 64 * 1024
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0

log = structlog.get_logger("shoal.joining")


def find_token(state_dir: Path, env: Mapping[str, str] = os.environ) -> Token | None:
    """The join token in SHOAL_JOIN_TOKEN, the file SHOAL_JOIN_TOKEN_FILE names, or the state folder; None if none.

    Raises ConfigError for one that cannot be read or used.
    """
    source, text = TOKEN_ENV, env.get(TOKEN_ENV, "")
    if not text:
        path = Path(env[TOKEN_FILE_ENV]) if env.get(TOKEN_FILE_ENV) else state_dir / TOKEN_FILE
        source = str(path)
        try:
            text = _read_token_file(path)
        except FileNotFoundError as error:
            if not env.get(TOKEN_FILE_ENV):
                return None
            raise ConfigError(f"cannot read the join token {source}: {error.strerror}") from None
        except PermissionError as error:
            uid = os.geteuid()
            mend = f"uid {uid}, which the agent runs as, has to be able to read it (chown {uid}, chmod 400)"
            raise ConfigError(f"cannot read the join token {source}: {error.strerror}: {mend}") from None
        except OSError as error:
            raise ConfigError(f"cannot read the join token {source}: {error.strerror}") from None
    if not text.strip():
        return None
    try:
        return read_token(text)
    except FleetError as error:
        raise ConfigError(f"{source}: {error.message}") from None


def token_at_start(state_dir: Path, membership: Membership, env: Mapping[str, str] = os.environ) -> Token | None:
    """`find_token` for a box whose document is open. To a member, a token that is no use is a warning and None."""
    try:
        return find_token(state_dir, env)
    except ConfigError as error:
        replica = membership.replica
        if replica is None or not is_member(replica.governance, membership.identity.public_key):
            raise
        log.warning("join.token_ignored", reason=f"{error}; this box is a member already and needs none")
        return None


def _read_token_file(path: Path) -> str:
    # Without O_NONBLOCK, opening a named pipe would wait for ever. A device: compose mounts /dev/null for no token.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
            raise OSError(errno.EINVAL, "it is no file")
        return (file.read(_MAX_TOKEN_FILE) or b"").decode("ascii", errors="replace")


class Joining:
    """Tries one token after another, whenever this box is not a member.

    `outcast` says whether every neighbour that answers refuses this box, whose own document may not know that.
    `on_joined` is told of the member that let the box in, and where it is.
    """

    def __init__(
        self,
        membership: Membership,
        hello: Callable[[], Hello],
        connect_timeout: float,
        on_joined: Callable[[str, tuple[str, ...]], None],
        outcast: Callable[[], bool] = lambda: False,
    ) -> None:
        self._membership = membership
        self._hello = hello
        self._connect_timeout = connect_timeout
        self._on_joined = on_joined
        self._outcast = outcast
        self._token: Token | None = None
        self._asked = trio.Event()
        self._knocking = trio.Lock()
        #: Why the last attempt failed, in words; empty while there was none, and once one has worked.
        self.problem = ""

    @property
    def settled(self) -> bool:
        """Whether this box is a member that is let in, by its own document and as far as its neighbours say."""
        replica, key = self._membership.replica, self._membership.identity.public_key
        if replica is None or not is_member(replica.governance, key):
            return False
        return replica.governance.firewall.standing(key).admitted and not self._outcast()

    @property
    def is_due(self) -> bool:
        """Whether a token that was left for this box is to be used at its start.

        Not by one that has merely lost its document: that comes back from its neighbours, without another claim.
        """
        return not self.settled and not self._membership.is_bare

    def ask(self, token: Token) -> None:
        """Use this token from now on; `run` does the rest."""
        self._token = token
        self._asked.set()

    async def run(self) -> None:
        """Knock with the token that is asked for, again and again, until let in; then wait for the next. Never ends.

        A token that will never do (used up, expired, for another box) is given up, and logged with the reason.
        """
        pause = _FIRST_PAUSE
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            token = self._token
            if token is None or self.settled:
                continue
            try:
                joined = await self.knock(token)
            except ConfigError as error:
                log.error("join.given_up", reason=error.message)
                joined = True  # or never will be
            if joined:
                if self._token is token:
                    self._token = None
                pause = _FIRST_PAUSE
                continue
            log.warning("join.waiting", pause_s=pause, reason=self.problem)
            with trio.move_on_after(pause):
                await self._asked.wait()
                pause = _FIRST_PAUSE
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._asked.set()

    async def knock(self, token: Token) -> bool:
        """Try every address of a token once; True when this box belongs.

        Raises ConfigError for a token that will never do: one that this box knows to be useless, or that a member
        refuses for good while no other one asks to come again. `problem` then, and after False, says why.
        """
        # One at a time: each try is a claim of the invite, and the second finds the box settled.
        async with self._knocking:
            return self.settled or await self._knock(token)

    async def _knock(self, token: Token) -> bool:
        self._refuse_if_useless(token)
        problems: list[str] = []
        refusal = ""
        come_again = False
        for addr in token.addrs:
            if self.settled:
                return True
            try:
                await self._join_at(addr, token)
            except FleetError as error:
                problems.append(f"{addr}: {error.message}")
                if isinstance(error, RefusedOpError) and error.reason == "used_up":
                    refusal, come_again = self._late(error.message), False
                    break  # every further try would be one more claim that is lost
                if is_final(error):
                    refusal = refusal or error.message
                elif isinstance(error, RemoteError):
                    come_again = True
            else:
                self.problem = ""
                return True
        if refusal and not come_again:
            self.problem = f"the join token is no use: {refusal}"
            raise ConfigError(self.problem)
        self.problem = "; ".join(problems) or "the token names no address to knock at"
        return self.settled

    def _refuse_if_useless(self, token: Token) -> None:
        replica, key = self._membership.replica, self._membership.identity.public_key
        why = leads_nowhere(token, key)
        if replica is None:
            pass
        elif token.genesis.fleet_id != replica.fleet_id:
            why = f"it is of the fleet {token.genesis.name!r}, this box belongs to {replica.genesis.name!r}"
        else:
            why = useless_because(replica.governance, key, token) or why
        if why is not None:
            self.problem = f"the join token is no use: {why}"
            raise ConfigError(self.problem)

    def _late(self, message: str) -> str:
        return f"{message}, or for: shoal admit {self._membership.identity.peer_id}"

    async def _join_at(self, addr: str, token: Token) -> None:
        member = addr.rsplit("/p2p/", 1)[-1]
        public_key_from_peer_id(member)
        host = Host(token.secret.seed, listen=[], gate=Gate(lambda peer_id: peer_id == member), on_link=_hang_up)
        result: Welcome | FleetError = PeerUnreachableError("the connection broke while joining")
        # Errors are carried out by hand: a nursery would wrap them in groups.
        async with host.run():
            try:
                stream = await host.open_link(member, [addr], timeout=self._connect_timeout)
                result = await _welcomed(token, self._membership.identity, stream, self._hello())
            except FleetError as error:
                result = error
        if isinstance(result, FleetError):
            raise result
        outcomes = await self._membership.found(token.genesis, [*result.ops, result.join.raw])
        refused = sum(outcome.state == "refused" for outcome in outcomes)
        log.info("join.done", member=member, ops=len(outcomes), refused=refused)
        self._on_joined(member, (addr,))


def is_final(error: FleetError) -> bool:
    """Whether a member's answer means that the token will never do there. What is called retryable never does."""
    if isinstance(error, RefusedOpError):
        return True
    return isinstance(error, RemoteError) and error.remote_code == "denied" and not error.retryable


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
