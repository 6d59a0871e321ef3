"""A job that is sent twice runs once: who lost the connection asks again with the same key, and gets the answer.

A job with a key runs apart from the client who sent it. Whoever sends the same key and the same request follows it from
its first event on: while it runs, and KEEP seconds after it has succeeded. One that failed is forgotten, so that the
next try runs anew. When nobody follows a job for GRACE seconds, it is cancelled wherever it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
import trio

from agent.errors import AgentError, DrainingError, IdempotencyError, OverloadedError
from agent.jobs.job import Emit, Job, JobEvent, Routed
from fleet.net.messages import Delta, Embedded

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings, shadow trio's own types

#: Seconds that a job goes on without anybody who follows it.
GRACE: Final = 30.0
#: Seconds that an answer is kept.
KEEP: Final = 600.0
#: Answers that are kept, bytes of all of them together, and of one.
MAX_KEPT: Final = 256
MAX_BYTES: Final = 16 * 1024 * 1024
MAX_BYTES_OF_ONE: Final = 2 * 1024 * 1024
#: Jobs with a key that run at a time.
MAX_RUNNING: Final = 128
#: Characters of a delta that is kept; a single token's event takes some 500 bytes whatever its text.
_PIECE: Final = 16 * 1024

log = structlog.get_logger("shoal.jobs")


class _Answer:
    """One job with a key: its events so far, and who follows it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: list[JobEvent] = []
        self.bytes = 0
        self.over = False
        self.error: Exception | None = None
        self.ended_at = 0.0
        self.followers = 0
        #: How often the last who followed has left.
        self.departures = 0
        self.scope = trio.CancelScope()
        self._changed = trio.Event()

    async def add(self, event: JobEvent) -> None:
        """Take an event in. Nobody is waited for: what a job may say is bounded by its tokens."""
        await trio.lowlevel.checkpoint()
        self.events.append(event)
        self.tell()

    def tell(self) -> None:
        """Wake those who follow."""
        self._changed.set()
        self._changed = trio.Event()

    def left_alone_since(self, departure: int) -> bool:
        """Whether it still runs and nobody has followed it since that departure."""
        return not self.over and not self.followers and self.departures == departure

    async def change(self) -> None:
        """Return when there is something new."""
        await self._changed.wait()


class Once:
    """Runs jobs, those that have a key (`Job.once`) once for each key. `serve` has to run meanwhile."""

    def __init__(self, run: Callable[[Job, Emit], Awaitable[None]]) -> None:
        self._run = run
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let jobs with a key run until cancelled; those that run then end with a DrainingError."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def run(self, job: Job, emit: Emit) -> None:
        """Run a job, or follow the one that was sent with its key, calling `emit` with every event from the first on.

        Raises what the job raises, and IdempotencyError where the key came with another request. Cancelling it ends a
        job without a key at once, and one with a key GRACE seconds later, if nobody has asked for it again by then.
        """
        if not job.once:
            await self._run(job, emit)
            return
        answer, replayed = self._answers.get(job.once), True
        self._forget_old()
        if answer is None or job.once not in self._answers:
            answer, replayed = self._begin(job), False
        elif answer.job.fingerprint != job.fingerprint:
            raise IdempotencyError(
                "the Idempotency-Key was sent before with another request; use a new key for every request that is not"
                " a repetition",
                details={"param": "Idempotency-Key"},
            )
        answer.followers += 1
        try:
            await self._follow(answer, emit, replayed)
        finally:
            answer.followers -= 1
            if not answer.followers and not answer.over and self._nursery is not None:
                self._nursery.start_soon(self._end_abandoned, answer)

    def _begin(self, job: Job) -> _Answer:
        if self._nursery is None:
            raise DrainingError("this box is shutting down and takes no new jobs; ask again shortly", retry_after=5)
        if sum(not one.over for one in self._answers.values()) >= MAX_RUNNING:
            raise OverloadedError(f"{MAX_RUNNING} jobs with an Idempotency-Key run already", retry_after=5)
        answer = self._answers[job.once] = _Answer(job)
        self._nursery.start_soon(self._produce, answer)
        return answer

    async def _produce(self, answer: _Answer) -> None:
        try:
            with answer.scope:
                await self._run(answer.job, answer.add)
            if answer.scope.cancelled_caught:
                answer.error = DrainingError("nobody was waiting for the job any more; send it again")
        except trio.Cancelled:
            answer.error = DrainingError("this box is shutting down; send the job again", retry_after=5)
            raise
        except Exception as error:  # told to every follower, who know what to make of it
            answer.error = error
            if not isinstance(error, AgentError):
                log.exception("job.failed_apart", job=answer.job.request.job)
        finally:
            self._over(answer)

    def _over(self, answer: _Answer) -> None:
        answer.over = True
        answer.ended_at = trio.current_time()
        answer.events = _joined(answer.events)  # those who follow go on with the list that they have
        answer.bytes = sum(map(_bytes_of, answer.events))
        answer.tell()
        key = answer.job.once
        if answer.error is not None or answer.bytes > MAX_BYTES_OF_ONE:
            if self._answers.get(key) is answer:
                del self._answers[key]
        elif key in self._answers:
            self._answers.move_to_end(key)
        self._forget_old()

    async def _follow(self, answer: _Answer, emit: Emit, replayed: bool) -> None:
        events, at = answer.events, 0
        while True:
            while at < len(events):
                event = events[at]
                if replayed and isinstance(event, Routed):
                    event = replace(event, repeats=answer.job.request.job)
                await emit(event)
                at += 1
            if answer.over:
                if answer.error is not None:
                    raise answer.error
                return
            await answer.change()

    async def _end_abandoned(self, answer: _Answer) -> None:
        """End a job whose clients have gone and do not come back."""
        answer.departures += 1
        departure = answer.departures
        with trio.move_on_after(GRACE):
            while not answer.over:
                await answer.change()
        if answer.left_alone_since(departure):
            log.info("job.abandoned", job=answer.job.request.job)
            answer.scope.cancel()

    def _forget_old(self) -> None:
        """Keep no more answers, of no more bytes, and for no longer than may be."""
        now = trio.current_time()
        kept = [key for key, one in self._answers.items() if one.over]
        size = sum(self._answers[key].bytes for key in kept)
        for count, key in zip(range(len(kept), 0, -1), kept, strict=True):
            one = self._answers[key]
            if count <= MAX_KEPT and size <= MAX_BYTES and now - one.ended_at <= KEEP:
                break
            size -= one.bytes
            del self._answers[key]


def _joined(events: list[JobEvent]) -> list[JobEvent]:
    """The same answer in few events: texts that follow one another become one."""
    joined: list[JobEvent] = []
    texts: list[str] = []
    tokens = size = 0

    def flush() -> None:
        nonlocal tokens, size
        if texts:
            joined.append(Delta(text="".join(texts), tokens=tokens))
            texts.clear()
            tokens = size = 0

    for event in events:
        if isinstance(event, Delta) and not event.logprobs:
            if size + len(event.text) > _PIECE:
                flush()
            texts.append(event.text)
            tokens += event.tokens
            size += len(event.text)
        else:
            flush()
            joined.append(event)
    flush()
    return joined


def _bytes_of(event: JobEvent) -> int:
    match event:
        case Delta():
            return 500 + 4 * len(event.text) + 2000 * len(event.logprobs) * (1 + max(
                (len(one.top_logprobs) for one in event.logprobs), default=0))  # fmt: skip
        case Embedded():
            return 500 + len(event.data)
        case _:
            return 2000
