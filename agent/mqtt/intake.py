"""Requests from their payload to a job that is taken on, or to an error that says why not.

What is not taken on is answered, and acknowledged to the broker once it has that answer: nothing is passed over in
silence. A request that comes again is recognised by its job's id, and its client told again how that stands.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from agent.engine.fair_queue import CLASSES
from agent.errors import AgentError, BadRequestError, NoCapablePeerError, OverloadedError
from agent.mqtt import replies
from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.journal import JobRow
from agent.mqtt.messages import Incoming
from agent.mqtt.outbox import Entry
from agent.mqtt.rate import Rate
from agent.mqtt.replies import problem, problem_of
from agent.mqtt.request import MAX_CORRELATION, Asked, NotUtf8Error, TooLargeError, job_of, understand
from agent.mqtt.topics import Topics, matches
from agent.mqtt.work import Book, Work, same_request

#: Bytes of a payload past which it is understood in a thread, and how many may wait for that.
PARSE_APART: Final = 4 * 1024
PARSED_AT_ONCE: Final = 2
MAX_APART: Final = 64
#: Bytes of the requests of all jobs that are open.
MAX_HELD: Final = 32 * 1024 * 1024
#: Seconds after which an error that nobody has fetched is dropped.
ANSWER_EXPIRES: Final = 3600.0


@dataclass(frozen=True)
class DeskLimits:
    """How much is taken on. `running` jobs at a time and `waiting` beside; `deadline` in seconds, for jobs that have
    none of their own; `reply_to` are filters of the topics that answers may be sent to."""

    running: int = 8
    waiting: int = 256
    per_second: float = 50.0
    deadline: float = 600.0
    reply_to: tuple[str, ...] = ("#",)


class Intake:
    """Takes requests. `begin` is given what is taken on, `again` the id of a job that was asked for again;
    `job_seconds` says how long jobs take lately; the others are as for the desk."""

    def __init__(
        self,
        topics: Topics,
        client: MqttClient,
        counts: Counts,
        limits: DeskLimits,
        book: Book,
        *,
        begin: Callable[[Work], None],
        again: Callable[[str], None],
        job_seconds: Callable[[], float],
        refused: Callable[[str, AgentError], None],
        default_model: Callable[[], str | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._topics = topics
        self._client = client
        self._counts = counts
        self._limits = limits
        self._book = book
        self._begin = begin
        self._again = again
        self._job_seconds = job_seconds
        self._refused = refused
        self._default_model = default_model
        self._wall = wall
        self._rate = Rate(limits.per_second, limits.per_second * 2)
        self._parsing = trio.CapacityLimiter(PARSED_AT_ONCE)
        self._apart = 0

    def request(self, message: Incoming, fleet_wide: bool, nursery: trio.Nursery) -> None:
        """A request. It is acknowledged once it is safe, or was refused. Neither blocks nor raises."""
        self._counts.note("request")
        if message.retain:
            # It would run again whenever a box subscribes.
            self._counts.note("request_retained")
            found = BadRequestError("a request that is retained is not run; publish it without the retain flag")
            if message.payload:
                self._refuse(message, "", found)
            else:
                message.settle()
        elif len(message.payload) <= PARSE_APART:
            self._understood(message, fleet_wide, lambda: understand(message.payload))
        elif self._apart >= MAX_APART:
            self._counts.note("request_overloaded")
            self._refuse(message, "", OverloadedError("too many large requests at a time", retry_after=1))
        else:
            self._apart += 1
            nursery.start_soon(self._understand_apart, message, fleet_wide)

    async def _understand_apart(self, message: Incoming, fleet_wide: bool) -> None:
        try:
            asked: Asked | AgentError = await trio.to_thread.run_sync(_tried, message.payload, limiter=self._parsing)
        finally:
            self._apart -= 1

        def found() -> Asked:
            if isinstance(asked, AgentError):
                raise asked
            return asked

        self._understood(message, fleet_wide, found)

    def _understood(self, message: Incoming, fleet_wide: bool, understood: Callable[[], Asked]) -> None:
        job = ""
        try:
            asked = understood()
            job = asked.job
            self._take(message, fleet_wide, asked)
        except AgentError as error:
            if isinstance(error, NotUtf8Error):
                self._counts.note("request_not_utf8")
            elif isinstance(error, TooLargeError):
                self._counts.note("request_too_large")
            elif isinstance(error, OverloadedError):
                self._counts.note("request_overloaded")
            elif isinstance(error, BadRequestError):
                self._counts.note("request_bad")
            self._refuse(message, job or job_of(message.payload), error)

    def _take(self, message: Incoming, fleet_wide: bool, asked: Asked) -> None:
        """Take a job on. Raises AgentError."""
        self._check_reply(message)
        if self._is_repeated(message, asked):
            return
        wait = self._rate.take(trio.current_time())
        if wait:
            raise OverloadedError(
                f"more than {self._limits.per_second:g} requests a second came over MQTT; ask again later",
                retry_after=max(1, round(wait)),
            )
        model = asked.model or self._default_model()
        if not model:
            raise NoCapablePeerError("no model is held here or by a box that is connected, and none was asked for")
        self._make_room(asked, len(message.payload))
        now = self._wall()
        seconds = asked.deadline_ms / 1000 if asked.deadline_ms is not None else self._limits.deadline
        if message.expiry is not None:
            seconds = min(seconds, max(1, message.expiry))
        job = asked.job or f"{int(now * 1000) & (1 << 48) - 1:012x}{secrets.token_hex(8)}"
        row = JobRow(
            job,
            fleet_wide,
            not asked.job,
            asked.fingerprint,
            message.payload,
            message.reply_to,
            message.correlation,
            message.user.get("traceparent"),
            message.user.get("client", "")[:64],
            asked.priority,
            now,
            now + seconds,
            model,
        )
        self._begin(Work(row, asked, message.settle, len(message.payload)))

    def _check_reply(self, message: Incoming) -> None:
        if message.correlation is not None and len(message.correlation) > MAX_CORRELATION:
            raise BadRequestError(f"the CorrelationData has more than {MAX_CORRELATION} bytes")
        reply_to = message.reply_to
        if reply_to is None:
            return
        if wrong := self._topics.reply_problem(reply_to):
            raise BadRequestError(f"the ResponseTopic {wrong}")
        if not any(matches(allowed, reply_to) for allowed in self._limits.reply_to):
            raise BadRequestError("the ResponseTopic is none that this box may answer to (mqtt.reply_to)")

    def _is_repeated(self, message: Incoming, asked: Asked) -> bool:
        """Whether the request is one that this box has; then its client is told again how that stands."""
        job = asked.job
        if not job and message.dup:
            # Without an id only what the broker itself sends again is known to be the same.
            job = self._book.find(same_request(asked.fingerprint, message.reply_to, message.correlation))
        known = self._book.fingerprint(job, self._wall()) if job else None
        if known is None:
            return False
        if known != asked.fingerprint:
            raise BadRequestError("job: was used with another request; give every request an id of its own")
        self._counts.note("request_repeated")
        if not message.dup:
            # What the broker sends again its client has not: the answer is on its way, or has been.
            self._again(job)
        message.settle()
        return True

    def _make_room(self, asked: Asked, size: int) -> None:
        """Raises OverloadedError where there is none; a job goes before those of a lower class that wait."""
        jobs = [work for work in self._book.open.values() if not work.displaced]
        number, held = len(jobs) + 1, sum(work.size for work in jobs) + size
        rank = CLASSES.index(asked.priority)
        lower = [work for work in jobs if not work.turn.is_set() and CLASSES.index(work.row.priority) > rank]
        lower.sort(key=lambda work: (-CLASSES.index(work.row.priority), work.row.received))
        most = self._limits.running + self._limits.waiting
        gone: list[Work] = []
        for work in lower:
            if number <= most and held <= MAX_HELD:
                break
            gone.append(work)
            number, held = number - 1, held - work.size
        if number > most or held > MAX_HELD:
            wait = max(1, round(self._job_seconds() * len(jobs) / self._limits.running / 2))
            text = f"{len(jobs)} jobs that came over MQTT run or wait"
            why = "which is all that may" if number > most else f"and their requests have {MAX_HELD >> 20} MiB together"
            raise OverloadedError(f"{text}, {why}", retry_after=min(wait, 60))
        for work in gone:
            self._counts.note("request_displaced")
            work.displaced = True
            work.scope.cancel()

    def _refuse(self, message: Incoming, job: str, error: AgentError) -> None:
        """Answer with an error; the request is acknowledged when the broker has that."""
        job = job or f"{int(self._wall() * 1000) & (1 << 48) - 1:012x}{secrets.token_hex(8)}"
        self._refused(f"mqtt-{job}", error)
        found = problem_of(error) or problem("engine", "the request failed; see this box's log")
        answers_there = message.reply_to is not None and not self._reply_is_bad(message)
        entry = Entry(
            message.reply_to if answers_there and message.reply_to else self._topics.job(job, "error"),
            replies.failed(job, found),
            correlation=message.correlation if len(message.correlation or b"") <= MAX_CORRELATION else None,
            user=(("job", job), ("type", "error")),
            expires=self._wall() + ANSWER_EXPIRES,
            # Not the message: what is refused may be large, and the broker slow to take the answer.
            gone=lambda why, settle=message.settle: settle(),  # type: ignore[misc]
        )
        self._client.send(entry)

    def _reply_is_bad(self, message: Incoming) -> bool:
        try:
            self._check_reply(message)
        except BadRequestError:
            return True
        return False


def _tried(payload: bytes) -> Asked | AgentError:
    try:
        return understand(payload)
    except AgentError as error:
        return error
