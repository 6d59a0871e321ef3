"""The simulation of a whole fleet: small runs hold the limits, repeat exactly, and a missed limit is seen."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

from tests.sim.fleet_boxes import Measured, Spread
from tests.sim.fleet_sim import LIMITS, Row

GOOD = Spread(t99=0.3, t100=9.0, mean=2000.0, largest=3000)


def test_a_seed_gives_the_same_table_every_time_and_small_fleets_hold_the_limits() -> None:
    command = [sys.executable, "-m", "tests.sim.fleet_sim", "--seed", "3", "--boxes", "110", "2500"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    runs = [(run.communicate(timeout=180)[0], run.returncode) for run in both]
    assert [code for _, code in runs] == [0, 0], runs[0][0]
    # All of a row but how long it took.
    tables = [re.findall(r"^ +\d+ +(?:real code|events).*?(?= +\d+ s$)", output, re.MULTILINE) for output, _ in runs]
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]


def test_a_limit_that_is_missed_is_named() -> None:
    row = Row(10, "events", Measured((GOOD, GOOD), GOOD, 0.5), 1)
    assert row.missed == []
    late = Measured((GOOD, replace(GOOD, t99=1.5)), replace(GOOD, t100=61.0), 7.0)
    found = replace(row, measured=late, pieces=2).missed
    assert [one.split()[0] for one in found] == ["t99", "pieces", "heal", "t100"]
    dear = Measured((replace(GOOD, mean=LIMITS["mean"] + 1, t100=float("inf")),), GOOD, 0.5)
    assert [one.split()[0] for one in replace(row, measured=dear).missed] == ["t100", "mean"]
