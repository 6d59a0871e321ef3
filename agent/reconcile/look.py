"""What is on this box now, and how long it has been so: what `plan` compares with what the document wants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import trio

from agent.engine.pool import EnginePool
from agent.reconcile.pins import Pins
from agent.reconcile.plan import Actual, Copy, Fetching
from agent.reconcile.schedule import Window
from agent.reconcile.situation import Situation
from fleet.blobs.errors import BlobError
from fleet.blobs.store import BlobStore

#: Seconds until what failed is tried again: at first, and at most after failing again and again.
_AGAIN: Final = 15.0
_AGAIN_MOST: Final = 900.0
#: Seconds a box stays chosen as a stand-in before it acts on it: who was called gone has so long to contradict.
SETTLE: Final = 10.0
#: Seconds after which things are looked at again although nobody said that they had changed: the disk says nothing.
LOOK_AGAIN: Final = 15.0


@dataclass(frozen=True)
class Rules:
    """Seconds: how long a copy stays that nobody wants, and how long a stand-in waits before it acts."""

    surplus_after: float
    settle: float = SETTLE


@dataclass(frozen=True)
class Work:
    """What goes on: what is fetched and taken in, what somebody works on (`busy`), what is about to be deleted
    (`leaving`), why nothing may be fetched (`closed`), and which boxes cannot be reached (`missed`)."""

    fetching: tuple[Fetching, ...]
    adopting: frozenset[str]
    busy: frozenset[str]
    leaving: frozenset[str]
    closed: str
    missed: Collection[bytes]


@dataclass(frozen=True)
class _Failure:
    reason: str
    until: float
    times: int


class Look:
    """Looks at the store, the engine and the pins of one box, and remembers since when things are as they are."""

    def __init__(self, store: BlobStore, pool: EnginePool, pins: Pins, rules: Rules) -> None:
        self._store = store
        self._pool = pool
        self._pins = pins
        self._rules = rules
        self._failures: dict[str, _Failure] = {}
        self._unwanted: dict[str, float] = {}
        self._stands_in: dict[str, float] = {}

    def note_failure(self, blob: str, reason: str) -> None:
        """Something about this model failed: wait before it is tried again, longer each time."""
        times = self._failures[blob].times + 1 if blob in self._failures else 1
        wait = min(_AGAIN_MOST, _AGAIN * 2.0 ** min(times - 1, 10))
        self._failures[blob] = _Failure(reason, trio.current_time() + wait, times)

    def forgive(self, blob: str) -> None:
        """What failed about this model may be tried at once."""
        self._failures.pop(blob, None)

    async def actual(self, situation: Situation, work: Work) -> Actual:
        """What is here. Asks the disk, in a thread, how much it takes."""
        held = self._store.held()
        room = await trio.to_thread.run_sync(self._room)
        served, models = self._pool.added(), self._pool.models()
        ours = {model.hash: model for model in models if model.path is not None and model.hash}
        mine = {model_hash: model for model_hash, model in ours.items() if model_hash not in served}
        capacity = self._pool.capacity()
        wanted = {want.hash for want in situation.desired.wants}
        now = trio.current_time()
        self._unwanted = {
            blob: self._unwanted.get(blob, now) for blob in held if blob not in wanted or blob in work.leaving
        }
        copies = []
        for blob, found in held.items():
            model = ours.get(blob)
            in_use = model is not None and bool(model.running or model.queued)
            copies.append(
                Copy(
                    blob,
                    found.manifest.size,
                    served=blob in served,
                    others=situation.kept_elsewhere(blob, work.missed),
                    unwanted_for=now - self._unwanted[blob] if blob in self._unwanted else None,
                    busy=in_use or blob in work.busy,
                    pinned=blob in self._pins,
                )
            )
        device = self._store.folder.stat().st_dev
        return Actual(
            copies=tuple(copies),
            fetching=work.fetching,
            # All of it is reserved when it is begun.
            parts={blob: state.manifest.size for blob, state in self._store.partials().items()},
            own=frozenset(mine),
            linkable=frozenset(
                blob
                for blob, model in mine.items()
                if model.path is not None and _device(model.path) == device and blob not in work.adopting
            ),
            broken=frozenset(served - held.keys()),
            suspect=frozenset(self._pool.aliens() & held.keys() - work.busy),
            free=room,
            memory=capacity or None,
            closed=work.closed,
            failed=self._failed(situation, now),
            surplus_after=self._rules.surplus_after,
        )

    def until_next(self, window: Window) -> float:
        """Seconds until things may be different without anybody saying so."""
        now = trio.current_time()
        waits = [failure.until - now for failure in self._failures.values() if failure.until > now]
        waits += [since + self._rules.settle - now for since in self._stands_in.values()]
        waits += [since + self._rules.surplus_after - now for since in self._unwanted.values()]
        waits = [wait for wait in waits if wait > 0]
        return min([LOOK_AGAIN, window.seconds_to_change(datetime.now().astimezone()), *waits])

    def _room(self) -> int:
        try:
            return self._store.room()
        except BlobError:
            return 0

    def _failed(self, situation: Situation, now: float) -> Mapping[str, str]:
        """Why a model is not tried now: it failed lately, or this box is not sure yet that it is to stand in."""
        failed = {
            blob: f"{failure.reason}; it is tried again in {max(1, round(failure.until - now))} s"
            for blob, failure in self._failures.items()
            if failure.until > now
        }
        standing = situation.stands_in() - self._pins.all()
        self._stands_in = {blob: self._stands_in.get(blob, now) for blob in standing}
        for blob, since in self._stands_in.items():
            if now - since < self._rules.settle:
                failed.setdefault(blob, "a box that is to hold it is gone; it is given a moment to be back")
        return failed


def _device(path: Path) -> int:
    try:
        return path.stat().st_dev
    except OSError:
        return -1
