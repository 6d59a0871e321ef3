"""What is done to the network of a box, from this machine: rules in its container's own network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from tests.containers.box import Box


def _iptables(box: Box, *rule: str) -> None:
    command = ["nsenter", "-t", str(box.pid), "-n", "iptables", "-w", *rule]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def need_root() -> None:
    """Skip where this process cannot write rules: it takes root, nsenter and iptables."""
    if os.geteuid() != 0 or not shutil.which("nsenter") or not shutil.which("iptables"):
        pytest.skip("rules for a container's network need root, nsenter and iptables on this machine")


@contextmanager
def unheard(box: Box, others: Iterable[Box]) -> Iterator[None]:
    """A box no longer hears others, packets of connections that stand included; they still hear it."""
    need_root()
    sources = [other.ip for other in others]
    for ip in sources:
        _iptables(box, "-I", "INPUT", "-s", ip, "-j", "DROP")
    try:
        yield
    finally:
        for ip in sources:
            _iptables(box, "-D", "INPUT", "-s", ip, "-j", "DROP")


@contextmanager
def parted(left: Iterable[Box], right: Iterable[Box]) -> Iterator[None]:
    """Nothing passes between two groups, in either direction."""
    need_root()
    left, right = list(left), list(right)
    pairs = [(box, other.ip) for box in left for other in right] + [(box, other.ip) for box in right for other in left]
    for box, ip in pairs:
        _iptables(box, "-I", "INPUT", "-s", ip, "-j", "DROP")
    try:
        yield
    finally:
        for box, ip in pairs:
            _iptables(box, "-D", "INPUT", "-s", ip, "-j", "DROP")
