"""Jobs that came over MQTT: journalled, claimed, queued fairly, run as any client's, and answered.

A job is written down while it waits for its turn or already runs, and its request acknowledged to the broker once it is
on the disk; its answer is on the disk before it is sent. What is not answered when the box ends is run at its next
start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal

import structlog
import trio

from agent.engine.fair_queue import FairQueue
from agent.errors import AgentError, DrainingError
from agent.mqtt import replies
from agent.mqtt.around import Run
from agent.mqtt.claiming import CLAIM_LIMIT, RENEW, Claims
from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.intake import ANSWER_EXPIRES, DeskLimits, Intake
from agent.mqtt.journal import Change, JobRow, Journal, JournalError
from agent.mqtt.messages import Incoming, Sent
from agent.mqtt.outbox import Entry
from agent.mqtt.replies import Answer, Problem, problem, problem_of
from agent.mqtt.request import understand
from agent.mqtt.running import SETTLE, run_work
from agent.mqtt.topics import Topics
from agent.mqtt.work import MAX_TRIES, Book, Work, again, stored

#: Seconds after its deadline that a job which runs is given up here, should nobody else have done it.
_DEADLINE_GRACE: Final = 2.0
#: Seconds a job takes, before one has been measured, and how much a new one counts.
_JOB_SECONDS: Final = 5.0
_NEW_SHARE: Final = 0.2
What = Literal["result", "error"]

log = structlog.get_logger("shoal.mqtt")


class _GivenWayError(Exception):
    """Another box has the job."""


class _TooLateError(AgentError):
    """The job's deadline is over."""

    code = "deadline"
    retryable = True


class _InterruptedError(AgentError):
    """The box ended while it ran the job, again and again."""

    code = "interrupted"


