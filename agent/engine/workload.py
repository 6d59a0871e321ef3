"""The jobs of one model: those that wait, by turns of their askers, and those that its child runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import structlog
import trio

from agent.engine.child import Child
from agent.engine.fair_queue import LOCAL, FairQueue, refusal
from agent.engine.forecast import Forecast
from agent.engine.job import QueuedJob, asker_of
from agent.engine.patience import LOOK_EVERY, Patience
from agent.engine.protocol import Begun, Cancel, Done, Failed, Step, Vectors, encode
from agent.engine.rates import MovingRate
from agent.engine.schedule import ALONE_LIMIT, MIN_CHUNK
from agent.engine.shares import Shares
from agent.errors import AgentError, OverloadedError
from fleet.errors import MessageError
from fleet.net.messages import Delta, Embedded, Finished, InferRequest, Started, parse, parse_logprobs

#: Seconds after which a child that has not confirmed a cancel may hang, and is given no more jobs until it does: those
#: that wait would die with it. A cancel is confirmed between two steps, which on slow boxes are half a second apart.
SUSPECT_AFTER: Final = 1.0

#: Characters of a model's name in what a job is refused with: what comes after it is cut where others tell of it.
_MAX_NAME: Final = 64

log = structlog.get_logger("shoal.engine")


class Workload:
    """Takes jobs in, gives them to the child as it has slots, and their events to their callers.

    All methods return at once and are called from the thread of the event loop. `on_change` is called when a job has
    come or gone.
    """

    def __init__(self, name: str, *, slots: int, max_queue: int, on_change: Callable[[], None]) -> None:
        self.name = name
        self.slots = slots
        self.decode = MovingRate()
        self.prefill = MovingRate()
        self.shares = Shares()
        #: When a job last came or went, on trio's clock.
        self.last_used = 0.0
        self._max_queue = max_queue
        self._on_change = on_change
        self._ids = itertools.count()
        self._waiting: FairQueue[QueuedJob] = FairQueue()
        self._running: dict[int, QueuedJob] = {}
        self._job_seconds = MovingRate()
        self._child: Child | None = None
        self._nursery: trio.Nursery | None = None
        #: Cancels that the child is slow to confirm.
        self._unconfirmed = 0
        #: Whether the last thing the model gave was that its process hung.
        self._hung_last = False

    @property
    def running(self) -> int:
        """Jobs in the child."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot or for the model to load."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find a slot."""
        return self._forecast(ahead=self.queued).retry_after

    def attach(self, child: Child, nursery: trio.Nursery, slots: int) -> None:
        """A child is ready for jobs; those that wait go to it. `nursery` lives as long as it does."""
        self._child, self._nursery, self.slots = child, nursery, slots
        self._unconfirmed = 0
        self._hand_out()

    def detach(self) -> None:
        """There is no child any more, or it is to have no more jobs; those it has are still its own."""
        self._child = self._nursery = None

    def forget_rates(self) -> None:
        """What was measured was of another model."""
        self.decode, self.prefill = MovingRate(), MovingRate()
        self._hung_last = False

    def admit(self, request: InferRequest, context_tokens: int) -> QueuedJob:
        """Take a job in. Raises OverloadedError when the queue, or its asker's share of it, is full, or the job could
        not be done by its deadline, and BadRequestError for a request that is too large to be passed on.
        """
        self._refuse_what_is_too_much(request)
        job = QueuedJob(next(self._ids), request, context_tokens)
        now = self.last_used = trio.current_time()
        weight = 1.0 if job.asker == LOCAL else self.shares.weight_of(job.asker)
        self._waiting.put(job.asker, job, priority=request.priority, cost=job.work, weight=weight, now=now)
        self._hand_out()
        self._on_change()
        return job

    def release(self, job: QueuedJob) -> None:
        """The job's caller is done with it. A job that is not at its end is cancelled.

        Its slot is free when the child confirms that, between two steps, or is killed because it hangs; see patience.
        """
        if self._waiting.remove(job.asker, job):
            self._on_change()
        elif job.id in self._running and self._child is not None and self._nursery is not None:
            self._child.post(encode(Cancel(job.id)))
            self._nursery.start_soon(self._confirm_cancel, job, self._child)

    def take_event(self, child: Child, message: Begun | Step | Vectors | Done | Failed, model_hash: str) -> None:
        """Something the child says of jobs; a child that says what cannot be is killed."""
        if isinstance(message, Step | Vectors) or (isinstance(message, Done) and message.reason != "cancelled"):
            self._hung_last = False
        match message:
            case Begun():
                self._deliver(child, message.id, _started(self.name, model_hash, message))
            case Step(items):
                for id, text, tokens, logprobs in items:
                    self._deliver_text(child, id, text, tokens, logprobs)
            case Vectors():
                self._deliver_vectors(child, message, model_hash)
            case Done():
                job = self._leave(message.id, _finished(message))
                self._measure(message)
                if job is not None:
                    self._waiting.settle(job.asker, message.prompt_tokens + message.completion_tokens - job.work)
            case Failed():
                self._leave(message.id, message)

    def end(self, error: AgentError, *, running: bool = True, waiting: bool = False) -> int:
        """End jobs with an error; returns how many there were."""
        jobs = self._waiting.clear() if waiting else []
        if running:
            jobs += self._running.values()
            self._running.clear()
        for job in jobs:
            job.end(error)
        if jobs:
            self._on_change()
        return len(jobs)

    def _refuse_what_is_too_much(self, request: InferRequest) -> None:
        asker = asker_of(request)
        running = [job.asker for job in self._running.values()]
        reason = refusal(
            asker,
            capacity=self.slots + self._max_queue,
            total=self.running + self.queued,
            of_asker=running.count(asker) + self._waiting.count(asker),
            of_peers=self.running + self.queued - running.count(LOCAL) - self._waiting.count(LOCAL),
        )
        forecast = self._forecast(self._waiting.ahead(asker, request.priority))
        problem = None if reason is None else f"no more jobs for {self.name[:_MAX_NAME]} are taken now: {reason}"
        if problem is None and (late := forecast.too_late(request)) is not None:
            problem = f"too little time for {self.name[:_MAX_NAME]}: {late}"
        if problem is not None:
            raise OverloadedError(
                problem,
                details={"queued": self.queued, "running": self.running, "eta_s": round(forecast.done_in(request), 1)},
                retry_after=forecast.come_back(request),
            )

    def _forecast(self, ahead: int) -> Forecast:
        return Forecast(ahead, self.running, self.slots, self._job_seconds.value, self.decode.value)

    async def _confirm_cancel(self, job: QueuedJob, child: Child) -> None:
        with trio.move_on_after(SUSPECT_AFTER) as waiting:
            await job.left_child.wait()
        if not waiting.cancelled_caught:
            return
        self._unconfirmed += 1
        patience = Patience(self._step)
        while not patience.is_over(child.vitals()):
            with trio.move_on_after(LOOK_EVERY) as waiting:
                await job.left_child.wait()
            if not waiting.cancelled_caught:
                if self._child is child:
                    self._unconfirmed -= 1
                    self._hand_out()
                return
        if not child.ended_here:  # several cancels may be owed
            log.warning("engine.child_hung", model=self.name, pid=child.pid, job=job.request.job)
            child.kill(excused=not self._hung_last)  # and stays suspected: it may take a moment to die
            self._hung_last = True

    @property
    def _step(self) -> float:
        """Seconds that a step of the child may take."""
        least = (MIN_CHUNK / self.prefill.value if self.prefill.value else 0.0, ALONE_LIMIT)
        return max(*least, 1 / self.decode.value if self.decode.value else 0.0)

    def _deliver(self, child: Child, id: int, event: Started | Delta | Embedded) -> None:
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

    def _deliver_vectors(self, child: Child, vectors: Vectors, model_hash: str) -> None:
        body = {"first": vectors.first, "dimensions": vectors.dimensions, "data": vectors.data}
        try:
            event = parse(Embedded, body)
        except MessageError as error:
            log.error("engine.child_confused", model=self.name, pid=child.pid, reason=error.message)
            child.kill()
            return
        if vectors.first == 0:
            # The child says nothing before the first vectors of a request, and how many tokens it had only at its end.
            self._deliver(child, vectors.id, Started(model=self.name, hash=model_hash, prompt_tokens=0))
        self._deliver(child, vectors.id, event)

    def _leave(self, id: int, end: Finished | Failed | None) -> QueuedJob | None:
        """A job is out of the child; its slot goes to the next. Returns the job, None where nobody knows it."""
        job = self._running.pop(id, None)
        if job is None:
            return None
        job.end(end)
        self.last_used = trio.current_time()
        self._job_seconds.add(self.last_used - job.began)
        self._hand_out()
        self._on_change()
        return job

    def _measure(self, done: Done) -> None:
        if done.completion_tokens >= 8 and done.decode_ms > 0:
            self.decode.add((done.completion_tokens - 1) * 1000 / done.decode_ms)
        if done.prompt_tokens >= 16 and done.prefill_ms > 0 and done.reason != "cancelled":
            self.prefill.add(done.prompt_tokens * 1000 / done.prefill_ms)

    def _hand_out(self) -> None:
        """Give waiting jobs to the child as far as it has slots and answers, by turns of their askers."""
        while self._child is not None and len(self._running) < self.slots and not self._unconfirmed:
            lent = sum(job.asker != LOCAL for job in self._running.values())
            peers = lent < self.shares.slots_lent(self.slots)
            if not self._waiting.waits(peers=peers):
                return
            now = trio.current_time()
            job = self._waiting.take(now, peers=peers)
            job.began = now
            self._running[job.id] = job
            self._child.post(job.frame)


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
