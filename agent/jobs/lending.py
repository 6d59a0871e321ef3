"""What this box lends to whom: hours, rates and budgets of the boxes that ask. Pure: the caller passes the time.

Who may ask at all is said in the fleet document; the room that jobs of others may take is kept by the queue. This is
what the box itself adds: a till that is busy from nine to five may lend at night only.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from agent.hours import Hours

#: Boxes whose use is remembered; those that asked longest ago are forgotten, and start with full budgets.
_REMEMBERED: Final = 4096
MINUTE: Final = 60.0
DAY: Final = 86400.0


@dataclass(frozen=True)
class Terms:
    """On what terms a box is lent to. 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_day: int = 0


@dataclass(frozen=True)
class Denial:
    """Why a job of another box is not taken, and after how many seconds it may be, None if that is unknown."""

    reason: str
    retry_after: int | None


@dataclass
class _Bucket:
    """Fills at a steady rate up to what it holds; may be overdrawn by work that was let in before it was counted."""

    size: float
    per_second: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + max(0.0, now - self.at) * self.per_second)
        self.at = now

    def wait(self, needed: float) -> int:
        return max(1, math.ceil((needed - self.level) / self.per_second))


@dataclass
class _Account:
    requests: _Bucket | None
    tokens: _Bucket | None


@dataclass
class Lending:
    """Decides on the jobs of other boxes. `own` has the terms of single boxes, by PeerID."""

    enabled: bool = True
    quiet: Sequence[Hours] = ()
    terms: Terms = field(default_factory=Terms)
    own: dict[str, Terms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def closed(self, clock: datetime) -> Denial | None:
        """Why nothing is lent to anybody at this time of the box's own clock; None when it is."""
        if not self.enabled:
            return Denial("this box does not lend (lend.enabled is false)", None)
        for hours in self.quiet:
            if hours.holds(clock.time()):
                return Denial(f"this box does not lend until {hours.end:%H:%M}", hours.seconds_left(clock))
        return None

    def ask(self, peer_id: str, now: float, clock: datetime) -> Denial | None:
        """Whether a job of a box is taken; where it is, it counts. `now` is seconds on a clock that never goes back."""
        closed = self.closed(clock)
        if closed is not None:
            return closed
        account = self._account(peer_id, now)
        for bucket in (account.requests, account.tokens):
            if bucket is not None:
                bucket.fill(now)
        if account.tokens is not None and account.tokens.level <= 0:
            terms = self._terms(peer_id)
            return Denial(
                f"the asking box has used its {terms.tokens_per_day} tokens a day", account.tokens.wait(needed=1)
            )
        if account.requests is not None:
            if account.requests.level < 1:
                terms = self._terms(peer_id)
                return Denial(
                    f"the asking box has sent its {terms.requests_per_minute} requests a minute",
                    account.requests.wait(needed=1),
                )
            account.requests.level -= 1
        return None

    def used(self, peer_id: str, tokens: int, now: float) -> None:
        """A job of a box took so many tokens, of its prompt and its answer."""
        account = self._account(peer_id, now)
        if account.tokens is not None:
            account.tokens.fill(now)
            account.tokens.level = max(-account.tokens.size, account.tokens.level - tokens)

    def _terms(self, peer_id: str) -> Terms:
        return self.own.get(peer_id, self.terms)

    def _account(self, peer_id: str, now: float) -> _Account:
        account = self._accounts.get(peer_id)
        if account is None:
            terms = self._terms(peer_id)
            account = self._accounts[peer_id] = _Account(
                _bucket(terms.requests_per_minute, MINUTE, now), _bucket(terms.tokens_per_day, DAY, now)
            )
        self._accounts.move_to_end(peer_id)
        if len(self._accounts) > _REMEMBERED:
            self._accounts.popitem(last=False)
        return account


def _bucket(size: int, seconds: float, now: float) -> _Bucket | None:
    return _Bucket(float(size), size / seconds, float(size), now) if size else None
