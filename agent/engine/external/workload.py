"""The jobs of one server: who waits, who runs, whose turn is next. A server has its own number of jobs at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from agent.engine.fair_queue import LOCAL, FairQueue, refusal
from agent.engine.forecast import Forecast, work_of
from agent.engine.job import Event, asker_of, comes_in_time
from agent.engine.rates import MovingRate
from agent.engine.shares import Shares
from agent.errors import AgentError, DrainingError, EngineError, OverloadedError
from fleet.net.messages import InferRequest

if TYPE_CHECKING:
    from agent.engine.external.held import ExternalModel

#: Events that wait for a caller who is slow; past that the server is read no faster than he reads.
_BUFFER: Final = 64


class ExternalJob:
    """A job from its admission to its end, between the caller who reads its events and the task that brings them."""

    def __init__(self, model: ExternalModel, request: InferRequest, body: bytes) -> None:
        self.model = model
        self.request = request
        self.body = body
        self.asker = asker_of(request)
        self.scope = trio.CancelScope()
        #: Seconds for which the caller kept the server waiting.
        self.held_up = 0.0
        #: Set when the server is given the job, or never will be.
        self.begun = trio.Event()
        self._error: AgentError | None = None
        self._send, self._receive = trio.open_memory_channel[Event](_BUFFER)

    async def turn(self) -> bool:
        """Wait until the server has the job, or it has ended before that; False where the time it may wait is over."""
        return await comes_in_time(self.begun, self.request)

    async def put(self, event: Event) -> None:
        """Hand an event to the caller; waits while he is slow. Cancel-safe."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            began = trio.current_time()
            await self._send.send(event)
            self.held_up += trio.current_time() - began

    def end(self, error: AgentError | None) -> None:
        """There are no more events; `error` is what the caller gets after those that he has not yet taken."""
        self._error = self._error or error
        self.begun.set()
        self._send.close()

    async def next(self) -> Event:
        """The next event, Finished being the last. Raises the AgentError that ended the job. Cancel-safe."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise self._error or EngineError("the engine gave the job up") from None

    def close(self) -> None:
        """The caller takes no more events."""
        self._receive.close()


class Workload:
    """Jobs that wait for one server, and those that it runs.

    `serve` runs one job to its end, and does not raise. All methods return at once.
    """

    def __init__(
        self, serve: Callable[[ExternalJob], Awaitable[None]], max_queue: int, on_change: Callable[[], None]
    ) -> None:
        self.slots = 1
        self.shares = Shares()
        self._serve = serve
        self._max_queue = max_queue
        self._on_change = on_change
        self._waiting: FairQueue[ExternalJob] = FairQueue()
        self._running: list[ExternalJob] = []
        self._nursery: trio.Nursery | None = None
        self._seconds = MovingRate()

    @property
    def running(self) -> int:
        """Jobs that the server has."""
        return len(self._running)

    @property
    def retry_after(self) -> int:
        """Seconds after which a job that is refused now may find room."""
        return Forecast(len(self._waiting), self.running, self.slots, self._seconds.value, None).retry_after

    def start(self, nursery: trio.Nursery) -> None:
        """Jobs run in this nursery from now on."""
        self._nursery = nursery

    def check(self, request: InferRequest) -> None:
        """Raise what `add` would raise: DrainingError, or OverloadedError where the queue or a share of it is full,
        or the job would come too late."""
        if self._nursery is None:
            raise DrainingError("the engine is shutting down")
        asker, queued = asker_of(request), len(self._waiting)
        askers = [job.asker for job in self._running]
        reason = refusal(
            asker,
            capacity=self.slots + self._max_queue,
            total=self.running + queued,
            of_asker=askers.count(asker) + self._waiting.count(asker),
            of_peers=self.running + queued - askers.count(LOCAL) - self._waiting.count(LOCAL),
        )
        ahead = self._waiting.ahead(asker, request.priority)
        forecast = Forecast(ahead, self.running, self.slots, self._seconds.value, None)
        reason = reason or forecast.too_late(request)
        if reason is not None:
            raise OverloadedError(
                f"no more jobs are taken now: {reason}",
                details={"queued": queued, "running": self.running, "eta_s": round(forecast.done_in(request), 1)},
                retry_after=forecast.come_back(request),
            )

    def add(self, job: ExternalJob) -> None:
        """Take a job in that has been checked."""
        priority, weight = job.request.priority, 1.0 if job.asker == LOCAL else self.shares.weight_of(job.asker)
        now = trio.current_time()
        self._waiting.put(job.asker, job, priority=priority, cost=work_of(job.request), weight=weight, now=now)
        job.model.queued += 1
        self.hand_out()
        self._on_change()

    def release(self, job: ExternalJob) -> None:
        """The job's caller is done with it; one that runs is cancelled, and its slot is free when that is done."""
        if self._waiting.remove(job.asker, job):
            job.model.queued -= 1
            self._on_change()
        else:
            job.scope.cancel()

    def hand_out(self) -> None:
        """Give the server what it has room for, by turns of the askers."""
        while self._nursery is not None and self.running < self.slots:
            lent = sum(job.asker != LOCAL for job in self._running)
            peers = lent < self.shares.slots_lent(self.slots)
            if not self._waiting.waits(peers=peers):
                return
            job = self._waiting.take(trio.current_time(), peers=peers)
            job.model.queued -= 1
            job.model.running += 1
            self._running.append(job)
            job.begun.set()
            self._nursery.start_soon(self._run, job)

    def end_waiting(self, error: AgentError) -> None:
        """Nobody waits any longer: those who do get `error`."""
        jobs = self._waiting.clear()
        for job in jobs:
            job.model.queued -= 1
            job.end(error)
        if jobs:
            self._on_change()

    def stop(self) -> None:
        """The nursery is closed: no more jobs, and those that waited end with DrainingError."""
        self._nursery = None
        self.end_waiting(DrainingError("the engine was shut down"))

    async def _run(self, job: ExternalJob) -> None:
        began = trio.current_time()
        try:
            with job.scope:
                await self._serve(job)
        except trio.Cancelled:
            job.end(DrainingError("the engine was shut down"))  # its own cancel ends within its scope
            raise
        finally:
            job.end(None)
            self._running.remove(job)
            job.model.running -= 1
            self._seconds.add(trio.current_time() - began)
            self.hand_out()
            self._on_change()
