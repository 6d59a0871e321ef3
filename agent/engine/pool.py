"""All models this box holds, itself or in a server beside it, and the one door to running a job on one of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from agent.config import EngineConfig, ExternalEngineConfig, ModelConfig
from agent.engine.external.engines import EngineFact, ExternalEngines
from agent.engine.external.held import ExternalModel
from agent.engine.holding import Holding
from agent.engine.identify import HashCache, stamp_of
from agent.engine.job import Event
from agent.engine.probing import FiguresFile, Quiet
from agent.engine.protocol import Statistics
from agent.engine.quarantine import Quarantine
from agent.engine.relay import relay
from agent.engine.room import Room
from agent.engine.shares import Shares
from agent.engine.shown import HeldModel, shown
from agent.errors import ModelBusyError, ModelLoadError, ModelNotFoundError, NoLocalModelError
from fleet.models.reference import is_hash, matches
from fleet.net.messages import InferRequest

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

__all__ = ["EnginePool", "HeldModel"]

#: Seconds that the start of the agent waits for hashes that are not cached.
_START_WAIT: Final = 2.0


@dataclass(frozen=True)
class _Life:
    """A model's own task: `scope` ends it, `over` is set when it has ended and its process is gone."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)


class EnginePool:
    """Runs jobs on the models of this box, each in a child process of its own, or in a server beside it.

    `on_change` is called, from the event loop, when a model's state or load has changed. `box` is this box's PeerID.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        config: EngineConfig,
        state_dir: Path,
        on_change: Callable[[], None],
        *,
        engines: Sequence[ExternalEngineConfig] = (),
        box: str = "",
        least_rate: float = 0.0,
    ) -> None:
        """`box` is this box's PeerID. A model that decoded fewer than `least_rate` tokens per second when it was last
        measured is loaded only when a job comes for it.
        """
        self._external = ExternalEngines(engines, config, box, on_change)
        self._config = config
        self._sessions = state_dir / "sessions"
        self._cache, self._quarantine = HashCache(state_dir / "model-hashes.json"), Quarantine()
        self._figures, self._quiet = FiguresFile(state_dir / "model-figures.json"), Quiet()
        self._on_change = on_change
        self._least_rate = least_rate
        self._shares: Shares | None = None
        self._room = Room(config.memory_budget)
        self._nursery: trio.Nursery | None = None
        self._lives: dict[Holding, _Life] = {}
        self._holdings = [self._make(model) for model in models]
        self._quiet.busy = lambda: any(one.busy or one.state == "loading" for one in self._holdings)

    def _make(self, model: ModelConfig, expect: str = "") -> Holding:
        return Holding(
            model,
            self._config,
            self._cache,
            self._changed,
            room=self._room,
            quarantine=self._quarantine,
            sessions=self._sessions,
            figures=self._figures,
            quiet=self._quiet,
            least_rate=self._least_rate,
            expect=expect,
        )

    def _changed(self) -> None:
        self._quiet.note_change()
        self._on_change()

    def share(self, shares: Shares) -> None:
        """Let other boxes have this much of every model from now on."""
        self._shares = shares
        for holding in self._holdings:
            holding.share(shares)
        self._external.share(shares)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the models until cancelled; on cancel every child is ended within seconds and none is left.

        Reports started when every file is identified, or after two seconds: hashing tens of gigabytes for the first
        time must not keep the box from serving what it already knows. Must run on the main thread.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for holding in self._holdings:
                    self._begin(holding)
                nursery.start_soon(self._external.run)
                with trio.move_on_after(_START_WAIT):
                    for holding in tuple(self._holdings):
                        await holding.identified.wait()
                    await self._external.wait_looked()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def add(self, model: ModelConfig, model_hash: str) -> None:
        """Run one model more from now on, which others gave this box: as long as its file has this hash, and no other.

        It is announced once its file has been looked at. Nothing where a model with this hash was added before.
        """
        if any(holding.expect == model_hash for holding in self._holdings):
            return
        holding = self._make(model, model_hash)
        if self._shares is not None:
            holding.share(self._shares)
        self._holdings.append(holding)
        if self._nursery is not None:
            self._begin(holding)

    async def remove(self, model_hash: str) -> bool:
        """Run a model that was added no longer; False where there is none. Its jobs fail, its process is gone then.

        Cancelling it does not bring the model back.
        """
        holding = next((one for one in self._holdings if one.expect == model_hash), None)
        if holding is None:
            return False
        self._holdings.remove(holding)
        life = self._lives.get(holding)
        if life is not None:
            life.scope.cancel()
            await life.over.wait()
        self._changed()
        return True

    def added(self) -> frozenset[str]:
        """The hashes of the models that were added."""
        return frozenset(holding.expect for holding in self._holdings if holding.expect)

    def aliens(self) -> frozenset[str]:
        """Those of them whose files turned out to be others than they have to be: nothing is run of them."""
        return frozenset(holding.expect for holding in self._holdings if holding.is_alien)

    def note_hash(self, path: Path, model_hash: str) -> None:
        """The whole file was hashed just now, and need not be again while it stays as it is. Blocks on the disk."""
        stamp = stamp_of(path)
        if stamp is not None:
            self._cache.put(path, stamp, model_hash.removeprefix("sha256:"))

    def capacity(self) -> int:
        """Bytes of memory that models may take on this box; 0 where it has no engine to run them with."""
        if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("jinja2") is None:
            return 0
        return self._room.budget

    def _begin(self, holding: Holding) -> None:
        assert self._nursery is not None
        life = self._lives[holding] = _Life()
        self._nursery.start_soon(self._live, holding, life)

    async def _live(self, holding: Holding, life: _Life) -> None:
        try:
            with life.scope:
                await holding.run()
        finally:
            del self._lives[holding]
            life.over.set()

    def models(self) -> tuple[HeldModel, ...]:
        """Every configured model, in the order of the configuration, then those that were added, then those of servers
        beside this box."""
        return (*map(shown, self._holdings), *map(shown, self._external.models()))

    def engines(self) -> tuple[EngineFact, ...]:
        """The servers beside this box: those that are configured, and those that have been found."""
        return self._external.facts()

    def find(self, model: str) -> HeldModel | None:
        """The model with this content hash or (in any case) name; None as long as its file has not been identified."""
        found = self._find(model)
        return None if found is None else shown(found)

    def problem(self, model: str) -> ModelLoadError | None:
        """Why a model that is configured here, by hash or name, cannot be loaded; None where there is no such trouble.

        It may be one that `find` does not give: the hash of a file that cannot be read is not known.
        """
        for holding in self._holdings:
            if matches(model, model_hash=holding.identity.hash, name=holding.name) and holding.problem is not None:
                return holding.problem
        external = self._external.find(model)
        return external.problem if external else None

    def memory_budget(self) -> int:
        """Bytes that all models of this box may take together; 0 where it holds none."""
        return self._room.budget if self._holdings else 0

    def unload(self, model: str) -> bool:
        """Free the memory of a model until a job asks for it; False where it is not loaded.

        Raises ModelNotFoundError for one that this box does not run itself, ModelBusyError while it has work.
        """
        found = self._own(model)
        for holding in found:
            if holding.busy:
                raise ModelBusyError(
                    f"{holding.name} has requests, {holding.running} running and {holding.queued} waiting; ask again"
                    " when they have ended",
                    details={"running": holding.running, "queued": holding.queued},
                )
        idle = [holding for holding in found if holding.idle]
        for holding in idle:
            holding.leave()
        return bool(idle)

    def retry(self, model: str) -> bool:
        """Load a failed model again when it is wanted, whatever it failed for; False where it has not failed.

        Raises ModelNotFoundError for one that this box does not run itself.
        """
        failed = [holding for holding in self._own(model) if holding.problem]
        for holding in failed:
            holding.retry()
        return bool(failed)

    def _own(self, model: str) -> list[Holding]:
        """The models of this box that are meant, though their files may be unknown. Raises ModelNotFoundError."""
        found = [h for h in self._holdings if matches(model, model_hash=h.identity.hash, name=h.name)]
        if found:
            return found
        other = self._external.find(model)
        if other is not None:
            raise ModelNotFoundError(f"{model} is run by {other.engine.label}, not by this box; see there")
        names = [holding.name for holding in self._holdings]
        raise ModelNotFoundError(
            f"this box runs no {model[:256]!r} itself; it runs: {', '.join(names) or 'none'}",
            details={"known": names, "param": "model"},
        )

    async def stats(self, model_hash: str) -> Statistics:
        """What the process of one of this box's own models says of itself between two of its steps.

        Raises NoLocalModelError where there is none that is loaded, EngineError where it ends before it answers.
        """
        holding = self._find_own(model_hash)
        if holding is None:
            raise NoLocalModelError(f"this box does not hold {model_hash}")
        return await holding.statistics()

    async def generate(self, model_hash: str, request: InferRequest, emit: Callable[[Event], Awaitable[None]]) -> None:
        """Run a job; awaits `emit` with Started, Delta… or Embedded…, Finished, and returns after that.

        Waits in the model's queue and while the model loads. Raises OverloadedError when the queue is full or the job's
        turn did not come in the time that it may wait (`begin_ms`), ModelLoadError when the model cannot be loaded,
        ContextLengthError and BadRequestError for the request, EngineError when the child or the server fails,
        NoLocalModelError for another hash, and for a peer's job on a model that is not lent. Cancelling it, or `emit`
        raising, ends the job in the child, or closes the connection to the server, and frees its slot.
        """
        found = self._find(model_hash) if is_hash(model_hash) else None
        if found is None:
            raise NoLocalModelError(f"this box does not hold {model_hash}")
        if isinstance(found, ExternalModel):
            theirs = found.admit(request)
            await relay(found, theirs, partial(found.release, theirs), emit)
        else:
            job = found.admit(request)
            await relay(found, job, partial(found.release, job), emit)

    def _find(self, model: str) -> Holding | ExternalModel | None:
        """The model that a reference means: this box's own where it has one that works, else a server's."""
        own = self._find_own(model)
        if own is not None and own.problem is None:
            return own
        other = self._external.find(model)
        return other if other is not None and (own is None or other.problem is None) else own

    def _find_own(self, model: str) -> Holding | None:
        for holding in self._holdings:
            if holding.identity.hash and matches(model, model_hash=holding.identity.hash, name=holding.name):
                return holding
        return None
