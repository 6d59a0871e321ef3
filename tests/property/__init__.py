"""The rules of the fleet document, shown on made-up fleets: replicas, faults and foes, and an oracle that keeps its own
books. Not here: single functions (tests/unit), real sockets and disks (tests/integration)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings


def budget(examples: int) -> settings:
    """The same runs every time and no clock, so that a slow machine changes nothing.

    A failure is not shrunk, because that can take minutes, unless SHRINK is set in the environment.
    """
    phases = (Phase.explicit, Phase.generate, *((Phase.shrink,) if os.environ.get("SHRINK") else ()))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=examples,
        suppress_health_check=slow,
        phases=phases,
        report_multiple_bugs=False,
    )
