"""What the files of the role say of one another, as far as reading them tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "ansible" / "roles" / "shoal_agent"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


DEFAULTS = read(ROLE / "defaults" / "main.yml")


@pytest.mark.parametrize("entry", ["main", "prepare"])
def test_every_variable_is_specified_with_its_default(entry: str) -> None:
    options = read(ROLE / "meta" / "argument_specs.yml")["argument_specs"][entry]["options"]
    assert list(options) == list(DEFAULTS)
    for name, option in options.items():
        assert option["description"], name
        assert option["default"] == DEFAULTS[name], name


def test_every_variable_is_in_the_readme() -> None:
    listed = re.findall(r"^\| `(shoal_\w+)` \|", (ROLE / "README.md").read_text(), re.MULTILINE)
    assert listed[: len(DEFAULTS)] == list(DEFAULTS)


def test_the_version_that_is_rolled_out_is_that_of_the_project() -> None:
    (version,) = re.findall(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert DEFAULTS["shoal_version"] == version
    assert read(ROOT / "ansible" / "inventory" / "group_vars" / "shoal.yml")["shoal_version"] == version


def test_the_compose_project_is_told_everything_that_it_can_be_told() -> None:
    used = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker" / "compose.yaml").read_text()))
    told = set(re.findall(r"^(\w+)=", (ROLE / "templates" / "env.j2").read_text(), re.MULTILINE))
    # Where the admin's keys are is for the admin's machine alone.
    assert told == used - {"SHOAL_KEYS"} | {"COMPOSE_FILE"}
