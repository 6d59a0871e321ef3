"""The compose files, as an operator uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.containers import engine
from tests.containers.box import MODEL
from tests.containers.conftest import Timed
from tests.harness import free_port, model_path

ROOT = Path(__file__).parents[2]


class Project:
    """`docker compose` with one file and one project's name."""

    def __init__(self, file: str, env: Mapping[str, str]) -> None:
        self.name = f"shoaltest{engine.RUN}{file.removesuffix('.yaml').replace('.', '')}"
        self._command = ["docker", "compose", "-p", self.name, "-f", str(ROOT / "docker" / file)]
        self._env = {**os.environ, **env}

    def __call__(self, *arguments: str, limit: float = 240.0) -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=limit, check=False, env=self._env
        )
        assert done.returncode == 0, f"compose {' '.join(arguments)}: {done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        done = subprocess.run([*self._command, "logs", "--tail", "30"], capture_output=True, text=True, env=self._env)
        return done.stdout

    def down(self) -> None:
        subprocess.run([*self._command, "down", "--volumes"], capture_output=True, timeout=240, env=self._env)

    def left(self) -> str:
        """What is still there of the project."""
        label = f"label=com.docker.compose.project={self.name}"
        found = [
            engine.docker(*listed, "--filter", label)
            for listed in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"))
        ]
        return "".join(found)


@contextmanager
def project(file: str, env: Mapping[str, str]) -> Iterator[Project]:
    made = Project(file, env)
    try:
        yield made
    finally:
        made.down()


@pytest.mark.model
def test_one_box_is_up_runs_a_job_of_its_broker_and_goes_without_a_trace(tmp_path: Path, timed: Timed) -> None:
    shutil.copytree(ROOT / "docker" / "config", tmp_path / "config")
    file = tmp_path / "config" / "shoal.yaml"
    config = yaml.safe_load(file.read_text())
    lane = free_port()
    config["net"]["fast_lane_port"] = lane
    config["models"] = [{"path": f"/models/{model_path().name}", "name": MODEL}]
    file.write_text(yaml.safe_dump(config))
    for path in (tmp_path, tmp_path / "config"):
        path.chmod(0o755)
    ports = {name: str(free_port()) for name in ("SHOAL_P2P", "SHOAL_HTTP", "SHOAL_MQTT")}
    env = {
        "SHOAL_NAME": "till-31",
        "SHOAL_IMAGE": engine.AGENT,
        "SHOAL_CONFIG": str(tmp_path / "config"),
        "SHOAL_MODELS": str(model_path().parent),
        "SHOAL_LANE": str(lane),
        **ports,
    }
    with project("compose.yaml", env) as compose:
        with timed("docker compose up --wait of one box"):
            compose("up", "--wait")
        key = compose("exec", "-T", "agent", "cat", "/var/lib/shoal/api-keys").strip()
        assert len(key) > 30
        compose("exec", "-T", "agent", "shoal", "fleet", "init", "--name", "shops", "--keys", "/var/lib/shoal/keys")
        with timed("a job over the box's own broker"):
            answered = compose(
                *(
                    "exec",
                    "-T",
                    "mosquitto",
                    "mosquitto_rr",
                    "-V",
                    "5",
                    "-W",
                    "90",
                    "-t",
                    "shoal/v1/shops/infer/request",
                ),
                *("-e", "reply/test", "-m", "What is a lighthouse for?"),
            )
        answer = json.loads(answered)
        assert answer["status"] == "ok"
        assert answer["served_by"] == "till-31"
        assert answer["output"]["text"]
        assert compose("exec", "-T", "agent", "id", "-u").strip() == str(engine.UID)
        compose("down", "--volumes")
        assert compose.left() == ""


@pytest.mark.model
def test_a_fleet_of_four_boxes_is_up_and_three_of_them_borrow(timed: Timed) -> None:
    env = {"SHOAL_DEMO_IMAGE": engine.DEMO, "SHOAL_SLIM_IMAGE": engine.SLIM}
    with project("compose.fleet.yaml", env) as compose:
        with timed("docker compose up --wait of a fleet of four"):
            compose("up", "--wait")
        boxes = json.loads(compose("exec", "-T", "box-1", "shoal", "boxes", "-o", "json"))["boxes"]
        assert {box["name"] for box in boxes} == {"box-1", "box-2", "box-3", "box-4"}
        for name in ("box-2", "box-3", "box-4"):
            said = compose("exec", "-T", name, "shoal", "chat", "Hello", "--max-tokens", "8", "--resume", "-o", "json")
            assert json.loads(said)["served_by"] == "box-1"
        compose("down", "--volumes")
        assert compose.left() == ""
