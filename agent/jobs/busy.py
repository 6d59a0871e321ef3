"""Boxes that have just said that they are busy: the next job need not ask them the same. Pure, the time is passed in.

Where ten times more is asked for than a fleet can do, nine of ten jobs are refused, and each refusal takes milliseconds
of the box that is busy. It is asked again after a quarter of a second: in that time its queue has not run empty.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from agent.jobs.failure import Failure
from fleet.net.messages import InferRequest

#: Seconds for which a box's word that it is busy is taken for the jobs that come after.
HOLDS: Final = 0.25
#: What is remembered at most; a box may be busy for one kind of jobs and not for another.
_REMEMBERED: Final = 1024

_Key = tuple[str, str, str, str]


class BusyBoxes:
    """Who said so, for which model and which jobs. `now` is seconds on a clock that does not go back."""

    def __init__(self) -> None:
        self._said: OrderedDict[_Key, tuple[float, Failure]] = OrderedDict()

    def note(self, peer_id: str, request: InferRequest, failed: Failure, now: float) -> None:
        """What a box has answered to a request; all but that it is busy is left alone.

        A job with a deadline may be refused for that deadline alone, which says nothing of others.
        """
        if not failed.overloaded or request.deadline_ms is not None:
            return
        key = _key(peer_id, request)
        self._said.pop(key, None)
        self._said[key] = (now, replace(failed, known=True, late=False))
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def said(self, peer_id: str, request: InferRequest, now: float) -> Failure | None:
        """What the box has just answered to a job like this one; None where it is to be asked."""
        when, failed = self._said.get(_key(peer_id, request), (0.0, None))
        return failed if failed is not None and now - when < HOLDS else None


def _key(peer_id: str, request: InferRequest) -> _Key:
    return peer_id, request.model, request.kind, request.priority
