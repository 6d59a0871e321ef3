"""How well this box is: CPU, memory, heat, battery, throttling, and whether it takes jobs of others now (b40).

Judging two readings is pure; reading them is thin, and whatever a box cannot tell is None. CPU is always what was used
between two readings: a single one says how the box was since it started.

A box whose own model uses every core is not overloaded: as long as that model has a free slot another job is welcome,
and when it has none its queue says so. So CPU counts against jobs of others only as far as *others* than this agent and
its models use it. While a server beside this box (`engines`) runs jobs of this box, its work cannot be told from that
of strangers, and the CPU refuses nobody. Memory counts whoever has it: weights that are mapped from a file count as
free, since the kernel can drop them, and what is left is what a further job needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import structlog
import trio

from agent.config import RoutingConfig
from agent.engine.box_memory import box_memory
from agent.fleet_view import Condition
from fleet.net.messages import HealthPresence

#: Seconds between two readings, over which the CPU is measured.
INTERVAL: Final = 5.0
#: Degrees Celsius where a sensor gives no limits of its own, and outside which such limits are no limits.
_HIGH, _CRITICAL = 85.0, 100.0
_LIMITS: Final = (40.0, 130.0)
#: What sensors say that are not connected.
_SANE: Final = (-40.0, 150.0)
#: A clock that may not go higher than this share of what the CPU can do is held down.
_THROTTLED: Final = 0.9
_CPUS: Final = Path("/sys/devices/system/cpu")

log = structlog.get_logger("shoal.health")


@dataclass(frozen=True)
class Temperature:
    """One sensor, degrees Celsius; a limit it does not give is None."""

    current: float
    high: float | None = None
    critical: float | None = None


@dataclass(frozen=True)
class Reading:
    """What was read at one moment; None is what this box does not tell.

    `cpu_total` and `cpu_idle` are seconds of all cores since the box started, `own` those of this agent's processes by
    process id. `memory` is the fraction in use, `load` the load average of a minute for each core, `battery` a
    fraction. `throttles` counts how often the CPU has throttled itself, `clock` is the share of its clock it may use.
    """

    cpu_total: float
    cpu_idle: float
    own: Mapping[int, float] = field(default_factory=dict)
    memory: float = 0.0
    load: float | None = None
    temperatures: tuple[Temperature, ...] = ()
    battery: float | None = None
    mains: bool | None = None
    throttles: int | None = None
    clock: float | None = None


def judge(before: Reading | None, now: Reading, rules: RoutingConfig, *, server_works: bool = False) -> Condition:
    """How the box is, from the last two readings; without one before, of the CPU nothing is known.

    `server_works`: a server beside this box runs jobs of it, so that nobody knows whose the CPU time is.
    """
    cpu = cpu_other = None
    if before is not None and now.cpu_total > before.cpu_total:
        passed = now.cpu_total - before.cpu_total
        cpu = _share(1.0 - (now.cpu_idle - before.cpu_idle) / passed)
        own = sum(max(0.0, used - before.own.get(pid, 0.0)) for pid, used in now.own.items())
        cpu_other = None if server_works else _share(cpu - own / passed)
    memory = _share(now.memory)
    hottest = max(now.temperatures, key=_heat_of, default=None)
    health = HealthPresence(
        cpu_other=cpu_other,
        load=None if now.load is None else min(1e4, max(0.0, now.load)),
        temperature=hottest.current if hottest else None,
        heat=_heat(hottest) if hottest else "",
        battery=None if now.battery is None else _share(now.battery),
        mains=now.mains,
        throttled=_throttled(before, now),
        refuses=_refusal(cpu_other, memory, rules),
    )
    return Condition(cpu or 0.0, memory, health)


class Health:
    """Keeps reading. `pids` are the processes of this box's models; `on_change` is called when it starts or stops to
    take jobs of others.
    """

    def __init__(
        self,
        rules: RoutingConfig,
        *,
        pids: Callable[[], Sequence[int]],
        server_works: Callable[[], bool] = lambda: False,
        on_change: Callable[[], None] = lambda: None,
        read: Callable[[Sequence[int]], Reading] | None = None,
    ) -> None:
        self.condition = Condition()
        self._rules = rules
        self._pids = pids
        self._server_works = server_works
        self._on_change = on_change
        self._read = read or read_box
        self._before: Reading | None = None

    def refusal(self) -> str | None:
        """Why this box takes no jobs of others now, in words for a peer; None if it does."""
        return self.condition.health.refuses or None

    async def run(self) -> None:
        """Read every 5 s until cancelled. A sensor that hangs is waited for in a thread, and left there at the end."""
        while True:
            # What came between two readings may have been the server's, so either moment counts.
            worked = self._server_works()
            reading = await trio.to_thread.run_sync(
                self._read,
                tuple(self._pids()),
                abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs that libp2p brings are older than trio
            )
            self.take(reading, server_works=worked or self._server_works())
            await trio.sleep(INTERVAL)

    def take(self, reading: Reading, *, server_works: bool = False) -> None:
        """The next reading."""
        was = self.refusal()
        self.condition = judge(self._before, reading, self._rules, server_works=server_works)
        self._before = reading
        if (self.refusal() is None) != (was is None):
            log.info("health.lending", refuses=self.refusal())
            self._on_change()


def read_box(pids: Sequence[int], cpus: Path = _CPUS) -> Reading:
    """Read this box; `pids` are its models' processes. Blocks for as long as its sensors do."""
    times = psutil.cpu_times()
    memory = box_memory()
    battery = _battery()
    return Reading(
        # Time of guests is part of user time already.
        cpu_total=sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0),
        cpu_idle=times.idle + getattr(times, "iowait", 0.0),
        own=_own(pids),
        memory=1.0 - memory.available / memory.total,
        load=psutil.getloadavg()[0] / (psutil.cpu_count() or 1),
        temperatures=_temperatures(),
        battery=battery[0] if battery else None,
        mains=battery[1] if battery else None,
        throttles=_throttles(cpus),
        clock=_clock(cpus),
    )


