"""Delegation as its users meet it: eight at once, a cold start, faults, and ten times more than a box can do.

The figures of one borrower (`tests.bench.borrow`) are held to tighter limits here.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import trio

from tests.bench import borrow
from tests.bench.borrow import QUESTION, STORY, body, knows_model, median, until
from tests.bench.report import Figure, at_least, at_most, publish
from tests.harness import Agent, agents, holding_smollm2

AT_ONCE: Final = 8
ROUNDS: Final = 5
TOKENS: Final = 64
#: Overload: tokens of an answer, seconds, how many times the capacity, and the connections of one client process.
SHORT: Final = 16
CAPACITY_SECONDS: Final = 15.0
OVERLOAD_SECONDS: Final = 60.0
TIMES: Final = 10
#: What limits of other figures become here.
TIGHTER: Final = {
    "TTFT, borrowed / own (ms)": 1.05,
    "decode rate, borrowed / own (tok/s)": 0.98,
    "unknown key -> explicit refusal (ms)": 100.0,
}


@dataclass
class Crowd:
    """Answers that were asked for at the same time; seconds from the start of all of them."""

    ttft: list[float] = field(default_factory=list)
    tokens: int = 0
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second of all together."""
        return self.tokens / self.took


async def _stream(client: httpx.AsyncClient, box: Agent, crowd: Crowd, question: str, tokens: int) -> None:
    began = trio.current_time()
    first = 0.0
    async with client.stream("POST", f"{box.url}/v1/chat/completions", json=body(question, tokens)) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                first = first or trio.current_time() - began
                crowd.tokens += 1
    crowd.ttft.append(first)


async def _crowd(box: Agent, count: int, *, together: bool) -> Crowd:
    crowd = Crowd()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        began = trio.current_time()
        if together:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(_stream, client, box, crowd, QUESTION, TOKENS)
        else:
            for _ in range(count):
                await _stream(client, box, crowd, QUESTION, TOKENS)
        crowd.took = trio.current_time() - began
    return crowd


async def eight(sensor: Agent, jetson: Agent) -> list[Figure]:
    """Eight at once, borrowed, beside eight one after another and eight at once on the box itself."""
    borrowed, serial, own = [], [], []
    await _crowd(sensor, AT_ONCE, together=True)
    for _ in range(ROUNDS):
        borrowed.append(await _crowd(sensor, AT_ONCE, together=True))
        own.append(await _crowd(jetson, AT_ONCE, together=True))
        serial.append(await _crowd(sensor, AT_ONCE, together=False))
        print(
            f"  {AT_ONCE} at once {borrowed[-1].rate:.1f} tok/s, TTFT {1000 * median(borrowed[-1].ttft):.0f} ms;"
            f" on the box itself {own[-1].rate:.1f}; one after another {serial[-1].rate:.1f}",
            flush=True,
        )
    rates, ttft = [one.rate for one in borrowed], [1000 * median(one.ttft) for one in borrowed]
    after, itself = median([one.rate for one in serial]), median([one.rate for one in own])
    ttft_itself = 1000 * median([median(one.ttft) for one in own])
    return [
        at_least(f"{AT_ONCE} at once / one after another, borrowed (tok/s)", 1.3, median(rates), rates, after),
        at_least(f"{AT_ONCE} at once, borrowed / own (tok/s)", 0.9, median(rates), rates, itself),
        at_most(f"{AT_ONCE} at once, borrowed, median TTFT (ms)", 600, median(ttft), ttft),
        at_most(f"{AT_ONCE} at once, median TTFT, borrowed / own (ms)", 1.1, median(ttft), ttft, ttft_itself),
    ]


def cold(sensor: Agent) -> Figure:
    """From the start of the borrower's process to the first borrowed token."""
    took = []
    with httpx.Client(timeout=60) as client:
        for _ in range(ROUNDS):
            sensor.stop()
            began = time.perf_counter()
            sensor.spawn()
            took.append(1000 * (_first_token(client, sensor) - began))
            print(f"  cold: {took[-1]:.0f} ms", flush=True)
    return at_most("borrower's process started -> first borrowed token (ms)", 1500, median(took), took)


def _first_token(client: httpx.Client, box: Agent) -> float:
    while True:
        try:
            with client.stream("POST", f"{box.url}/v1/chat/completions", json=body(STORY, 8)) as response:
                for line in response.iter_lines() if response.status_code == 200 else ():
                    if '"content":"' in line and '"content":""' not in line:
                        return time.perf_counter()
        except httpx.TransportError:
            time.sleep(0.005)


