"""What the agent asks a child about itself, and the answers on their way back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from agent.engine.child import Child
from agent.engine.probing import Round
from agent.engine.protocol import Probe, Probed, Statistics, Stats, encode
from agent.errors import EngineError

Answer = Statistics | Probed

#: Seconds for an answer, which comes between two steps.
LIMIT: Final = 60.0


class Questions:
    """The questions that one model's children have not answered yet."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._open: dict[int, tuple[trio.Event, list[Answer]]] = {}

    async def statistics(self, child: Child) -> Statistics:
        """How the child's engine is; as `ask`."""
        answer = await self.ask(child, Stats)
        if not isinstance(answer, Statistics):
            raise EngineError("the process that runs the model answered what was not asked")
        return answer

    async def round(self, child: Child, prompt: int, tokens: int) -> Round | None:
        """A round of a probe, None where there were requests; as `ask`."""
        answer = await self.ask(child, partial(Probe, prompt=prompt, tokens=tokens))
        if not isinstance(answer, Probed):
            raise EngineError("the process that runs the model answered what was not asked")
        done = Round(answer.prompt, answer.prompt_ms / 1000, answer.tokens, answer.tokens_ms / 1000)
        return done if answer.prompt and answer.tokens else None

    async def ask(self, child: Child, question: Callable[[int], Stats | Probe]) -> Answer:
        """What the child answers to a question, which is made with its id. Cancel-safe.

        Raises EngineError where the child ends, or says nothing for LIMIT seconds.
        """
        id = next(self._ids)
        answered, found = trio.Event(), list[Answer]()
        self._open[id] = answered, found
        child.post(encode(question(id)))
        try:
            with trio.move_on_after(LIMIT):
                await answered.wait()
        finally:
            self._open.pop(id, None)
        if not found:
            raise EngineError("the process that runs the model ended, or did not answer")
        return found[0]

    def answer(self, answer: Answer) -> None:
        """The child has answered; an answer that nobody waits for any more is dropped."""
        waiting = self._open.get(answer.id)
        if waiting is not None:
            waiting[1].append(answer)
            waiting[0].set()

    def give_up(self) -> None:
        """The child is gone."""
        for answered, _ in self._open.values():
            answered.set()
