"""What the agent asks a child about itself, and the answers on their way back."""

from __future__ import annotations

import itertools

import trio

from agent.engine.child import Child
from agent.engine.protocol import Statistics, Stats, encode
from agent.errors import EngineError


class Questions:
    """The questions that one model's children have not answered yet."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._open: dict[int, tuple[trio.Event, list[Statistics]]] = {}

    async def ask(self, child: Child) -> Statistics:
        """How the engine is. Raises EngineError where the child ends before it answers. Cancel-safe."""
        id = next(self._ids)
        answered, found = trio.Event(), list[Statistics]()
        self._open[id] = answered, found
        child.post(encode(Stats(id)))
        try:
            await answered.wait()
        finally:
            self._open.pop(id, None)
        if not found:
            raise EngineError("the process that runs the model ended before it answered")
        return found[0]

    def answer(self, statistics: Statistics) -> None:
        """The child has answered; an answer that nobody waits for any more is dropped."""
        waiting = self._open.get(statistics.id)
        if waiting is not None:
            waiting[1].append(statistics)
            waiting[0].set()

    def give_up(self) -> None:
        """The child is gone."""
        for answered, _ in self._open.values():
            answered.set()
