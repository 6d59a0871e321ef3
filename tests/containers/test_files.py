"""The files that images and fleets of containers are made of, as far as reading them tells."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent.config_file import parse

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
ENV = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "SENSOR_TOPIC": "shop/a"}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.l4t", "mosquitto.Dockerfile"])
def test_a_dockerfile_is_well_written(name: str) -> None:
    # DL3008 wants Debian's packages pinned to versions that Debian takes away with each update.
    linted = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--ignore", "DL3008", DOCKER / name], capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("overlay", ["", "compose.host-network.yaml", "compose.jetson.yaml", "compose.usb.yaml"])
def test_every_container_of_a_box_is_hardened(overlay: str) -> None:
    files = ["-f", str(DOCKER / "compose.yaml"), *(["-f", str(DOCKER / overlay)] if overlay else [])]
    command = ["docker", "compose", *files, "--profile", "*", "config", "--format", "json"]
    read = subprocess.run(command, capture_output=True, text=True, check=False, env=ENV)
    assert read.returncode == 0, read.stderr
    services = json.loads(read.stdout)["services"]
    assert {"agent", "mosquitto", "admin"} <= set(services)
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name
        assert "max-size" in service["logging"]["options"], name
        assert not service.get("privileged"), name
    open_to_all = [
        port["target"]
        for service in services.values()
        for port in service.get("ports", [])
        if port.get("host_ip") != "127.0.0.1"
    ]
    # What boxes say to one another, which is encrypted and authenticated; the API and the broker are this machine's.
    assert set(open_to_all) <= {4210, 4211}


@pytest.mark.parametrize(
    "path", ["config/shoal.yaml", "image.yaml", "fleet/holder/shoal.yaml", "fleet/borrower/shoal.yaml"]
)
def test_a_shipped_configuration_is_valid(path: str) -> None:
    assert parse((DOCKER / path).read_text(), path, Path("/etc/shoal"), {}).state_dir == Path("/var/lib/shoal")


def test_every_variable_of_the_compose_file_is_in_the_example_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.yaml").read_text()))
    example = (DOCKER / ".env.example").read_text()
    assert used == dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE))
    # A default that is set is no default any more: it would win over those of the overlays, such as a Jetson's image.
    assert not re.findall(r"^[^#\n]", example, re.MULTILINE)


def test_the_versions_that_the_dockerfiles_name_are_those_of_the_project() -> None:
    pinned = re.search(r"llama-cpp-python==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    for name in ("Dockerfile", "Dockerfile.l4t"):
        assert f"LLAMA_CPP_PYTHON={pinned[1]}\n" in (DOCKER / name).read_text()
    bake = (DOCKER / "docker-bake.hcl").read_text()
    (version,) = re.findall(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f'variable "VERSION" {{ default = "{version}" }}' in bake
    assert (
        yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["agent"]["image"]
        == "${SHOAL_IMAGE:-shoal-agent:latest}"
    )
