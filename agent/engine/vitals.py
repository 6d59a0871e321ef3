"""What a process does and has done, as /proc tells (proc(5), `stat`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Vitals:
    """`awake` is whether any of its `threads` computes, waits for a core, or waits for a disk.

    `main` and `total` are seconds on a core so far, of its main thread and of all that live, to hundredths.
    """

    awake: bool
    main: float
    total: float
    threads: int


def vitals_of(pid: int) -> Vitals | None:
    """The vitals of a process; None where there is none, or nothing to read. Takes well below a millisecond."""
    folder = Path(f"/proc/{pid}/task")
    awake, main, total, threads = False, 0.0, 0.0, 0
    try:
        for thread in folder.iterdir():
            try:
                # The name of the thread comes in brackets, and may hold anything.
                fields = (thread / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            seconds = (int(fields[11]) + int(fields[12])) / _TICKS
            awake = awake or fields[0] in "RD"
            main = seconds if thread.name == str(pid) else main
            total += seconds
            threads += 1
    except (OSError, ValueError, IndexError):
        return None
    return Vitals(awake, main, total, threads) if threads else None