@dataclass
class Load:
    """What became of the requests of an overload."""

    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    sent: int = 0
    late: int = 0


async def _short(client: httpx.AsyncClient, box: Agent, load: Load) -> None:
    asked: dict[str, Any] = body(QUESTION, SHORT) | {"stream": False}
    load.sent += 1
    try:
        answer = await client.post(f"{box.url}/v1/chat/completions", json=asked)
    except httpx.TransportError as error:
        load.outcomes[type(error).__name__] += 1
        return
    if answer.status_code == 200:
        load.tokens += answer.json()["usage"]["completion_tokens"]
    elif answer.status_code == 429 and int(answer.headers["retry-after"]) < 1:
        load.late += 1
    load.outcomes[str(answer.status_code)] += 1


async def _capacity(box: Agent, slots: int) -> tuple[float, float]:
    """(tokens, requests) per second with exactly as many requests as there are slots."""
    load = Load()
    async with httpx.AsyncClient(timeout=120) as client:

        async def worker() -> None:
            while True:
                await _short(client, box, load)

        with trio.move_on_after(CAPACITY_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(slots):
                    nursery.start_soon(worker)
    return load.tokens / CAPACITY_SECONDS, load.outcomes["200"] / CAPACITY_SECONDS


async def overload(sensor: Agent, jetson: Agent, slots: int) -> list[Figure]:
    """Ten times the requests that the box can do, for a minute, whether answers come or not."""
    capacity, per_second = await _capacity(sensor, slots)
    watched = [psutil.Process(box.pid) for box in (sensor, jetson)]
    before = [process.memory_info().rss for process in watched]
    load, most = Load(), 0.0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    began = trio.current_time()
    async with httpx.AsyncClient(timeout=120, limits=limits) as client, trio.open_nursery() as nursery:
        while (elapsed := trio.current_time() - began) < OVERLOAD_SECONDS:
            while load.sent < TIMES * per_second * elapsed:
                nursery.start_soon(_short, client, sensor, load)
                await trio.lowlevel.checkpoint()
            await trio.sleep(0.02)
            most = max(most, *(p.memory_info().rss - b for p, b in zip(watched, before, strict=True)))
        done_in_time = load.tokens
    answered = sum(load.outcomes[status] for status in ("200", "429", "504"))
    print(
        f"  {load.sent} sent in {OVERLOAD_SECONDS:g} s, {dict(load.outcomes)}, {TIMES} times {per_second:.1f}/s",
        flush=True,
    )
    goodput = done_in_time / OVERLOAD_SECONDS
    lost = load.sent - answered
    return [
        at_least("overload: goodput / capacity (tok/s)", 0.9, goodput, [goodput], capacity),
        at_most("overload: requests without an answer", 0, lost, [lost]),
        at_most("overload: refusals without an honest Retry-After", 0, load.late, [load.late]),
        at_most("overload: growth of an agent (MB)", 64, most / 1e6, [most / 1e6]),
    ]


def _apart(sensor: Agent, jetson: Agent) -> list[Figure]:
    return [*borrow.speed(sensor, jetson), *trio.run(overload, sensor, jetson, AT_ONCE)]


def main() -> int:
    """Run it all on two fresh agents."""
    lender = holding_smollm2() | {"engine": {"slots": AT_ONCE, "threads": None}}
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        agents(Path(folder), {"sensor-1": {}, "jetson-1": lender}) as (sensor, jetson),
    ):
        until(lambda: knows_model(sensor))
        figures = [borrow.memory(sensor)]
        figures += borrow.speed(sensor, jetson)
        print(f"{AT_ONCE} at once", flush=True)
        figures += trio.run(eight, sensor, jetson)
        print("refusals, disconnects, cold starts, kills", flush=True)
        figures += [borrow.refusal(jetson), borrow.disconnect(sensor, jetson), cold(sensor)]
        figures += borrow.faults(sensor, jetson)
        print(f"{TIMES} times more than it can do", flush=True)
        figures += trio.run(overload, sensor, jetson, AT_ONCE)
    print("each box on a core of its own", flush=True)
    figures += borrow.on_own_cores(_apart, slots=AT_ONCE)
    return publish("delegation", [_held_tighter(figure) for figure in figures])


def _held_tighter(figure: Figure) -> Figure:
    limit = TIGHTER.get(figure.figure.partition(", each box")[0])
    if limit is None:
        return figure
    hold = at_most if figure.limit.startswith("<=") else at_least
    return hold(figure.figure, limit, figure.ours, figure.runs, figure.theirs)
