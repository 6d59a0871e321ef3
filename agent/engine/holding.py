"""One model this box holds: what is known of its file, its queue, and the child process that runs it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import structlog
import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine.child import Child
from agent.engine.death import Death, judge
from agent.engine.identify import HashCache, Identity
from agent.engine.job import QueuedJob
from agent.engine.launch import load_message, setup_of
from agent.engine.loading import Loading
from agent.engine.memory import Plan, Wish, size_of
from agent.engine.model_file import ModelFile
from agent.engine.probing import FiguresFile, Quiet, engine_version
from agent.engine.protocol import Begun, Done, Failed, Loaded, Probed, Statistics, Step, Up, Vectors
from agent.engine.quarantine import CRASHES, Quarantine, remedy_for
from agent.engine.questions import Questions
from agent.engine.rates import MovingRate
from agent.engine.room import NoRoomError, Room
from agent.engine.shares import Shares
from agent.engine.speed import Speed
from agent.engine.trouble import Trouble
from agent.engine.workload import Workload
from agent.errors import DrainingError, EngineError, ModelLoadError, NoLocalModelError, OverloadedError
from fleet.models.reference import canonical_name
from fleet.net.messages import InferRequest

State = Literal["idle", "loading", "loaded", "failed"]

#: Seconds before a load that failed for a passing reason is tried again.
LOAD_AGAIN: Final = 30.0
_MAX_BACKOFF: Final = 30.0
#: What is left to a model's next process of the memory with which the kernel killed the last one.
_SQUEEZE: Final = 0.75

log = structlog.get_logger("shoal.engine")


class Holding:
    """The life of one model: identify the file, wait until it is wanted and there is memory for it, run a child, start
    again when that dies.

    All methods but `run` return at once and are called from the thread of the event loop.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: EngineConfig,
        cache: HashCache,
        on_change: Callable[[], None],
        *,
        room: Room,
        quarantine: Quarantine,
        sessions: Path,
        figures: FiguresFile,
        quiet: Quiet,
        least_rate: float = 0.0,
        expect: str = "",
    ) -> None:
        """`expect` is the hash that its file has to have, empty where any will do."""
        self.path: Path = model.path
        self.expect = expect
        self._file = ModelFile(model.path, cache)
        self.name = canonical_name(model.name or model.path.name)
        #: Whether somebody chose the name, as against a file that happens to be called so.
        self.named = model.name is not None
        self.state: State = "loading"
        self._trouble: Trouble | None = None
        #: What the child was started with; None while there is none.
        self.plan: Plan | None = None
        self.identified = trio.Event()
        self.pid: int | None = None
        self._loading: Loading | None = None
        self._model = model
        self._config = config
        self._room = room
        self._quarantine = quarantine
        self._sessions = sessions
        self._questions = Questions()
        #: Whether it is loaded only when a job comes; so is one that had to leave, or found no room when it started.
        self._on_demand = not config.preload
        self._least_rate = least_rate
        #: Name and version of what runs it.
        self.engine_version = engine_version()
        #: Bytes the next child may take at most, after the kernel killed one for want of memory.
        self._most: int | None = None
        self._last_crash = ""
        self._on_change = on_change
        self._slots = model.slots or config.slots
        self._jobs = Workload(self.name, slots=self._slots, max_queue=config.max_queue, on_change=self._note_load)
        self._speed = Speed(self._jobs, figures, quiet, engine=self.engine_version, setup=setup_of(config))
        self._wanted = trio.Event()
        self._crashes = 0
        self._stopped = False

    @property
    def identity(self) -> Identity:
        """What its file holds, as far as is known."""
        return self._file.identity

    @property
    def is_alien(self) -> bool:
        """Whether its file is another than the one that it has to be: then it is neither run nor told of."""
        return bool(self.expect and self.identity.hash and self.identity.hash != self.expect)

    @property
    def running(self) -> int:
        """Jobs in the child."""
        return self._jobs.running

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot or for the model to load."""
        return self._jobs.queued

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find room."""
        return self._jobs.retry_after

    @property
    def slots(self) -> int:
        """Jobs it runs at a time, as loaded or as it was last."""
        return self._jobs.slots

    @property
    def decode(self) -> MovingRate:
        """Tokens per second of an answer."""
        return self._jobs.decode

    @property
    def prefill(self) -> MovingRate:
        """Tokens per second of a prompt."""
        return self._jobs.prefill

    @property
    def unsaved(self) -> str:
        """Why its process cannot save conversations; empty where it can, and where there is none."""
        return self._loading.child.unsaved if self._loading else ""

    @property
    def last_used(self) -> float:
        """When a job last came or went, on trio's clock."""
        return self._jobs.last_used

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no work, neither running nor waiting."""
        return self.state == "loaded" and not self.busy

    @property
    def busy(self) -> bool:
        """Whether it has work, running or waiting."""
        return bool(self.running or self.queued)

    @property
    def context_tokens(self) -> int:
        """Tokens that one job may use, as loaded or as it would be given enough memory; 0 while the file is unknown."""
        return self.plan.context if self.plan else self._wanted_context

    @property
    def _wanted_context(self) -> int:
        facts = self.identity.facts
        return min(self._model.context_tokens or self._config.context_tokens, facts.context_length) if facts else 0

    @property
    def problem(self) -> ModelLoadError | None:
        """Why no job for it can be run now: it cannot be loaded, and what to do. None unless it is failed."""
        return self._trouble.problem(self.name, trio.current_time()) if self._trouble else None

    @property
    def error(self) -> str | None:
        """Why it is failed; None unless it is."""
        return self._trouble.reason if self._trouble else None

    def admit(self, request: InferRequest) -> QueuedJob:
        """Take a job in; it is given to the child as soon as there is a slot.

        Raises OverloadedError when the queue, or its asker's share of it, is full, ModelLoadError at once while the
        model cannot be loaded, BadRequestError for a request that is too large to be passed on, DrainingError after
        the end.
        """
        if self._stopped:
            raise DrainingError("the engine is shutting down")
        problem = self.problem
        if problem is not None:
            raise problem
        # It may wait for a child that has more context than this one.
        job = self._jobs.admit(request, self._wanted_context)
        self._wanted.set()
        return job

    def release(self, job: QueuedJob) -> None:
        """The job's caller is done with it; see Workload.release."""
        self._jobs.release(job)

    def leave(self) -> None:
        """Unload, for another model; to be asked of an idle one only. It is loaded again when a job comes."""
        if self._loading is not None:
            self._on_demand = True
            self._jobs.detach()
            self._set_state("idle")
            self._loading.leave()

    def retry(self) -> None:
        """Load it again as soon as it is wanted, whatever kept it from being loaded; nothing unless it is failed."""
        if self._trouble is not None:
            self._quarantine.lift(self.identity.hash)
            self._most = None
            self._trouble = replace(self._trouble, retry_at=trio.current_time())

    def share(self, shares: Shares) -> None:
        """Let other boxes have this much of the model from now on."""
        self._jobs.shares = shares

    async def run(self) -> None:
        """Live until cancelled; then the child is ended and every job fails with DrainingError."""
        try:
            while True:
                if self.identity.facts is None or not self._file.unchanged:
                    await self._identify()
                if self.is_alien:
                    self._fail(
                        f"its file is not the one that the fleet's manifest names, but {self.identity.hash}",
                        remedy=f"have it checked and repaired: shoal models verify {self.name}",
                    )
                elif self.identity.facts is None:
                    self._fail(self.identity.error)
                elif importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("jinja2") is None:
                    remedy = "install it with: pip install 'shoal[engine]'; in a container, run the image shoal-agent"
                    self._fail("this box has no engine", remedy=remedy)
                    await trio.sleep_forever()
                elif (until := self._quarantine.until(self.identity.hash, trio.current_time())) is not None:
                    self._fail_crashed(until)
                else:
                    await self._wait_wanted()
                    if self._file.unchanged:  # else it is to be hashed first
                        await self._load()
                if self.state == "failed":
                    await self._file.wait_change(lambda: self._trouble.retry_at if self._trouble else 0.0)
        finally:
            self._stopped = True
            self._jobs.end(DrainingError("the engine was shut down"), waiting=True)

    # --- the file ---------------------------------------------------------------------------------------------------

    async def _identify(self) -> None:
        self._set_state("loading")
        before = self.identity
        await self._file.identify()
        if before.hash and before.hash != self.identity.hash:
            self._crashes, self._most = 0, None
            self._jobs.forget_rates()
            reason = f"{self.path.name} now holds another model; ask for it by its name or new hash"
            self._jobs.end(ModelLoadError(reason), waiting=True)
        self._speed.remember(self.identity.hash)
        self.identified.set()

    # --- the child --------------------------------------------------------------------------------------------------

    async def _wait_wanted(self) -> None:
        """Wait until there is a job, or the model is to be loaded anyway; after crashes, for the backoff too."""
        slow = self.decode.value is not None and self.decode.value < self._least_rate
        if (self._on_demand or slow) and not self.queued:
            self._set_state("idle")
            self._wanted = trio.Event()
            await self._wanted.wait()
        self._set_state("loading")
        if self._crashes > 1:
            await trio.sleep(min(_MAX_BACKOFF, 0.5 * 2 ** (self._crashes - 2)))

    async def _load(self) -> None:
        """Find memory for it and run a child there; without memory, say so to those who wait."""
        facts = self.identity.facts
        assert facts is not None
        wish = Wish(self._wanted_context, self._slots, flash=self._config.flash_attention != "off")
        try:
            plan = await self._room.take(self, facts, wish, most=self._limit(), urgent=self.queued > 0)
        except NoRoomError as error:
            if error.ever:
                self._on_demand = True
                self._refuse_waiting(error)
                return
            reason = error.reason + (" after the kernel ended it for want of memory" if self._most else "")
            self._most = None
            remedy = "free memory, raise engine.memory_budget or lower engine.context_tokens"
            self._fail(reason, remedy=remedy, retry_at=trio.current_time() + LOAD_AGAIN)
            return
        try:
            await self._run_child(plan)
        finally:
            self._room.give_back(self)

    def _limit(self) -> int | None:
        """Bytes it may take at most, as configured for it and after what has happened; None for what there is."""
        own = self._model.memory_budget
        limits = [size_of(own, self._room.total)] if own is not None else []
        return min([*limits, *([self._most] if self._most else [])], default=None)

    def _refuse_waiting(self, error: NoRoomError) -> None:
        refused = OverloadedError(
            f"{self.name} cannot be loaded now: {error.reason}",
            details=error.details,
            retry_after=self._jobs.retry_after,
        )
        jobs = self._jobs.end(refused, running=False, waiting=True)
        log.warning("engine.no_room", model=self.name, reason=error.reason, jobs=jobs, **error.details)

    async def _run_child(self, plan: Plan) -> None:
        """Run one child from its start to its death, and do what that means for the model."""
        facts = self.identity.facts
        assert facts is not None
        sessions = self._sessions / self.identity.hash.removeprefix("sha256:")
        try:
            loading = Loading(
                self.name,
                load_message(self.path, facts, plan, self._config, sessions),
                limit=self._config.load_timeout,
                unchanged=lambda: self._file.unchanged,
            )
        except OSError as error:
            reason = f"no process could be started for it: {error.strerror}"
            self._fail(reason, remedy="free memory", retry_at=trio.current_time() + LOAD_AGAIN)
            return
        child = loading.child
        self._loading, self.pid, self.plan = loading, child.pid, plan
        log.info(
            "engine.loading", model=self.name, pid=child.pid, context=plan.context, slots=plan.slots, cells=plan.cells,
            bytes=plan.estimate.total, cut=plan.why or None,
        )  # fmt: skip
        try:
            death = await loading.run(partial(self._on_loaded, child), partial(self._on_message, child))
        finally:
            self._jobs.detach()
            self._questions.give_up()
            self._loading = self.pid = self.plan = None
        if loading.changed:
            log.warning("engine.file_changed", model=self.name, path=str(self.path))
        if death is not None:
            self._after_death(child, plan, death)

    async def statistics(self) -> Statistics:
        """What the child says of itself. Raises NoLocalModelError where there is none, EngineError where it ends."""
        if self._loading is None or self.state != "loaded":
            raise NoLocalModelError(f"{self.name} is not loaded")
        return await self._questions.statistics(self._loading.child)

    # --- its death --------------------------------------------------------------------------------------------------

    def _after_death(self, child: Child, plan: Plan, death: Death) -> None:
        self._crashes += 1
        log.warning(
            "engine.child_ended", model=self.name, pid=child.pid, how=death.how, crashes=self._crashes,
            loaded=death.loaded, out_of_memory=death.out_of_memory, stderr=child.stderr_tail[-1000:],
            refused=death.refused or None,
        )  # fmt: skip
        self._last_crash = death.words
        judgement = judge(self.name, death)
        if judgement.crash:
            self._quarantine.note(self.identity.hash, trio.current_time())
        match judgement.next:
            case "later":
                self._fail(judgement.reason, retry_at=trio.current_time() + LOAD_AGAIN)
            case "another file":
                self._fail(judgement.reason)
            case "smaller":
                self._most = int(plan.estimate.total * _SQUEEZE)
                self._die(judgement.reason)
            case "again" if death.loaded:
                self._die(judgement.reason)

    def _die(self, reason: str) -> None:
        """The child is gone: its jobs fail, those that wait go to the next one."""
        self._set_state("idle" if self._on_demand and not self.queued else "loading")
        self._jobs.end(EngineError(f"{reason}; send the request again"))

    def _fail_crashed(self, until: float) -> None:
        self._fail(
            f"its process crashed {CRASHES} times ({self._last_crash or 'under another name'})",
            remedy=remedy_for(self.name, self.path.name),
            retry_at=until,
        )

    def _on_loaded(self, child: Child, message: Loaded, nursery: trio.Nursery) -> None:
        self.decode.start_with(message.decode_rate)
        self.prefill.start_with(message.prefill_rate)
        self._set_state("loaded")
        self._jobs.attach(child, nursery, message.slots)
        self._note_load()
        nursery.start_soon(self._speed.keep, self.identity.hash, partial(self._questions.round, child), self._on_change)

    def _on_message(self, child: Child, message: Up) -> None:
        match message:
            case Statistics() | Probed():
                self._questions.answer(message)
            case Begun() | Step() | Vectors() | Done() | Failed():
                if isinstance(message, Done):
                    self._crashes = 0
                self._jobs.take_event(child, message, self.identity.hash)

    def _note_load(self) -> None:
        """Its load has changed; where nothing is left to do, another model may have its memory."""
        if self.idle:
            self._room.note_change()
        self._on_change()

    def _fail(self, reason: str, *, remedy: str = "", retry_at: float = math.inf) -> None:
        """It cannot be loaded before `retry_at`, or before the file is another."""
        trouble = Trouble(reason, remedy or f"replace {self.path.name}", retry_at, str(self.path.parent))
        log.error("engine.model_failed", model=self.name, path=str(self.path), reason=reason, remedy=trouble.remedy)
        self._trouble = trouble
        self._set_state("failed")
        self._jobs.end(trouble.problem(self.name, trio.current_time()), waiting=True)

    def _set_state(self, state: State) -> None:
        if state != "failed":
            self._trouble = None
        if state != self.state:
            self.state = state
            self._on_change()
