"""Messages with QoS 1 on their way to the broker: no more at a time than it takes, the others in order behind. No I/O.

Sending more than a broker's Receive Maximum would end the connection (MQTT 5, 4.9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

#: Messages that are held back, past which no more are taken that nobody needs.
MOST_HELD: Final = 1024


class Window:
    """What is on its way on one connection, by the number that paho gave it."""

    def __init__(self) -> None:
        self._flying: dict[int, Callable[[str], None] | None] = {}
        self._held: deque[Callable[[], None]] = deque()

    def is_full(self, most: int) -> bool:
        """Whether a message has to be held back where the broker takes `most` at a time."""
        return len(self._flying) >= most

    @property
    def crowded(self) -> bool:
        """Whether very many are held back."""
        return len(self._held) > MOST_HELD

    def hold(self, send: Callable[[], None]) -> None:
        """Hold a message back; `send` is called when it is its turn."""
        self._held.append(send)

    def sent(self, number: int, done: Callable[[str], None] | None) -> None:
        """A message is on its way; `done` is called with what the broker says of it, empty where it has it."""
        self._flying[number] = done

    def acknowledged(self, number: int, problem: str) -> None:
        """The broker has answered a message. One that is none of these is passed over."""
        if number not in self._flying:
            return
        done = self._flying.pop(number)
        if done is not None:
            done(problem)
        if self._held:
            self._held.popleft()()
