"""The sensor pipelines of one box: which run here, what they make of messages, and their answers.

A pipeline has one job at a time; while that runs, the newest prompt of each topic waits, and older ones give way to it:
an answer about what was is of no use. What is passed over is counted.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from agent.errors import AgentError, DrainingError
from agent.jobs.job import JobEvent, Resumed, Routed
from agent.mqtt.around import Run
from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts, Event
from agent.mqtt.granted import Granted
from agent.mqtt.journal import Journal, JournalError
from agent.mqtt.messages import Incoming, Wanted
from agent.mqtt.outbox import Entry
from agent.mqtt.pipeline import MAX_PIPELINES, Gathering, Pipeline, PipelineError, Prompt, Wish, pipeline_of
from agent.mqtt.rate import Rate
from agent.mqtt.readings import BadReadingError
from agent.mqtt.topics import Topics, covers
from fleet.errors import FleetError
from fleet.net.messages import Delta, Finished

#: Prompts of one pipeline that wait, of as many topics.
MAX_WAITING: Final = 64
#: Seconds between two log lines about bad messages of one pipeline.
_WARN_EVERY: Final = 60.0
#: Seconds after which an answer about a sensor that could not be sent is dropped.
_INSIGHT_EXPIRES: Final = 3600.0
#: The least that is slept for a window, and the most (seconds).
_SHORTEST: Final = 0.02

log = structlog.get_logger("shoal.mqtt")


@dataclass
class Running:
    """A pipeline that runs here. `counts` are its own: messages, bad, prompts, answers, failed, passed_over."""

    gathering: Gathering
    rate: Rate
    waiting: OrderedDict[str, Prompt] = field(default_factory=OrderedDict)
    counts: Counter[str] = field(default_factory=Counter)
    wake: trio.Event = field(default_factory=trio.Event)
    moved: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    last_error: str = ""
    warned_at: float = -_WARN_EVERY

    @property
    def pipeline(self) -> Pipeline:
        """What it is to do."""
        return self.gathering.pipeline


class Sensors:
    """The pipelines of one box. `run` runs a job as any client's."""

    def __init__(
        self,
        topics: Topics,
        client: MqttClient,
        journal: Journal,
        counts: Counts,
        *,
        run: Run,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._topics = topics
        self._client = client
        self._journal = journal
        self._counts = counts
        self._run = run
        self._wall = wall
        self._running: dict[str, Running] = {}
        self._others: dict[str, str] = {}
        #: The numbers of filters, by which it is told for which of them a message was sent.
        self._numbers: dict[str, int] = {}
        self._next_number = itertools.count(1)
        self._nursery: trio.Nursery | None = None
        #: Called when pipelines came or went.
        self.on_change: Callable[[], None] = lambda: None

    async def serve(self) -> None:
        """Run pipelines until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for running in self._running.values():
                nursery.start_soon(self._live, running)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def set(self, wishes: Sequence[Wish], why_not: Callable[[Wish], str]) -> None:
        """What the document wants now. A pipeline that stays as it is keeps what it has collected."""
        wanted: dict[str, Pipeline] = {}
        self._others = {}
        for wish in wishes:
            reason = wish.problem
            if not reason:
                reason = why_not(wish)
            if not reason and len(wanted) >= MAX_PIPELINES:
                reason = f"this box runs {MAX_PIPELINES} pipelines already"
            if not reason and wish.spec is not None:
                try:
                    wanted[wish.name] = pipeline_of(wish.name, wish.spec, self._topics)
                except PipelineError as error:
                    reason = error.message
            if reason:
                self._others[wish.name] = reason
        changed = False
        for name, running in list(self._running.items()):
            if wanted.get(name) != running.pipeline:
                running.scope.cancel()
                del self._running[name]
                changed = True
        for name, pipeline in wanted.items():
            if name not in self._running:
                rate = Rate(pipeline.per_minute / 60, max(1.0, pipeline.per_minute / 6), trio.current_time())
                running = self._running[name] = Running(Gathering(pipeline), rate)
                if self._nursery is not None:
                    self._nursery.start_soon(self._live, running)
                changed = True
        if changed:
            log.info("mqtt.pipelines", running=sorted(self._running), not_here=self._others)
            self._client.subscriptions_changed()
            self.on_change()

    def subscriptions(self, granted: Granted) -> list[Wanted]:
        """The topics of every pipeline: values that are lost are replaced by the next, so QoS 0 does.

        mosquitto sends a message once for each filter that means it. Filters have numbers, so that each pipeline takes
        it once; in 3.1.1, which has no numbers, those are left out whose messages come for another one.
        """
        filters = {one: None for running in self._running.values() for one in running.pipeline.topics}
        self._numbers = {one: self._numbers.get(one) or next(self._next_number) for one in filters}
        if not granted.numbers:
            return [
                Wanted(one, qos=0)
                for one in filters
                if not any(covers(other, one) and other != one for other in filters)
            ]
        return [Wanted(one, qos=0, number=number) for one, number in self._numbers.items()]

    @property
    def pipelines(self) -> list[Pipeline]:
        """The pipelines that run here."""
        return [running.pipeline for running in self._running.values()]

    def facts(self) -> list[Mapping[str, object]]:
        """Every pipeline of the fleet: whether it runs here, and how that goes."""
        here: list[Mapping[str, object]] = [
            {
                "name": name,
                "here": True,
                "why": "",
                "topics": list(running.pipeline.topics),
                "publish": running.pipeline.publish,
                "model": running.pipeline.model,
                "counts": dict(running.counts),
                "error": running.last_error,
            }
            for name, running in self._running.items()
        ]
        others: list[Mapping[str, object]] = [
            {"name": name, "here": False, "why": why} for name, why in self._others.items()
        ]
        return sorted((*here, *others), key=lambda one: str(one["name"]))

    # --- messages ----------------------------------------------------------------------------------------------------

    def message(self, message: Incoming) -> bool:
        """A message of the broker; False where no pipeline wants it. Neither blocks nor raises."""
        wanted = False
        numbers = message.numbers & set(self._numbers.values())
        for running in self._running.values():
            meant = running.pipeline.meant_by(message.topic)
            if meant is None:
                continue
            wanted = True
            if not numbers or self._numbers.get(meant) in numbers:
                self._counts.note("sensor")
                self._take(running, message)
        if wanted:
            message.settle()
        return wanted

    def _take(self, running: Running, message: Incoming) -> None:
        running.counts["messages"] += 1
        gathering = running.gathering
        forgotten, now = gathering.forgotten, trio.current_time()
        try:
            prompt = gathering.take(message.topic, message.payload, self._wall(), now)
        except BadReadingError as error:
            self._note_bad(running, message.topic, error, now)
            return
        if gathering.forgotten != forgotten:
            self._counts.note("sensor_too_many_topics")
        if prompt is not None:
            self._put(running, prompt, now)
        elif running.pipeline.rules.mode == "window":
            running.moved.set()

    def _note_bad(self, running: Running, topic: str, error: BadReadingError, now: float) -> None:
        running.counts["bad"] += 1
        kind: Event = error.kind  # type: ignore[assignment]  # names of this side's own
        self._counts.note(kind)
        if now - running.warned_at >= _WARN_EVERY:
            running.warned_at = now
            log.warning(
                "mqtt.bad_sensor_message",
                pipeline=running.pipeline.name,
                topic=topic[:256],
                reason=f"it {error}",
                so_far=running.counts["bad"],
            )

    def _put(self, running: Running, prompt: Prompt, now: float) -> None:
        if running.rate.take(now):
            running.counts["passed_over"] += 1
            self._counts.note("sensor_rate_limited")
            return
        topic = prompt.collected.last.topic
        if running.waiting.pop(topic, None) is not None or len(running.waiting) >= MAX_WAITING:
            running.counts["passed_over"] += 1
            self._counts.note("sensor_superseded")
        while len(running.waiting) >= MAX_WAITING:
            running.waiting.popitem(last=False)
        running.waiting[topic] = prompt
        running.counts["prompts"] += 1
        self._counts.note("sensor_prompt")
        running.wake.set()

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _live(self, running: Running) -> None:
        with running.scope:
            async with trio.open_nursery() as nursery:
                if running.pipeline.rules.mode == "window" and running.pipeline.rules.seconds is not None:
                    nursery.start_soon(self._watch_windows, running)
                while True:
                    await running.wake.wait()
                    running.wake = trio.Event()
                    while running.waiting:
                        _, prompt = running.waiting.popitem(last=False)
                        await self._answer(running, prompt)

    async def _watch_windows(self, running: Running) -> None:
        """Make prompts of windows that end while no message comes."""
        while True:
            end = running.gathering.next_end()
            if end is None:
                await running.moved.wait()
                running.moved = trio.Event()
                continue
            await trio.sleep(max(_SHORTEST, end - trio.current_time()))
            for prompt in running.gathering.due(trio.current_time()):
                self._put(running, prompt, trio.current_time())

    async def _answer(self, running: Running, prompt: Prompt) -> None:
        pipeline = running.pipeline
        texts: list[str] = []
        served: list[Routed] = []
        finished: list[Finished] = []

        async def emit(event: JobEvent) -> None:
            match event:
                case Routed():
                    served.append(event)
                case Resumed():
                    served.append(event.routed)
                case Delta():
                    texts.append(event.text)
                case Finished():
                    finished.append(event)

        job_id = f"pipe-{pipeline.name[:32]}-{secrets.token_hex(8)}"
        began = trio.current_time()
        try:
            await self._run(pipeline.job(job_id, prompt.text), emit)
        except DrainingError:
            return
        except (AgentError, FleetError) as error:
            self._failed(running, error.message, "insight_failed")
            return
        facts = {
            "model": served[-1].model if served else pipeline.model,
            "served_by": served[-1].name if served else "",
            "job": job_id,
            "total_ms": round((trio.current_time() - began) * 1000, 1),
        }
        try:
            payload = pipeline.insight(prompt.collected, "".join(texts), facts)
        except (json.JSONDecodeError, RecursionError):
            cut = finished and finished[-1].reason == "length"
            why = "it did not end within max_tokens" if cut else "it is no JSON"
            self._failed(running, f"the answer is not what its schema says: {why}", "insight_bad_answer")
            return
        running.counts["answers"] += 1
        running.last_error = ""
        self._counts.note("insight")
        entry = Entry(pipeline.publish, payload, pipeline.priority, expires=self._wall() + _INSIGHT_EXPIRES)
        if self._client.session is None:
            # What can be sent at once need not go by way of the disk.
            try:
                await self._journal.keep(entry)
            except JournalError:
                entry.seq = 0
                self._counts.note("journal_failed")
        self._client.send(entry)

    def _failed(self, running: Running, why: str, event: Event) -> None:
        running.counts["failed"] += 1
        self._counts.note(event)
        if running.last_error != why:
            log.warning("mqtt.pipeline_failed", pipeline=running.pipeline.name, reason=why)
        running.last_error = why[:512]
