"""How fast a model is on this box: when that is to be measured, how, and what is kept of it over restarts.

A probe reads 128 tokens and chooses 16, again and again for at least 1.5 s, and takes the best. It is asked for one
such round at a time, so that it ends with the first job that comes. The first estimate is the moment of warming up
after loading; requests refine what a probe has found.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import trio

from agent.engine.json_file import read_entries, write_entries

#: Tokens that a round reads, and that it chooses after those. On a slow box fewer: a round is to take about a second
#: and a half, and half of that to read.
PROMPT: Final = 128
TOKENS: Final = 16
_LEAST: Final = (16, 4)
_HALF: Final = 0.75
#: Seconds that rounds are repeated for.
LEAST: Final = 1.5
#: Seconds after which a figure is too old to be believed.
MAX_AGE: Final = 7 * 86_400.0
#: Seconds for which nothing has run on this box before a probe begins.
SETTLE: Final = 5.0
#: Seconds until another try where a round could not be had.
AGAIN: Final = 60.0
#: Models of which figures are kept; those that were probed longest ago go first.
_KEPT: Final = 256
#: Tokens per second that are believed of a file.
_MOST: Final = 1e6


@dataclass(frozen=True)
class Round:
    """What a round took, in seconds; `prompt` and `tokens` are how many it had."""

    prompt: int
    prompt_s: float
    tokens: int
    tokens_s: float


@dataclass(frozen=True)
class Figures:
    """What a probe found, in tokens per second and never 0, with which engine, set up how, and when (Unix time)."""

    decode: float
    prefill: float
    engine: str
    setup: str
    at: float


def engine_version() -> str:
    """Name and version of what runs models here, empty where nothing does."""
    try:
        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def due_in(known: Figures | None, engine: str, setup: str, now: float) -> float:
    """Seconds until a model is to be probed: none where it never was, or by another engine or setting. Pure.

    A figure from the future is none: the clock was wrong then, or is now, and nobody knows how old it is.
    """
    if known is None or (known.engine, known.setup) != (engine, setup) or known.at > now:
        return 0.0
    return max(0.0, known.at + MAX_AGE - now)


def sizes(prefill: float | None, decode: float | None) -> tuple[int, int]:
    """How many tokens a round has to read and to choose, by what is known so far. Pure."""
    prompt = PROMPT if not prefill else max(_LEAST[0], min(PROMPT, int(prefill * _HALF)))
    tokens = TOKENS if not decode else max(_LEAST[1], min(TOKENS, int(decode * _HALF)))
    return prompt, tokens


async def measure(ask: Callable[[], Awaitable[Round | None]], busy: Callable[[], bool]) -> tuple[float, float] | None:
    """The best rates to decode and to prefill of rounds for LEAST seconds; None where a job came between. Cancel-safe.

    `ask` has a round done, and gives None where it was not; `busy` is whether there is a job.
    """
    decode = prefill = 0.0
    until = trio.current_time() + LEAST
    while True:
        done = await ask()
        if done is None or done.prompt_s <= 0 or done.tokens_s <= 0 or busy():
            return None
        decode = max(decode, done.tokens / done.tokens_s)
        prefill = max(prefill, done.prompt / done.prompt_s)
        if trio.current_time() >= until:
            return decode, prefill


class Quiet:
    """When the models of this box have nothing to do: a probe beside a job would slow it down, and measure the rest."""

    def __init__(self) -> None:
        #: Whether any of them has work or is being loaded; set by who has the models.
        self.busy: Callable[[], bool] = lambda: False
        #: One probe at a time.
        self.turn = trio.Lock()
        self._changed = trio.Event()

    def note_change(self) -> None:
        """A job has come or gone, or a model was loaded."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, seconds: float) -> None:
        """Return when there has been nothing to do for so long. Cancel-safe."""
        while True:
            changed = self._changed
            with trio.move_on_after(math.inf if self.busy() else seconds) as resting:
                await changed.wait()
            if resting.cancelled_caught and not self.busy():
                return


class FiguresFile:
    """What probes have found, by content hash, kept over restarts in one JSON file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = read_entries(file)

    def get(self, model_hash: str) -> Figures | None:
        """What is known of a model, however old; None where that is nothing."""
        return _figures(self._entries.get(model_hash, {}))

    def put(self, model_hash: str, figures: Figures) -> None:
        """Keep what a probe has found. Where the file cannot be written, that costs a probe after the next start."""
        self._entries.pop(model_hash, None)
        self._entries[model_hash] = asdict(figures)
        while len(self._entries) > _KEPT:
            del self._entries[next(iter(self._entries))]
        try:
            write_entries(self._file, self._entries)
        except OSError:
            return


def _figures(entry: dict[str, Any]) -> Figures | None:
    decode, prefill, at = entry.get("decode"), entry.get("prefill"), entry.get("at")
    engine, setup = entry.get("engine"), entry.get("setup")
    if not (_is_number(decode, _MOST) and _is_number(prefill, _MOST) and _is_number(at, math.inf)):
        return None
    return Figures(decode, prefill, engine, setup, at) if isinstance(engine, str) and isinstance(setup, str) else None


def _is_number(value: object, most: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
