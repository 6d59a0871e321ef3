"""All models this box holds, itself or in a server beside it, and the one door to running a job on one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from agent.config import EngineConfig, ExternalEngineConfig, ModelConfig
from agent.engine.external.engines import EngineFact, ExternalEngines
from agent.engine.external.held import ExternalModel
from agent.engine.external.workload import ExternalJob
from agent.engine.holding import Holding, State
from agent.engine.identify import HashCache
from agent.engine.job import Event, QueuedJob
from agent.engine.probing import FiguresFile, Quiet
from agent.engine.protocol import Statistics
from agent.engine.quarantine import Quarantine
from agent.engine.room import Room
from agent.engine.shares import Shares
from agent.errors import ModelBusyError, ModelLoadError, ModelNotFoundError, NoLocalModelError
from fleet.models.described import Described, Stated, describe
from fleet.models.reference import is_hash, matches
from fleet.net.messages import Finished, InferRequest

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: Seconds that the start of the agent waits for hashes that are not cached.
_START_WAIT: Final = 2.0


@dataclass(frozen=True)
class HeldModel:
    """A model of this box as it is now.

    `hash` is empty until the file has been read, or where it cannot be. Rates are tokens per second, None until
    measured. `error` says why a failed model failed. `size_bytes` is the file's; `architecture`, `quantisation` and
    `size_label` are its header's words, empty where unknown. `pid` is the child's, None while there is none.
    `memory_bytes` is what it was given while it is loaded, 0 otherwise; `cells` are the tokens its cache holds then,
    and `plan_note` says what of the wish did not fit. `unsaved` is why its process cannot save conversations, empty
    where it can. `engine_version` is what runs it, by name and version, where this
    box does that itself. `embedding` is whether it gives vectors and no text. `engine` is
    the kind of the server that runs it and `url` where that is, both empty for one that this box runs itself from
    `path`; one that is not to be lent is for this box's own clients alone. `reads` is a name that says which model it
    is, by its name and its header together, empty where that is not known; `doubts` is what the two disagree on. A name
    that is not `named` is that of a file and nobody chose it.
    """

    hash: str
    name: str
    state: State
    context_tokens: int
    decode_rate: float | None
    prefill_rate: float | None
    running: int
    queued: int
    slots: int
    error: str | None
    path: Path | None = None
    size_bytes: int = 0
    architecture: str = ""
    quantisation: str = ""
    size_label: str = ""
    pid: int | None = None
    engine_version: str = ""
    parameters: int = 0
    embedding: bool = False
    memory_bytes: int = 0
    cells: int = 0
    plan_note: str = ""
    unsaved: str = ""
    engine: str = ""
    url: str = ""
    lend: bool = True
    reads: str = ""
    named: bool = True
    doubts: tuple[str, ...] = ()


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
        self._holdings: list[Holding] = []
        self._room: Room | None = None
        if models:
            cache, quarantine = HashCache(state_dir / "model-hashes.json"), Quarantine()
            figures, quiet = FiguresFile(state_dir / "model-figures.json"), Quiet()

            def changed() -> None:
                quiet.note_change()
                on_change()

            self._room = Room(config.memory_budget)
            self._holdings = [
                Holding(
                    model,
                    config,
                    cache,
                    changed,
                    room=self._room,
                    quarantine=quarantine,
                    sessions=state_dir / "sessions",
                    figures=figures,
                    quiet=quiet,
                    least_rate=least_rate,
                )
                for model in models
            ]
            quiet.busy = lambda: any(one.busy or one.state == "loading" for one in self._holdings)

    def share(self, shares: Shares) -> None:
        """Let other boxes have this much of every model from now on."""
        for holding in self._holdings:
            holding.share(shares)
        self._external.share(shares)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the models until cancelled; on cancel every child is ended within seconds and none is left.

        Reports started when every file is identified, or after two seconds: hashing tens of gigabytes for the first
        time must not keep the box from serving what it already knows. Must run on the main thread.
        """
        async with trio.open_nursery() as nursery:
            for holding in self._holdings:
                nursery.start_soon(holding.run)
            nursery.start_soon(self._external.run)
            with trio.move_on_after(_START_WAIT):
                for holding in self._holdings:
                    await holding.identified.wait()
                await self._external.wait_looked()
            task_status.started()
            await trio.sleep_forever()

    def models(self) -> tuple[HeldModel, ...]:
        """Every configured model, in the order of the configuration, then those of servers beside this box."""
        return (*map(_shown, self._holdings), *map(_shown, self._external.models()))

    def engines(self) -> tuple[EngineFact, ...]:
        """The servers beside this box: those that are configured, and those that have been found."""
        return self._external.facts()

    def find(self, model: str) -> HeldModel | None:
        """The model with this content hash or (in any case) name; None as long as its file has not been identified."""
        found = self._find(model)
        return None if found is None else _shown(found)

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
        return self._room.budget if self._room else 0

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

        Waits in the model's queue and while the model loads. Raises OverloadedError when the queue is full,
        ModelLoadError when the model cannot be loaded, ContextLengthError and BadRequestError for the request,
        EngineError when the child or the server fails, NoLocalModelError for another hash, and for a peer's job on a
        model that is not lent. Cancelling it, or `emit` raising, ends the job in the child, or closes the connection to
        the server, and frees its slot, at the latest two seconds later.
        """
        found = self._find(model_hash) if is_hash(model_hash) else None
        if found is None:
            raise NoLocalModelError(f"this box does not hold {model_hash}")
        if isinstance(found, ExternalModel):
            theirs = found.admit(request)
            await _relay(theirs, partial(found.release, theirs), emit)
        else:
            job = found.admit(request)
            await _relay(job, partial(found.release, job), emit)

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


async def _relay(
    job: QueuedJob | ExternalJob,
    release: Callable[[], None],
    emit: Callable[[Event], Awaitable[None]],
) -> None:
    """Hand on the events of a job that has been admitted, until its Finished, and let go of it in any case."""
    try:
        while True:
            event = await job.next()
            await emit(event)
            if isinstance(event, Finished):
                return
    finally:
        job.close()
        release()


def _shown(model: Holding | ExternalModel) -> HeldModel:
    """A model as it is now."""
    common = HeldModel(
        hash=model.identity.hash,
        name=model.name,
        state=model.state,
        context_tokens=model.context_tokens,
        decode_rate=model.decode.value,
        prefill_rate=model.prefill.value,
        running=model.running,
        queued=model.queued,
        slots=model.slots,
        error=model.error,
    )
    if isinstance(model, ExternalModel):
        listed = model.listed
        stated = Stated(
            architecture=listed.architecture, size_label=listed.size_label, quantisation=listed.quantisation
        )
        described = _described(listed.name, stated)
        return replace(
            common,
            size_bytes=listed.size_bytes,
            architecture=listed.architecture,
            quantisation=listed.quantisation,
            size_label=listed.size_label,
            engine=model.engine.kind,
            url=str(model.engine.settings.url),
            lend=model.lend,
            reads=described.told,
            doubts=described.doubts,
        )
    own = replace(
        common,
        path=model.path,
        size_bytes=model.identity.stamp.size if model.identity.stamp else 0,
        pid=model.pid,
        unsaved=model.unsaved,
        engine_version=model.engine_version,
        named=model.named,
    )
    if (facts := model.identity.facts) is not None:
        described = _described(model.name, Stated.of(facts))
        own = replace(
            own,
            reads=described.told,
            doubts=described.doubts,
            architecture=facts.architecture,
            quantisation=facts.quantisation,
            size_label=facts.size_label,
            parameters=facts.parameters,
            embedding=facts.embedding,
        )
    if (plan := model.plan) is not None:
        own = replace(own, memory_bytes=plan.estimate.total, cells=plan.cells, plan_note=plan.why)
    return own


@lru_cache(maxsize=1024)
def _described(name: str, stated: Stated) -> Described:
    # Models are looked at with every job, and what they say of themselves stays the same.
    return describe(name, stated)
