"""Requests on their way into the engine: between the thread that reads them and the one that decodes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """What the decoding thread is handed, and what is to end. Thread-safe.

    `abort` ends the decoding step that runs; it is called from the reading thread.

    A cancel ends the step that runs where nobody else is in it any more: the slot is then free within milliseconds. A
    step that others are in goes on to its end, which is half a second away at most or what MIN_CHUNK tokens take: they
    would lose what it has done, and somebody who starts and cancels all the time would bring them to a halt. So cancels
    cost others no step, and less than the same prompts do that are read to their end. On one crowded core an answer of
    32 tokens took 1 s alone, 20 to 26 s beside three askers of 1,000 tokens each, and 11 to 12 s where these gave up
    within a second and came again, 7 to 9 s with 300 tokens and a fifth of a second.
    """

    def __init__(self, abort: Callable[[], None], resume: Callable[[], None]) -> None:
        self._abort = abort
        self._resume = resume
        self._items: deque[Item] = deque()
        self._cancelled: set[int] = set()
        self._known: set[int] = set()
        #: Of those known, the ones that the decoding thread has.
        self._arrived: set[int] = set()
        self._in_step: Collection[int] = ()
        self._news = False
        self._changed = threading.Condition()

    def announce(self, id: int) -> None:
        """A request has been read, and will come as an item."""
        with self._changed:
            self._known.add(id)

    def put(self, item: Item) -> None:
        """Something for the decoding thread."""
        with self._changed:
            self._items.append(item)
            self._news = True
            self._changed.notify()

    def cancel(self, id: int) -> None:
        """End a request, wherever it is; one that is over already, or was never there, is left alone."""
        with self._changed:
            if id in self._known:
                self._cancelled.add(id)
                if id in self._in_step and self._cancelled.issuperset(self._in_step):
                    self._abort()
                self._news = True
                self._changed.notify()

    @property
    def expecting(self) -> bool:
        """Whether there is any request that has not ended, though it may still be on its way."""
        with self._changed:
            return bool(self._known)

    def take(self, *, wait: bool) -> list[Item]:
        """What has come; with `wait`, something has, or a cancel."""
        with self._changed:
            while wait and not self._news:
                self._changed.wait()
            self._news = False
            items = [*self._items]
            self._items.clear()
            return items

    def cancelled_on_the_way(self) -> tuple[int, ...]:
        """Requests that are to end and have not been taken up yet; they are over now."""
        with self._changed:
            found = tuple(id for id in self._cancelled if id not in self._arrived)
            self._cancelled.difference_update(found)
            self._known.difference_update(found)
            return found

    def knows(self, id: int) -> bool:
        """Whether a request has been read and is not over."""
        with self._changed:
            return id in self._known

    def take_up(self, id: int) -> bool:
        """A request has come as an item, and whoever has it ends it; False where it is over already."""
        with self._changed:
            if id in self._known:
                self._arrived.add(id)
            return id in self._known

    def cancelled(self) -> frozenset[int]:
        """The requests that are to end."""
        with self._changed:
            return frozenset(self._cancelled)

    def over(self, id: int) -> None:
        """A request has ended."""
        with self._changed:
            self._known.discard(id)
            self._arrived.discard(id)
            self._cancelled.discard(id)

    def begin_step(self, ids: Collection[int]) -> bool:
        """A step with these requests begins; False where one has been cancelled meanwhile, and it must not."""
        with self._changed:
            if not self._cancelled.isdisjoint(ids):
                return False
            self._in_step = ids
            return True

    def end_step(self) -> None:
        """The step is over; a late abort does not concern the next one."""
        with self._changed:
            self._in_step = ()
            self._resume()
