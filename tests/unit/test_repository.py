"""The repository keeps its word: documents name what exists, and what exists is documented."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from agent.cli.main import _COMMANDS
from agent.config import Config
from agent.config_file import OVERRIDES, load
from agent.errors import HTTP_STATUS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that can be written in a configuration file, dotted, lists left out."""
    for name, field in model.model_fields.items():
        inner = [
            candidate
            for candidate in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ]
        if inner:
            yield from keys_of(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_in_a_document_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_file_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`((?:agent|fleet|tests|docs|scripts)/[\w./-]+)`", document.read_text("utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_configuration_key_is_described() -> None:
    described = set(re.findall(r"^\| `([\w.]+)` \|", text_of("docs/configuration.md"), flags=re.MULTILINE))
    assert set(keys_of(Config)) == described - set(OVERRIDES) - {
        "SHOAL_IDENTITY_SEED",
        "SHOAL_IDENTITY_SEED_FILE",
    }
    assert set(OVERRIDES) <= described


def test_every_configuration_default_is_described_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|[^|]*\| ([^|]*) \|", text_of("docs/configuration.md"), re.MULTILINE))
    config = Config(name="box")
    for key, described in rows.items():
        value: object = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if isinstance(value, bool):
            assert described == f"`{str(value).lower()}`", key
        elif isinstance(value, int | float):
            assert described.split()[0] == f"{value:g}" if isinstance(value, float) else str(value), key


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", text_of("docs/configuration.md"), flags=re.DOTALL)
    assert example is not None
    path = tmp_path / "shoal.yaml"
    path.write_text(example.group(1), "utf-8")
    assert load(path, env={}).name == yaml.safe_load(example.group(1))["name"]


def test_every_error_code_is_described_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text_of("docs/api.md"), flags=re.MULTILINE)
    assert {code: int(status) for code, status in rows} == dict(HTTP_STATUS)


def test_every_command_is_in_the_readme() -> None:
    named = set(re.findall(r"^\| `shoal (\w+)", text_of("README.md"), flags=re.MULTILINE))
    assert named == set(_COMMANDS)


def test_every_decision_is_in_the_index_and_has_its_parts() -> None:
    index = text_of("docs/adr/README.md")
    pages = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text("utf-8")
        assert f"({page.name})" in index
        assert text.startswith(f"# {int(page.name[:4])}. ")
        for part in ("**Status:**", "## Context", "## Decision", "## Consequences"):
            assert part in text, (page.name, part)


def test_every_make_command_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^    )make ([a-z]+)", document.read_text("utf-8"), flags=re.MULTILINE))
        assert named <= targets, document.name


def test_the_readme_starts_with_the_two_commands() -> None:
    lines = [line for line in text_of("README.md").splitlines() if line.strip()]
    assert lines[1:3] == ["    make demo", "    make test"]


def test_the_layers_are_drawn_as_they_are_checked() -> None:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    drawn = re.search(r"## Layers.*?```\n(.*?)```", text_of("docs/architecture.md"), flags=re.DOTALL)
    assert drawn is not None
    pictured = [set(re.findall(r"\b(?:agent|fleet)\.\w+", line.split("  " * 8)[0])) for line in drawn[1].splitlines()]
    pictured = [rooms for rooms in pictured if rooms]
    by_name = {contract["name"]: contract for contract in contracts}
    layers = [
        {room.strip() for room in layer.split("|")}
        for storey in ("agent", "fleet")
        for layer in by_name[f"the rooms of {storey}, top to bottom"]["layers"]
    ]
    assert pictured == layers


def test_no_file_carries_a_marker_of_unfinished_work() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    marked = [
        str(path.relative_to(ROOT))
        for folder in ("agent", "fleet", "scripts", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", "") and path.is_file() and words.search(path.read_text("utf-8"))
    ]
    assert not marked


@pytest.mark.parametrize("script", ["scripts/bootstrap", ".ci/run"])
def test_the_scripts_can_be_run(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)


def test_the_bootstrap_refuses_an_extra_it_does_not_know() -> None:
    done = subprocess.run([str(ROOT / "scripts/bootstrap"), "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_the_bootstrap_names_a_python_that_does_not_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"cp -r {ROOT}/scripts {ROOT}/pyproject.toml . && PYTHON=/bin/false scripts/bootstrap demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python from 3.11 to 3.13" in done.stderr
