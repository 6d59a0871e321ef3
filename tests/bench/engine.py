"""This engine, llama-server of the same commit, and serial `llama_cpp.Llama`: the same requests in turn.

`python -m tests.bench.engine --help`, or `make bench-engine ARGS=…`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
import structlog
import trio

from tests.bench import engine_latency, engine_sides, llama_server
from tests.bench.engine_runs import Run, figures, prompts, uneven
from tests.bench.engine_same import same
from tests.bench.engine_sides import Side
from tests.bench.report import Figure, publish
from tests.harness import model_path
from tests.models import gemma3

MODELS: Final[Mapping[str, Callable[[], Path]]] = {"SmolLM2-135M": model_path, "Gemma-3-270M": gemma3}
TOKENS: Final = 64
#: With one request and with sixteen: between, serial stays as it is, and takes long.
SERIAL_AT: Final = (1, 16)
_RETRIES: Final = 5


async def compare(model: str, path: Path, *, rounds: int, at_once: Sequence[int], latencies: bool) -> list[Figure]:
    """Every side has the model loaded; one works while the others are idle, each in its turn at every round."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        async with (
            engine_sides.ours(path, Path(folder)) as (ours, box),
            engine_sides.server(path) as server,
            engine_sides.serial(path) as serial,
        ):
            print(f"  ours has {box.held.slots} slots", flush=True)
            sides = {"ours": ours, "server": server, "serial": serial}
            for side in sides.values():
                await side(prompts(1, seed=0), 8)
            found: list[Figure] = []
            for concurrent in at_once:
                here = {name: side for name, side in sides.items() if name != "serial" or concurrent in SERIAL_AT}
                done = [await one_round(here, concurrent, number) for number in range(rounds)]
                for number, runs in enumerate(done, 1):
                    rates = ", ".join(f"{name} {run.rate:.1f}" for name, run in sorted(runs.items()))
                    print(f"  {model}, {concurrent} at once, round {number}: {rates} tok/s", flush=True)
                found += figures(model, concurrent, done)
            if latencies:
                found += await engine_latency.building(box)
                found += [*await engine_latency.cancels(box), await engine_latency.crashes(box)]
            return found


async def one_round(sides: Mapping[str, Side], concurrent: int, number: int) -> dict[str, Run]:
    """The same prompts, new in each round, to every side, in an order that changes."""
    for retry in range(_RETRIES):
        seed = 1 + concurrent * 10_000 + number * 10 + retry
        asked, order = prompts(concurrent, seed), list(sides)
        random.Random(seed).shuffle(order)
        runs = {name: await sides[name](asked, TOKENS) for name in order}
        reason = uneven(runs, TOKENS)
        if not reason:
            return runs
        print(f"  again with other prompts: {reason}", flush=True)
    raise AssertionError(f"no round of {_RETRIES} was a fair comparison")


def main(arguments: Sequence[str] = ()) -> int:
    """Measure; 1 if a figure is past its limit, 2 if there is nothing to compare with."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of every side, medians are over these (5)")
    parser.add_argument("--at-once", default="1,2,4,8,16", help="numbers of concurrent requests (1,2,4,8,16)")
    parser.add_argument("--models", default=",".join(MODELS), help=f"({','.join(MODELS)})")
    parser.add_argument("--same", type=int, default=50, help="prompts asked alone and among others, 0 for none (50)")
    parser.add_argument("--no-latencies", action="store_true", help="leave frames, cancels and crashes out")
    asked = parser.parse_args(arguments)
    try:
        llama_server.binary()
        paths = {model: MODELS[model]() for model in asked.models.split(",")}
    except (llama_server.ServerMissingError, pytest.skip.Exception) as error:
        print(error, file=sys.stderr)
        return 2

    async def measure() -> list[Figure]:
        found: list[Figure] = []
        if not asked.no_latencies:
            print("frames from child to agent", flush=True)
            found.append(await engine_latency.frame_cost())
        for index, (model, path) in enumerate(paths.items()):
            print(f"{model}: {asked.rounds} rounds of each side, {TOKENS} tokens a request", flush=True)
            found += await compare(
                model, path, rounds=asked.rounds, at_once=[int(n) for n in asked.at_once.split(",")],
                latencies=index == 0 and not asked.no_latencies,
            )  # fmt: skip
            if asked.same:
                print(f"{model}: {asked.same} answers alone and among others", flush=True)
                found += await same(model, path, asked.same)
        return found

    # The engine warns of each child that is killed here on purpose.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = trio.run(measure)
    print(json.dumps({"bench": "engine", "figures": len(found)}))
    return publish("engine", found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
