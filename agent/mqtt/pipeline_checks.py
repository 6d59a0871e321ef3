"""What of a pipeline cannot run, for all that its schema allows: filters, templates, schemas of answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agent.errors import AgentError
from agent.manifests.kinds import Collect, PipelineSpec
from agent.manifests.read import Manifest
from agent.mqtt.request import check_schema
from agent.mqtt.template import template_problem
from agent.mqtt.topics import Topics, filter_problem, matches, topic_problem

#: The box that a manifest is checked for where none is known: no topic of a fleet or a box is like this one's.
NOWHERE: Final = Topics("fleet", "0" * 16)


@dataclass(frozen=True)
class Mistake:
    """`key` of the spec, and in a list the `place` in it, is not what can run; `text` begins with the key."""

    key: str
    text: str
    place: int | None = None


def mistakes_of(name: str, spec: PipelineSpec, topics: Topics) -> Iterator[Mistake]:
    """Everything that is wrong with a pipeline on the box of these topics."""
    filters = [local(one, topics) for one in spec.topics]
    publish = topics.insight(name) if spec.publish is None else local(spec.publish, topics)
    for place, text in enumerate(filters):
        if wrong := filter_problem(text) or _not_sensors(text, (publish, topics.insight(name)), topics):
            yield Mistake("topics", f"topics: {text[:80]!r} {wrong}", place)
    if spec.publish is not None:
        yield from _publish_mistakes(publish, topics)
    if wrong := template_problem(spec.prompt):
        yield Mistake("prompt", f"prompt: {wrong}")
    yield from _collect_mistakes(spec.collect)
    if spec.answer is not None:
        try:
            check_schema(spec.answer, "answer")
        except AgentError as error:
            yield Mistake("answer", error.message)


def mistakes_in(manifest: Manifest) -> list[str]:
    """What is wrong with a pipeline as it was written, each as `file:line: what`."""
    spec = PipelineSpec.model_validate_json(json.dumps(manifest.spec), strict=True)
    found = sorted((_line(manifest, one), one.text) for one in mistakes_of(manifest.name, spec, NOWHERE))
    return [f"{manifest.source}:{line}: spec.{text}" for line, text in found]


def local(text: str, topics: Topics) -> str:
    """A topic or a filter of a manifest as it is on one box."""
    return text.replace("{fleet}", topics.fleet).replace("{node}", topics.node)


def _line(manifest: Manifest, mistake: Mistake) -> int:
    key = ("spec", mistake.key)
    found = None if mistake.place is None else manifest.lines.get((*key, mistake.place))
    return found or manifest.lines.get(key, manifest.line)


def _not_sensors(text: str, answers: tuple[str, ...], topics: Topics) -> str | None:
    """Why a filter is not for sensors, None where it is."""
    if any(matches(text, topic) for topic in answers):
        return "means the topic that the answers go to; it would answer itself without end"
    if any(matches(text, topic) for topic in (topics.fleet_request, topics.own_request)):
        return "means the topics of requests, which are no sensors'; name what is meant"
    if any(matches(text, topic) for topic in (topics.availability, topics.lease("x"), f"{topics.own}/infer/x/cancel")):
        return "means what boxes say to one another, which is no sensor's; name what is meant"
    return None


def _publish_mistakes(publish: str, topics: Topics) -> Iterator[Mistake]:
    if wrong := topic_problem(publish):
        yield Mistake("publish", f"publish: {publish[:80]!r} {wrong}")
        return
    first = publish.split("/", 1)[0]
    if first == "homeassistant" or (first == "shoal" and not publish.startswith(f"{topics.own}/insight/")):
        where = "shoal/v1/{fleet}/{node}/insight/" if topics is NOWHERE else f"{topics.own}/insight/"
        yield Mistake("publish", f"publish: {publish[:80]!r} is not below {where}, nor a topic of your own")


def _collect_mistakes(collect: Collect) -> Iterator[Mistake]:
    needed = {"sample": ("seconds",), "window": ("count", "seconds"), "change": ("band",)}.get(collect.mode, ())
    given = [name for name in ("seconds", "count", "band") if getattr(collect, name) is not None]
    if needed and not set(needed) & set(given):
        yield Mistake("collect", f"collect: the mode {collect.mode} needs {' or '.join(needed)}")
    if extra := sorted(set(given) - set(needed)):
        yield Mistake("collect", f"collect: the mode {collect.mode} does nothing with {', '.join(extra)}; leave it out")
