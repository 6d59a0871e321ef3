"""`python -m tests.sim.swarm_sim`: how long one blob takes to reach a whole fleet, in simulated time.

1 GiB spreads from one box to all others over links of 100 Mbit/s each way. Which block is asked of whom, who is sent
what when, and what the first holder shows are decided by the product's own classes (`fleet.blobs.picker`, `slots`,
`seeding`, `nearness`); links and messages are a model (see swarm_boxes). The bound is the least time in which that can
be done at all, by any order of blocks. Repeatable with its seed. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import gc
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fleet.blobs.picker import Picker
from fleet.blobs.rarity import pick
from tests.sim.swarm_boxes import Plan, Swarm

#: Bytes of a block and of the blob, and bytes a second of a link each way.
BLOCK: Final = 1 << 20
BLOB: Final = 1 << 30
LINK: Final = 100e6 / 8
#: Boxes up to which blocks are as large as the product's. In larger fleets they are twice as large: that halves the
#: time of a simulation, and makes what is simulated slower, since no block is passed on before all of it is there. With
#: `--boxes 1000 --block 1`, as the product has them, the limits hold with more to spare: 1.041 times the bound.
MOST_FINE: Final = 300
#: Times the bound, for fleets of up to so many boxes.
LIMITS: Final = {100: 1.05, 1000: 1.10}
#: Blocks sent for each that was of use.
MOST_SENT: Final = 1.02


class SequentialPicker(Picker):
    """The counter-example: blocks from first to last, as a plain download asks for them."""

    def _choose(self, mask: int) -> int:
        return (mask & -mask).bit_length() - 1


class RandomPicker(Picker):
    """The other one: any block."""

    def _choose(self, mask: int) -> int:
        return pick(mask, self._rng)


@dataclass(frozen=True)
class Result:
    """One run. Times in seconds; `copies` is how often the first holder sent its blob, `sent` how many blocks were sent
    for each that was of use."""

    plan: Plan
    last: float
    median: float
    copies: float
    sent: float

    @property
    def alone(self) -> float:
        """What one box takes to send the blob once."""
        return self.plan.blocks * self.plan.block_seconds

    @property
    def bound(self) -> float:
        """The least time until the last of the boxes has the last block (J. Mundinger, R. Weber, G. Weiss, "Optimal
        scheduling of peer-to-peer file dissemination", 2008): the first holder sends every block once, and from then on
        those that have the last one, each passing it on, can only double in the time that a block takes. Blocks of the
        product's size, whatever those of the simulation are."""
        return self.alone + math.floor(math.log2(self.plan.boxes)) * BLOCK / LINK

    @property
    def ratio(self) -> float:
        return self.last / self.bound


def simulate(plan: Plan) -> Result:
    """Run a plan to its end."""
    swarm = Swarm(plan)
    done = sorted(swarm.run())
    wanted = plan.boxes * plan.blocks
    return Result(plan, done[-1], done[len(done) // 2], swarm.first_sent / plan.blocks, swarm.sent / wanted)


def limit(boxes: int) -> float:
    """How many times the bound a fleet of that size may take."""
    return next((times for most, times in sorted(LIMITS.items()) if boxes <= most), max(LIMITS.values()))


def missed(result: Result) -> list[str]:
    """The limits that a run does not hold."""
    found = []
    most = limit(result.plan.boxes)
    if not result.ratio <= most:
        found.append(f"{result.plan.boxes} boxes: {result.ratio:.3f} times the bound > {most:g}")
    if not result.sent <= MOST_SENT:
        found.append(f"{result.plan.boxes} boxes: {result.sent:.3f} blocks sent for each of use > {MOST_SENT:g}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.swarm_sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--boxes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--sites", type=int, default=1)
    parser.add_argument("--mebibytes", type=int, default=BLOB >> 20)
    parser.add_argument("--block", type=int, help="MiB of a block; 1 for up to 300 boxes and 2 for more")
    parser.add_argument("--others", action="store_true", help="the first fleet without super-seeding, in three orders")
    options = parser.parse_args(arguments)
    plans = []
    for boxes in options.boxes:
        size = options.block or (1 if boxes <= MOST_FINE else 2)
        plans.append(Plan(boxes, options.mebibytes // size, size * BLOCK / LINK, options.sites, f"{options.seed}"))
    if options.others:
        plans[1:1] = [
            replace(plans[0], order="rarest, all shown", seeder=None),
            replace(plans[0], order="random, all shown", seeder=None, picker=RandomPicker),
            replace(plans[0], order="sequential, all shown", seeder=None, picker=SequentialPicker),
        ]
    print(f"seed {options.seed}; {options.mebibytes} MiB, links of {LINK * 8 / 1e6:g} Mbit/s each way\n")
    print(
        f"{'boxes':>6} {'blocks':>6} {'order':>22} {'last box':>9} {'median':>9} {'bound':>9} {'ratio':>7}"
        f" {'first sent':>11} {'all sent':>9} {'took':>7}"
    )
    # What is built up lives to the end: looking for garbage in it takes a quarter of the time.
    gc.disable()
    failures: list[str] = []
    for plan in plans:
        began = time.process_time()
        result = simulate(plan)
        took = time.process_time() - began
        gc.collect()
        print(
            f"{plan.boxes:>6} {plan.blocks:>6} {plan.order:>22} {result.last:>7.1f} s {result.median:>7.1f} s"
            f" {result.bound:>7.1f} s {result.ratio:>7.3f} {result.copies:>10.3f}x {result.sent:>8.3f}x {took:>5.0f} s",
            flush=True,
        )
        if plan.picker is Picker and plan.seeder is not None:
            failures += missed(result)
    print(f"\nmemory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")
    print(
        "limits: "
        + ", ".join(f"{times:g} times the bound up to {boxes} boxes" for boxes, times in LIMITS.items())
        + f", {MOST_SENT:g} blocks sent for each of use"
    )
    for one in failures:
        print(f"MISSED: {one}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
