"""What a fuzz target is, and how it is measured: by calls and traced bytes, never by a clock."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Inputs that once failed: corpus/TARGET/WHAT-IT-WAS.
CORPUS = Path(__file__).with_name("corpus")

#: Characters of an error text.
MAX_ERROR = 512


@dataclass(frozen=True)
class Target:
    """One decoder with what it promises.

    `run` decodes, swallows the documented error and nothing else, and checks what was decoded; True where the input
    was accepted. `seeds` are accepted inputs. `stretch` makes hostile inputs of about n bytes; in tests they have
    `large` bytes. Memory stays below `memory` bytes per byte of input plus `memory_base`, whatever the input.
    """

    name: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], Sequence[bytes]]
    stretch: Sequence[Callable[[int], bytes]]
    max_len: int = 4096
    large: int = 16 * 1024
    memory: int = 100
    memory_base: int = 256 * 1024
    tokens: Sequence[bytes] = ()

    def regressions(self) -> list[Path]:
        """The inputs in the corpus."""
        return sorted((CORPUS / self.name).glob("*"))


def check_brief(error: Exception) -> None:
    """An error text is for people and for logs: it must not carry the input along."""
    assert len(str(error)) <= MAX_ERROR


def peak_memory(target: Target, data: bytes) -> int:
    """Bytes that Python's allocators held at most while the target ran. Caches should be warm."""
    tracemalloc.start()
    try:
        target.run(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def work(target: Target, data: bytes) -> int:
    """Calls of Python and C functions that the target made."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        target.run(data)
    finally:
        sys.setprofile(before)
    return calls
