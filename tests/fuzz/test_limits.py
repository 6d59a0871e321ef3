"""What the targets promise whatever the input: bounded memory, work in step with size, and no old failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.base import CORPUS, Target, peak_memory, work
from tests.fuzz.targets import TARGETS

_STRETCHES = [(target, number) for target in TARGETS.values() for number in range(len(target.stretch))]
_CORPUS = [(target, path) for target in TARGETS.values() for path in target.regressions()]

stretched = pytest.mark.parametrize(
    ("target", "number"), _STRETCHES, ids=[f"{target.name}-{number}" for target, number in _STRETCHES]
)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_seed_is_accepted(target: Target) -> None:
    seeds = target.seeds()
    assert seeds
    for seed in seeds:
        assert target.run(seed), seed


@stretched
def test_memory_is_in_step_with_size(target: Target, number: int) -> None:
    data = target.stretch[number](target.large)
    target.run(data)
    assert peak_memory(target, data) <= target.memory * len(data) + target.memory_base


@stretched
def test_work_is_in_step_with_size(target: Target, number: int) -> None:
    """Eight times the input takes at most nine times the calls, and a little."""
    small, large = (target.stretch[number](size) for size in (target.large // 8, target.large))
    target.run(large)
    assert work(target, large) <= 9 * work(target, small) + 2000


@pytest.mark.parametrize(("target", "path"), _CORPUS, ids=[f"{path.parent.name}-{path.name}" for _, path in _CORPUS])
def test_what_once_failed(target: Target, path: Path) -> None:
    data = path.read_bytes()
    target.run(data)
    assert peak_memory(target, data) <= target.memory * len(data) + target.memory_base


def test_the_corpus_has_no_stranger() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
