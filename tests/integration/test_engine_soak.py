"""Hundreds of jobs of every kind at once: each gets its end, and the engine is afterwards as it was before.

SHOAL_SOAK is how many (60), SHOAL_SOAK_SEED what they are (1); `make soak-engine` runs 2,000.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil
import pytest
import trio

from agent.errors import AgentError, BadRequestError, ContextLengthError, OverloadedError
from fleet.net.messages import Delta, Finished, InferRequest, Sampling, Started
from tests.engine_box import EngineBox, completion, engine_box
from tests.harness import model_path, peer_id_of

pytestmark = pytest.mark.model

JOBS: Final = int(os.environ.get("SHOAL_SOAK", "60"))
SEED: Final = int(os.environ.get("SHOAL_SOAK_SEED", "1"))
AT_ONCE: Final = 24
#: So long that this box is never refused, so short that a peer sometimes is.
QUEUE: Final = 36
SLOTS: Final = 8
CONTEXT: Final = 256
#: Seconds for one job with all others beside it, on a machine that has other things to do.
LIMIT: Final = 120.0
#: Bytes that a process may grow by once it has seen a quarter of the jobs: allocators keep what they may need again.
GROWTH: Final = 24 << 20
#: Everything that it allows begins like this, cut off or not.
GRAMMAR: Final = 'root ::= ("red " | "blue ")+'
PEERS: Final = (None, None, *(peer_id_of(f"asker-{number}") for number in range(3)))

Caller = Literal["reads", "cancels", "breaks", "dawdles"]


class GoneError(Exception):
    """The client behind a job has gone."""


@dataclass(frozen=True)
class Plan:
    """One job: what is asked for, what its caller does after how many texts, and the error it must end with."""

    request: InferRequest
    caller: Caller
    after: int
    error: type[AgentError] | None

    def __str__(self) -> str:
        sampling = self.request.sampling
        return f"{self.request.job} ({len(self.request.prompt)} characters, {sampling}, {self.caller} at {self.after})"


def plan(number: int, chance: random.Random) -> Plan:
    words = chance.choice((3, 3, 10, 10, 30, 60))
    prompt, error = " ".join(chance.choices(("ship", "sea", "lamp", "rock", "night"), k=words)), None
    output, text = "", ""
    match chance.randrange(24):
        case 0:
            prompt, error = "lighthouse " * 2 * CONTEXT, ContextLengthError
        case 1:  # SmolLM2 puts no token of its own before a prompt, so an empty one has nothing to begin with
            prompt, error = "", BadRequestError
        case 2:
            output, text, error = "grammar", 'root ::= "ship" nowhere', BadRequestError
        case 3 | 4:
            output, text = "grammar", GRAMMAR
        case 5:
            output = "json"
    sampling = Sampling(
        max_tokens=chance.choice((1, 2, 3, 5, 10, 20)),
        temperature=chance.choice((0.0, 0.8, 1.5)),
        seed=chance.choice((None, number)),
        stop=() if output else chance.choice(((), (), ("\n",), ("ship", "sea"))),
        repeat_penalty=chance.choice((1.0, 1.0, 1.3)),
        logprobs=chance.choice((-1, -1, -1, 0, 2)),
    )
    peer = chance.choice(PEERS)
    request = InferRequest(
        v=2, job=f"soak-{number}", kind="completion", model="m", prompt=prompt, sampling=sampling, output=output,
        output_text=text, route=(peer,) if peer else (),
    )  # fmt: skip
    callers: tuple[Caller, ...] = ("reads", "reads", "reads", "reads", "cancels", "cancels", "breaks", "dawdles")
    return Plan(request, chance.choice(callers), chance.choice((0, 0, 1, 3, 8)), error)


async def run_one(box: EngineBox, job: Plan) -> str:
    """The job's outcome in a word; fails where it is one that its plan does not allow, or not a whole answer."""
    events: list[Started | Delta | Finished] = []
    with trio.fail_after(LIMIT), trio.CancelScope() as scope:

        async def take(event: Started | Delta | Finished) -> None:
            events.append(event)
            if len(events) - 1 == job.after and not isinstance(event, Finished):
                match job.caller:
                    case "cancels":
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                    case "breaks":
                        raise GoneError
                    case "dawdles":
                        await trio.sleep(0.02)

        try:
            await box.pool.generate(box.held.hash, job.request, take)
        except GoneError:
            return "broken off"
        except OverloadedError:
            return "refused"
        except AgentError as error:
            if job.error is None or not isinstance(error, job.error):
                raise AssertionError(f"{job} failed: {error!r}") from error
            return type(error).__name__
    if scope.cancelled_caught:
        assert job.caller == "cancels"
        return "cancelled"
    assert job.error is None, f"{job} was answered"
    first, *deltas, last = events
    assert isinstance(first, Started), str(job)
    assert isinstance(last, Finished), str(job)
    pieces = [event for event in deltas if isinstance(event, Delta)]
    assert len(pieces) == len(deltas), str(job)
    assert sum(piece.tokens for piece in pieces) <= last.completion_tokens <= (job.request.sampling.max_tokens or 0), (
        job
    )
    if job.request.output_text == GRAMMAR:
        answer = "".join(piece.text for piece in pieces)
        assert all(any(option.startswith(word) for option in ("red", "blue")) for word in answer.split()), answer
    return last.reason


def memory(box: EngineBox) -> dict[str, int]:
    return {
        "agent": psutil.Process().memory_info().rss,
        "child": psutil.Process(box.pid).memory_info().rss,
    }


async def as_before(box: EngineBox, pid: int) -> None:
    """No slot is taken, no cell is lost, and the process is the one that it was."""
    await box.idle()
    found = await box.statistics()
    if found is not None:
        assert (found.running, found.waiting) == (0, 0)
        assert found.cells_used == found.cells_kept, "cells belong to no sequence that runs or is kept"
    # Whatever the child says: jobs that need every cell there is get them.
    async with trio.open_nursery() as nursery:
        for number in range(box.held.slots):
            asked = completion(f"{number} " + "sea " * (CONTEXT - 12), job=f"whole-{number}", max_tokens=4)
            nursery.start_soon(run_one, box, Plan(asked, "reads", 0, None))
    await box.idle()
    assert box.held.pid == pid, "the process died meanwhile"


def test_a_crowd_of_every_kind_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        chance = random.Random(SEED)
        jobs = [plan(number, chance) for number in range(JOBS)]
        outcomes: Counter[str] = Counter()
        async with engine_box(model_path(), tmp_path, slots=SLOTS, context_tokens=CONTEXT, max_queue=QUEUE) as box:
            pid = box.pid

            async def worker() -> None:
                while jobs:
                    outcomes[await run_one(box, jobs.pop())] += 1

            async def crowd() -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(AT_ONCE):
                        nursery.start_soon(worker)

            later = [jobs.pop() for _ in range(len(jobs) * 3 // 4)]
            await crowd()
            await as_before(box, pid)
            before = memory(box)
            jobs += later
            await crowd()
            await as_before(box, pid)
            growth = {who: size - before[who] for who, size in memory(box).items()}
        print(dict(outcomes), {who: f"{size / 1e6:+.1f} MB" for who, size in growth.items()})
        assert sum(outcomes.values()) == JOBS
        assert outcomes["stop"] + outcomes["length"] > JOBS // 3
        assert min(outcomes["cancelled"], outcomes["broken off"]) > 0
        assert max(growth.values()) < GROWTH, growth

    trio.run(main)
