"""The compose files, as an operator uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.containers import engine
from tests.containers.box import MODEL, eventually
from tests.containers.conftest import Timed
from tests.harness import free_port, model_path

ROOT = Path(__file__).parents[2]


class Project:
    """`docker compose` with a file, overlays of it, and one project's name."""

    def __init__(self, files: tuple[str, ...], env: Mapping[str, str]) -> None:
        self.name = f"shoaltest{engine.RUN}{files[-1].removesuffix('.yaml').replace('.', '')}"
        given = [argument for file in files for argument in ("-f", str(ROOT / "docker" / file))]
        self._command = ["docker", "compose", "-p", self.name, *given]
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
def project(*files: str, env: Mapping[str, str]) -> Iterator[Project]:
    made = Project(files, env)
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
    with project("compose.yaml", env=env) as compose:
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
    with project("compose.fleet.yaml", env=env) as compose:
        with timed("docker compose up --wait of a fleet of four"):
            compose("up", "--wait")
        boxes = json.loads(compose("exec", "-T", "box-1", "shoal", "boxes", "-o", "json"))["boxes"]
        assert {box["name"] for box in boxes} == {"box-1", "box-2", "box-3", "box-4"}
        for name in ("box-2", "box-3", "box-4"):
            said = compose("exec", "-T", name, "shoal", "chat", "Hello", "--max-tokens", "8", "--resume", "-o", "json")
            assert json.loads(said)["served_by"] == "box-1"
        compose("down", "--volumes")
        assert compose.left() == ""


class Sensor:
    """What the kernel makes of a sensor's cable: a terminal with a name in /dev, like those of /dev/serial/by-id."""

    def __init__(self) -> None:
        self.path = Path(f"/dev/shoal-test-{engine.RUN}")
        self._ours = -1

    def plug(self) -> None:
        self._ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.chown(os.ttyname(theirs), -1, 20)
        Path(os.ttyname(theirs)).chmod(0o660)
        self.path.symlink_to(Path(os.ttyname(theirs)).relative_to("/dev"))
        os.close(theirs)

    def pull(self) -> None:
        if self._ours >= 0:
            self.path.unlink()
            os.close(self._ours)
            self._ours = -1

    def say(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a device")
def test_a_sensor_whose_cable_was_pulled_is_read_again_when_it_is_back() -> None:
    sensor = Sensor()
    env = {"SENSOR_TTY": str(sensor.path), "SENSOR_TOPIC": "shop/fridge", "SHOAL_MQTT": str(free_port())}
    try:
        with project("compose.yaml", "compose.usb.yaml", env=env) as compose:
            compose("up", "-d", "--no-deps", "--wait", "mosquitto")

            def last_word() -> str:
                return compose("logs", "serial").strip().rpartition("\n")[2]

            def said(line: str) -> None:
                eventually(lambda: "reading" in last_word(), "the port is read")
                # Retained by nobody: who listens has to be there first.
                hear = (
                    "exec",
                    "-T",
                    "mosquitto",
                    "mosquitto_sub",
                    "-t",
                    "shop/fridge",
                    "-C",
                    "1",
                    "-W",
                    "30",
                    "-F",
                    "%p",
                )
                heard = threading.Thread(target=lambda: lines.append(compose(*hear)))
                heard.start()
                while heard.is_alive():
                    sensor.say(line)
                    heard.join(0.2)

            lines: list[str] = []
            sensor.plug()
            compose("up", "-d", "--no-deps", "serial")
            said("21.5")
            sensor.pull()
            eventually(lambda: "no serial port" in last_word(), "the port is missed")
            sensor.plug()
            said("22.5")
            assert [line.strip() for line in lines] == ["21.5", "22.5"]
    finally:
        sensor.pull()
