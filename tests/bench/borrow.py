"""Borrowing against owning: the same questions asked of a box without the model and of the box that serves them."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import trio

from fleet.errors import PeerRefusedError
from fleet.net.gate import Gate
from fleet.net.host import Host
from fleet.net.link import ByteStream
from tests.bench.report import Figure, at_least, at_most, publish
from tests.harness import Agent, agents, holding_smollm2, seed_of

MODEL = "smollm2-135m-instruct"
QUESTION = "Explain in three sentences what a lighthouse is for."
STORY = "Write a very long story about a lighthouse keeper and the sea."
TOKENS = 64
PAIRS = 9
FAULTS = 5


@dataclass
class Answer:
    """One streamed answer, times in seconds from the moment the request was sent."""

    ttft: float
    tok_s: float
    gaps: list[float]


_NUMBERS = itertools.count(100_000)


def ask(box: Agent, client: httpx.Client, question: str = QUESTION) -> Answer:
    began = time.perf_counter()
    times: list[float] = []
    with client.stream("POST", f"{box.url}/v1/chat/completions", json=body(question, TOKENS)) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                times.append(time.perf_counter() - began)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return Answer(times[0], (len(times) - 1) / (times[-1] - times[0]), gaps)


def body(question: str, max_tokens: int) -> dict[str, Any]:
    # A number of its own begins each, of one length: what a box has of an earlier question must not decide.
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": f"{next(_NUMBERS)}."}, {"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


def until(check: Callable[[], bool], limit: float = 60.0) -> None:
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > limit:
            raise TimeoutError("a box did not do what the bench waits for")
        time.sleep(0.01)


def knows_model(box: Agent) -> bool:
    return any(m["id"] == MODEL for m in httpx.get(f"{box.url}/v1/models").json()["data"])


def speed(sensor: Agent, jetson: Agent) -> list[Figure]:
    """TTFT and decode rate, asked alternately so that drift of the machine hits both."""
    borrowed, owned = [], []
    with httpx.Client(timeout=60) as client:
        for box in (sensor, jetson):
            ask(box, client)
        for index in range(PAIRS):
            order = ((sensor, borrowed), (jetson, owned)) if index % 2 else ((jetson, owned), (sensor, borrowed))
            for box, answers in order:
                answers.append(ask(box, client))
                print(f"  {box.name}: {answers[-1].ttft * 1000:.1f} ms, {answers[-1].tok_s:.1f} tok/s", flush=True)
    ttft, own_ttft = [a.ttft * 1000 for a in borrowed], [a.ttft * 1000 for a in owned]
    rate, own_rate = [a.tok_s for a in borrowed], [a.tok_s for a in owned]
    gap95 = [sorted(a.gaps)[int(len(a.gaps) * 0.95)] * 1000 for a in borrowed]
    step = [1000 / a.tok_s for a in owned]
    return [
        at_most("TTFT, borrowed / own (ms)", 1.10, median(ttft), ttft, median(own_ttft)),
        at_least("decode rate, borrowed / own (tok/s)", 0.97, median(rate), rate, median(own_rate)),
        at_most("gap between tokens, p95 borrowed / own step (ms)", 2.0, median(gap95), gap95, median(step)),
    ]


def on_own_cores(measure: Callable[[Agent, Agent], list[Figure]], **engine: Any) -> list[Figure]:
    """Figures of a borrower and a lender that are each held to a core of their own, as boxes are.

    The lender's model is there too, and the client is with the borrower. Where they share cores, the borrowing agent's
    work is taken from the model's threads; between two boxes it is not.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return []
    one_thread = holding_smollm2() | {"engine": {**engine, "threads": 1}}
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder,
        agents(Path(folder), {"sensor-1": {}, "jetson-1": one_thread}) as (sensor, jetson),
    ):
        until(lambda: knows_model(sensor))
        hold_to(jetson.pid, cores[0])
        hold_to(sensor.pid, cores[1])
        os.sched_setaffinity(0, {cores[1]})
        try:
            figures = measure(sensor, jetson)
        finally:
            os.sched_setaffinity(0, cores)
    return [replace(figure, figure=f"{figure.figure}, each box on its own core") for figure in figures]


def hold_to(pid: int, core: int) -> None:
    """Every thread of a process, and of its children, on one core."""
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        for thread in one.threads():
            os.sched_setaffinity(thread.id, {core})


