"""Answers that have arrived and that nobody has read yet: how many bytes of them a call, and a link, may hold.

A link's reader never waits for whoever consumes an answer, so what a slow consumer leaves lying has to lie here. Pure
but for the event that wakes a consumer.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from fleet.errors import BacklogError, FleetError
from fleet.net.frames import End, Event, Failure, decode

Answer = Event | End | Failure

#: Bytes that one call, and all calls of a link, may have waiting; past it one more frame is taken.
#: A token is about 60 bytes on the wire, so a call's are about 8,000 of them.
MAX_CALL: Final = 1024 * 1024
MAX_LINK: Final = 8 * 1024 * 1024
#: What waits beyond this stays as it was on the wire: decoded, it can take up to 100 times as much memory.
_DECODED: Final = 16 * 1024
#: Bytes that a frame costs beside its own, so that many tiny ones cannot hide.
_OVERHEAD: Final = 64


class PendingCall:
    """A call that this box made: its answers wait here for the task that made it."""

    def __init__(self, backlog: Backlog) -> None:
        self.size = 0
        self._backlog = backlog
        self._waiting: deque[tuple[int, Answer | bytes]] = deque()
        self._wake = trio.Event()
        self._error: FleetError | None = None
        self._is_read = False

    @property
    def failed(self) -> bool:
        """True once the call can get no more answers."""
        return self._error is not None

    async def next(self) -> Answer:
        """The next answer, waiting for it; raises what `fail` was given, which throws away what waited."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._wake = trio.Event()
            self._is_read = True
            try:
                await self._wake.wait()
            finally:
                self._is_read = False
        cost, answer = self._waiting.popleft()
        self._count(-cost)
        # It was decoded when it came, so it can be decoded.
        return decode(answer) if isinstance(answer, bytes) else answer  # type: ignore[return-value]

    def put(self, answer: Answer, payload: bytes) -> None:
        """Add an answer whose bytes on the wire are `payload`."""
        cost = len(payload) + _OVERHEAD
        packed = not self._is_read and self.size + cost > _DECODED
        self._waiting.append((cost, payload if packed else answer))
        self._count(cost)
        self._wake.set()

    def fail(self, error: FleetError, *, at_once: bool) -> None:
        """End the call with `error`: now, or after what waits has been read."""
        self._error = self._error or error
        if at_once:
            self.clear()
        self._wake.set()

    def clear(self) -> None:
        """Throw away what waits."""
        self._waiting.clear()
        self._count(-self.size)

    def _count(self, change: int) -> None:
        self.size += change
        self._backlog.size += change


class Backlog:
    """The calls of one link that are waiting for answers, by their ids."""

    def __init__(self) -> None:
        self.size = 0
        self._calls: dict[int, PendingCall] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._calls

    def open(self, call_id: int) -> PendingCall:
        """A call that starts."""
        call = self._calls[call_id] = PendingCall(self)
        return call

    def close(self, call_id: int) -> None:
        """A call is over; answers that come for it from here on are not kept."""
        self._calls.pop(call_id).clear()

    def put(self, answer: Answer, payload: bytes) -> int | None:
        """Keep an answer for its consumer; returns the id of a call that was given up for it.

        That is the call itself where it holds too much, and the one that holds most where all of them do. It fails
        with a BacklogError, and its peer is to be told. The call of `answer` must be open.
        """
        call = self._calls[answer.id]
        if call.failed:
            return None
        if call.size >= MAX_CALL:
            return self._give_up(answer.id)
        call.put(answer, payload)
        if self.size < MAX_LINK:
            return None
        return self._give_up(max(self._calls, key=lambda call_id: self._calls[call_id].size))

    def _give_up(self, call_id: int) -> int:
        call = self._calls[call_id]
        error = BacklogError(
            f"the answer was given up: {call.size} bytes of it waited to be read; read answers as they come",
            details={"waiting_bytes": call.size, "limit_bytes": MAX_CALL},
        )
        call.fail(error, at_once=True)
        return call_id

    def fail_all(self, error: FleetError) -> None:
        """The link is over: every call fails with `error` once what came for it has been read."""
        for call in self._calls.values():
            call.fail(error, at_once=False)
