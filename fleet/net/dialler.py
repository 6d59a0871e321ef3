"""Keeping a link to every neighbour this box knows: when to dial again, and the loop that does it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import structlog
import trio

from fleet.errors import DeniedError, FleetError, PeerRefusedError

log = structlog.get_logger("shoal.dialler")

NeighbourState = Literal["connected", "connecting", "unreachable", "refused", "denied"]

_FIRST_DELAY: Final = 0.2
_EAGER_DELAY: Final = 1.0
_EAGER_FOR: Final = 60.0
_PATIENT_DELAY: Final = 15.0
_REFUSED_DELAY: Final = 10.0


def retry_delay(failures: int, down_for: float, *, refused: bool, jitter: float) -> float:
    """Seconds until the next dial; pure.

    A neighbour that has just gone is dialled every second for a minute (a restarted box is back within that), then
    less and less often up to every 15 s; one that refused us every 10 s, since only a person can change that.
    `jitter` in [0, 1) spreads boxes that lost the same neighbour at the same moment over +-25 %.
    """
    if refused:
        base = _REFUSED_DELAY
    elif down_for < _EAGER_FOR:
        base = min(_FIRST_DELAY * 2.0 ** min(failures, 10), _EAGER_DELAY)
    else:
        base = min(_EAGER_DELAY * 2.0 ** min((down_for - _EAGER_FOR) / 30.0, 10.0), _PATIENT_DELAY)
    return base * (0.75 + 0.5 * jitter)


@dataclass(frozen=True)
class Neighbour:
    """What this box knows of one neighbour's reachability. Times are seconds on trio's clock."""

    peer_id: str
    addrs: tuple[str, ...]
    state: NeighbourState = "connecting"
    last_error: str = ""
    down_since: float = 0.0
    failures: int = 0


#: Dials, greets and runs one link to its end; calls its argument once the link is up. Raises FleetError.
Connect = Callable[[str, tuple[str, ...], Callable[[], None]], Awaitable[None]]


@dataclass
class Dialler:
    """One task a neighbour: dial, hold the link while it lives, wait, dial again. Runs until cancelled.

    `connected(peer_id)` says whether a link exists already (the neighbour may have dialled us), `wait_gone(peer_id)`
    returns when none is left.
    """

    connect: Connect
    connected: Callable[[str], bool]
    wait_gone: Callable[[str], Awaitable[None]]
    random: random.Random = field(default_factory=random.SystemRandom)
    _neighbours: dict[str, Neighbour] = field(default_factory=dict)
    _kicks: dict[str, trio.Event] = field(default_factory=dict)
    _keeping: dict[str, trio.CancelScope] = field(default_factory=dict)

    def neighbours(self) -> tuple[Neighbour, ...]:
        """All neighbours this box dials, as they stand."""
        return tuple(self._neighbours.values())

    def kick(self) -> None:
        """Dial every neighbour that is down now, without waiting for its turn."""
        for event in self._kicks.values():
            event.set()

    def learn(self, peer_id: str, addrs: tuple[str, ...], nursery: trio.Nursery) -> None:
        """Add a neighbour, or replace the addresses of a known one; the first call starts its task in `nursery`."""
        known = self._neighbours.get(peer_id)
        if known is not None:
            if known.addrs != addrs:
                self._neighbours[peer_id] = replace(known, addrs=addrs)
                self._kicks[peer_id].set()
            return
        self._neighbours[peer_id] = Neighbour(peer_id, addrs, down_since=trio.current_time())
        self._kicks[peer_id] = trio.Event()
        self._keeping[peer_id] = trio.CancelScope()
        nursery.start_soon(self._keep, peer_id, self._keeping[peer_id])

    def forget(self, peer_id: str) -> None:
        """Stop dialling a neighbour; a link that this box dialled ends with it, one that it was dialled on stays."""
        scope = self._keeping.pop(peer_id, None)
        if scope is not None:
            scope.cancel()
            del self._neighbours[peer_id]
            del self._kicks[peer_id]

    async def _keep(self, peer_id: str, scope: trio.CancelScope) -> None:
        with scope:
            await self._dial_for_ever(peer_id)

    async def _dial_for_ever(self, peer_id: str) -> None:
        while True:
            if self.connected(peer_id):
                self._came_up(peer_id)
                await self.wait_gone(peer_id)
                self._update(peer_id, state="connecting", down_since=trio.current_time(), failures=0)
            try:
                await self.connect(peer_id, self._neighbours[peer_id].addrs, lambda: self._came_up(peer_id))
                self._update(peer_id, state="connecting", down_since=trio.current_time())
            except PeerRefusedError as error:
                self._failed(peer_id, "refused", error)
            except DeniedError as error:
                self._failed(peer_id, "denied", error)
            except FleetError as error:
                self._failed(peer_id, "unreachable", error)
            if self.connected(peer_id):
                continue
            known = self._neighbours[peer_id]
            down_for = trio.current_time() - known.down_since
            refused = known.state in ("refused", "denied")
            self._kicks[peer_id] = trio.Event()
            with trio.move_on_after(
                retry_delay(known.failures, down_for, refused=refused, jitter=self.random.random())
            ):
                await self._kicks[peer_id].wait()

    def _came_up(self, peer_id: str) -> None:
        if peer_id in self._neighbours:  # forgotten while its link was coming up
            self._update(peer_id, state="connected", last_error="", failures=0)

    def _failed(self, peer_id: str, state: NeighbourState, error: FleetError) -> None:
        known = self._neighbours[peer_id]
        if known.state != state or known.last_error != error.message:
            log.warning("neighbour." + state, peer=peer_id, reason=error.message)
        was_up = known.state == "connected"
        self._update(
            peer_id,
            state=state,
            last_error=error.message,
            failures=known.failures + 1,
            down_since=trio.current_time() if was_up else known.down_since,
        )

    def _update(self, peer_id: str, **changes: object) -> None:
        self._neighbours[peer_id] = replace(self._neighbours[peer_id], **changes)  # type: ignore[arg-type]
