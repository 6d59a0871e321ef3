"""What the vectors of a box may be: every text's exactly once, in order, all of one size and of length 1. Pure.

Vectors are kept here until the last of them has come: a client gets all or none, so that a box that fails in the middle
can be replaced by another.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Final

from agent.jobs.answer import BadAnswerError
from agent.jobs.failure import most_prompt_tokens
from fleet.net.messages import Embedded, Finished, InferRequest, Started

#: How far the square of a vector's length may be from 1: what 32-bit floats of 16,384 dimensions add up to, and more.
_TOLERANCE: Final = 1e-2


class VectorCheck:
    """Follows one box's vectors for one request. Every method raises BadAnswerError."""

    def __init__(self, request: InferRequest) -> None:
        self._model = request.model
        self._count = len(request.texts)
        self._most_tokens = most_prompt_tokens(request)
        self._dimensions = 0
        self._have = 0
        self._parts: list[Embedded] = []
        self.finished = False
        self.started: Started | None = None

    @property
    def parts(self) -> Sequence[Embedded]:
        """What has come, in the order of the texts."""
        return self._parts

    def start(self, event: Started) -> None:
        """The box has taken the job."""
        if self.started is not None:
            raise BadAnswerError("it started twice")
        if self._model.startswith("sha256:") and event.hash != self._model:
            raise BadAnswerError("it started another model than the one that was asked for")
        if event.cut_tokens or event.cut_messages:
            raise BadAnswerError("it left messages out of a request that has none")
        self.started = event

    def take(self, event: Embedded) -> None:
        """The vectors of some texts."""
        if self.started is None:
            raise BadAnswerError("it sent vectors before it said that it had started")
        if self._dimensions not in (0, event.dimensions):
            raise BadAnswerError(f"it sent vectors of {self._dimensions} and of {event.dimensions} dimensions")
        if event.first != self._have:
            raise BadAnswerError(f"it sent vectors from text {event.first} on where text {self._have} is next")
        vectors = rows_of(event)
        if self._have + len(vectors) > self._count:
            raise BadAnswerError(f"it sent vectors of more than the {self._count} texts there are")
        for vector in vectors:
            # A number that is not finite makes the sum so, which is then not within any tolerance.
            if not abs(sum(x * x for x in vector) - 1.0) <= _TOLERANCE:
                raise BadAnswerError("it sent a vector that does not have length 1")
        self._dimensions = event.dimensions
        self._have += len(vectors)
        self._parts.append(event)

    def finish(self, event: Finished, elapsed_ms: float) -> Finished:
        """The end, as it may be told on: no more tokens than the texts can have, no time longer than the job took."""
        if self._have != self._count:
            raise BadAnswerError(f"it finished after the vectors of {self._have} of {self._count} texts")
        if not self._count <= event.prompt_tokens <= self._most_tokens:
            raise BadAnswerError(f"it counts {event.prompt_tokens} tokens in {self._count} texts that cannot have them")
        self.finished = True
        return Finished(
            reason="stop",
            prompt_tokens=event.prompt_tokens,
            completion_tokens=0,
            prefill_ms=min(event.prefill_ms, elapsed_ms),
            decode_ms=0.0,
        )

    def end(self) -> None:
        """The box says that there is no more."""
        if not self.finished:
            raise BadAnswerError("it ended without the vectors of every text")


def rows_of(event: Embedded) -> list[array[float]]:
    """The vectors of an event. Raises BadAnswerError where its bytes are not a whole number of them."""
    size = 4 * event.dimensions
    if not event.data or len(event.data) % size:
        raise BadAnswerError(f"it sent {len(event.data)} bytes, which are no vectors of {event.dimensions} dimensions")
    rows = []
    for at in range(0, len(event.data), size):
        row = array("f", event.data[at : at + size])
        if sys.byteorder == "big":
            row.byteswap()
        rows.append(row)
    return rows
