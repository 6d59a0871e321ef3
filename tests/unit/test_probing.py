"""When a model is measured, what is kept of that, and that no job waits for it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.engine import speed
from agent.engine.probing import (
    AGAIN,
    LEAST,
    MAX_AGE,
    SETTLE,
    Figures,
    FiguresFile,
    Quiet,
    Round,
    due_in,
    measure,
    sizes,
)
from agent.engine.speed import Speed
from agent.engine.workload import Workload

DAY = 86_400.0
HASH = "sha256:" + "0" * 64
KNOWN = Figures(20.0, 300.0, "llama-cpp-python 1", "threads 2", 1000 * DAY)


def run(story: Callable[[], Awaitable[None]]) -> None:
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


def test_b13_a_probe_lasts_and_takes_the_best_of_its_rounds() -> None:
    async def main() -> None:
        rounds = [Round(128, 0.5, 16, 0.4), Round(128, 0.25, 16, 0.8), Round(128, 0.4, 16, 0.5)]
        asked = 0

        async def ask() -> Round:
            nonlocal asked
            done = rounds[asked % 3]
            asked += 1
            await trio.sleep(done.prompt_s + done.tokens_s)
            return done

        began = trio.current_time()
        # The time of the prompt is no part of the rate of an answer.
        assert await measure(ask, lambda: False) == (16 / 0.4, 128 / 0.25)
        assert LEAST <= trio.current_time() - began < 3.0

    run(main)


@pytest.mark.parametrize("rate", [None, 0.05, 1.0, 50.0, 5000.0])
def test_b13_a_round_is_short_on_a_slow_box_and_never_of_nothing(rate: float | None) -> None:
    prompt, tokens = sizes(rate, rate)
    assert 16 <= prompt <= 128
    assert 4 <= tokens <= 16
    if rate is None or rate > 1000:
        assert (prompt, tokens) == (128, 16)
    elif rate == 50.0:
        assert (prompt, tokens) == (37, 16)


@pytest.mark.parametrize("bad", [None, Round(128, 0.0, 16, 0.1), Round(128, 0.1, 16, 0.0)])
def test_b13_what_was_not_measured_is_no_rate_of_0(bad: Round | None) -> None:
    async def main() -> None:
        async def ask() -> Round | None:
            return bad

        assert await measure(ask, lambda: False) is None

    run(main)


@pytest.mark.parametrize(
    ("known", "engine", "setup", "now", "due"),
    [
        (None, "llama-cpp-python 1", "threads 2", KNOWN.at, 0.0),
        (KNOWN, "llama-cpp-python 1", "threads 2", KNOWN.at, MAX_AGE),
        (KNOWN, "llama-cpp-python 1", "threads 2", KNOWN.at + 6 * DAY, DAY),
        (KNOWN, "llama-cpp-python 1", "threads 2", KNOWN.at + 7 * DAY, 0.0),
        (KNOWN, "llama-cpp-python 1", "threads 2", KNOWN.at + 700 * DAY, 0.0),
        (KNOWN, "llama-cpp-python 2", "threads 2", KNOWN.at, 0.0),
        (KNOWN, "llama-cpp-python 1", "threads 4", KNOWN.at, 0.0),
        (KNOWN, "llama-cpp-python 1", "threads 2", KNOWN.at - 1, 0.0),
    ],
)
def test_b14_another_model_engine_or_setting_and_seven_days_are_measured_again(
    known: Figures | None, engine: str, setup: str, now: float, due: float
) -> None:
    assert due_in(known, engine, setup, now) == due


class Box:
    """A model that is loaded on a box where other things run, too."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.working = False
        self.asked = 0
        self.interrupts = False
        self.jobs = Workload("m", slots=1, max_queue=1, on_change=lambda: None)
        self.quiet = Quiet()
        self.quiet.busy = lambda: self.working
        self.file = FiguresFile(file)
        self.speed = Speed(self.jobs, self.file, self.quiet, engine=KNOWN.engine, setup=KNOWN.setup)
        # The calendar goes with the mock clock.
        monkeypatch.setattr(speed.time, "time", lambda: KNOWN.at + trio.current_time())
        monkeypatch.setattr(speed.trio.to_thread, "run_sync", self._here)

    async def _here(self, function: Callable[..., None], *args: object) -> None:
        function(*args)

    async def ask(self, prompt: int, tokens: int) -> Round | None:
        self.asked += 1
        await trio.sleep(1.0)
        return None if self.interrupts else Round(prompt, 0.5, tokens, 0.5)

    def work(self, working: bool) -> None:
        self.working = working
        self.quiet.note_change()

    async def keep(self) -> None:
        await self.speed.keep(HASH, self.ask, lambda: None)


