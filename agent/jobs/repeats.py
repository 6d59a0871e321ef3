"""Refusals that repeat: the first of a minute are told one by one, the others as a number. Pure.

A peer that asks a thousand times a second for what it may not have would otherwise push everything else out of a trail
of bounded size. Only refusals are taken together: what ran, or was to run, is always told by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from agent.jobs.outcome import Outcome

#: Refusals of one kind that are told one by one within a window, which begins with the first of them (seconds).
ONE_BY_ONE: Final = 30
WINDOW: Final = 60.0
#: Kinds that are kept apart; past it, the one whose window began longest ago is closed early.
MAX_KINDS: Final = 512

_Kind = tuple[str, str, str]


@dataclass
class _Window:
    began: float
    told: int = 0
    held: int = 0
    since: float = 0.0
    last: Outcome | None = None

    def close(self) -> list[Outcome]:
        if self.last is None:
            return []
        if self.held == 1:
            return [self.last]
        # The number stands for many jobs; the one that came last is named no more than the others.
        return [replace(self.last, job="", traceparent="", parent="", count=self.held, since=self.since)]


class Repeats:
    """Which outcomes are to be told now. A kind is a role, a peer (or this box's own clients) and an error code."""

    def __init__(self) -> None:
        self._windows: OrderedDict[_Kind, _Window] = OrderedDict()
        #: Outcomes that were told, or will be, as part of a number; and how many kinds have some that will be.
        self.taken_together = 0
        self.holding = 0

    def take(self, outcome: Outcome, now: float) -> list[Outcome]:
        """One outcome; returns those that are to be told now, in order."""
        if outcome.outcome != "refused":
            return [outcome]
        kind = (outcome.role, outcome.peer, outcome.error)
        ready: list[Outcome] = []
        window = self._windows.get(kind)
        if window is not None and now - window.began >= WINDOW:
            ready += self._close(kind)
            window = None
        if window is None:
            window = self._windows[kind] = _Window(now)
            if len(self._windows) > MAX_KINDS:
                ready += self._close(next(iter(self._windows)))
        if window.told < ONE_BY_ONE:
            window.told += 1
            return [*ready, outcome]
        if not window.held:
            window.since = outcome.at
            self.holding += 1
        window.held += 1
        window.last = outcome
        self.taken_together += 1
        return ready

    def due(self, now: float, *, everything: bool = False) -> list[Outcome]:
        """The numbers whose windows are over, oldest first; at the end, those of `everything`."""
        ready: list[Outcome] = []
        while self._windows:
            kind, window = next(iter(self._windows.items()))
            if not everything and now - window.began < WINDOW:
                break
            ready += self._close(kind)
        return ready

    def _close(self, kind: _Kind) -> list[Outcome]:
        window = self._windows.pop(kind)
        self.holding -= bool(window.held)
        return window.close()

    def wait(self, now: float) -> float | None:
        """Seconds until a number is due, None while none is held."""
        held = [window.began + WINDOW - now for window in self._windows.values() if window.held]
        return max(0.0, min(held)) if held else None
