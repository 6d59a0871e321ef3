"""How messages of one topic become one prompt: each of them, a sample, a window, or a change beyond a band. Pure.

The time is an argument, in seconds of any clock that does not go back. Values are kept up to MAX_VALUES; of more their
number, least, most and mean are still those of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from agent.mqtt.readings import Reading

#: Values of a window that are kept, the latest.
MAX_VALUES: Final = 1000

Mode = Literal["every", "sample", "window", "change"]


@dataclass(frozen=True)
class Rules:
    """How a pipeline collects; `seconds`, `count` and `band` as far as its mode has them."""

    mode: Mode = "every"
    seconds: float | None = None
    count: int | None = None
    band: float | None = None


@dataclass(frozen=True)
class Collected:
    """What one prompt is about: the readings that are kept, oldest first, and figures of all that there were.

    `least`, `most` and `mean` are None where no value was a number. `before` is the value that the last prompt was
    about, None for the first. `seconds` is how long it took to collect.
    """

    readings: tuple[Reading, ...]
    count: int
    seconds: float
    least: float | None = None
    most: float | None = None
    mean: float | None = None
    before: float | str | None = None

    @property
    def last(self) -> Reading:
        """The newest reading."""
        return self.readings[-1]


@dataclass
class Collector:
    """Collects the readings of one topic."""

    rules: Rules
    _readings: list[Reading] = field(default_factory=list)
    _count: int = 0
    _numbers: int = 0
    _sum: float = 0.0
    _least: float | None = None
    _most: float | None = None
    _began: float = 0.0
    _sampled: float | None = None
    _before: float | str | None = None

    def take(self, reading: Reading, now: float) -> Collected | None:
        """Take a reading in; what a prompt is to be made of now, None where it is not time yet."""
        rules = self.rules
        late = self.due(now)
        if late is not None:
            # The window that has ended does not have this reading in it.
            self._note(reading, now)
            return late
        if rules.mode == "sample" and self._sampled is not None and now - self._sampled < (rules.seconds or 0.0):
            return None
        if rules.mode == "change" and not self._moved(reading):
            return None
        self._note(reading, now)
        if rules.mode == "sample":
            self._sampled = now
        if rules.mode == "window" and not (rules.count is not None and self._count >= rules.count):
            return None
        return self._empty(now)

    def due(self, now: float) -> Collected | None:
        """The window whose time is over, None where there is none."""
        seconds = self.rules.seconds
        if self.rules.mode != "window" or seconds is None or not self._count or now - self._began < seconds:
            return None
        return self._empty(now)

    @property
    def ends(self) -> float | None:
        """When a window that has something in it is over."""
        seconds = self.rules.seconds
        return self._began + seconds if self.rules.mode == "window" and seconds is not None and self._count else None

    def _moved(self, reading: Reading) -> bool:
        before = self._before
        if before is None:
            return True
        if isinstance(before, float) and reading.number is not None:
            return abs(reading.number - before) > (self.rules.band or 0.0)
        return reading.value != before

    def _note(self, reading: Reading, now: float) -> None:
        if not self._count:
            self._began = now
        self._count += 1
        self._readings.append(reading)
        if len(self._readings) > MAX_VALUES:
            del self._readings[0]
        number = reading.number
        if number is not None:
            self._numbers += 1
            self._sum += number
            self._least = number if self._least is None else min(self._least, number)
            self._most = number if self._most is None else max(self._most, number)

    def _empty(self, now: float) -> Collected:
        found = Collected(
            tuple(self._readings),
            self._count,
            now - self._began,
            self._least,
            self._most,
            self._sum / self._numbers if self._numbers else None,
            self._before,
        )
        self._before = self._readings[-1].value
        self._readings, self._count, self._numbers, self._sum = [], 0, 0, 0.0
        self._least = self._most = None
        return found
