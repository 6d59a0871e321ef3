"""What memory a box has where control groups of either version bound it, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from agent.engine.box_memory import BoxMemory, box_memory, oom_kills

MIB = 1 << 20


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_a_machine_without_groups_has_its_own_memory(tmp_path: Path, own: Path) -> None:
    found = box_memory(tmp_path, own)
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_bounds_what_is_available(tmp_path: Path, own: Path, version: int) -> None:
    root = tmp_path if version == 2 else tmp_path / "memory"
    own.write_text("0::/outer/inner\n" if version == 2 else "7:cpu:/x\n4:memory:/outer/inner\n0::/\n")
    limit, used = ("memory__max", "memory__current") if version == 2 else (
        "memory__limit_in_bytes", "memory__usage_in_bytes")  # fmt: skip
    cache = "inactive_file" if version == 2 else "total_inactive_file"
    write(root / "outer", **{limit: 100 * MIB, used: 90 * MIB, "memory__stat": f"anon 5\n{cache} {30 * MIB}"})
    write(root / "outer/inner", **{limit: "max" if version == 2 else 1 << 62, used: 10 * MIB, "memory__stat": "anon 1"})
    assert box_memory(tmp_path, own) == BoxMemory(100 * MIB, 40 * MIB)
    write(root / "outer/inner", **{limit: 64 * MIB, used: 70 * MIB})
    assert box_memory(tmp_path, own) == BoxMemory(64 * MIB, 0)


def test_in_a_container_the_own_group_is_the_root(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/system.slice/docker-123.scope\n")
    write(tmp_path, memory__max=200 * MIB, memory__current=50 * MIB, memory__stat="inactive_file 0")
    assert box_memory(tmp_path, own) == BoxMemory(200 * MIB, 150 * MIB)


def test_odd_files_bound_nothing(tmp_path: Path, own: Path) -> None:
    own.write_text("\n0\nx:y\n0::/a\n")
    write(tmp_path / "a", memory__max="-1", memory__current="lots", memory__stat="inactive_file")
    assert box_memory(tmp_path, own).total == psutil.virtual_memory().total


def test_kills_for_want_of_memory_are_counted() -> None:
    assert oom_kills() >= 0
