"""A sensor pipeline as the fleet document wants it, checked, and the prompts that its messages become. Pure."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from agent.errors import AgentError, ConfigError
from agent.jobs.job import Job
from agent.manifests.kinds import PipelineSpec
from agent.manifests.selector import Term
from agent.mqtt.collecting import Collected, Collector, Rules
from agent.mqtt.pipeline_checks import local, mistakes_of
from agent.mqtt.readings import Reading, read
from agent.mqtt.template import figures, fill, payload_paths, payload_value
from agent.mqtt.topics import Topics, matches
from agent.reconcile.selector import read_terms
from fleet.document.settings import Setting
from fleet.errors import FleetError
from fleet.net.messages import ChatMessage, InferRequest, Priority, Sampling

PREFIX: Final = "pipe/"
#: Pipelines of one box, and topics that one pipeline tells apart.
MAX_PIPELINES: Final = 64
MAX_TOPICS: Final = 256
#: Where a manifest says nothing: seconds, tokens, prompts a minute.
DEADLINE: Final = 60.0
ANSWER_TOKENS: Final = 128
PER_MINUTE: Final = 60


@dataclass(frozen=True)
class Pipeline:
    """A pipeline on one box. `topics` are filters, `publish` a topic, both as they are there; `deadline` in seconds."""

    name: str
    topics: tuple[str, ...]
    model: str
    prompt: str
    system: str
    value: str | None
    publish: str
    rules: Rules
    schema: str
    max_tokens: int
    priority: Priority
    per_minute: int
    deadline: float

    def wants(self, topic: str) -> bool:
        """Whether a topic is one of its sensors'."""
        return self.meant_by(topic) is not None

    def meant_by(self, topic: str) -> str | None:
        """The first of its filters that means a topic, None where none does."""
        return next((one for one in self.topics if matches(one, topic)), None)

    def job(self, job_id: str, prompt: str) -> Job:
        """The job that answers a prompt: the likeliest answer, the same each time as far as a model can."""
        turns = [ChatMessage(role="system", content=self.system)] if self.system else []
        request = InferRequest(
            v=2 if self.schema else 1,
            job=job_id,
            kind="chat",
            model=self.model,
            messages=(*turns, ChatMessage(role="user", content=prompt)),
            sampling=Sampling(max_tokens=self.max_tokens, temperature=0.0),
            output="schema" if self.schema else "",
            output_text=self.schema,
            priority=self.priority,
            deadline_ms=round(self.deadline * 1000),
        )
        return Job(request)

    def insight(self, collected: Collected, text: str, facts: Mapping[str, object]) -> bytes:
        """What is published of an answer. Raises ValueError for one that should have been JSON and is none."""
        answer: Any = json.loads(text) if self.schema else text
        body = {
            "v": 1,
            "pipeline": self.name,
            "topic": collected.last.topic,
            "at": round(collected.last.at, 3),
            "of": figures(collected),
            "answer": answer,
            **facts,
        }
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class PipelineError(ConfigError):
    """A pipeline that cannot run; the message says what of its manifest is wrong."""

    code = "manifest"


@dataclass(frozen=True)
class Wish:
    """A pipeline as the document has it, for every box: what can be run where `terms` hold, or what is wrong."""

    name: str
    spec: PipelineSpec | None
    terms: tuple[Term, ...] = ()
    problem: str = ""


def read_wishes(settings: Mapping[str, Setting]) -> list[Wish]:
    """The pipelines among the settings of a view, by name. What is not as a manifest would have it has a problem."""
    found = []
    for path, setting in sorted(settings.items()):
        if not path.startswith(PREFIX) or setting.value is None:
            continue
        name = path.removeprefix(PREFIX)
        try:
            # As JSON, for which the strict rules of manifests are.
            spec = PipelineSpec.model_validate_json(json.dumps(setting.value), strict=True)
            selector = setting.value.get("selector", {}) if isinstance(setting.value, dict) else {}
            found.append(Wish(name, spec, read_terms(selector)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            found.append(Wish(name, None, problem=f"{where}: {first['msg']}"))
        except (TypeError, ValueError, FleetError, AgentError) as error:
            found.append(Wish(name, None, problem=str(error)))
    return found


def pipeline_of(name: str, spec: PipelineSpec, topics: Topics) -> Pipeline:
    """A pipeline as it runs on one box. Raises PipelineError."""
    mistake = next(mistakes_of(name, spec, topics), None)
    if mistake is not None:
        raise PipelineError(mistake.text)
    filters = tuple(local(one, topics) for one in spec.topics)
    publish = local(spec.publish, topics) if spec.publish is not None else topics.insight(name)
    return Pipeline(
        name,
        filters,
        spec.model,
        spec.prompt,
        spec.system or "",
        spec.value,
        publish,
        Rules(spec.collect.mode, spec.collect.seconds, spec.collect.count, spec.collect.band),
        json.dumps(spec.answer, ensure_ascii=False, separators=(",", ":")) if spec.answer is not None else "",
        spec.max_tokens or ANSWER_TOKENS,
        spec.priority or "bulk",
        spec.max_per_minute or PER_MINUTE,
        spec.deadline or DEADLINE,
    )


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what it is about."""

    text: str
    collected: Collected


class Gathering:
    """What one pipeline has collected, by topic."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline: Final = pipeline
        self._needed = payload_paths(pipeline.prompt)
        self._topics: OrderedDict[str, Collector] = OrderedDict()
        #: Topics that were forgotten for others, the longest quiet first.
        self.forgotten = 0

    def take(self, topic: str, payload: bytes, at: float, now: float) -> Prompt | None:
        """Take a message in; the prompt that is due, if one is. `at` is of the wall clock, `now` of any other.

        Raises BadReadingError for a message that says nothing.
        """
        reading: Reading = read(topic, payload, at, self.pipeline.value)
        for path in self._needed:
            # Before it is collected: what the others of a window said is not lost for it.
            payload_value(reading, path)
        collector = self._topics.get(topic)
        if collector is None:
            collector = self._topics[topic] = Collector(self.pipeline.rules)
            if len(self._topics) > MAX_TOPICS:
                self._topics.popitem(last=False)
                self.forgotten += 1
        self._topics.move_to_end(topic)
        return self._prompt(collector.take(reading, now))

    def due(self, now: float) -> list[Prompt]:
        """Prompts of windows whose time is over."""
        prompts = [self._prompt(collector.due(now)) for collector in self._topics.values()]
        return [prompt for prompt in prompts if prompt is not None]

    def next_end(self) -> float | None:
        """When the next window is over."""
        return min((end for one in self._topics.values() if (end := one.ends) is not None), default=None)

    def _prompt(self, collected: Collected | None) -> Prompt | None:
        return None if collected is None else Prompt(fill(self.pipeline.prompt, collected), collected)


def names_of(wishes: Sequence[Wish]) -> list[str]:
    """The names of pipelines."""
    return [wish.name for wish in wishes]
