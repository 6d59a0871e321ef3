"""What the child process costs, and how fast the engine lets go: frames, cancels, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import trio

from agent.engine import child
from agent.engine.protocol import Done, Step, Up
from agent.errors import EngineError
from fleet.net.messages import Delta, Finished, Started
from tests.bench.engine_runs import noted
from tests.bench.report import Figure, at_most
from tests.engine_box import EngineBox, completion

FRAMES: Final = 300
TIMES: Final = 9
CRASHES: Final = 5
#: Seconds into the prefill of a prompt that takes several times as long.
_INTO_PREFILL: Final = 0.3
_STORY: Final = "Once upon a time a lighthouse keeper"


async def frame_cost() -> Figure:
    """From a step's end in the child to its texts in the agent: encoding, socket, waking up, decoding.

    The agent's own handle on a child, with a child that stamps frames of 16 sequences and sends one every 8 ms, as
    decoding would.
    """
    costs: list[float] = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        at = command.index("agent.engine.worker")
        # `-P`, which the agent uses, keeps the checkout off the path.
        return subprocess.Popen([sys.executable, "-m", "tests.bench.engine_frames", *command[at + 1 :]], **options)

    with mock.patch.object(child, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen})):
        handle = child.Child()

    def on_message(message: Up) -> None:
        match message:
            case Step():
                costs.append((time.perf_counter_ns() - int(message.items[0][1])) / 1e6)
            case Done():
                handle.kill()

    with trio.fail_after(60):
        await handle.run(on_message)
    assert len(costs) == FRAMES, handle.stderr_tail
    fifths = [median(costs[at : at + FRAMES // 5]) for at in range(0, FRAMES, FRAMES // 5)]
    return at_most("a frame from child to agent, 16 sequences, p50 (ms)", 0.5, median(costs), fifths)


async def cancels(box: EngineBox, times: int = TIMES) -> list[Figure]:
    """From a caller's cancel to the child's word that the sequence has left it."""
    long = " ".join(f"{number} ships" for number in range(box.held.context_tokens // 5))
    generating = [await _cancel(box, _STORY, lambda event: isinstance(event, Delta), 0.0) for _ in range(times)]
    prefilling = [
        await _cancel(box, f"{number} {long}", lambda event: isinstance(event, Started), _INTO_PREFILL)
        for number in range(times)
    ]
    return [
        at_most("cancel in mid-generation, until the slot is free (ms)", 20, median(generating), generating),
        at_most("cancel in mid-prefill, until the slot is free (ms)", 50, median(prefilling), prefilling),
    ]


async def _cancel(
    box: EngineBox, prompt: str, begun: Callable[[Started | Delta | Finished], bool], after: float
) -> float:
    free, ready = trio.Event(), trio.Event()
    events: list[Started | Delta | Finished] = []

    def on_change() -> None:
        if not box.held.running:
            free.set()

    async def take(event: Started | Delta | Finished) -> None:
        events.append(event)
        if begun(event):
            ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.pool.generate, box.held.hash, completion(prompt, max_tokens=500), take)
        await ready.wait()
        # Nothing says how far a prefill is, so this waits by the clock.
        await trio.sleep(after)
        assert isinstance(events[-1], Delta) == (after == 0), "the prompt was computed too fast to be cancelled"
        box.on_change = on_change
        began = time.perf_counter()
        nursery.cancel_scope.cancel()
    await free.wait()
    took = (time.perf_counter() - began) * 1000
    box.on_change = lambda: None
    return took


async def crashes(box: EngineBox, times: int = CRASHES) -> Figure:
    """From the death of the child in mid-generation to the error at the caller."""
    took: list[float] = []
    for _ in range(times):
        killed = 0.0

        async def take(event: Started | Delta | Finished) -> None:
            nonlocal killed
            if isinstance(event, Delta) and not killed:
                killed = time.perf_counter()
                os.kill(box.pid, signal.SIGKILL)

        try:
            await box.pool.generate(box.held.hash, completion(_STORY, max_tokens=500), take)
            raise AssertionError("a job outlived its process")
        except EngineError:
            took.append((time.perf_counter() - killed) * 1000)
    return at_most("child killed, until its job fails (ms)", 50, median(took), took)


async def building(box: EngineBox) -> list[Figure]:
    """What a step takes besides decoding and sampling, over all steps so far; nothing where the child does not say."""
    found = await box.statistics()
    if found is None or not found.steps:
        return []
    each = found.build_us / found.steps
    return [
        at_most("choosing and building a step (us)", 50, each, [each]),
        noted("letting in, and parking others, a step (us)", [found.admit_us / found.steps]),
        noted("choosing tokens and telling them, a token (us)", [found.sample_us / max(1, found.tokens)]),
    ]
