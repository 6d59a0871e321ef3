"""How good a box is for a job: whether the job starts there at once, how long it waits, what ranks it. Pure.

An empty queue wins; among boxes where the job would wait, the score decides: 60 % queue, 30 % health, 10 % record.
Boxes that are equal by that are ordered by: model loaded, rate, direct before relayed, fewest jobs, an order that each
asking box has for itself, exact rate, round trip, PeerID. What one box says of itself enters its own numbers alone, so
none can change the order of two others.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Final

from fleet.net.messages import HealthPresence, ModelPresence, Presence

#: Tokens of an answer, for estimates of time.
JOB_TOKENS: Final = 128
#: Tokens per second that a box is taken to have before it has been measured, and the least that is reckoned with.
UNKNOWN_RATE: Final = 10.0
_LEAST_RATE: Final = 0.1
#: Seconds that loading a model is taken to last, and of waiting that halve the queue's part of the score.
LOAD_SECONDS: Final = 10.0
HALF_QUEUE: Final = 10.0
QUEUE_WEIGHT, HEALTH_WEIGHT, RECORD_WEIGHT = 0.6, 0.3, 0.1
#: A box that is less well than this has no empty queue: it is hot, nearly out of battery, or out of memory or CPU.
STRAINED: Final = 0.2
#: Differences of score that mean nothing.
_SCORE_STEP: Final = 0.02
#: Rates within one step of a quarter octave (19 %) are equal; having the conversation counts as twice the rate.
_RATE_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Numbers:
    """What counts of one box for one job. `rate` in tokens per second, None before it has been measured.

    `jobs` are those that run or wait there, `slots` how many run at a time. `room`: the job is likely to fit into its
    context and into the cells that are free. `refusing`: it says that it takes no jobs of others now. `health` and
    `record` (of what it has given to others) are 0..1; `rtt` is in seconds, None before a ping. `remembers`: it had
    this conversation last. `remote` is False for the box that decides.
    """

    loaded: bool
    rate: float | None
    jobs: int
    slots: int
    room: bool = True
    refusing: bool = False
    health: float = 1.0
    record: float = 0.0
    rtt: float | None = None
    relayed: bool = False
    remembers: bool = False
    remote: bool = True


def numbers_of(
    model: ModelPresence,
    *,
    tokens: int = 0,
    asked: int = 0,
    health: float = 1.0,
    record: float = 0.0,
    rtt: float | None = None,
    relayed: bool = False,
    remembers: bool = False,
    refusing: bool = False,
    remote: bool = True,
) -> Numbers:
    """The numbers of a holding for a job of about so many `tokens`, prompt and answer.

    `asked` are the jobs that the deciding box itself has there now: a presence is seconds old, or a lie.
    """
    jobs, free = max(model.running + model.queued, asked), model.free_cells
    # With a slot that has to be waited for, its cells are free by then.
    fits = free is None or jobs >= model.slots or tokens <= free
    return Numbers(
        loaded=model.state == "loaded",
        rate=model.decode_rate,
        jobs=jobs,
        slots=model.slots,
        room=tokens <= model.context_tokens and fits,
        refusing=refusing,
        health=_share(health),
        record=_share(record),
        rtt=rtt,
        relayed=relayed,
        remembers=remembers,
        remote=remote,
    )


def starts_at_once(numbers: Numbers) -> bool:
    """Whether the queue is empty for this job: the model is loaded, has a free slot and room, and the box is well."""
    free = numbers.loaded and numbers.room and numbers.jobs < numbers.slots
    return free and not numbers.refusing and numbers.health >= STRAINED


def wait(numbers: Numbers) -> float:
    """Seconds until the job would start there, as far as can be told."""
    ahead = max(0, numbers.jobs + 1 - numbers.slots) + (0 if numbers.room else 1)
    return ahead / numbers.slots * _job_seconds(numbers) + (0.0 if numbers.loaded else LOAD_SECONDS)


def finish(numbers: Numbers) -> float:
    """Seconds until an answer of JOB_TOKENS would be complete there."""
    return wait(numbers) + _job_seconds(numbers)


def score(numbers: Numbers) -> float:
    """0..1: how good it is to wait there."""
    queue = HALF_QUEUE / (HALF_QUEUE + wait(numbers))
    return QUEUE_WEIGHT * queue + HEALTH_WEIGHT * numbers.health + RECORD_WEIGHT * numbers.record


def preference(numbers: Numbers, peer_id: str, spread: str = "") -> tuple[int | float | bool | str, ...]:
    """What boxes are sorted by, the best first: a total order, whatever the numbers.

    With `spread`, the PeerID of the box that asks, equal boxes come in an order of its own. What boxes say of their
    queues is seconds old: without it, all who ask at the same time would ask the same one. A box that asks again asks
    the same one again, which may still have the beginning of the prompt.
    """
    at_once = starts_at_once(numbers)
    rate = numbers.rate or 0.0
    return (
        2 if numbers.refusing else 0 if at_once else 1,
        0 if at_once else -round(score(numbers) / _SCORE_STEP),
        numbers.remote,
        not numbers.loaded,
        -_band(rate) - (_RATE_STEPS if numbers.remembers else 0),
        numbers.relayed,
        numbers.jobs,
        zlib.crc32(f"{spread} {peer_id}".encode()) if spread else 0,
        -rate,
        numbers.rtt if numbers.rtt is not None else math.inf,
        peer_id,
    )


def wellness(presence: Presence) -> float:
    """How well a box is by its own word, 0..1: its worst figure counts, and what it does not know is well.

    CPU and memory up to half in use, a load of one for each core, and mains power are all well. Of the CPU only what
    others than its models use is counted, where the box can tell.
    """
    known = presence.health or HealthPresence()
    cpu = presence.cpu if known.cpu_other is None else known.cpu_other
    figures = [_headroom(cpu), _headroom(presence.memory)]
    if known.load is not None:
        figures.append(2.0 - known.load)
    if known.heat:
        figures.append(0.5 if known.heat == "high" else 0.1)
    if known.throttled:
        figures.append(0.5)
    if known.mains is False and known.battery is not None:
        figures.append(known.battery / 0.5)
    return _share(min(figures))


def _headroom(used: float) -> float:
    return (1.0 - used) / 0.5


def _job_seconds(numbers: Numbers) -> float:
    return JOB_TOKENS / max(numbers.rate or UNKNOWN_RATE, _LEAST_RATE)


def _band(rate: float) -> int:
    return int(_RATE_STEPS * math.log2(1.0 + rate))


def _share(value: float) -> float:
    """A number as a share of 1; what is no number is nothing."""
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
