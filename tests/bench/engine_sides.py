"""The three sides of the comparison behind one face: `await side(prompts, tokens)` runs them all at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from fleet.net.messages import Delta, Finished, Started
from tests.bench import llama_server
from tests.bench.engine_runs import Run, Stream
from tests.engine_box import EngineBox, completion, engine_box

THREADS: Final = 2
SLOTS: Final = 16
CONTEXT: Final = 4096
#: What our child sets for itself. The first changes nothing where the cores are free; where the client of a side takes
#: a core for a moment it keeps llama.cpp's threads from spinning that time away, and the others deserve that as well.
ENVIRONMENT: Final = {"GOMP_SPINCOUNT": "1000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Side = Callable[[Sequence[str], int], Awaitable[Run]]


@asynccontextmanager
async def ours(model: Path, folder: Path) -> AsyncIterator[tuple[Side, EngineBox]]:
    """This engine: a pool under trio, with its child process."""
    async with engine_box(model, folder, slots=SLOTS, threads=THREADS, context_tokens=CONTEXT) as box:

        async def run(prompts: Sequence[str], tokens: int) -> Run:
            began = time.perf_counter()
            streams: dict[int, Stream] = {}

            async def one(number: int, prompt: str) -> None:
                times: list[float] = []
                texts: list[str] = []
                prompt_tokens, finished = 0, None

                async def take(event: Started | Delta | Finished) -> None:
                    nonlocal prompt_tokens, finished
                    match event:
                        case Started():
                            prompt_tokens = event.prompt_tokens
                        case Delta():
                            times.append(time.perf_counter() - began)
                            texts.append(event.text)
                        case Finished():
                            finished = event

                request = completion(prompt, job=f"bench-{number}", max_tokens=tokens)
                await box.pool.generate(box.held.hash, request, take)
                assert finished is not None
                count, decode_ms = finished.completion_tokens, finished.decode_ms
                streams[number] = Stream(tuple(times), count, prompt_tokens, decode_ms, tuple(texts))

            return await _at_once(one, prompts, began, streams)

        yield run, box


@asynccontextmanager
async def server(model: Path) -> AsyncIterator[Side]:
    """llama-server of the same commit, on the same libraries, over loopback."""
    with llama_server.serving(
        model, slots=SLOTS, context_tokens=CONTEXT, threads=THREADS, environment=ENVIRONMENT
    ) as port:

        async def run(prompts: Sequence[str], tokens: int) -> Run:
            began = time.perf_counter()
            streams: dict[int, Stream] = {}

            async def one(number: int, prompt: str) -> None:
                times: list[float] = []
                end = await llama_server.ask(port, prompt, tokens, lambda: times.append(time.perf_counter() - began))
                times.pop()  # the last event says that it is the end, and brings no text
                streams[number] = Stream(tuple(times), end.tokens, end.prompt_tokens, end.decode_ms, end.texts)

            return await _at_once(one, prompts, began, streams)

        yield run


@asynccontextmanager
async def serial(model: Path) -> AsyncIterator[Side]:
    """`llama_cpp.Llama` with a queue before it: its class does not survive concurrent use."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.bench.engine_serial", str(model), str(CONTEXT), str(THREADS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, lines = process.stdin, _lines(process.stdout)

    async def run(prompts: Sequence[str], tokens: int) -> Run:
        began = time.perf_counter()
        times: list[list[float]] = [[] for _ in prompts]
        streams: dict[int, Stream] = {}
        await stdin.send_all(json.dumps([list(prompts), tokens]).encode() + b"\n")
        while len(streams) < len(prompts):
            words = [int(word) for word in (await anext(lines)).split()]
            if len(words) == 1:
                times[words[0]].append(time.perf_counter() - began)
            else:
                streams[words[0]] = Stream(tuple(times[words[0]]), words[2], words[1])
        return Run(time.perf_counter() - began, tuple(streams[number] for number in range(len(prompts))))

    try:
        assert await anext(lines) == b"ready"
        yield run
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await stdin.aclose()
            await process.stdout.aclose()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    kept = b""
    while data := await stream.receive_some(65536):
        *whole, kept = (kept + data).split(b"\n")
        for line in whole:
            yield line
    raise EOFError("the serial side has ended")


async def _at_once(
    one: Callable[[int, str], Awaitable[None]], prompts: Sequence[str], began: float, streams: dict[int, Stream]
) -> Run:
    async with trio.open_nursery() as nursery:
        for number, prompt in enumerate(prompts):
            nursery.start_soon(one, number, prompt)
    return Run(time.perf_counter() - began, tuple(streams[number] for number in range(len(prompts))))
