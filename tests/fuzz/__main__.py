"""Fuzz every target for a while: python -m tests.fuzz [TARGET...]; `make fuzz` after installing shoal[fuzz].

FUZZ_SECONDS  of each target; without it, so many that all of them take about 3 minutes
FUZZ_RUNS     executions of each target, instead of seconds
FUZZ_JOBS     targets at once (the cores)

Interesting inputs gather in build/fuzz/TARGET/corpus and are where the next run begins. An input that fails, takes
more than 10 seconds or 512 MiB (libFuzzer's -timeout and -rss_limit_mb) is kept in build/fuzz/TARGET/, and the exit
code is 1.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.base import CORPUS, Target
from tests.fuzz.targets import TARGETS

OUT = Path("build/fuzz")
TIMEOUT_SECONDS = 10
RSS_LIMIT_MB = 512
TOTAL_SECONDS = 180


@dataclass(frozen=True)
class Result:
    """How one target's run ended. `log` is libFuzzer's output; `artifacts` are the inputs that failed."""

    target: Target
    executions: int
    ok: bool
    log: Path
    artifacts: tuple[Path, ...]


def fuzz(target: Target, budget: str) -> Result:
    """Run one target in a process of its own, seeded with its seeds, what once failed, and what was found before."""
    folder = OUT / target.name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    folders = [corpus, *(path for path in (CORPUS / target.name,) if path.is_dir())]
    before = set(_artifacts(folder))
    log = folder / "log"
    command = [
        *(sys.executable, "-m", "tests.fuzz.harness", target.name, budget),
        *(f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-artifact_prefix={folder}/"),
        *("-print_final_stats=1", "-verbosity=1", *map(str, folders)),
    ]
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    text = log.read_text(errors="replace")
    done = re.findall(r"stat::number_of_executed_units: (\d+)|^Done (\d+) runs", text, re.MULTILINE)
    executions = max((int(a or b) for a, b in done), default=0)
    new = tuple(path for path in _artifacts(folder) if path not in before)
    return Result(target, executions, code == 0 and executions > 0, log, new)


def _artifacts(folder: Path) -> Iterator[Path]:
    for kind in ("crash", "timeout", "oom", "leak", "slow-unit"):
        yield from folder.glob(f"{kind}-*")


def main() -> int:
    """Fuzz the targets that are named, or all; 0 if nothing failed, 2 for a wrong name or without atheris."""
    unknown = [name for name in sys.argv[1:] if name not in TARGETS]
    if unknown:
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -e '.[fuzz]' (CPython on Linux, x86-64)", file=sys.stderr)
        return 2
    targets = [TARGETS[name] for name in sys.argv[1:] or TARGETS]
    jobs = int(os.environ.get("FUZZ_JOBS", 0)) or os.cpu_count() or 1
    runs = os.environ.get("FUZZ_RUNS")
    seconds = int(os.environ.get("FUZZ_SECONDS", 0)) or max(1, TOTAL_SECONDS * min(jobs, len(targets)) // len(targets))
    budget = f"-runs={int(runs)}" if runs else f"-max_total_time={seconds}"
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda target: fuzz(target, budget), targets):
            print(
                f"{result.target.name:14} {result.executions:>10,} executions  {'ok' if result.ok else 'FAILED'}",
                flush=True,
            )
            if not result.ok:
                failed += 1
                _explain(result)
    return 1 if failed else 0


def _explain(result: Result) -> None:
    lines = result.log.read_text(errors="replace").splitlines()
    start = next(
        (n for n, line in enumerate(lines) if "=== Uncaught Python exception" in line), max(0, len(lines) - 20)
    )
    print("\n".join(f"    {line[:200]}" for line in lines[start : start + 30]))
    for path in result.artifacts:
        print(f"    the input: {path}")
    print(f"    all of it: {result.log}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
