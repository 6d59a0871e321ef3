"""`python -m tests.sim.routing_sim`: where jobs run in a fleet with a day's load, and how long they wait.

Boxes of mixed rates ask for answers as a day goes by, while some fail and come back. Decisions (`agent.routing`),
queues and shares (`agent.engine.fair_queue`) are the real ones, on a mock clock; links, engines and the day (10 minutes
of it) are models. Two other choices run on the same arrivals: any box that holds the model, and the one with the fewest
jobs. Repeatable with its seed. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import trio
from trio.testing import MockClock

from agent.engine.fair_queue import LOCAL, FairQueue, refusal
from agent.engine.forecast import Forecast
from agent.jobs.breaker import Breaker
from agent.routing.decide import Ask, LocalState, PeerState, Rules, decide
from fleet.net.messages import ModelPresence

Choice = Literal["shoal", "random", "fewest jobs"]
CHOICES: Final[tuple[Choice, ...]] = ("shoal", "random", "fewest jobs")

MODEL: Final = "sha256:" + "0" * 64
#: Tokens per second of one slot, and how many of a hundred boxes have such slots; the others hold no model.
RATES: Final = ((6.0, 16), (20.0, 16), (60.0, 8))
SLOTS: Final = 4
QUEUE: Final = 32
NEIGHBOURS: Final = 24
#: Seconds of a link each way, until a presence is out, and until a box that is gone is seen to be.
LATENCY, COALESCE, NOTICED = 0.005, 0.2, 1.0
#: Of the capacity: the load at night and at the peak.
NIGHT, PEAK = 0.25, 0.9
#: Of the boxes, those that fail; seconds between failures and until the box is back.
FAILING, BETWEEN, BACK = 0.05, 240.0, 60.0
ATTEMPTS: Final = 3
LEAST_FAIRNESS: Final = 0.9


@dataclass
class Job:
    """One request; `born` is when its client sent it, `began` when a slot took it for the last time."""

    consumer: int
    tokens: int
    born: float
    began: float = 0.0
    done: float = 0.0
    attempts: int = 0
    refusals: int = 0


class FailedError(Exception):
    """The box went away with the job."""


class BusyError(Exception):
    """The box has no room; come back after so many seconds."""

    def __init__(self, after: int) -> None:
        super().__init__(after)
        self.after = after


class Box:
    """One box: its engine, what it last said of its load, and what it believes of its neighbours."""

    def __init__(self, number: int, rate: float | None) -> None:
        self.number = number
        self.name = f"box-{number:04d}"
        self.rate = rate
        self.up = True
        self.down_at = -math.inf
        self.neighbours: list[Box] = []
        self.asked: dict[int, int] = {}
        self.breaker = Breaker()
        self.busy_seconds = 0.0
        self.said = (0, 0)
        self._said_at = -math.inf
        self._queue: FairQueue[tuple[str, trio.Event]] = FairQueue()
        self._running: list[str] = []
        self._failed = trio.Event()
        self._seconds: float | None = None

    def note_load(self) -> None:
        """The load has changed: the neighbours hear of it, at most every COALESCE seconds."""
        now = trio.current_time()
        if now - self._said_at >= COALESCE:
            self.say()

    def say(self) -> None:
        """What the neighbours hear of the load."""
        self.said, self._said_at = (len(self._running), len(self._queue)), trio.current_time()

    def presence(self, load: tuple[int, int] | None = None) -> ModelPresence | None:
        """What it holds, with the load that it last told or, for itself, has."""
        if self.rate is None:
            return None
        running, queued = load or (len(self._running), len(self._queue))
        return ModelPresence(
            hash=MODEL, name="m", state="loaded", context_tokens=4096, decode_rate=self.rate, running=running,
            queued=queued, slots=SLOTS,
        )  # fmt: skip

    async def run(self, job: Job, asker: str) -> None:
        """Give the job a slot and run it. Raises BusyError, FailedError."""
        if not self.up:
            await trio.sleep(NOTICED)
            raise FailedError
        self._check_room(asker)
        turn, failed = trio.Event(), self._failed
        self._queue.put(asker, (asker, turn), cost=job.tokens, now=trio.current_time())
        self._hand_out()
        self.note_load()
        await _either(turn, failed)
        if failed.is_set():
            await trio.sleep(NOTICED)
            raise FailedError
        job.began = trio.current_time()
        assert self.rate is not None
        with trio.move_on_after(job.tokens / self.rate):
            await failed.wait()
        took = trio.current_time() - job.began
        self.busy_seconds += took
        if failed.is_set():
            await trio.sleep(NOTICED)
            raise FailedError
        self._seconds = took if self._seconds is None else self._seconds + 0.3 * (took - self._seconds)
        self._running.remove(asker)
        self._hand_out()
        self.note_load()

    def fail(self) -> None:
        """Go away with all jobs."""
        self.up, self.down_at = False, trio.current_time()
        self._failed.set()

    def come_back(self) -> None:
        """Start anew, with nothing running."""
        self.up, self._failed, self._running, self._queue = True, trio.Event(), [], FairQueue()
        self.say()

    def _check_room(self, asker: str) -> None:
        running, total = self._running, len(self._running) + len(self._queue)
        reason = refusal(
            asker,
            capacity=SLOTS + QUEUE,
            total=total,
            of_asker=running.count(asker) + self._queue.count(asker),
            of_peers=total - running.count(LOCAL) - self._queue.count(LOCAL),
        )
        if reason is not None:
            raise BusyError(Forecast(len(self._queue), len(running), SLOTS, self._seconds, self.rate).retry_after)

    def _hand_out(self) -> None:
        while self._queue.waits() and len(self._running) < SLOTS:
            asker, turn = self._queue.take(trio.current_time())
            self._running.append(asker)
            turn.set()


async def _either(one: trio.Event, other: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)


@dataclass(frozen=True)
class Result:
    """One choice's day. Waits in seconds, shares 0..1."""

    choice: Choice
    jobs: int
    lost: int
    wait_mean: float
    wait_p50: float
    wait_p99: float
    whole_p50: float
    whole_p99: float
    utilisation: float
    fairness: float
    attempts: float


