"""How each promise of docs/behaviours.md stands: runs the tests that carry its number, and prints a table.

Run as a module, with any options of pytest. The exit code is 1 where a promise has no test, or one that did not pass.
It is also the plugin that leaves all other tests out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

ROOT: Final = Path(__file__).parents[1]
_NAME: Final = re.compile(r"test((?:_b\d+)+)(?:_|$)")
_PROMISE: Final = re.compile(r"^(\d+)\. (.+)$", re.MULTILINE)


@dataclass
class Tally:
    """What became of the tests of one promise."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.failed:
            return "FAILED"
        if self.passed:
            return "holds"
        return "not run here" if self.skipped else "NO TEST"


def numbers_of(name: str) -> list[int]:
    """The promises that a test is of, by its name."""
    found = _NAME.match(name)
    return [int(number) for number in found[1].split("_b")[1:]] if found else []


def promises(text: str) -> dict[int, str]:
    """The promises of the document, by number."""
    return {int(number): words for number, words in _PROMISE.findall(text)}


def tallies(report: ElementTree.Element) -> Mapping[int, Tally]:
    """What a report in JUnit's form says of each promise."""
    found: defaultdict[int, Tally] = defaultdict(Tally)
    for case in report.iter("testcase"):
        for number in numbers_of(case.get("name", "")):
            if case.find("failure") is not None or case.find("error") is not None:
                found[number].failed += 1
            elif case.find("skipped") is not None:
                found[number].skipped += 1
            else:
                found[number].passed += 1
    return found


def table(of: Mapping[int, str], found: Mapping[int, Tally]) -> str:
    """A line for each promise."""
    lines = ["  no  verdict       tests  promise"]
    for number, words in of.items():
        tally = found.get(number, Tally())
        count = tally.passed + tally.failed + tally.skipped
        short = words if len(words) <= 80 else words[:77] + "..."
        lines.append(f"{number:4d}  {tally.verdict:12s}  {count:5d}  {short}")
    return "\n".join(lines)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of no promise."""
    kept = [item for item in items if numbers_of(item.name)]
    config.hook.pytest_deselected(items=[item for item in items if not numbers_of(item.name)])
    items[:] = kept


def main(options: list[str]) -> int:
    """Run the tests and print the table."""
    of = promises((ROOT / "docs" / "behaviours.md").read_text())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.behaviours", "-m", "not docker"]
        command += ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal", f"--junitxml={path}", *options]
        ended = subprocess.run(command, cwd=ROOT, check=False)
        if not path.exists():
            return ended.returncode or 1
        found = tallies(ElementTree.parse(path).getroot())
    print(table(of, found))
    missing = [number for number in of if found.get(number, Tally()).verdict == "NO TEST"]
    if missing:
        print(f"without a test: {', '.join(map(str, missing))}")
    return 1 if missing or ended.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
