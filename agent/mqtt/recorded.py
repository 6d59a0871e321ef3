"""A pipeline run on recorded messages: what it would ask and when, and what it would pass over. Pure.

A line is a JSON object with `topic`, `payload` (a text, or JSON to be sent as such) and `at`, in seconds; or one that
`mosquitto_sub -F %j` writes, which has the time in `tst`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic_core import from_json

from agent.errors import BadRequestError
from agent.mqtt.pipeline import Gathering, Pipeline, Prompt
from agent.mqtt.rate import Rate
from agent.mqtt.readings import BadReadingError

#: Lines that are read, and characters of one.
MAX_LINES: Final = 100_000
MAX_LINE: Final = 256 * 1024
#: The last second that a date has.
_LATEST: Final = 253_402_300_799.0
_LONE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Recorded:
    """One message, and when it came, in seconds since the epoch."""

    at: float
    topic: str
    payload: bytes


@dataclass(frozen=True)
class Step:
    """What comes of a message, or of the end of a window: a prompt, or why there is none."""

    at: float
    topic: str
    prompt: Prompt | None
    problem: str = ""


def read_recorded(lines: Iterable[str]) -> Iterator[Recorded]:
    """The messages of a recording, in their order; raises BadRequestError with the line that is none."""
    at = 0.0
    for number, line in enumerate(lines, 1):
        if number > MAX_LINES or len(line) > MAX_LINE:
            raise BadRequestError(f"line {number}: a recording has at most {MAX_LINES} lines of {MAX_LINE} characters")
        if not line.strip():
            continue
        facts = _json(line, number)
        if not isinstance(facts, dict) or not isinstance(facts.get("topic"), str) or "payload" not in facts:
            raise BadRequestError(f"line {number}: it must be an object with topic and payload")
        at = max(at, _time(facts, at, number))
        payload = facts["payload"]
        text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
        try:
            # Bytes that were none of UTF-8 in the recording are the sensor's, and are passed on as they were.
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise BadRequestError(f"line {number}: the payload has half of a character") from None
        yield Recorded(at, facts["topic"].encode("utf-8", "replace").decode(), data)


def replay(pipeline: Pipeline, messages: Iterable[Recorded]) -> Iterator[Step]:
    """What the pipeline makes of messages that come when they came, rate limit and all; windows end at the end."""
    gathering, last = Gathering(pipeline), 0.0
    rate: Rate | None = None
    for message in messages:
        rate = rate or Rate(pipeline.per_minute / 60, max(1.0, pipeline.per_minute / 6), message.at)
        last = message.at
        for prompt in gathering.due(message.at):
            yield _step(prompt, message.at, rate)
        if not pipeline.wants(message.topic):
            yield Step(message.at, message.topic, None, "none of its topics")
            continue
        try:
            found = gathering.take(message.topic, message.payload, message.at, message.at)
        except BadReadingError as error:
            yield Step(message.at, message.topic, None, f"it {error}")
            continue
        if found is not None:
            yield _step(found, message.at, rate)
    while rate is not None and (end := gathering.next_end()) is not None:
        last = max(last, end)
        for prompt in gathering.due(last):
            yield _step(prompt, last, rate)


def _step(prompt: Prompt, at: float, rate: Rate) -> Step:
    topic = prompt.collected.last.topic
    return Step(at, topic, None, "more than max_per_minute") if rate.take(at) else Step(at, topic, prompt)


def _json(line: str, number: int) -> Any:
    try:
        # mosquitto_sub writes the bytes of a payload as they are; read as text they are surrogates, which from_json
        # does not take.
        return from_json(line, allow_inf_nan=False) if line.isascii() or not _LONE.search(line) else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"line {number}: it is no JSON: {error}") from None


def _time(facts: dict[str, Any], before: float, number: int) -> float:
    at, text = facts.get("at"), facts.get("tst")
    if isinstance(at, int | float) and not isinstance(at, bool) and abs(at) <= _LATEST:
        return float(at)
    if isinstance(text, str):
        try:
            # mosquitto_sub 2.0 writes both, a Z and an offset.
            return datetime.fromisoformat(text.replace("Z+", "+").replace("Z-", "-")).timestamp()
        except (ValueError, OverflowError):
            raise BadRequestError(f"line {number}: tst is no time") from None
    if at is None and text is None:
        return before
    raise BadRequestError(f"line {number}: at must be seconds since 1970")
