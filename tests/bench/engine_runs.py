"""What one side did with a handful of requests at once, and the figures of that. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from tests.bench.report import Figure, at_least

#: The ratios to llama-server and to one request after another that this engine is held to.
OF_SERVER: Final = 0.95
OF_SERVER_CROWDED: Final = 0.90
OF_SERIAL: Final = 1.8
CROWDED: Final = 16

_WORDS: Final = """
    amber anchor apple arrow autumn basket bell bird boat bridge butter candle canyon castle cedar chair cloud clover
    coast copper coral corn cotton creek crystal desert diamond dune eagle echo ember engine falcon feather fern field
    fire forest garden glacier glass granite grape harbor harvest hazel hill honey horizon island ivory jade kettle
    lake lantern leaf lemon light linen maple marble meadow mirror moon moss mountain nest oak ocean olive orchard
    otter pearl pepper pine planet pond prairie quartz rain raven reef ridge river robin rose saddle sail salt sand
    shadow shell silver sky snow spring star stone storm summer sun thunder tide timber trail tulip valley velvet
    violet walnut water wave willow wind winter wolf
""".split()  # noqa: SIM905  # a hundred quoted words are hard to read


@dataclass(frozen=True)
class Stream:
    """One request of a run; times in seconds since the run began, one for each piece of text as it arrived.

    `decode_ms` is the engine's own clock, from the end of the prompt to the last token; None where it has none.
    """

    times: tuple[float, ...]
    tokens: int
    prompt_tokens: int
    decode_ms: float | None = None
    #: What arrived, a text for each time, where the side was asked to keep it.
    texts: tuple[str, ...] = ()

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


@dataclass(frozen=True)
class Run:
    """One side, one round: `streams` were asked for at the same moment and the last had ended after `seconds`."""

    seconds: float
    streams: tuple[Stream, ...]

    @property
    def rate(self) -> float:
        """Tokens per second of all requests together, prompts included in the time."""
        return sum(stream.tokens for stream in self.streams) / self.seconds

    @property
    def own_rate(self) -> float | None:
        """Tokens per second of one request while it decodes, the median, by the engine's own clock."""
        rates = [(s.tokens - 1) * 1000 / s.decode_ms for s in self.streams if s.decode_ms]
        return median(rates) if len(rates) == len(self.streams) else None

    @property
    def ttft(self) -> list[float]:
        """Milliseconds to the first token of each request."""
        return [stream.times[0] * 1000 for stream in self.streams]

    @property
    def gap95(self) -> float:
        """Milliseconds between tokens, the 95th percentile over all requests."""
        return percentile([gap for stream in self.streams for gap in stream.gaps], 0.95) * 1000


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed (nearest rank). Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def prompts(count: int, seed: int) -> list[str]:
    """Prompts of some 100 tokens that differ from their first word, and that models go on with for long.

    Differing, so that no side computes a shared beginning once; an unfinished list, so that none ends early.
    """
    chance = random.Random(seed)  # the same on every machine
    return [_prompt(chance) for _ in range(count)]


def _prompt(chance: random.Random) -> str:
    words = chance.sample(_WORDS, 55)
    lines = [" ".join(words[at : at + 5]) for at in range(5, 55, 5)]
    return f"{' '.join(words[:5]).capitalize()}, and so on, five words a line, a list without an end:\n" + "\n".join(
        f"{number}. {line}" for number, line in enumerate(lines, 1)
    )


def uneven(runs: Mapping[str, Run], tokens: int) -> str:
    """Why a round is not a comparison: a side generated fewer tokens than it was asked for, or read other prompts.

    Empty where it is one.
    """
    short = {side: [s.tokens for s in run.streams if s.tokens != tokens] for side, run in runs.items()}
    if any(short.values()):
        return (
            f"not all answers have {tokens} tokens: {', '.join(f'{side} {counts}' for side, counts in short.items())}"
        )
    sizes = {side: [s.prompt_tokens for s in run.streams] for side, run in runs.items()}
    if len({tuple(size) for size in sizes.values()}) > 1:
        return f"the sides do not agree on the tokens of the prompts: {sizes}"
    return ""


def figures(model: str, concurrent: int, rounds: Sequence[Mapping[str, Run]]) -> list[Figure]:
    """What the rounds at one number of concurrent requests came to. Each round has a run of `ours`, `server` and, at
    some numbers, `serial`. A ratio is of medians over the rounds."""
    ours, server = [one["ours"] for one in rounds], [one["server"] for one in rounds]
    serial = [one["serial"] for one in rounds if "serial" in one]
    at = f"{model}, {concurrent} at once"
    rates, served = [run.rate for run in ours], [run.rate for run in server]
    limit = OF_SERVER_CROWDED if concurrent >= CROWDED else OF_SERVER
    found = [at_least(f"{at}: tok/s, of llama-server", limit, median(rates), rates, median(served))]
    if serial:
        serials = [run.rate for run in serial]
        name = f"{at}: tok/s, of serial Llama"
        if concurrent >= CROWDED:
            found.append(at_least(name, OF_SERIAL, median(rates), rates, median(serials)))
        else:
            found.append(noted(name, rates, serials))
        found.append(noted(f"{at}: TTFT max (ms), of serial Llama", *_both(ours, serial, lambda run: max(run.ttft))))
    own, theirs = _both(ours, server, lambda run: run.own_rate or 0.0)
    if all(own) and all(theirs):
        found.append(noted(f"{at}: decode tok/s of one request by each side's own clock, of llama-server", own, theirs))
    found.append(noted(f"{at}: TTFT p50 (ms), of llama-server", *_both(ours, server, lambda run: median(run.ttft))))
    if concurrent > 1:
        found.append(noted(f"{at}: TTFT max (ms), of llama-server", *_both(ours, server, lambda run: max(run.ttft))))
    found.append(noted(f"{at}: gap between tokens p95 (ms), of llama-server", *_both(ours, server, lambda r: r.gap95)))
    return found


def noted(name: str, ours: Sequence[float], theirs: Sequence[float] = ()) -> Figure:
    """A figure that is held to nothing."""
    return replace(at_least(name, 0, median(ours), ours, median(theirs) if theirs else None), limit="-", ok=True)


def first_difference(one: Sequence[str], other: Sequence[str]) -> int | None:
    """At which piece two answers part, None where they are equal."""
    for at, (a, b) in enumerate(itertools.zip_longest(one, other)):
        if a != b:
            return at
    return None


def _both(ours: Sequence[Run], theirs: Sequence[Run], of: Callable[[Run], float]) -> tuple[list[float], list[float]]:
    return [of(run) for run in ours], [of(run) for run in theirs]
