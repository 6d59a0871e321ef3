"""Which boxes are left alone for a while because they keep failing at a model. Pure: the caller passes the time.

A circuit breaker for each pair of peer and model. After FAILURES failures with no success between them it opens, and
the pair is asked no more for OPEN_FIRST seconds; then one job may try. If that fails too it opens again, twice as
long, up to OPEN_LONGEST; if it succeeds all is forgotten.

A link that comes up anew is a reason to try at once where the peer was never there to answer: it has been restarted, or
the way to it mended. A peer that answered with errors or lies, or was silent, gains nothing by hanging up, and one that
hangs up on every job is believed RECONNECTS times.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

FAILURES: Final = 3
OPEN_FIRST: Final = 10.0
OPEN_LONGEST: Final = 300.0
#: Links that came up anew and cut a pause short, with no success after any of them.
RECONNECTS: Final = 3
#: Pairs that are remembered; past it, those that failed longest ago are forgotten.
_REMEMBERED: Final = 4096
#: Seconds after which an older failure counts no more.
_MEMORY: Final = 600.0


@dataclass
class _Pair:
    failures: int = 0
    last: float = 0.0
    opened: int = 0
    until: float = 0.0
    trial: float | None = None
    #: Whether any of the failures was the peer's own doing, and how many links that came up have cut a pause short.
    its_own: bool = False
    reconnects: int = 0


class Breaker:
    """The failures of peers, by model hash. `now` is seconds on a clock that does not go back."""

    def __init__(self, *, trial_limit: float = 60.0) -> None:
        """`trial_limit` is after how many seconds a trial that nobody reported on no longer keeps others away."""
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._trial_limit = trial_limit

    def refusal(self, peer_id: str, model: str, now: float) -> str | None:
        """Why a peer is not to be asked for a model now; None where it may be."""
        pair = self._pairs.get((peer_id, model))
        if pair is None or not pair.opened:
            return None
        if now < pair.until:
            return f"failed {pair.failures} times, left alone for {pair.until - now:.0f} s"
        if pair.trial is not None and now - pair.trial < self._trial_limit:
            return "failed before, another job is trying it"
        return None

    def asked(self, peer_id: str, model: str, now: float) -> None:
        """A job is given to the peer; where its breaker was open, this is the one that tries."""
        pair = self._pairs.get((peer_id, model))
        if pair is not None and pair.opened:
            pair.trial = now

    def failed(self, peer_id: str, model: str, now: float, *, gone: bool = False) -> bool:
        """The peer failed at a job, by being `gone` or by what it did; True where that opened its breaker."""
        key = (peer_id, model)
        pair = self._pairs.setdefault(key, _Pair())
        self._pairs.move_to_end(key)
        if not pair.opened and now - pair.last > _MEMORY:
            pair = self._pairs[key] = _Pair()
        pair.its_own = pair.its_own or not gone
        pair.failures += 1
        pair.last = now
        was_trial, pair.trial = pair.trial is not None, None
        while len(self._pairs) > _REMEMBERED:
            self._pairs.popitem(last=False)
        if pair.opened and not was_trial and now < pair.until:
            return False  # a job that was under way when it opened
        if pair.failures < FAILURES and not pair.opened:
            return False
        pair.until = now + min(OPEN_LONGEST, OPEN_FIRST * 2**pair.opened)
        pair.opened = min(pair.opened + 1, 16)
        return True

    def done(self, peer_id: str, model: str) -> None:
        """The peer did a job: nothing is held against it."""
        self._pairs.pop((peer_id, model), None)

    def let_go(self, peer_id: str, model: str) -> None:
        """A job that was given to the peer ended with no verdict on it: its client left, or it was busy."""
        pair = self._pairs.get((peer_id, model))
        if pair is not None:
            pair.trial = None

    def link_up(self, peer_id: str) -> None:
        """The peer is back: where it was only gone it may be tried at once, and has one chance."""
        for (peer, _), pair in self._pairs.items():
            if peer == peer_id and pair.opened and not pair.its_own and pair.reconnects < RECONNECTS:
                pair.reconnects += 1
                pair.until, pair.trial = 0.0, None
