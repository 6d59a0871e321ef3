"""What memory this box has, by the kernel: the machine's, or that of the control group that bounds this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_VMSTAT: Final = Path("/proc/vmstat")


@dataclass(frozen=True)
class BoxMemory:
    """Bytes there are, and bytes that could be had without anything being swapped out or killed."""

    total: int
    available: int


def box_memory(groups: Path = _GROUPS, own: Path = _OWN) -> BoxMemory:
    """The machine's memory, or less where a control group (a container, a systemd unit) sets a limit.

    Reads a few small files of the kernel. Pages of files count as available: the kernel drops them when it has to.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _limits(groups, own):
        if limit < machine.total:
            total, available = min(total, limit), min(available, max(0, limit - used))
    return BoxMemory(total, available)


def oom_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory since it started."""
    return _entry(_VMSTAT, "oom_kill")


def resident(pid: int | None) -> int:
    """Bytes of memory that a process takes now; 0 where there is none."""
    if pid is None:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _limits(groups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every control group this process is in, from its own to the outermost."""
    for root, limit_file, use_file, cache, path in _places(groups, own):
        folder = root / path.lstrip("/")
        # A container sees its own group as the root, under a path that only the host has.
        folder = folder if folder.is_dir() else root
        while True:
            limit, used = _number(folder / limit_file), _number(folder / use_file)
            if limit is not None and used is not None:
                yield limit, max(0, used - _entry(folder / "memory.stat", cache))
            if folder == root:
                break
            folder = folder.parent


def _places(groups: Path, own: Path) -> Iterator[tuple[Path, str, str, str, str]]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield groups, "memory.max", "memory.current", "inactive_file", path
        elif "memory" in controllers.split(","):
            yield groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", path


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _entry(file: Path, name: str) -> int:
    """A number from a file of `name number` lines; 0 where it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0
