"""A pool with one model, as benches and the soak use it: what is measured is the engine as the agent runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine.pool import EnginePool, HeldModel
from fleet.net.messages import InferRequest, Sampling

if TYPE_CHECKING:
    from agent.engine.protocol import Statistics

LOAD_LIMIT = 120.0


class EngineBox:
    """A running pool whose only model is loaded."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        #: Called on every change of the model's state or load.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def held(self) -> HeldModel:
        return self.pool.models()[0]

    @property
    def pid(self) -> int:
        pid = self.held.pid
        assert pid is not None, "the model's process does not run"
        return pid

    async def idle(self, limit: float = 10.0) -> None:
        """Return when no job runs or waits; fails where one is stuck."""
        changed = trio.Event()
        before, self.on_change = self.on_change, lambda: changed.set()
        try:
            with trio.fail_after(limit):
                while self.held.running or self.held.queued:
                    await changed.wait()
                    changed = trio.Event()
        finally:
            self.on_change = before

    async def statistics(self) -> Statistics | None:
        """What the child says of itself; None where the pool cannot ask it."""
        ask = getattr(self.pool, "stats", None)
        return None if ask is None else await ask(self.held.hash)


@asynccontextmanager
async def engine_box(model: Path, state_dir: Path, *, slots: int = 16, **config: Any) -> AsyncIterator[EngineBox]:
    """Run a pool, the model loaded and with room for `slots` at once where this engine can do that."""
    values = {"threads": 2, "context_tokens": 4096, "max_queue": 64, **config}
    if "slots" in EngineConfig.model_fields:
        values["slots"] = slots
    box: EngineBox
    loaded = trio.Event()

    def on_change() -> None:
        if box.held.state in ("loaded", "failed"):
            loaded.set()
        box.on_change()

    pool = EnginePool((ModelConfig(path=model),), EngineConfig(**values), state_dir, on_change)
    box = EngineBox(pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        with trio.fail_after(LOAD_LIMIT):
            await loaded.wait()
        assert box.held.state == "loaded", box.held.error
        yield box
        nursery.cancel_scope.cancel()


def completion(prompt: str, job: str = "j", **sampling: Any) -> InferRequest:
    """A greedy completion, unless the sampling says otherwise."""
    values = {"temperature": 0.0, "max_tokens": 64, **sampling}
    return InferRequest(job=job, kind="completion", model="m", prompt=prompt, sampling=Sampling(**values))
