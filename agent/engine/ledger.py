"""How many KV cells are in use, when sequences share the cells of a common beginning. Pure bookkeeping.

llama.cpp does not tell. A sequence is a list of runs of cells; a run that two sequences share is counted once, and is
free when the last of them lets go of it.
"""

from __future__ import annotations

from typing import Final


class _Run:
    """Cells that belong to the same sequences."""

    __slots__ = ("length", "shared")

    def __init__(self, length: int, shared: int = 1) -> None:
        self.length = length
        self.shared = shared


class Ledger:
    """The cells of one context, by llama.cpp's sequence number."""

    def __init__(self, cells: int) -> None:
        self.cells: Final = cells
        self.used = 0
        self._runs: dict[int, list[_Run]] = {}

    @property
    def free(self) -> int:
        """Cells that nobody uses."""
        return self.cells - self.used

    def length(self, seq: int) -> int:
        """Tokens of a sequence that have cells."""
        return sum(run.length for run in self._runs.get(seq, ()))

    def own(self, seq: int) -> int:
        """Cells that would be free without this sequence."""
        return sum(run.length for run in self._runs.get(seq, ()) if run.shared == 1)

    def append(self, seq: int, count: int) -> None:
        """Give a sequence `count` cells more."""
        runs = self._runs.setdefault(seq, [])
        if runs and runs[-1].shared == 1:
            runs[-1].length += count
        elif count:
            runs.append(_Run(count))
        self.used += count

    def trim(self, seq: int, length: int) -> None:
        """Keep the first `length` cells of a sequence."""
        self._split(seq, length)
        runs, kept = self._runs.get(seq, []), 0
        while kept < len(runs) and length > 0:
            length -= runs[kept].length
            kept += 1
        for run in runs[kept:]:
            run.shared -= 1
            if not run.shared:
                self.used -= run.length
        del runs[kept:]

    def share(self, source: int, seq: int, length: int) -> None:
        """Let an empty sequence begin with the first `length` cells of another."""
        self._split(source, length)
        shared: list[_Run] = []
        for run in self._runs.get(source, ()):
            if length <= 0:
                break
            run.shared += 1
            shared.append(run)
            length -= run.length
        self._runs[seq] = shared

    def drop(self, seq: int) -> None:
        """Free what only this sequence uses."""
        self.trim(seq, 0)
        self._runs.pop(seq, None)

    def _split(self, seq: int, at: int) -> None:
        """Make a run end at `at`, for every sequence that has it."""
        runs = self._runs.get(seq, [])
        for run in runs:
            if at < run.length:
                if at > 0:
                    rest = _Run(run.length - at, run.shared)
                    run.length = at
                    for other in self._runs.values():
                        for index, one in enumerate(other):
                            if one is run:
                                other.insert(index + 1, rest)
                                break
                return
            at -= run.length