class JobDesk:
    """The jobs of one broker's clients. `run` runs a job as any client's; `refused` is told of requests that became
    none; `default_model` names the model of those that name none, None where there is no model."""

    def __init__(
        self,
        name: str,
        topics: Topics,
        client: MqttClient,
        journal: Journal,
        counts: Counts,
        limits: DeskLimits,
        *,
        run: Run,
        refused: Callable[[str, AgentError], None],
        default_model: Callable[[], str | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._topics = topics
        self._client = client
        self._journal = journal
        self._counts = counts
        self._limits = limits
        self._run = run
        self._wall = wall
        self._queue: FairQueue[Work] = FairQueue()
        self._book = Book()
        self._running = 0
        self._job_seconds = _JOB_SECONDS
        self._nursery: trio.Nursery | None = None
        self._restored: Sequence[JobRow] = ()
        self._started = 0.0
        self.claims: Final = Claims(topics, client, counts)
        self.claims.on_other, self.claims.on_lost = self._say_again, self._lost
        self._intake = Intake(
            topics,
            client,
            counts,
            limits,
            self._book,
            begin=self._begin,
            again=self._say_again,
            job_seconds=lambda: self._job_seconds,
            refused=refused,
            default_model=default_model,
            wall=wall,
        )
        #: Called when jobs came or went.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def running(self) -> int:
        """Jobs that run."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn, or for their claim."""
        return len(self._book.open) - self._running

    # --- its life ----------------------------------------------------------------------------------------------------

    def restore(self, jobs: Sequence[JobRow]) -> None:
        """What the journal had: answers for those who ask again, and jobs to be run when `serve` starts."""
        for row in jobs:
            self._book.note(row)
            if row.done is not None:
                self._book.answered.add(row, row.topic, row.answer, row.done)
        self._restored = [row for row in jobs if row.done is None]

    async def serve(self) -> None:
        """Run jobs until cancelled; those that are not answered then are run at the next start."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started = trio.current_time()
            try:
                for row in self._restored:
                    self._replay(row)
                self._restored = ()
                while True:
                    await trio.sleep(RENEW)
                    self.claims.renew()
            finally:
                self._nursery = None

    def _replay(self, row: JobRow) -> None:
        try:
            asked = understand(row.request)
        except AgentError:
            self._journal.drop(row.id)
            return
        self._counts.note("job_replayed")
        work = Work(stored(row), asked, lambda: None, len(row.request), replayed=True)
        work.stored.set()
        self._begin(work)

    # --- messages of the broker; called while it is read -------------------------------------------------------------

    def request(self, message: Incoming, fleet_wide: bool) -> None:
        """A request; see Intake.request. Before `serve` it is not acknowledged, and comes again."""
        if self._nursery is not None:
            self._intake.request(message, fleet_wide, self._nursery)

    def cancel(self, message: Incoming) -> None:
        """A job is called off, whoever says so: the broker's access rules say who may."""
        work = self._book.open.get(self._topics.cancelled(message.topic) or "")
        if work is not None and not message.retain:
            self._counts.note("job_cancelled")
            work.scope.cancel()
        message.settle()

    def _say_again(self, job: str) -> None:
        """Tell a job's client once more how it stands: it may have missed what was said."""
        work, done = self._book.open.get(job), self._book.answered.get(job, self._wall())
        if work is not None:
            if work.accepted.is_set():
                self._say_accepted(work)
        elif done is not None:
            self._client.send(Entry(done.topic, done.answer, correlation=done.correlation, user=(("job", job),)))

    # --- a job's life ------------------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> None:
        assert self._nursery is not None
        self._book.add(work)
        self.on_change()
        self._nursery.start_soon(self._life, work)

    async def _life(self, work: Work) -> None:
        what: What = "error"
        payload = b""
        try:
            with work.scope:
                async with trio.open_nursery() as nursery:
                    if not work.stored.is_set():
                        # Handed over here, so that it is written before anything else about the job.
                        nursery.start_soon(self._store, work, self._journal.take(work.row))
                    payload = await self._worked(work)
                    what, work.lost = "result", False
            if work.lost:
                self._give_way(work)
            elif not payload:
                payload = self._called_off(work)
        except* _GivenWayError:
            self._give_way(work)
        except* DrainingError:
            log.info("mqtt.left_for_next_start", job=work.row.id)
        except* Exception as group:  # noqa: BLE001 - told to its client, and logged where it is none of ours
            what = "error"
            payload = self._failure(work, group)
        finally:
            self._ended(work)
        if payload:
            await self._say(work, what, payload)

    async def _store(self, work: Work, taken: Change) -> None:
        try:
            await self._journal.written(taken)
        except JournalError as error:
            # The job is run all the same: the broker has the request until its answer is there.
            self._counts.note("journal_failed")
            log.warning("mqtt.not_journalled", job=work.row.id, reason=error.message)
            work.unwritten = True
            self._accept(work)
            return
        work.row = stored(work.row)
        work.stored.set()
        self._accept(work)
        if self._nursery is not None:
            self._nursery.start_soon(self._settle, work, taken)

    async def _settle(self, work: Work, taken: Change) -> None:
        """Acknowledge a request once it is there for good; its answer does not wait for that."""
        try:
            await self._journal.synced(taken)
        except JournalError as error:
            self._counts.note("journal_failed")
            log.warning("mqtt.not_synced", job=work.row.id, reason=error.message)
            work.unwritten = True
            if not work.said:
                return
        work.settle()

    def _accept(self, work: Work) -> None:
        if work.ours and (work.stored.is_set() or work.unwritten) and not work.accepted.is_set():
            work.accepted.set()
            self._say_accepted(work)

    def _say_accepted(self, work: Work) -> None:
        row = work.row
        ahead = 0 if work.turn.is_set() else self._queue.ahead(work.client, row.priority)
        eta = (ahead / self._limits.running + 1) * self._job_seconds
        payload = replies.accepted(row.id, self._name, row.model, ahead, round(eta * 1000))
        self._client.send_now(self._topics.job(row.id, "accepted"), payload, qos=1)

    async def _worked(self, work: Work) -> bytes:
        """The result of a job. Raises AgentError, _GivenWayError."""
        row = work.row
        if row.tries >= MAX_TRIES:
            self._counts.note("job_given_up")
            raise _InterruptedError(f"this box ended {row.tries} times while it ran the job; it is not begun again")
        left = row.deadline - self._wall()
        with trio.move_on_after(max(0.0, left)) as limit:
            if row.fleet_wide and not await self.claims.claimed(row.id):
                raise _GivenWayError
            work.ours = True
            self._accept(work)
            self._queue.put(work.client, work, priority=row.priority, now=trio.current_time())
            self._start_next()
            await work.turn.wait()
        if limit.cancelled_caught:
            raise _TooLateError(f"it was not its turn within the {row.deadline - row.received:g} s that the job has")
        work.row = again(work.row)
        self._journal.began(row.id, work.row.tries)
        with trio.move_on_after(max(0.0, row.deadline - self._wall()) + _DEADLINE_GRACE) as limit:
            began = trio.current_time()
            left_ms = round((row.deadline - self._wall()) * 1000)
            settled = self._started + SETTLE
            say_delta = partial(self._say_delta, work)
            result = await run_work(work, left_ms, self._run, settled=settled, say_delta=say_delta)
            self._job_seconds += _NEW_SHARE * (trio.current_time() - began - self._job_seconds)
            return result
        raise _TooLateError(f"it was not done within the {row.deadline - row.received:g} s that the job has")

    def _say_delta(self, work: Work, answer: Answer, text: str) -> None:
        payload = replies.delta(work.row.id, answer.deltas, text)
        answer.deltas += 1
        sent = Sent(correlation=work.row.correlation)
        if not self._client.send_now(self._topics.job(work.row.id, "delta"), payload, sent=sent):
            self._counts.note("delta_dropped")

    def _start_next(self) -> None:
        while self._running < self._limits.running and self._queue.waits():
            work = self._queue.take(trio.current_time())
            self._running += 1
            work.turn.set()
        self.on_change()

    def _ended(self, work: Work) -> None:
        """The job does not run or wait any more."""
        self._queue.remove(work.client, work)
        self._book.open.pop(work.row.id, None)
        self.claims.over(work.row.id)
        if work.turn.is_set():
            self._running -= 1
        self._start_next()

    # --- its end -----------------------------------------------------------------------------------------------------

    def _called_off(self, work: Work) -> bytes:
        if work.displaced:
            found = problem(
                "overloaded", "more urgent jobs came while this one waited", round(self._job_seconds * 1000)
            )
        else:
            found = problem("cancelled", "the job was called off")
        return self._error(work, found)

    def _failure(self, work: Work, group: BaseExceptionGroup[Exception]) -> bytes:
        """The error that a job ends with. One of the errors counts: the first that a client may see."""
        errors = list(_leaves(group))
        found = next((one for one in map(problem_of, errors) if one is not None), None)
        if found is None:
            log.error("mqtt.internal", job=work.row.id, exc_info=group)
            found = problem("engine", f"the job failed unexpectedly; look for job mqtt-{work.row.id} in this box's log")
        return self._error(work, found)

    def _error(self, work: Work, found: Problem) -> bytes:
        answer = work.answer
        last = answer.deltas - 1 if answer is not None and answer.deltas else None
        return replies.failed(work.row.id, found, last)

    async def _say(self, work: Work, what: What, payload: bytes) -> None:
        """Send the answer, which is on the disk before."""
        row = work.row
        topic = work.reply_to or self._topics.job(row.id, what)
        self._book.answered.add(row, topic, payload, self._wall())
        entry = Entry(
            topic,
            payload,
            row.priority,
            correlation=row.correlation,
            user=(("job", row.id), ("type", what)),
            expires=self._wall() + ANSWER_EXPIRES,
        )
        try:
            await self._journal.finish(row.id, entry)
        except JournalError:
            # It is sent all the same; should the box end before that, the job runs again.
            self._counts.note("journal_failed")
            entry.seq = 0
            work.unfinished = True
        entry.gone = lambda why: self._said(work)
        self._client.send(entry)

    def _said(self, work: Work) -> None:
        """The broker has the answer: a request that the journal could not keep is acknowledged now."""
        work.said = True
        if work.unfinished:
            self._journal.drop(work.row.id)
        if work.unwritten:
            work.settle()

    def _lost(self, job: str) -> None:
        """A job that is open here is another box's now: this one was away, and its client has sent it again."""
        work = self._book.open.get(job)
        if work is not None and not work.doubted and self._nursery is not None:
            work.doubted = True
            self._nursery.start_soon(self._make_sure, work)

    async def _make_sure(self, work: Work) -> None:
        """Give way unless the other box takes its claim back: it may have seen that this one is there again."""
        await trio.sleep(CLAIM_LIMIT)
        work.doubted = False
        if self._book.open.get(work.row.id) is work and self.claims.is_others(work.row.id):
            work.lost = True
            work.scope.cancel()

    def _give_way(self, work: Work) -> None:
        job = work.row.id
        self._counts.note("lease_given_way")
        log.info("mqtt.given_way", job=job, to=self.claims.holder(job))
        self._journal.drop(job)
        self.claims.give_way(job)
        work.settle()


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for one in group.exceptions for leaf in _leaves(one)]
    return [group]
