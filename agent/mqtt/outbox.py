"""What is to be published: kept while the broker is away, bounded, and dropped oldest bulk first. Pure.

Entries leave when the broker has acknowledged them, or has refused them for good. Nothing here writes to disk: entries
that are to outlast the agent have a `seq` of the journal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet.net.messages import Priority

RANKS: Final[tuple[Priority, ...]] = ("interactive", "normal", "bulk")
#: Bytes an entry takes besides its topic and payload.
_OVERHEAD: Final = 512


@dataclass
class Entry:
    """A message to be published with QoS 1. `expires` is when nobody wants it any more, by the wall clock, None for
    never; `seq` is its number in the journal, 0 where it is in memory alone. `gone` is called once when it has left,
    with why: empty where the broker has it."""

    topic: str
    payload: bytes
    priority: Priority = "normal"
    retain: bool = False
    correlation: bytes | None = None
    user: tuple[tuple[str, str], ...] = ()
    expires: float | None = None
    seq: int = 0
    gone: Callable[[str], None] | None = field(default=None, compare=False)
    number: int = field(default=0, compare=False)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.payload) + len(self.topic) + len(self.correlation or b"") + _OVERHEAD


class Outbox:
    """Entries in the order in which they came, at most `most` of them and of `most_bytes` together."""

    def __init__(self, most: int = 1000, most_bytes: int = 32 * 1024 * 1024) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        #: Those that were not sent, by class, each in its order: who has to go is found without a look at all of them.
        self._unsent: Mapping[Priority, OrderedDict[int, Entry]] = {rank: OrderedDict() for rank in RANKS}
        self._bytes = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def on_the_way(self) -> int:
        """Entries that were sent and are not acknowledged."""
        return len(self._entries) - sum(map(len, self._unsent.values()))

    def add(self, entry: Entry) -> list[Entry]:
        """Take an entry in; returns those that had to go for it, the oldest of the lowest class first: maybe itself."""
        self._next += 1
        entry.number = self._next
        self._entries[entry.number] = entry
        self._unsent[entry.priority][entry.number] = entry
        self._bytes += entry.size
        dropped = []
        while len(self._entries) > self._most or self._bytes > self._most_bytes:
            victim = self._victim()
            if victim is None:
                break
            self.remove(victim)
            dropped.append(victim)
        return dropped

    def _victim(self) -> Entry | None:
        """The oldest of the lowest class among those that were not sent: what is on its way may have arrived."""
        lowest = next((self._unsent[rank] for rank in reversed(RANKS) if self._unsent[rank]), None)
        return None if lowest is None else next(iter(lowest.values()))

    def next(self) -> Entry | None:
        """The entry that is to be sent now, the oldest; it counts as sent."""
        oldest = min((next(iter(unsent)) for unsent in self._unsent.values() if unsent), default=None)
        if oldest is None:
            return None
        entry = self._entries[oldest]
        del self._unsent[entry.priority][oldest]
        return entry

    def put_back(self, entry: Entry) -> None:
        """An entry was not sent after all; it is next."""
        if entry.number in self._entries:
            unsent = self._unsent[entry.priority]
            unsent[entry.number] = entry
            unsent.move_to_end(entry.number, last=False)

    def remove(self, entry: Entry) -> bool:
        """An entry has left; False where it had already."""
        if self._entries.pop(entry.number, None) is None:
            return False
        self._unsent[entry.priority].pop(entry.number, None)
        self._bytes -= entry.size
        return True

    def forget_sending(self) -> None:
        """The connection has ended: what was not acknowledged is to be sent again, in its order."""
        for rank, unsent in self._unsent.items():
            unsent.clear()
            unsent.update((number, one) for number, one in self._entries.items() if one.priority == rank)

    def expired(self, now: float) -> Iterator[Entry]:
        """Entries that nobody wants any more."""
        waiting = [one for unsent in self._unsent.values() for one in unsent.values()]
        return iter([one for one in waiting if one.expires is not None and one.expires <= now])
