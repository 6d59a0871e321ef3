"""The peer gate: which authenticated keys get past the handshake. Default deny, both directions, never silent."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import structlog

log = structlog.get_logger("shoal.gate")

Direction = Literal["inbound", "outbound"]

#: How many refused keys are remembered for `doctor`; a stranger can make new keys for ever.
_REMEMBERED: Final = 64


@dataclass(frozen=True)
class Refusal:
    """A key that knocked and was turned away: how often, and from where it came last."""

    peer_id: str
    direction: Direction
    remote_addr: str
    count: int


class Gate:
    """Asks `allowed(peer_id)` about every connection and every stream, and keeps account of what it refused.

    `on_refused(peer_id, direction, remote_addr)` is called for the first refusal of a key and then at each doubling,
    so that a stranger who knocks all day does not fill the log.

    `counts` has refused keys as `inbound` and `outbound`, and what was turned away for another reason as
    `half_open_dropped` (others came during its handshake), `handshake_timed_out`, `no_place_left` (too many
    connections in all) and `too_many_of_one_key`.
    """

    def __init__(
        self, allowed: Callable[[str], bool], on_refused: Callable[[str, str, str], None] | None = None
    ) -> None:
        self.allowed: Final = allowed
        self.counts: Counter[str] = Counter()
        self._on_refused = on_refused
        self._refused: OrderedDict[str, Refusal] = OrderedDict()

    def admit(self, peer_id: str, direction: Direction, remote_addr: str) -> bool:
        """Decide on an authenticated key, and remember it if it is refused."""
        if self.allowed(peer_id):
            return True
        self.counts[direction] += 1
        known = self._refused.pop(peer_id, None)
        count = known.count + 1 if known else 1
        self._refused[peer_id] = Refusal(peer_id, direction, remote_addr, count)
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)
        if self._on_refused is not None and count & (count - 1) == 0:
            self._on_refused(peer_id, direction, remote_addr)
        return False

    def note(self, what: str) -> None:
        """Count a connection that was turned away for another reason than its key; logged at each doubling."""
        self.counts[what] += 1
        if self.counts[what] & (self.counts[what] - 1) == 0:
            log.warning("connections.turned_away", reason=what, count=self.counts[what])

    def refusals(self) -> tuple[Refusal, ...]:
        """The keys refused most recently, latest last; at most 64."""
        return tuple(self._refused.values())
