"""Whether a greedy answer is the same alone and among others: the share that is, and where the rest parts.

The kernels of ggml add up in another order for another number of rows, so two likely tokens that are nearly equal can
change places. How often that happens to llama-server on the same prompts is the measure.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench import engine_sides
from tests.bench.engine_runs import Stream, first_difference, noted
from tests.bench.engine_sides import SLOTS, Side
from tests.bench.report import Figure

TOKENS: Final = 48
_SUBJECTS: Final = (
    "a lighthouse",
    "bread",
    "the moon",
    "a bicycle",
    "rain",
    "a library",
    "salt",
    "the sea",
    "bees",
    "a clock",
)
_FORMS: Final = (
    "Here is a short and simple explanation of what {} means to people:",
    "The history of {} begins long ago, when",
    "Question: Why would anybody write a whole book about {}?\nAnswer:",
    "Dear friend, today I want to tell you something about {} that I have learned this week.",
    "Three facts about {} that every child should know:\n1.",
)

Open = Callable[[], AbstractAsyncContextManager[Side]]


def questions(count: int) -> list[str]:
    """Different prompts, at most fifty."""
    every = [form.format(subject) for subject, form in itertools.product(_SUBJECTS, _FORMS)]
    return every[:count]


async def same(model: str, path: Path, count: int) -> list[Figure]:
    """The share of answers that are the same, beside llama-server's, and at which token the others part first."""
    found = {}
    for side, open_side in (("ours", lambda: _ours(path)), ("server", lambda: engine_sides.server(path))):
        asked = questions(count)
        crowded = await _answers(open_side, asked, SLOTS)
        alone = await _answers(open_side, asked, 1)
        parted = [first_difference(a.texts, b.texts) for a, b in zip(alone, crowded, strict=True)]
        found[side] = [at for at in parted if at is not None]
        print(
            f"  {model}, {side}: {count - len(found[side])} of {count} the same; others part at {found[side]}",
            flush=True,
        )
    shares = {side: 1 - len(parted) / count for side, parted in found.items()}
    figures = [
        noted(f"{model}: greedy answers that are the same alone and among {SLOTS} (share), of llama-server",
              [shares["ours"]], [shares["server"]])
    ]  # fmt: skip
    if found["ours"]:
        parts = [float(at) for at in found["ours"]]
        theirs = [median(found["server"])] if found["server"] else ()
        figures.append(noted(f"{model}: first token at which the others part (median)", parts, theirs))
    return figures


async def _answers(open_side: Open, asked: Sequence[str], at_once: int) -> list[Stream]:
    """All answers, from a process of their own: nothing computed for the other way of asking can be used again."""
    async with open_side() as side:
        found: list[Stream] = []
        for at in range(0, len(asked), at_once):
            found += (await side(asked[at : at + at_once], TOKENS)).streams
        return found


@asynccontextmanager
async def _ours(path: Path) -> AsyncIterator[Side]:
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        async with engine_sides.ours(path, Path(folder)) as (side, _):
            yield side
