"""Daily spans of a box's own local time, such as 22:00-06:00. Pure: the caller passes the time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final

#: As configurations and manifests spell a span.
SPAN: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"
_SPAN: Final = re.compile(SPAN)


@dataclass(frozen=True)
class Hours:
    """A daily span of local time, `start` included and `end` not; one that ends before it starts goes over midnight."""

    start: time
    end: time

    def holds(self, at: time) -> bool:
        """Whether a time of day is in the span; equal ends mean the whole day."""
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end

    def seconds_left(self, now: datetime) -> int:
        """Seconds from `now`, which is in the span, to its end."""
        return math.ceil(seconds_until(now, self.end))

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def read_hours(spans: Iterable[object]) -> tuple[Hours, ...]:
    """The spans among some values; what is none is passed over."""
    found = [span.split("-") for span in spans if isinstance(span, str) and _SPAN.fullmatch(span)]
    return tuple(Hours(time.fromisoformat(start), time.fromisoformat(end)) for start, end in found)


def seconds_until(now: datetime, mark: time) -> float:
    """Seconds from a moment to the next time the clock shows `mark`, more than 0."""
    at = datetime.combine(now.date(), mark, now.tzinfo)
    if at <= now:
        at += timedelta(days=1)
    return (at - now).total_seconds()
