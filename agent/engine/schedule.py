"""Which tokens of which sequences go into the next decoding step. Pure: no llama.cpp, no clock.

A sequence is all its tokens, those of the prompt and those it has generated, and how many of them have been decoded.
One with a single token left is generating; one with more is still at its prompt (or at it again, after it had to make
room). Every step takes a token of each that generates, and of the prompts as much as a step may take without making
the others wait too long. Nothing but a step's end lets a request in, or go out of a step that others are in too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: A step that others wait for takes about so long (seconds), however long a prompt beside them is.
STEP_LIMIT: Final = 0.12
#: A step of prompts alone takes about so long (seconds): a cancel, and whoever comes, waits for its end. On one core
#: SmolLM2-135M reads as fast in steps of 64 tokens as in steps of 512.
ALONE_LIMIT: Final = 0.5
#: Fewer tokens of a prompt are not worth a step.
MIN_CHUNK: Final = 32
#: Weight of the newest measurement.
_NEWEST: Final = 0.2


@dataclass(slots=True, eq=False)
class Running:
    """One request in the engine. `seq` is llama.cpp's number for it, -1 while it has none."""

    id: int
    owner: str
    tokens: list[int]
    prompt_tokens: int
    order: int
    seq: int = -1
    decoded: int = 0
    reused: int = 0

    @property
    def pending(self) -> int:
        """Tokens that are not decoded yet."""
        return len(self.tokens) - self.decoded


@dataclass(slots=True)
class Slice:
    """Tokens of one sequence in a step: `count` from `start` on. With the last one its logits are wanted.

    Not frozen: a step makes one of each sequence, and sixteen frozen ones take 14 us longer.
    """

    sequence: Running
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether a token can be sampled after it."""
        return self.start + self.count == len(self.sequence.tokens)


def plan(running: Sequence[Running], batch: int, chunk: int, alone: int) -> list[Slice]:
    """The next step, of at most `batch` tokens: one of each that generates, and some of prompts beside those.

    That is `chunk` tokens, and more where more are at their prompts than generate: long steps are read faster, and as
    few wait for them as there are. It is never more than `alone`, which is what a step takes where nothing generates.
    Of what there is for prompts, the oldest gets half, so that it comes to its end; the shortest get the rest, so that
    they need not wait for it.
    """
    step: list[Slice] = []
    prompts: list[Running] = []
    for one in running:
        pending = len(one.tokens) - one.decoded
        if pending > 1:
            prompts.append(one)
        elif pending and len(step) < batch:
            step.append(Slice(one, one.decoded, 1))
    wanted = min(alone, chunk * max(1, len(prompts) // len(step))) if step else alone
    room = min(batch - len(step), wanted)
    if not prompts or room <= 0:
        return step
    prompts.sort(key=lambda one: one.order)
    oldest, *others = prompts
    first = min(oldest.pending, (room + 1) // 2 if others else room)
    shares = {oldest.id: first}
    room -= first
    for one in sorted(others, key=lambda one: (one.pending, one.order)):
        share = min(one.pending, room)
        if share:
            shares[one.id] = share
            room -= share
    shares[oldest.id] += min(room, oldest.pending - first)
    return step + [Slice(one, one.decoded, shares[one.id]) for one in prompts if one.id in shares]


class Pace:
    """How long steps take, and how many tokens of prompts that leaves for one, at most `batch`.

    `chunk` beside sequences that generate, `alone` where there are none.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._per_token = 0.0
        self.chunk = self.alone = min(batch, MIN_CHUNK * 4)

    def start_with(self, rate: float) -> None:
        """Before the first step: a short try gave so many tokens of a prompt per second, 0 where it gave none."""
        if rate > 0:
            self._learn(1 / rate)

    def note(self, slices: Sequence[Slice], seconds: float) -> None:
        """A step of these slices took so long."""
        tokens = sum(one.count for one in slices)
        if tokens < MIN_CHUNK:
            return  # a step of few tokens costs what reading the weights costs, and says nothing of many
        each = seconds / tokens
        known = self._per_token
        self._learn(each if not known else known + _NEWEST * (each - known))

    def _learn(self, per_token: float) -> None:
        self._per_token = per_token
        self.chunk, self.alone = (
            max(MIN_CHUNK, min(self._batch, round(limit / per_token))) for limit in (STEP_LIMIT, ALONE_LIMIT)
        )


def to_yield(running: Sequence[Running]) -> Running | None:
    """Who makes room for the others when the cells run out: the youngest; None where there is only one."""
    return max(running, key=lambda one: one.order) if len(running) > 1 else None