def faults(sensor: Agent, jetson: Agent) -> list[Figure]:
    """Kill the provider in mid-stream, bring it back, ask again."""
    errors, returns = [], []
    with httpx.Client(timeout=60) as client:
        for _ in range(FAULTS):
            killed, saw_error, saw_done, pieces = 0.0, 0.0, False, 0
            with client.stream("POST", f"{sensor.url}/v1/chat/completions", json=body(STORY, 1500)) as response:
                for line in response.iter_lines():
                    pieces += '"content":"' in line
                    saw_done = saw_done or "[DONE]" in line
                    if line.startswith('data: {"error"'):
                        saw_error = time.perf_counter()
                    if pieces == 5 and not killed:
                        jetson.kill()
                        killed = time.perf_counter()
            assert saw_error, "the stream ended without an error"
            assert not saw_done, "an interrupted stream said [DONE]"
            errors.append((saw_error - killed) * 1000)
            jetson.start()
            until(lambda: httpx.get(f"{jetson.url}/readyz").status_code == 200)
            ready = time.perf_counter()
            while client.post(f"{sensor.url}/v1/chat/completions", json=body(QUESTION, 8)).status_code != 200:
                assert time.perf_counter() - ready < 60, "the provider was not found again"
            returns.append((time.perf_counter() - ready) * 1000)
            print(f"  killed: error after {errors[-1]:.0f} ms; back: answer after {returns[-1]:.0f} ms", flush=True)
    return [
        at_most("provider killed -> error in the stream (ms)", 3000, median(errors), errors),
        at_most("provider ready again -> next answer (ms)", 5000, median(returns), returns),
    ]


def refusal(jetson: Agent) -> Figure:
    """A key that is not allowed dials: how long until it is told."""

    async def measure() -> list[float]:
        async def nothing(stream: ByteStream) -> None:
            await stream.close()

        host = Host(seed_of("stranger"), listen=[], gate=Gate(lambda peer_id: True), on_link=nothing)
        took = []
        async with host.run():
            for _ in range(FAULTS):
                began = time.perf_counter()
                try:
                    await host.open_link(jetson.peer_id, [jetson.p2p_addr], timeout=3)
                except PeerRefusedError:
                    took.append((time.perf_counter() - began) * 1000)
        return took

    took = trio.run(measure)
    assert len(took) == FAULTS, "a stranger was not refused explicitly"
    return at_most("unknown key -> explicit refusal (ms)", 200, median(took), took)


def disconnect(sensor: Agent, jetson: Agent) -> Figure:
    """A client goes away in mid-stream: how long until the peer stops generating, by the peer's own log."""
    took = []
    with httpx.Client(timeout=60) as client:
        for _ in range(FAULTS):
            seen = len(jetson.lines)
            with client.stream("POST", f"{sensor.url}/v1/chat/completions", json=body(STORY, 1500)) as response:
                pieces = 0
                for line in response.iter_lines():
                    pieces += '"content":"' in line
                    if pieces == 5:
                        break
                gone = time.time()
            ends: list[dict[str, Any]] = []
            until(lambda seen=seen, ends=ends: bool(ends) or ends.extend(lent_ends(jetson, seen)) or bool(ends), 20)  # type: ignore[misc]
            assert ends[0]["outcome"] == "cancelled"
            took.append((datetime.fromisoformat(ends[0]["timestamp"]).timestamp() - gone) * 1000)
    return at_most("client gone -> generation on the peer stops (ms)", 1000, median(took), took)


def lent_ends(box: Agent, since: int) -> list[dict[str, Any]]:
    return [record for record in box.lines[since:] if record["event"] == "job.lent_end"]


def memory(sensor: Agent) -> Figure:
    """Resident memory of a borrow-only agent that has been idle for some seconds."""
    values = []
    for _ in range(5):
        time.sleep(1)
        values.append(psutil.Process(sensor.pid).memory_info().rss / 1e6)
    return at_most("idle borrow-only agent, RSS (MB)", 120, median(values), values)


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> int:
    """Run it all on two fresh agents."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        print("starting sensor-1 (no model) and jetson-1 (SmolLM2-135M)", flush=True)
        lender = holding_smollm2() | {"engine": {"threads": None}}
        with agents(Path(folder), {"sensor-1": {}, "jetson-1": lender}) as (sensor, jetson):
            until(lambda: knows_model(sensor))
            figures = [memory(sensor)]
            print(f"{PAIRS} paired answers of {TOKENS} tokens", flush=True)
            figures += speed(sensor, jetson)
            print(f"{FAULTS} refusals, {FAULTS} disconnects", flush=True)
            figures += [refusal(jetson), disconnect(sensor, jetson)]
            print(f"{FAULTS} kills of the provider", flush=True)
            figures += faults(sensor, jetson)
    print(f"{PAIRS} paired answers, each box on its own core", flush=True)
    figures += on_own_cores(speed)
    print(json.dumps({"bench": "borrow", "figures": len(figures)}))
    return publish("borrow", figures)
