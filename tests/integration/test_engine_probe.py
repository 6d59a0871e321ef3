"""A probe in the real model's process: it finds rates, disturbs nothing that is kept, and makes way for a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine import probing, speed
from agent.engine.pool import EnginePool
from agent.engine.probing import Figures, FiguresFile
from fleet.net.messages import Delta
from tests.engine_box import EngineBox, completion, engine_box
from tests.harness import model_path

pytestmark = pytest.mark.model

LIMIT = 60.0


async def text_of(box: EngineBox, prompt: str) -> str:
    found = ""

    async def take(event: object) -> None:
        nonlocal found
        found += event.text if isinstance(event, Delta) else ""

    await box.pool.generate(box.held.hash, completion(prompt, max_tokens=12), take)
    return found


def test_b13_b15_a_model_is_probed_beside_what_it_keeps_and_the_figures_outlive_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model-figures.json"
    monkeypatch.setattr(speed, "SETTLE", 0.5)
    monkeypatch.setattr(speed, "AGAIN", 0.1)

    async def first() -> None:
        async with engine_box(model_path(), tmp_path, slots=2, context_tokens=512) as box:
            before = await text_of(box, "Once upon a time")
            changed, loaded_with = trio.Event(), box.held.decode_rate
            box.on_change = lambda: changed.set() if box.held.decode_rate != loaded_with else None
            with trio.fail_after(LIMIT):
                await changed.wait()
                while not file.exists():
                    await trio.sleep(0.01)
            assert await text_of(box, "Once upon a time") == before
            statistics = await box.statistics()
            assert statistics is not None
            assert statistics.reused > 0, "what was kept before the probe is kept after it"
            assert statistics.cells_used == statistics.cells_kept

    trio.run(first)
    ((hash, figures),) = json.loads(file.read_text()).items()
    assert figures["engine"] == probing.engine_version() != ""
    assert figures["decode"] > 0
    assert figures["prefill"] > figures["decode"]

    async def again() -> None:
        config = EngineConfig(threads=2, preload=False)
        pool = EnginePool((ModelConfig(path=model_path()),), config, tmp_path, lambda: None)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            (held,) = pool.models()
            assert (held.hash, held.state, held.pid) == (hash, "idle", None)
            assert (held.decode_rate, held.prefill_rate) == (figures["decode"], figures["prefill"])
            assert held.engine_version == figures["engine"]
            nursery.cancel_scope.cancel()

    trio.run(again)


def test_b12_a_model_that_this_box_is_too_slow_for_is_not_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    hashes: set[str] = set()

    async def states(least_rate: float) -> list[str]:
        pool = EnginePool(
            (ModelConfig(path=model_path()),), EngineConfig(threads=2), tmp_path, lambda: None, least_rate=least_rate
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            (held,) = pool.models()
            found = [held.state]
            hashes.add(held.hash)
            if held.state == "idle":
                with trio.fail_after(LIMIT):
                    await pool.generate(held.hash, completion("Once", max_tokens=2), _forget)
                found.append(pool.models()[0].state)
            nursery.cancel_scope.cancel()
            return found

    async def _forget(event: object) -> None:
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        assert await states(3.0) == ["loading"], "its rate is not known yet"
        figures = FiguresFile(tmp_path / "model-figures.json")
        figures.put(hashes.pop(), Figures(decode=2.9, prefill=9.0, engine="any", setup="any", at=1.0))
        assert await states(3.0) == ["idle", "loaded"]
        assert await states(2.9) == ["loading"]

    trio.run(main)


def test_b14_a_job_that_comes_in_mid_probe_is_served_and_the_probe_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[probing.Round | None] = []
    measure = probing.measure
    begun = trio.Event()

    async def watched(ask, busy):  # type: ignore[no-untyped-def]
        async def told() -> probing.Round | None:
            begun.set()
            rounds.append(await ask())
            return rounds[-1]

        return await measure(told, busy)

    monkeypatch.setattr(speed, "SETTLE", 0.0)
    monkeypatch.setattr(speed, "measure", watched)

    async def main() -> None:
        async with engine_box(model_path(), tmp_path, slots=2, context_tokens=512) as box:
            with trio.fail_after(LIMIT):
                await begun.wait()
                assert await text_of(box, "Once upon a time")
            assert not (tmp_path / "model-figures.json").exists(), "a job ended the probe"

    trio.run(main)
