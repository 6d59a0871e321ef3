"""How fast one model is: what is known from an earlier life, probes while nothing runs, and what jobs show."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from agent.engine.probing import AGAIN, SETTLE, Figures, FiguresFile, Quiet, Round, due_in, measure, sizes
from agent.engine.workload import Workload
from agent.errors import EngineError

#: Has a round of so many tokens to read and to choose done; None where it was not. Raises EngineError.
Ask = Callable[[int, int], Awaitable[Round | None]]

log: Final = structlog.get_logger("shoal.engine")


class Speed:
    """Keeps the rates of a model's workload what they are on this box, with this engine and set up as it is."""

    def __init__(self, jobs: Workload, file: FiguresFile, quiet: Quiet, *, engine: str, setup: str) -> None:
        self._jobs = jobs
        self._file = file
        self._quiet = quiet
        self._engine = engine
        self._setup = setup

    def remember(self, model_hash: str) -> None:
        """Start with what was found in an earlier life, however old that is."""
        known = self._file.get(model_hash)
        if known is not None:
            self._jobs.decode.start_with(known.decode)
            self._jobs.prefill.start_with(known.prefill)

    async def keep(self, model_hash: str, ask: Ask, on_change: Callable[[], None]) -> None:
        """Probe the model when that is due and nothing runs on this box, until cancelled; for while it is loaded."""
        while True:
            due = due_in(self._file.get(model_hash), self._engine, self._setup, time.time())
            await trio.sleep(due)
            await self._quiet.wait(SETTLE)
            async with self._quiet.turn:
                found = await self._probe(ask)
            if found is None:
                await trio.sleep(AGAIN)
                continue
            log.info(
                "engine.probed", model=self._jobs.name, decode_rate=round(found.decode, 1),
                prefill_rate=round(found.prefill, 1),
            )  # fmt: skip
            self._jobs.forget_rates()
            self._jobs.decode.add(found.decode)
            self._jobs.prefill.add(found.prefill)
            on_change()
            await trio.to_thread.run_sync(self._file.put, model_hash, found)

    async def _probe(self, ask: Ask) -> Figures | None:
        async def one() -> Round | None:
            return await ask(*sizes(self._jobs.prefill.value, self._jobs.decode.value))

        try:
            found = await measure(one, lambda: self._quiet.busy())
        except EngineError as error:
            log.warning("engine.not_probed", model=self._jobs.name, reason=error.message)
            found = None
        return Figures(*found, self._engine, self._setup, time.time()) if found else None
