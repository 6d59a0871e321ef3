"""When models may travel to and from a box: hours of its own configuration and of the fleet's policy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent.errors import AgentError
from agent.hours import Hours, read_hours, seconds_until
from agent.reconcile.selector import read_terms, why_not
from fleet.document.facts import Box
from fleet.document.settings import Setting
from fleet.errors import RefusedOpError

#: Where the policy stands in the document.
POLICY_PATH: Final = "policy/transfer"
_DAY: Final = 86400.0


@dataclass(frozen=True)
class Window:
    """When a box fetches models and gives them: within one span of each of `hours`, at any time where there are none.

    Over a `metered` link without hours nothing is fetched. `rate` is bytes a second at most that the box gives, None
    for any.
    """

    hours: tuple[tuple[Hours, ...], ...] = ()
    metered: bool = False
    rate: int | None = None

    @property
    def never(self) -> bool:
        """Whether nothing is ever fetched."""
        return self.metered and not self.hours

    def closed(self, now: datetime) -> str:
        """Why nothing is fetched or given at this time of the box's own clock; empty where it is."""
        for spans in self.hours:
            if not any(span.holds(now.time()) for span in spans):
                return f"models travel here within {' or '.join(map(str, spans))} only"
        if self.never:
            return "the link is metered, and has no hours for models (transfer.hours)"
        return ""

    def seconds_to_change(self, now: datetime) -> float:
        """Seconds until a span begins or ends; a day at most."""
        marks = [mark for spans in self.hours for span in spans for mark in (span.start, span.end)]
        return min((seconds_until(now, mark) for mark in marks), default=_DAY)


def own_window(hours: Iterable[str], metered: bool, rate: int | None) -> Window:
    """What a box's configuration says."""
    spans = read_hours(hours)
    return Window((spans,) if spans else (), metered, rate)


def window_for(own: Window, settings: Mapping[str, Setting], box: Box) -> Window:
    """The box's own window, narrowed by the first rule of the fleet's policy that means this box: the hours of both
    have to hold, and the lower rate counts."""
    for rule in _rules(settings):
        try:
            terms = read_terms(rule.get("selector", {}))
        except (AgentError, RefusedOpError):
            continue  # nobody knows whom it means
        if why_not(terms, box):
            continue
        hours, rate = rule.get("hours"), rule.get("upload_rate")
        spans = read_hours(hours) if isinstance(hours, list) else ()
        rates = [one for one in (own.rate, rate) if type(one) is int and one > 0]
        return replace(
            own,
            hours=(*own.hours, spans) if spans else own.hours,
            metered=own.metered or rule.get("metered") is True,
            rate=min(rates, default=None),
        )
    return own


def _rules(settings: Mapping[str, Setting]) -> list[Mapping[object, object]]:
    setting = settings.get(POLICY_PATH)
    value = setting.value if setting else None
    rules = value.get("rules") if isinstance(value, dict) else None
    return [rule for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
