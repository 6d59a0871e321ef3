"""What every bench prints and writes: a table, and build/bench/NAME.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "bench"


@dataclass(frozen=True)
class Figure:
    """One figure. `ours` and `theirs` are medians in the unit that `figure` names; `limit` is what the ratio (or,
    where there is no `theirs`, `ours`) is held to; `runs` are the single values behind `ours`."""

    figure: str
    ours: float
    theirs: float | None
    ratio: float | None
    limit: str
    ok: bool
    runs: list[float]


def at_most(figure: str, limit: float, ours: float, runs: Sequence[float], theirs: float | None = None) -> Figure:
    """A figure that must not be above its limit."""
    return _figure(figure, f"<= {limit:g}", ours, runs, theirs, lambda value: value <= limit)


def at_least(figure: str, limit: float, ours: float, runs: Sequence[float], theirs: float | None = None) -> Figure:
    """A figure that must not be below its limit."""
    return _figure(figure, f">= {limit:g}", ours, runs, theirs, lambda value: value >= limit)


def _figure(figure: str, limit: str, ours: float, runs: Sequence[float], theirs: float | None, holds) -> Figure:  # type: ignore[no-untyped-def]
    ratio = ours / theirs if theirs else None
    ok = holds(ours if ratio is None else ratio)
    return Figure(
        figure,
        _short(ours),
        _short(theirs),
        _short(ratio),
        limit,
        ok,
        [value for run in runs if (value := _short(run))],
    )


def _short(value):  # type: ignore[no-untyped-def]
    return None if value is None else float(f"{value:.4g}")


def publish(name: str, figures: Sequence[Figure]) -> int:
    """Print the table, write the file; 1 if any figure is not ok, else 0."""
    rows = [("figure", "ours", "theirs", "ratio", "limit", "ok")]
    rows += [
        (f.figure, f"{f.ours:g}", _cell(f.theirs), _cell(f.ratio), f.limit, "yes" if f.ok else "NO") for f in figures
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / f"{name}.json"
    target.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    print(f"written: {target.relative_to(BUILD.parents[1])}")
    return 0 if all(figure.ok for figure in figures) else 1


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
