"""One model this box holds: what is known of its file, its queue, and the child process that runs it."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import structlog
import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine.box_memory import oom_kills
from agent.engine.child import Child
from agent.engine.fair_queue import LOCAL, FairQueue, refusal
from agent.engine.identify import HashCache, Identity, identify, stamp_of
from agent.engine.job import QueuedJob, asker_of
from agent.engine.memory import Plan, Wish, size_of
from agent.engine.protocol import Begun, Cancel, Done, Failed, Load, Loaded, Step, Up, encode
from agent.engine.quarantine import COOL_DOWN, CRASHES, Quarantine
from agent.engine.rates import MovingRate
from agent.engine.room import NoRoomError, Room
from agent.errors import DrainingError, EngineError, ModelLoadError, OverloadedError
from fleet.errors import MessageError
from fleet.models.reference import canonical_name
from fleet.net.messages import Delta, Finished, InferRequest, Started, parse_logprobs

State = Literal["idle", "loading", "loaded", "failed"]

#: Seconds the child has to confirm a cancel before it is killed.
CANCEL_LIMIT: Final = 2.0
#: Seconds between looks at the file of a model that failed, and before a load that failed for a passing reason is
#: tried again.
LOOK_AGAIN: Final = 1.0
LOAD_AGAIN: Final = 30.0
_MAX_BACKOFF: Final = 30.0
#: What is left to a model's next process of the memory with which the kernel killed the last one.
_SQUEEZE: Final = 0.75
#: Seconds a job is taken to last before any has been measured.
_JOB_GUESS: Final = 5.0

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
    ) -> None:
        self.path: Path = model.path
        self.name = canonical_name(model.name or model.path.name)
        self.identity = Identity(None)
        self.state: State = "loading"
        self.error: str | None = None
        self.slots = model.slots or config.slots
        #: What the child was started with; None while there is none.
        self.plan: Plan | None = None
        self.last_used = 0.0
        self.decode = MovingRate()
        self.prefill = MovingRate()
        self.identified = trio.Event()
        self.pid: int | None = None
        self._model = model
        self._config = config
        self._room = room
        self._quarantine = quarantine
        #: Whether it is loaded only when a job comes; so is one that had to leave, or found no room when it started.
        self._on_demand = not config.preload
        self._scope: trio.CancelScope | None = None
        self._leaving = False
        self._changed = False
        #: Bytes the next child may take at most, after the kernel killed one for want of memory.
        self._most: int | None = None
        self._remedy = ""
        self._last_crash = ""
        self._cache = cache
        self._on_change = on_change
        self._ids = itertools.count()
        self._waiting: FairQueue[QueuedJob] = FairQueue()
        self._running: dict[int, QueuedJob] = {}
        self._wanted = trio.Event()
        self._child: Child | None = None
        self._nursery: trio.Nursery | None = None
        self._crashes = 0
        self._retry_at = math.inf
        self._load_error = ""
        self._job_seconds = MovingRate()
        self._stopped = False

    @property
    def running(self) -> int:
        """Jobs in the child."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot or for the model to load."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether it is loaded and has no work, neither running nor waiting."""
        return self.state == "loaded" and not self._leaving and not self._running and not self._waiting

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
        if self.state != "failed":
            return None
        again = None if self._retry_at == math.inf else max(1, math.ceil(self._retry_at - trio.current_time()))
        return ModelLoadError(f"{self.name} cannot be loaded: {self.error}; {self._remedy}", retry_after=again)

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
        self._refuse_what_is_too_much(request)
        # It may wait for a child that has more context than this one.
        job = QueuedJob(next(self._ids), request, self._wanted_context)
        self._waiting.put(job.asker, job)
        self.last_used = trio.current_time()
        self._wanted.set()
        self._hand_out()
        self._on_change()
        return job

    def _refuse_what_is_too_much(self, request: InferRequest) -> None:
        asker = asker_of(request)
        running = [job.asker for job in self._running.values()]
        reason = refusal(
            asker,
            capacity=self.slots + self._config.max_queue,
            total=self.running + self.queued,
            of_asker=running.count(asker) + self._waiting.count(asker),
            of_peers=self.running + self.queued - running.count(LOCAL) - self._waiting.count(LOCAL),
        )
        if reason is not None:
            raise OverloadedError(
                f"no more jobs for {self.name} are taken now: {reason}",
                details={"queued": self.queued, "running": self.running},
                retry_after=max(1, math.ceil((self._job_seconds.value or _JOB_GUESS) / self.slots)),
            )

    def release(self, job: QueuedJob) -> None:
        """The job's caller is done with it. A job that is not at its end is cancelled.

        Its slot is free when the child confirms that, or after CANCEL_LIMIT, when the child is killed.
        """
        if self._waiting.remove(job.asker, job):
            self._note_load()
        elif job.id in self._running and self._child is not None and self._nursery is not None:
            self._child.post(encode(Cancel(job.id)))
            self._nursery.start_soon(self._confirm_cancel, job, self._child)

    def leave(self) -> None:
        """Unload, for another model; to be asked of an idle one only. It is loaded again when a job comes."""
        if self._scope is not None:
            self._leaving = self._on_demand = True
            self._set_state("idle")
            self._scope.cancel()

    def retry(self) -> None:
        """Load it again as soon as it is wanted, whatever kept it from being loaded; nothing unless it is failed."""
        if self.state == "failed":
            self._quarantine.lift(self.identity.hash)
            self._most = None
            self._retry_at = trio.current_time()

    async def run(self) -> None:
        """Live until cancelled; then the child is ended and every job fails with DrainingError."""
        try:
            while True:
                if self.identity.facts is None or stamp_of(self.path) != self.identity.stamp:
                    await self._identify()
                if self.identity.facts is None:
                    self._fail(self.identity.error)
                    await self._file_change()
                elif importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("jinja2") is None:
                    self._fail("this box has no engine", remedy="install it with: pip install 'shoal[engine]'")
                    await trio.sleep_forever()
                elif (until := self._quarantine.until(self.identity.hash, trio.current_time())) is not None:
                    self._fail_crashed(until)
                    await self._file_change()
                else:
                    await self._wait_wanted()
                    if stamp_of(self.path) == self.identity.stamp:  # else it is to be hashed first
                        await self._load()
        finally:
            self._stopped = True
            self._end_jobs(DrainingError("the engine was shut down"), waiting_too=True)

    # --- the file ---------------------------------------------------------------------------------------------------

    async def _identify(self) -> None:
        self._set_state("loading")
        before, stop = self.identity, threading.Event()
        try:
            self.identity = await trio.to_thread.run_sync(
                identify,
                self.path,
                self._cache,
                stop,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs that libp2p brings are older than trio
            )
        finally:
            stop.set()
        if before.hash and before.hash != self.identity.hash:
            self.decode, self.prefill, self._crashes, self._most = MovingRate(), MovingRate(), 0, None
            reason = f"{self.path} now holds another model; ask for it by its name or new hash"
            self._end_jobs(ModelLoadError(reason), waiting_too=True)
        self.identified.set()

    async def _file_change(self) -> None:
        """Return when a retry is due, or the file is another than that which failed and is no longer being written."""
        before = self.identity.stamp
        while True:
            # A look now and then: the kernel's own watch (inotify) says nothing of a file on a network mount.
            await trio.sleep_until(min(self._retry_at, trio.current_time() + LOOK_AGAIN))
            if trio.current_time() >= self._retry_at:
                return
            now = stamp_of(self.path)
            if now == before and now != self.identity.stamp:
                return
            before = now

    # --- the child --------------------------------------------------------------------------------------------------

    async def _wait_wanted(self) -> None:
        """Wait until there is a job, or the model is to be loaded anyway; after crashes, for the backoff too."""
        if self._on_demand and not self._waiting:
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
        wish = Wish(self._wanted_context, self._model.slots or self._config.slots)
        try:
            plan = await self._room.take(self, facts, wish, most=self._limit(), urgent=bool(self._waiting))
        except NoRoomError as error:
            if error.ever:
                self._on_demand = True
                self._refuse_waiting(error)
                return
            reason = error.reason + (" after the kernel ended it for want of memory" if self._most else "")
            self._most = None
            self._fail(
                reason, remedy="free memory, raise engine.memory_budget or lower engine.context_tokens", retry=True
            )
            await self._file_change()
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
        jobs = self._waiting.clear()
        log.warning("engine.no_room", model=self.name, reason=error.reason, jobs=len(jobs), **error.details)
        for job in jobs:
            job.end(
                OverloadedError(
                    f"{self.name} cannot be loaded now: {error.reason}",
                    details=error.details,
                    retry_after=max(1, math.ceil(self._job_seconds.value or _JOB_GUESS)),
                )
            )
        if jobs:
            self._on_change()

    async def _run_child(self, plan: Plan) -> None:
        """Run one child from its start to its death, and say what that means for the model."""
        self._load_error, self._retry_at = "", math.inf
        self._leaving = self._changed = False
        kills = oom_kills()
        try:
            child = Child()
        except OSError as error:
            self._fail(f"no process could be started for it: {error.strerror}", remedy="free memory", retry=True)
            await self._file_change()
            return
        self._child, self.pid, self.plan = child, child.pid, plan
        child.post(encode(self._load_message(plan)))
        log.info(
            "engine.loading", model=self.name, pid=child.pid, context=plan.context, slots=plan.slots, cells=plan.cells,
            bytes=plan.estimate.total, cut=plan.why or None,
        )  # fmt: skip
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._watch_load, child)
                    await child.run(lambda message: self._on_message(child, message))
                    nursery.cancel_scope.cancel()
        finally:
            self._child = self._nursery = self.pid = self.plan = self._scope = None
        if self._leaving:
            return
        if self._changed:
            reason = f"{self.path} was changed while it was loaded"
            log.warning("engine.file_changed", model=self.name, path=str(self.path))
            self._end_jobs(EngineError(f"{reason}; send the request again"))
            return
        # This very child was killed by the kernel, unless somebody killed it while another process ran out of memory.
        await self._after_death(child, plan, oom=child.killed and not child.ended_here and oom_kills() > kills)

    def _load_message(self, plan: Plan) -> Load:
        facts = self.identity.facts
        return Load(
            path=str(self.path),
            context_tokens=plan.context,
            threads=_threads(self._config.threads),
            gpu_layers=self._config.gpu_layers,
            slots=plan.slots,
            cells=plan.cells,
            batch=plan.batch,
            embeddings=int(facts is not None and facts.embedding),
        )

    async def _after_death(self, child: Child, plan: Plan, *, oom: bool) -> None:
        was_loaded = self.state == "loaded"
        self._crashes += 1
        log.warning(
            "engine.child_ended", model=self.name, pid=child.pid, how=child.death, crashes=self._crashes,
            loaded=was_loaded, out_of_memory=oom, stderr=child.stderr_tail[-1000:], refused=self._load_error or None,
        )  # fmt: skip
        last_line = child.stderr_tail.rpartition("\n")[2][:200]
        self._last_crash = child.death + (f": {last_line}" if last_line else "")
        if oom:
            self._most = int(plan.estimate.total * _SQUEEZE)
            self._die(f"the kernel ended the process that runs {self.name} for want of memory")
        elif was_loaded:
            # A kill from outside says nothing of the model; a child killed here hung, or wrote what is no message.
            if not child.killed or child.ended_here:
                self._quarantine.note(self.identity.hash, trio.current_time())
            self._die(f"the process that runs {self.name} {child.death}")
        elif self._load_error:
            # Too slow may be other programs' doing; what llama.cpp says of a file it says again.
            self._fail(self._load_error, retry=child.killed)
            await self._file_change()
        elif child.killed:
            self._fail(f"the process that loads it {self._last_crash}", retry=True)
            await self._file_change()
        else:
            self._quarantine.note(self.identity.hash, trio.current_time())

    def _die(self, reason: str) -> None:
        """The child is gone: its jobs fail, those that wait go to the next one."""
        self._set_state("idle" if self._on_demand and not self._waiting else "loading")
        self._end_jobs(EngineError(f"{reason}; send the request again"))

    def _fail_crashed(self, until: float) -> None:
        self._fail(
            f"its process crashed {CRASHES} times ({self._last_crash or 'under another name'})",
            remedy=f"replace {self.path}, or wait: it is tried again after {COOL_DOWN / 60:.0f} minutes",
        )
        self._retry_at = until

    async def _watch_load(self, child: Child) -> None:
        with trio.move_on_after(self._config.load_timeout) as waiting:
            await child.loaded.wait()
        if waiting.cancelled_caught:
            self._load_error = f"it did not load within {self._config.load_timeout:g} s (engine.load_timeout)"
            child.kill()

    async def _confirm_cancel(self, job: QueuedJob, child: Child) -> None:
        with trio.move_on_after(CANCEL_LIMIT) as waiting:
            await job.left_child.wait()
        if waiting.cancelled_caught:
            log.warning("engine.child_hung", model=self.name, pid=child.pid, job=job.request.job)
            child.kill()

    def _on_message(self, child: Child, message: Up) -> None:
        match message:
            case Loaded() if stamp_of(self.path) != self.identity.stamp:
                # Replaced after it was looked at and before it was opened: these may be other bytes than were hashed.
                self._changed = True
                child.kill()
            case Loaded():
                self.slots = message.slots
                self.decode.start_with(message.decode_rate)
                self.prefill.start_with(message.prefill_rate)
                child.loaded.set()
                log.info(
                    "engine.loaded", model=self.name, pid=child.pid, load_ms=round(message.load_ms),
                    warm_ms=round(message.warm_ms), decode_rate=round(message.decode_rate, 1),
                )  # fmt: skip
                self._set_state("loaded")
                self._hand_out()
            case Begun():
                self._deliver(child, message.id, _started(self.name, self.identity.hash, message))
            case Step(items):
                for id, text, tokens, logprobs in items:
                    self._deliver_text(child, id, text, tokens, logprobs)
            case Failed(id=-1):
                self._load_error = message.message
            case Done():
                self._leave(message.id, _finished(message))
                self._measure(message)
            case Failed():
                self._leave(message.id, message)

    def _deliver(self, child: Child, id: int, event: Started | Delta) -> None:
        job = self._running.get(id)
        if job is not None and not job.put(event):
            log.error("engine.child_overran", model=self.name, pid=child.pid, job=job.request.job)
            child.kill()

    def _deliver_text(self, child: Child, id: int, text: str, tokens: int, logprobs: str) -> None:
        try:
            likely = parse_logprobs(logprobs) if logprobs else ()
        except MessageError as error:
            log.error("engine.child_confused", model=self.name, pid=child.pid, reason=error.message)
            child.kill()
            return
        self._deliver(child, id, Delta(text=text, tokens=tokens, logprobs=likely))

    def _leave(self, id: int, end: Finished | Failed | None) -> None:
        """A job is out of the child; its slot goes to the next."""
        job = self._running.pop(id, None)
        if job is None:
            return
        job.end(end)
        self.last_used = trio.current_time()
        self._job_seconds.add(self.last_used - job.began)
        self._hand_out()
        self._note_load()

    def _measure(self, done: Done) -> None:
        self._crashes = 0
        if done.completion_tokens >= 8 and done.decode_ms > 0:
            self.decode.add((done.completion_tokens - 1) * 1000 / done.decode_ms)
        if done.prompt_tokens >= 16 and done.prefill_ms > 0 and done.reason != "cancelled":
            self.prefill.add(done.prompt_tokens * 1000 / done.prefill_ms)

    def _hand_out(self) -> None:
        """Give waiting jobs to the child as far as it has slots, by turns of their askers."""
        while self.state == "loaded" and self._child and self._waiting and len(self._running) < self.slots:
            job = self._waiting.take()
            job.began = trio.current_time()
            self._running[job.id] = job
            self._child.post(job.frame)

    def _end_jobs(self, error: EngineError | DrainingError, *, waiting_too: bool = False) -> None:
        jobs = [*self._running.values()]
        self._running.clear()
        if waiting_too:
            jobs += self._waiting.clear()
        for job in jobs:
            job.end(error)
        if jobs:
            self._on_change()

    def _note_load(self) -> None:
        """Its load has changed; where nothing is left to do, another model may have its memory."""
        if self.idle:
            self._room.note_change()
        self._on_change()

    def _fail(self, reason: str, *, remedy: str = "", retry: bool = False) -> None:
        self._retry_at = trio.current_time() + LOAD_AGAIN if retry else math.inf
        self.error, self._remedy = reason, remedy or f"replace {self.path}"
        log.error("engine.model_failed", model=self.name, path=str(self.path), reason=reason, remedy=self._remedy)
        self._set_state("failed")
        problem = self.problem
        assert problem is not None
        self._end_jobs(problem, waiting_too=True)

    def _set_state(self, state: State) -> None:
        if state != "failed":
            self.error = None
        if state != self.state:
            self.state = state
            self._on_change()


def _started(name: str, hash: str, begun: Begun) -> Started:
    return Started(
        model=name,
        hash=hash,
        prompt_tokens=begun.prompt_tokens,
        cut_tokens=begun.cut,
        cut_messages=begun.cut_messages,
    )


def _finished(done: Done) -> Finished | None:
    """The last event of a job; None for one that was cancelled, which nobody waits for."""
    if done.reason == "cancelled":
        return None
    return Finished(
        reason=done.reason,
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        prefill_ms=done.prefill_ms,
        decode_ms=done.decode_ms,
    )


def _threads(configured: int | None) -> int:
    """All cores this process may use, less one for everything else where there are more than two."""
    cores = len(os.sched_getaffinity(0))
    return configured or (cores - 1 if cores > 2 else cores)
