"""How well a box says it is, and when it takes no jobs of others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from agent.config import RoutingConfig, TimeoutsConfig
from agent.fleet_view import Condition
from agent.jobs.active import ActiveJobs
from agent.jobs.lend import RETRY_AFTER, Lender
from agent.jobs.neighbourhood import Neighbourhood
from agent.jobs.watch import EngineEmit
from agent.observe.health import Health, Reading, Temperature, judge, read_box
from agent.routing.decide import LocalState
from fleet.errors import RemoteError
from fleet.net.messages import InferRequest, ModelPresence
from fleet.net.rpc import IncomingCall
from tests.harness import peer_id_of

RULES = RoutingConfig()
#: A box of four cores that has been idle for 1000 s, and its model's process.
FIRST = Reading(cpu_total=4000.0, cpu_idle=4000.0, own={77: 10.0}, memory=0.3)


def after(busy: float, own: float = 0.0, **changes: Any) -> Reading:
    """Five seconds later, four cores: so many CPU seconds were used, so many of them by the model."""
    later = replace(FIRST, cpu_total=4020.0, cpu_idle=4000.0 + 20.0 - busy, own={77: 10.0 + own})
    return replace(later, **changes)


def refuses(condition: Condition) -> str:
    return condition.health.refuses


def test_b40_cpu_is_what_was_used_between_two_readings_and_unknown_before() -> None:
    worn = replace(FIRST, cpu_idle=0.0)
    assert judge(None, worn, RULES) == Condition(0.0, 0.3, judge(None, worn, RULES).health)
    assert judge(None, worn, RULES).health.cpu_other is None
    assert refuses(judge(None, worn, RULES)) == ""
    condition = judge(FIRST, after(10.0), RULES)
    assert (condition.cpu, condition.health.cpu_other) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (after(18.0), ""),
        (after(18.2), "other programs use 91% of its CPU"),
        (after(0.0, memory=0.90), ""),
        (after(0.0, memory=0.91), "91% of its memory is used"),
    ],
)
def test_b40_more_than_90_percent_of_cpu_or_memory_takes_no_jobs_of_others(reading: Reading, words: str) -> None:
    assert refuses(judge(FIRST, reading, RULES)) == words


def test_b40_its_own_model_running_flat_out_is_no_overload() -> None:
    flat_out = judge(FIRST, after(20.0, own=19.5), RULES)
    assert flat_out.cpu == 1.0
    assert flat_out.health.cpu_other == pytest.approx(0.025)
    assert refuses(flat_out) == ""
    started = replace(after(20.0), own={77: 10.0, 78: 19.5})
    assert refuses(judge(FIRST, started, RULES)) == "", "a process that has started since"
    assert refuses(judge(FIRST, after(20.0, own=0.5), RULES)) != ""


def test_b40_while_a_server_beside_the_box_works_only_memory_counts() -> None:
    assert refuses(judge(FIRST, after(20.0), RULES, server_works=True)) == ""
    assert refuses(judge(FIRST, after(20.0, memory=0.95), RULES, server_works=True)) != ""


@pytest.mark.parametrize(
    ("sensor", "heat"),
    [
        (Temperature(84.9), ""),
        (Temperature(85.0), "high"),
        (Temperature(100.0), "critical"),
        (Temperature(71.0, high=70.0, critical=80.0), "high"),
        (Temperature(80.0, high=70.0, critical=80.0), "critical"),
        (Temperature(60.0, high=0.0, critical=65261.85), ""),
    ],
)
def test_heat_is_judged_by_the_sensors_own_limits_where_they_make_sense(sensor: Temperature, heat: str) -> None:
    assert judge(None, replace(FIRST, temperatures=(sensor,)), RULES).health.heat == heat


def test_the_sensor_nearest_to_trouble_counts() -> None:
    both = (Temperature(80.0, high=95.0), Temperature(72.0, high=70.0, critical=90.0))
    health = judge(None, replace(FIRST, temperatures=both), RULES).health
    assert (health.temperature, health.heat) == (72.0, "high")


@pytest.mark.parametrize(
    ("before", "now", "throttled"),
    [
        ((None, None), (None, None), None),
        ((5, None), (5, None), False),
        ((5, None), (6, None), True),
        ((None, 1.0), (None, 1.0), False),
        ((None, 0.5), (None, 0.5), True),
        ((5, 1.0), (5, 0.6), True),
    ],
)
def test_throttling_is_a_counter_that_grows_or_a_clock_that_is_held_down(
    before: tuple[int | None, float | None], now: tuple[int | None, float | None], throttled: bool | None
) -> None:
    first = replace(FIRST, throttles=before[0], clock=before[1])
    second = after(0.0, throttles=now[0], clock=now[1])
    assert judge(first, second, RULES).health.throttled is throttled


def test_what_a_box_does_not_tell_is_none() -> None:
    health = judge(None, FIRST, RULES).health
    unknown = (health.load, health.temperature, health.battery, health.mains, health.throttled, health.cpu_other)
    assert unknown == (None,) * 6


def test_a_box_says_when_it_starts_and_stops_to_refuse() -> None:
    changes: list[str | None] = []
    health = Health(RULES, pids=lambda: [], on_change=lambda: changes.append(health.refusal()))
    for memory in (0.5, 0.95, 0.96, 0.5):
        health.take(replace(FIRST, memory=memory))
    assert changes == ["95% of its memory is used", None]


def test_reading_this_machine_gives_figures_within_their_limits(tmp_path: Path) -> None:
    first, second = read_box([os.getpid()], tmp_path), read_box([os.getpid()], tmp_path)
    assert set(first.own) == {os.getpid()}
    assert (first.throttles, first.clock) == (None, None)
    condition = judge(first, second, RULES)
    assert 0 <= condition.cpu <= 1
    assert 0 < condition.memory <= 1


def test_the_kernels_files_about_throttling_are_read(tmp_path: Path) -> None:
    files = {
        "cpu0/thermal_throttle/core_throttle_count": "3\n",
        "cpu1/thermal_throttle/core_throttle_count": "4\n",
        "cpu1/thermal_throttle/package_throttle_count": "nonsense\n",
        "cpufreq/policy0/scaling_max_freq": "1800000\n",
        "cpufreq/policy0/cpuinfo_max_freq": "1800000\n",
        "cpufreq/policy4/scaling_max_freq": "600000\n",
        "cpufreq/policy4/cpuinfo_max_freq": "2400000\n",
        "cpufreq/policy5/scaling_max_freq": "1\n",
        "cpufreq/policy5/cpuinfo_max_freq": "0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    reading = read_box([], tmp_path)
    assert (reading.throttles, reading.clock) == (7, 0.25)


def test_b40_a_box_that_refuses_tells_the_peer_when_to_come_back_and_runs_nothing() -> None:
    lender, asker = peer_id_of("lender"), peer_id_of("asker")
    held = ModelPresence(name="m", hash="sha256:" + "0" * 64, state="loaded", context_tokens=100)

    class Here:
        peer_id, name = lender, "lender"

        def local_state(self, model: str) -> LocalState:
            return LocalState(lender, "lender", held)

    class Call:
        peer_id = asker
        body = InferRequest(job="j1", kind="completion", model="m", prompt="x", route=(asker,)).model_dump(mode="json")

    async def generate(model: str, request: InferRequest, emit: EngineEmit) -> None:
        raise AssertionError("it ran")

    busy = Lender(
        cast(Neighbourhood, Here()), generate, ActiveJobs(), TimeoutsConfig(), lambda: "95% of its memory is used"
    )
    with pytest.raises(RemoteError) as refused:
        trio.run(busy.handle, cast(IncomingCall, Call()))
    assert refused.value.remote_code == "overloaded"
    assert refused.value.details["retry_after"] == RETRY_AFTER
    assert "95% of its memory" in refused.value.message