@dataclass
class Plan:
    """What happens whatever the choice: boxes, arrivals and failures, all from one seed."""

    boxes: int
    seconds: float
    seed: int
    peak: float = PEAK
    rates: list[float | None] = field(default_factory=list)
    links: list[list[int]] = field(default_factory=list)
    arrivals: list[Job] = field(default_factory=list)
    failures: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        for rate, share in RATES:
            self.rates += [rate] * round(share * self.boxes / 100)
        self.rates += [None] * (self.boxes - len(self.rates))
        chance.shuffle(self.rates)
        everyone = range(self.boxes)
        count = min(NEIGHBOURS // 2, self.boxes - 1)
        chosen = [set(chance.sample([other for other in everyone if other != one], count)) for one in everyone]
        self.links = [sorted(chosen[one] | {o for o in everyone if one in chosen[o]}) for one in everyone]
        self._arrive(chance)
        failing = chance.sample(everyone, max(1, round(FAILING * self.boxes)))
        for box in failing:
            at = chance.uniform(0, BETWEEN)
            while at < self.seconds:
                self.failures.append((at, box))
                at += BACK + chance.expovariate(1 / BETWEEN)
        self.failures.sort()

    def _arrive(self, chance: random.Random) -> None:
        capacity = sum(rate * SLOTS for rate in self.rates if rate)
        mean = sum(self._tokens(chance) for _ in range(2000)) / 2000
        at = 0.0
        while True:
            # The load of a day by thinning: candidates come at the peak's rate.
            at += chance.expovariate(self.peak * capacity / mean)
            if at >= self.seconds:
                return
            now = NIGHT + (self.peak - NIGHT) * (1 - math.cos(2 * math.pi * at / self.seconds)) / 2
            if chance.random() < now / self.peak:
                self.arrivals.append(Job(chance.randrange(self.boxes), self._tokens(chance), at))

    @staticmethod
    def _tokens(chance: random.Random) -> int:
        return max(8, min(512, round(chance.lognormvariate(4.5, 0.7))))


class Fleet:
    """The boxes under one choice."""

    def __init__(self, plan: Plan, choice: Choice) -> None:
        self.plan = plan
        self.choice = choice
        self.chance = random.Random(plan.seed + 1)
        self.boxes = [Box(number, rate) for number, rate in enumerate(plan.rates)]
        for box, links in zip(self.boxes, plan.links, strict=True):
            box.neighbours = [self.boxes[other] for other in links]
        self.done: list[Job] = []
        self.lost = 0

    async def day(self) -> Result:
        """Let the day go by."""
        async with trio.open_nursery() as fleet:
            fleet.start_soon(self._tell)
            fleet.start_soon(self._fail)
            async with trio.open_nursery() as clients:
                for plan in self.plan.arrivals:
                    await trio.sleep_until(plan.born)
                    clients.start_soon(self._client, Job(plan.consumer, plan.tokens, plan.born))
            fleet.cancel_scope.cancel()
        return self._result()

    async def _tell(self) -> None:
        while True:
            await trio.sleep(COALESCE)
            for box in self.boxes:
                box.say()

    async def _fail(self) -> None:
        async with trio.open_nursery() as nursery:
            for at, number in self.plan.failures:
                await trio.sleep_until(at)
                nursery.start_soon(self._one_failure, self.boxes[number])

    async def _one_failure(self, box: Box) -> None:
        box.fail()
        await trio.sleep(BACK)
        box.come_back()
        for other in box.neighbours:
            other.breaker.link_up(box.name)

    async def _client(self, job: Job) -> None:
        """Send a request until it is answered, as patiently as it is told to be."""
        box = self.boxes[job.consumer]
        while not box.up:
            await trio.sleep(1.0)  # the client's own box is down: nobody answers
        for _ in range(100):
            after = await self._one_request(box, job)
            if after is None:
                job.done = trio.current_time()
                self.done.append(job)
                return
            job.refusals += 1
            await trio.sleep(after)
        self.lost += 1

    async def _one_request(self, box: Box, job: Job) -> float | None:
        """None when it is done, else the seconds after which to send it again."""
        tried: set[str] = set()
        wait = 5.0
        for _ in range(ATTEMPTS):
            target = next((one for one in self._order(box, job) if one.name not in tried), None)
            if target is None:
                return wait
            tried.add(target.name)
            job.attempts += 1
            now = trio.current_time()
            here = target is box
            box.asked[target.number] = box.asked.get(target.number, 0) + 1
            box.breaker.asked(target.name, MODEL, now)
            try:
                await trio.sleep(0 if here else LATENCY)
                await target.run(job, LOCAL if here else box.name)
            except BusyError as error:
                wait = min(wait, float(error.after))
                box.breaker.let_go(target.name, MODEL)
            except FailedError:
                box.breaker.failed(target.name, MODEL, trio.current_time(), gone=True)
            else:
                box.breaker.done(target.name, MODEL)
                return None
            finally:
                box.asked[target.number] -= 1
        return wait

    def _order(self, box: Box, job: Job) -> Sequence[Box]:
        now = trio.current_time()
        holders = [one for one in box.neighbours if one.rate is not None and (one.up or now - one.down_at < NOTICED)]
        own = [box] if box.rate is not None else []
        if self.choice == "random":
            return self.chance.sample([*own, *holders], len(own) + len(holders))
        if self.choice == "fewest jobs":
            mixed = self.chance.sample([*own, *holders], len(own) + len(holders))
            return sorted(mixed, key=lambda one: sum(one.said))
        peers = [
            PeerState(
                one.name, one.name, True, 0.1, False, one.presence(one.said), rtt=2 * LATENCY,
                asked=box.asked.get(one.number, 0), best_rate=one.rate,
            )
            for one in holders
            if box.breaker.refusal(one.name, MODEL, now) is None
        ]  # fmt: skip
        decision = decide(
            Ask("prefer", job.tokens, spread=box.name), LocalState(box.name, box.name, box.presence()), peers, Rules()
        )
        return [self.boxes[int(name[4:])] for name in decision.order]

    def _result(self) -> Result:
        waits = sorted(job.began - job.born for job in self.done)
        wholes = sorted(job.done - job.born for job in self.done)
        up = self.plan.seconds
        room = sum(up * SLOTS * rate for rate in self.plan.rates if rate)
        used = sum(box.busy_seconds * box.rate for box in self.boxes if box.rate)
        served = [0.0] * self.plan.boxes
        counts = [0] * self.plan.boxes
        for job in self.done:
            served[job.consumer] += job.tokens / (job.done - job.born)
            counts[job.consumer] += 1
        alike = [s / c for s, c, rate in zip(served, counts, self.plan.rates, strict=True) if c and rate is None]
        return Result(
            self.choice,
            len(self.done),
            self.lost,
            sum(waits) / max(1, len(waits)),
            _at(waits, 0.5),
            _at(waits, 0.99),
            _at(wholes, 0.5),
            _at(wholes, 0.99),
            used / room,
            jain(alike),
            sum(job.attempts for job in self.done) / max(1, len(self.done)),
        )


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has everything."""
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 1.0


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else math.inf


def simulate(plan: Plan, choice: Choice) -> Result:
    """One day under one choice."""
    return trio.run(Fleet(plan, choice).day, clock=MockClock(autojump_threshold=0))


def table(results: Sequence[Result]) -> str:
    """A line for each choice."""
    names = ("choice", "jobs", "lost", "wait mean", "p50", "p99", "whole p50", "p99", "used", "fairness", "attempts")
    rows = [names] + [
        (
            r.choice, f"{r.jobs}", f"{r.lost}", *(f"{t:.2f} s" for t in (r.wait_mean, r.wait_p50, r.wait_p99)),
            *(f"{t:.2f} s" for t in (r.whole_p50, r.whole_p99)), f"{r.utilisation:.1%}", f"{r.fairness:.3f}",
            f"{r.attempts:.2f}",
        )
        for r in results
    ]  # fmt: skip
    lines = ["  ".join(cell.rjust(9) if i else cell.ljust(11) for i, cell in enumerate(row)) for row in rows]
    return "\n".join(lines)


def missed(results: Sequence[Result]) -> list[str]:
    """What the first of the results falls short of, in words: it has to be fair and better than all others."""
    ours, *others = results
    found = [f"{ours.lost} jobs lost"] if ours.lost else []
    if ours.fairness < LEAST_FAIRNESS:
        found.append(f"fairness {ours.fairness:.3f} is below {LEAST_FAIRNESS}")
    for other in others:
        for name in ("wait_mean", "wait_p50", "wait_p99", "whole_p50", "whole_p99"):
            mine, its = getattr(ours, name), getattr(other, name)
            if mine > its:
                found.append(f"{name} {mine:.2f} s is worse than {its:.2f} s of {other.choice}")
    return found


def main(options: Sequence[str]) -> int:
    """Run every choice on the same day, print the table, say what is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.routing_sim", description=__doc__)
    parser.add_argument("--boxes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the day")
    parser.add_argument("--peak", type=float, default=PEAK, help="load at the peak, of what all boxes can do")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(options)
    plan = Plan(given.boxes, given.seconds, given.seed, given.peak)
    holders = sum(rate is not None for rate in plan.rates)
    print(
        f"seed {plan.seed}: {plan.boxes} boxes, {holders} hold the model, {len(plan.arrivals)} jobs in"
        f" {plan.seconds:g} s, {len(plan.failures)} failures",
        flush=True,
    )
    results = []
    for choice in CHOICES:
        results.append(simulate(plan, choice))
        print(table(results[-1:]).splitlines()[-1] if len(results) > 1 else table(results), flush=True)
    problems = missed(results)
    for problem in problems:
        print(f"MISSED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