def _own(pids: Sequence[int]) -> dict[int, float]:
    found = {}
    for pid in (None, *pids):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            used = process.cpu_times()
            found[process.pid] = used.user + used.system
    return found


def _temperatures() -> tuple[Temperature, ...]:
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, ValueError, AttributeError):  # a driver may say anything
        return ()
    every = (Temperature(one.current, one.high, one.critical) for chip in sensors.values() for one in chip)
    return tuple(one for one in every if _SANE[0] < one.current < _SANE[1])


def _battery() -> tuple[float, bool | None] | None:
    """Charge as a fraction, and whether there is mains power; None where there is no battery."""
    try:
        found = psutil.sensors_battery()
    except (OSError, ValueError, AttributeError, ZeroDivisionError):
        return None
    return None if found is None else (found.percent / 100, found.power_plugged)


def _throttles(cpus: Path) -> int | None:
    counts = [_number(file) for file in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _clock(cpus: Path) -> float | None:
    """The share of its clock that the CPU may use, of the core that is held down most."""
    shares = []
    for policy in cpus.glob("cpufreq/policy[0-9]*"):
        now, most = _number(policy / "scaling_max_freq"), _number(policy / "cpuinfo_max_freq")
        if now is not None and most:
            shares.append(now / most)
    return min(shares, default=None)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _throttled(before: Reading | None, now: Reading) -> bool | None:
    counted = None
    if before is not None and before.throttles is not None and now.throttles is not None:
        counted = now.throttles > before.throttles
    held_down = None if now.clock is None else now.clock < _THROTTLED
    known = [one for one in (counted, held_down) if one is not None]
    return any(known) if known else None


def _limits(sensor: Temperature) -> tuple[float, float]:
    """High and critical: the sensor's own where they make sense."""
    low, top = _LIMITS
    critical = sensor.critical if sensor.critical is not None and low <= sensor.critical <= top else _CRITICAL
    high = sensor.high if sensor.high is not None and low <= sensor.high <= top else min(_HIGH, critical)
    return high, max(high, critical)


def _heat_of(sensor: Temperature) -> float:
    """Degrees above its high limit: the worst sensor is the one nearest to trouble, not the hottest."""
    return sensor.current - _limits(sensor)[0]


def _heat(sensor: Temperature) -> str:
    high, critical = _limits(sensor)
    return "critical" if sensor.current >= critical else "high" if sensor.current >= high else ""


def _refusal(cpu_other: float | None, memory: float, rules: RoutingConfig) -> str:
    if memory > rules.max_memory:
        return f"{memory:.0%} of its memory is used"
    if cpu_other is not None and cpu_other > rules.max_cpu:
        return f"other programs use {cpu_other:.0%} of its CPU"
    return ""


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