def test_b14_a_model_is_measured_only_when_nothing_runs_and_then_not_for_seven_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        box = Box(tmp_path / "figures.json", monkeypatch)
        async with trio.open_nursery() as nursery:
            box.work(True)
            nursery.start_soon(box.keep)
            await trio.sleep(1000)
            assert box.asked == 0
            box.work(False)
            await trio.sleep(SETTLE - 1)
            box.work(True)  # a job comes and goes
            box.work(False)
            await trio.sleep(SETTLE - 1)
            assert box.asked == 0
            await trio.sleep(10)
            assert box.asked == 2
            assert box.jobs.decode.value == 16 / 0.5
            assert box.jobs.prefill.value == 128 / 0.5
            await trio.sleep(6.9 * DAY)
            assert box.asked == 2
            await trio.sleep(0.2 * DAY)
            assert box.asked > 2
            nursery.cancel_scope.cancel()

    run(main)


def test_b14_a_job_that_comes_ends_a_probe_and_another_is_tried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        box = Box(tmp_path / "figures.json", monkeypatch)
        async with trio.open_nursery() as nursery:
            box.interrupts = True
            nursery.start_soon(box.keep)
            await trio.sleep(SETTLE + 2)
            assert (box.asked, box.jobs.decode.value) == (1, None)
            box.interrupts = False
            await trio.sleep(AGAIN + SETTLE + 3)
            assert box.jobs.decode.value == 32.0
            nursery.cancel_scope.cancel()

    run(main)


def test_b15_after_a_restart_the_figures_are_used_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state" / "figures.json"
    FiguresFile(file).put(HASH, KNOWN)
    assert FiguresFile(file).get(HASH) == KNOWN

    async def main() -> None:
        box = Box(file, monkeypatch)
        box.speed.remember(HASH)
        assert (box.jobs.decode.value, box.jobs.prefill.value) == (20.0, 300.0)
        box.jobs.decode.start_with(1.0)  # warming up says less than what was measured
        assert box.jobs.decode.value == 20.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.keep)
            await trio.sleep(6 * DAY)
            assert box.asked == 0
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    "entry",
    [
        "{", "[]", '{"H": 1}', '{"H": {}}',
        '{"H": {"decode": 0, "prefill": 1, "engine": "e", "setup": "s", "at": 1}}',
        '{"H": {"decode": 1, "prefill": 1e9, "engine": "e", "setup": "s", "at": 1}}',
        '{"H": {"decode": 1, "prefill": NaN, "engine": "e", "setup": "s", "at": 1}}',
        '{"H": {"decode": true, "prefill": 1, "engine": "e", "setup": "s", "at": 1}}',
        '{"H": {"decode": 1, "prefill": 1, "engine": 5, "setup": "s", "at": 1}}',
        '{"H": {"decode": 1, "prefill": 1, "engine": "e", "setup": "s"}}',
    ],
)  # fmt: skip
def test_b15_a_file_that_makes_no_sense_is_none(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(entry.replace("H", HASH))
    assert FiguresFile(file).get(HASH) is None


def test_b15_a_file_holds_no_more_than_the_latest(tmp_path: Path) -> None:
    file = FiguresFile(tmp_path / "figures.json")
    for number in range(260):
        file.put(f"sha256:{number:064x}", KNOWN)
    again = FiguresFile(tmp_path / "figures.json")
    assert again.get(f"sha256:{3:064x}") is None
    assert again.get(f"sha256:{4:064x}") == KNOWN


def test_quiet_is_waited_for_through_every_change() -> None:
    async def main() -> None:
        quiet, working = Quiet(), True
        quiet.busy = lambda: working
        ended = math.inf

        async def wait() -> None:
            nonlocal ended
            await quiet.wait(5.0)
            ended = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(100)
            working = False
            quiet.note_change()
            for _ in range(4):
                await trio.sleep(4)
                quiet.note_change()
        assert ended == 121.0

    run(main)
