"""What moves or is checked on this box, for people to watch: fetches, models taken in, files that are verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal

from fleet.blobs.progress import Progress

Kind = Literal["fetch", "add", "verify"]
State = Literal["running", "done", "failed", "stopped"]

#: What is over is remembered so often.
KEPT: Final = 64


@dataclass
class Transfer:
    """One of them. `look` says how far it is, as plain values; `result` is there once it is done, `error` where it has
    failed or was stopped. `began` and `ended` are seconds since the epoch."""

    id: str
    kind: Kind
    name: str
    look: Callable[[], Mapping[str, object]]
    hash: str = ""
    source: str = ""
    state: State = "running"
    error: str = ""
    result: Mapping[str, object] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    ended: float | None = None

    def end(self, state: State, error: str = "", result: Mapping[str, object] | None = None) -> None:
        """It is over."""
        last = dict(self.look())
        self.look = lambda: last
        self.state, self.error, self.result, self.ended = state, error, dict(result or {}), time.time()

    def plain(self) -> dict[str, object]:
        """For the API."""
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.name,
            "hash": self.hash,
            "source": self.source,
            "state": self.state,
            "error": self.error,
            "began": self.began,
            "ended": self.ended,
            "progress": dict(self.look()),
            "result": dict(self.result),
        }


class Transfers:
    """Those that run, and the last that are over."""

    def __init__(self) -> None:
        self._all: dict[str, Transfer] = {}
        self._ids = count(1)

    def begin(
        self, kind: Kind, name: str, look: Callable[[], Mapping[str, object]], *, hash: str = "", source: str = ""
    ) -> Transfer:
        """One more."""
        transfer = Transfer(f"t{next(self._ids)}", kind, name, look, hash, source)
        self._all[transfer.id] = transfer
        over = [one.id for one in self._all.values() if one.state != "running"]
        for old in over[: max(0, len(over) - KEPT)]:
            del self._all[old]
        return transfer

    def all(self) -> Iterable[Transfer]:
        """Those that are remembered, the oldest first."""
        return tuple(self._all.values())

    def find(self, id: str) -> Transfer | None:
        """The one with this id."""
        return self._all.get(id)

    def running(self, kind: Kind, *, hash: str = "", source: str = "") -> Transfer | None:
        """The one that runs for this hash or from this source."""
        for one in self._all.values():
            same = (hash and one.hash == hash) or (source and one.source == source)
            if one.kind == kind and one.state == "running" and same:
                return one
        return None


def fetch_look(progress: Progress, given: Mapping[str, int], names: Callable[[str], str]) -> dict[str, object]:
    """How far a fetch is, as plain values; `given` is what each box has sent, those included that have gone since."""
    now = {source.peer_id: source for source in progress.sources}
    return {
        "phase": progress.state,
        "reason": progress.reason,
        "bytes": progress.bytes,
        "size": progress.size,
        "blocks": progress.blocks,
        "blocks_total": progress.blocks_total,
        "checked": progress.checked,
        "moved": progress.moved,
        "wasted": progress.wasted,
        "rate": progress.rate,
        "eta": progress.eta,
        "sources": [
            {
                "peer_id": peer_id,
                "name": names(peer_id),
                "lane": now[peer_id].lane if peer_id in now else "",
                "state": now[peer_id].state if peer_id in now else "gone",
                "bytes": given.get(peer_id, 0),
                "rate": now[peer_id].rate if peer_id in now else 0.0,
            }
            for peer_id in (*now, *sorted(given.keys() - now.keys()))
        ],
    }


class Steps:
    """How far work on a file is: bytes done and to do, told by its thread, read by whoever watches."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._done = self._total = 0
        self._began = time.monotonic()

    def enter(self, phase: str) -> None:
        """Another phase begins."""
        self._phase, self._done, self._total, self._began = phase, 0, 0, time.monotonic()

    def note(self, done: int, total: int) -> None:
        """So many bytes of so many are done."""
        self._done, self._total = done, total

    def look(self) -> dict[str, object]:
        """As plain values."""
        seconds = time.monotonic() - self._began
        rate = self._done / seconds if seconds > 0.2 else 0.0
        eta = (self._total - self._done) / rate if rate and self._total else None
        return {"phase": self._phase, "bytes": self._done, "size": self._total, "rate": rate, "eta": eta}
