"""Who may speak to whom, between real agents: refusals that both sides can see and mend."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.command import run_shoal
from tests.harness import Agent, agents
from tests.integration.test_forwarding import peers, wait_until


def warnings_of(box: Agent) -> dict[str, dict[str, Any]]:
    facts = httpx.get(f"{box.url}/v1/fleet/self", timeout=10).json()
    return {warning["code"]: warning for warning in facts["warnings"]}


def test_b25_a_refused_box_says_so_on_both_sides_and_gets_in_once_it_is_certified(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "jetson-1": {}}, members=["jetson-1"]) as (sensor, jetson):
        wait_until(lambda: [p["state"] for p in peers(sensor)] == ["refused"])
        (refused,) = peers(sensor)
        assert sensor.peer_id in refused["last_error"]
        assert "member of its fleet" in refused["last_error"]
        assert sensor.peer_id in warnings_of(sensor)["refused_by_peer"]["remedy"]
        assert sensor.peer_id in warnings_of(jetson)["unknown_key_knocks"]["remedy"]
        assert not any(p["connected"] for p in peers(jetson))
        doctor = run_shoal(["doctor", "-o", "json", "--url", sensor.url])
        assert doctor.code == 5
        assert "refused_by_peer" in {w["code"] for w in json.loads(doctor.out)["warnings"]}
        jetson.allow(sensor)  # while it runs: nothing is restarted
        wait_until(lambda: [p["state"] for p in peers(sensor)] == ["connected"])


def test_garbage_on_a_running_agents_p2p_port_changes_nothing(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "pos-1": {}}) as (sensor, pos):
        wait_until(lambda: [p["connected"] for p in peers(sensor)] == [True])
        for garbage in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x13/multistream/1.0.0\n" * 50):
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", sensor.p2p_port)) as stranger:
                    stranger.sendall(garbage)
        assert [p["connected"] for p in peers(sensor)] == [True]
        pos.kill()
        wait_until(lambda: [p["connected"] for p in peers(sensor)] == [False], 3)
        pos.start()
        wait_until(lambda: [p["connected"] for p in peers(sensor)] == [True])


def test_b29_the_state_folder_is_private_and_used_by_one_agent_at_a_time(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}}) as (sensor,):
        state = sensor.folder / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        second = Agent(tmp_path / "second", "second", {"state_dir": str(state)}, {})
        second.spawn()
        assert second.wait() == 1
        assert "another agent is using" in second.log()


def test_an_idle_borrow_only_agent_fits_into_120_mb(tmp_path: Path) -> None:
    with agents(tmp_path, {"sensor-1": {}, "pos-1": {}}, fresh=True) as (sensor, _):
        wait_until(lambda: [p["connected"] for p in peers(sensor)] == [True])
        assert psutil.Process(sensor.pid).memory_info().rss <= 120e6
        assert "llama_cpp" not in Path(f"/proc/{sensor.pid}/maps").read_text()
