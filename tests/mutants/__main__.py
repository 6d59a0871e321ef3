"""Break one rule at a time in a copy of the source and see whether the tests notice.

    python -m tests.mutants [PART OF A NAME ...]

Prints which test killed which mutant. Exits with 1 if a mutant survives, if its text is no longer in the source, or if
the copy that nobody changed does not pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.rules import MUTANTS, Mutant

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = ("fleet", "tests/property", "tests/unit", "tests/__init__.py", "pyproject.toml")
#: Tests that fail do so within seconds; one that hangs has not noticed anything.
LIMIT_S: Final = 150
#: Two at a time, however many cores there are, so that it takes the same everywhere.
AT_A_TIME: Final = 2
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)

#: Stands at the top of every copy: a run that imports the installed source would prove nothing.
_CONFTEST: Final = """\
from pathlib import Path
import fleet.document.view
here = Path(__file__).resolve().parent
assert Path(fleet.document.view.__file__).resolve().is_relative_to(here), "the copy is not what is being tested"
"""


@dataclass(frozen=True)
class Run:
    """How one run of pytest over one copy ended."""

    code: int | None
    failed: tuple[str, ...]
    output: str

    @property
    def noticed(self) -> bool:
        """Whether a test failed; a copy that cannot even be imported does not count."""
        return self.code == 1 and bool(self.failed)


def copy(into: Path) -> Path:
    """A copy of what the tests need, and nothing that Python cached."""
    for name in COPIED:
        source, target = ROOT / name, into / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (into / "conftest.py").write_text(_CONFTEST)
    return into


def apply(mutant: Mutant, where: Path) -> None:
    """Make the edits; raises LookupError where a text does not stand there exactly once."""
    for edit in mutant.edits:
        path = where / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise LookupError(f"{mutant.name}: {edit.file} has {text.count(edit.old)} times, not once:\n{edit.old}")
        path.write_text(text.replace(edit.old, edit.new))


def pytest(where: Path, files: tuple[str, ...]) -> Run:
    """Run test files against a copy until one test fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("SHRINK", "PYTEST_ADDOPTS")}
    # No plugin is needed here, and loading them takes half of the time of a run.
    environment |= {
        "PYTHONPATH": str(where),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(None, (), f"still running after {LIMIT_S} s")
    return Run(done.returncode, tuple(_FAILED.findall(done.stdout)), done.stdout + done.stderr)


def try_out(mutant: Mutant | None, files: tuple[str, ...]) -> Run:
    """One copy, with the rule broken in it, or with none for a mutant of None."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        where = copy(Path(folder).resolve())
        if mutant is not None:
            try:
                apply(mutant, where)
            except LookupError as error:
                return Run(None, (), str(error))
        return pytest(where, files)


def main(names: list[str]) -> int:
    """See the module; `names` are parts of names, none means all."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        print("no mutant has such a name")
        return 1
    every_file = tuple(sorted({file for mutant in chosen for file in mutant.killers}))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        unchanged = pool.submit(try_out, None, every_file)
        runs = [(mutant, file, pool.submit(try_out, mutant, (file,))) for mutant in chosen for file in mutant.killers]
        intact = unchanged.result()
        if intact.code != 0:
            pool.shutdown(cancel_futures=True)
            print(f"the copy that nobody changed does not pass:\n{intact.output[-4000:]}")
            return 1
        print(f"nothing changed: {len(every_file)} files pass")
        survivors = 0
        for mutant, file, running in runs:
            run = running.result()
            if run.noticed:
                print(f"killed    {mutant.name:<62} {run.failed[0]}", flush=True)
            else:
                survivors += 1
                print(f"SURVIVED  {mutant.name:<62} {file} (exit {run.code})\n{run.output[-1500:]}", flush=True)
    print(f"{len(chosen)} mutants, {len(runs)} runs, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
