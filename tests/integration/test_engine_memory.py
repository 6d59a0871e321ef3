"""Memory and isolation on real children: who is loaded beside whom, what a crash costs, what a corrupt file can do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import structlog
import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine import child, loading, patience, quarantine, room
from agent.engine.child import Child
from agent.engine.memory import MIB, estimate
from agent.engine.pool import EnginePool, HeldModel
from agent.errors import (
    AgentError,
    EngineError,
    ModelBusyError,
    ModelLoadError,
    ModelNotFoundError,
    OverloadedError,
)
from fleet.models.gguf import GgufError, read_facts
from fleet.net.messages import Delta, Finished, InferRequest, Sampling, Started
from tests.corpus.gguf.build import llama
from tests.corpus.gguf.corrupt import corpus
from tests.harness import model_path
from tests.models import gemma3

pytestmark = pytest.mark.model

LIMIT = 120.0
TINY = read_facts(llama().build())
ONE = estimate(TINY, 512, 1).total


class Box:
    """A running pool of several models."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool

    def held(self, name: str) -> HeldModel:
        return next(model for model in self.pool.models() if model.name == name)

    def states(self) -> list[str]:
        return [model.state for model in self.pool.models()]

    async def run(self, name: str, tokens: int = 4, on_token: Any = None, prompt: str = "abc") -> int:
        """Run a job; returns how many tokens came."""
        found = 0

        async def take(event: Started | Delta | Finished) -> None:
            nonlocal found
            if isinstance(event, Delta):
                found += event.tokens
                if on_token is not None:
                    await on_token()

        sampling = Sampling(temperature=0.0, max_tokens=tokens)
        request = InferRequest(job="j", kind="completion", model=name, prompt=prompt, sampling=sampling)
        await self.pool.generate(self.held(name).hash, request, take)
        return found

    async def until(self, name: str, *states: str) -> HeldModel:
        with trio.fail_after(LIMIT):
            while self.held(name).state not in states:
                await trio.sleep(0.005)
        return self.held(name)

    async def crash(self, name: str) -> None:
        """Run a job whose process falls as it would by a fault of its own."""

        async def fall() -> None:
            pid = self.held(name).pid
            if pid is not None:
                os.kill(pid, signal.SIGSEGV)
                await trio.sleep_forever()

        with pytest.raises(EngineError, match="SIGSEGV"), trio.fail_after(LIMIT):
            async with trio.open_nursery(strict_exception_groups=False) as nursery:
                await self.run(name, 200, fall_once(nursery, fall))


def fall_once(nursery: trio.Nursery, fall: Any) -> Any:
    """Call it at the first token, beside the job: the job's own end must be seen."""
    done = False

    async def call() -> None:
        nonlocal done
        if not done:
            done = True
            nursery.start_soon(fall)

    return call


@asynccontextmanager
async def box(tmp_path: Path, *models: ModelConfig, **config: Any) -> AsyncIterator[Box]:
    values = {"context_tokens": 512, "slots": 1, "threads": 1, "preload": False, **config}
    pool = EnginePool(models, EngineConfig(**values), tmp_path / "state", lambda: None)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            yield Box(pool)
            nursery.cancel_scope.cancel()


async def ignore(event: object) -> None:
    """For jobs of which only the end is looked at."""


def tiny(folder: Path, *names: str) -> list[ModelConfig]:
    """Models that differ, and load in no time."""
    made = []
    for name in names:
        path = folder / f"{name}.gguf"
        path.write_bytes(llama().with_({"general.name": name}).build())
        made.append(ModelConfig(path=path))
    return made


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import ctypes, json, re, sys
import llama_cpp as ll

path, cells, sequences, batch = sys.argv[1], *map(int, sys.argv[2:])
lines = []
keep = ll.llama_log_callback(lambda level, text, data: lines.append(text.decode("utf-8", "replace")))
ll.llama_log_set(keep, ctypes.c_void_p(0))
ll.llama_backend_init()
model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
params = ll.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = cells, batch, batch, sequences
params.n_outputs_max, params.kv_unified, params.swa_full = sequences, True, False
assert ll.llama_init_from_model(model, params)
found = {}
for name in ("KV", "compute", "output"):
    sizes = re.findall(name + r" buffer size\\s*=\\s*([\\d.]+) MiB", "".join(lines))
    found[name] = sum(map(float, sizes)) * 1024 * 1024
print(json.dumps(found))
"""


@pytest.mark.parametrize("model", [model_path, gemma3], ids=["smollm2", "gemma3"])
@pytest.mark.parametrize(("cells", "slots", "batch"), [(4096, 1, 512), (16_384, 8, 512), (8192, 4, 128)])
def test_the_estimate_is_what_llama_takes(model: Any, cells: int, slots: int, batch: int) -> None:
    path = model()
    with path.open("rb") as file:
        facts = read_facts(file)
    sequences = slots + (2 if facts.window else slots)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), *map(str, (cells, sequences, batch))],
        capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    taken = json.loads(done.stdout)
    found = estimate(facts, cells, slots, batch)
    assert found.kv == taken["KV"]
    compute = taken["compute"] + taken["output"]
    assert compute <= found.compute <= 1.15 * compute + MIB


def test_a_loaded_model_takes_what_was_estimated_vectors_and_all(tmp_path: Path) -> None:
    with model_path().open("rb") as file:
        parking = estimate(read_facts(file), 2048, 2).parking

    async def main() -> None:
        model = ModelConfig(path=model_path(), name="real")
        async with box(tmp_path, model, context_tokens=2048, slots=2, threads=2) as here:
            await here.run("real", 8, prompt="word " * 600)
            request = InferRequest(v=2, job="e", kind="embedding", model="real", texts=("word " * 300,))
            await here.pool.generate(here.held("real").hash, request, ignore)
            held = here.held("real")
            assert held.pid is not None
            taken = psutil.Process(held.pid).memory_info().rss
            assert held.cells == 2048
            assert taken * 0.95 <= held.memory_bytes
            assert held.memory_bytes - parking <= taken * 1.2, "nothing has ended beside another: none is parked"

    trio.run(main)


def test_models_that_do_not_fit_together_take_turns_and_one_with_work_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_LIMIT", 1.0)

    async def main() -> None:
        models = tiny(tmp_path, "a", "b", "c")
        async with box(tmp_path, *models, memory_budget=2 * ONE + MIB) as here:
            for name in ("a", "b", "a"):
                await here.run(name)
            assert here.states() == ["loaded", "loaded", "idle"]
            pid = here.held("b").pid
            await here.run("c")
            assert here.states() == ["loaded", "idle", "loaded"]
            assert pid is not None
            assert not psutil.pid_exists(pid)
            assert here.held("b").memory_bytes == 0
            assert here.held("c").memory_bytes == ONE

            holds, goes_on = trio.Event(), trio.Event()

            async def hold() -> None:
                holds.set()
                await goes_on.wait()

            async with trio.open_nursery() as nursery:
                # A child that is stopped is busy for as long as the test likes.
                for name in ("a", "c"):
                    pid = here.held(name).pid
                    assert pid is not None
                    os.kill(pid, signal.SIGSTOP)
                    nursery.start_soon(here.run, name)
                while not all(here.held(name).running for name in ("a", "c")):
                    await trio.sleep(0.005)
                with pytest.raises(OverloadedError, match=r"needs \d+ MiB .* a, c cannot be unloaded now") as caught:
                    await here.run("b")
                assert caught.value.details["needed_bytes"] > caught.value.details["available_bytes"]  # type: ignore[operator]
                assert (caught.value.retry_after or 0) >= 1
                assert here.states() == ["loaded", "idle", "loaded"]
                for name in ("a", "c"):
                    pid = here.held(name).pid
                    assert pid is not None
                    os.kill(pid, signal.SIGCONT)
            assert await here.run("b") > 0

    trio.run(main)


def test_what_never_fits_is_refused_with_both_numbers_and_the_others_serve(tmp_path: Path) -> None:
    async def main() -> None:
        small, other = tiny(tmp_path, "small", "own")
        large = ModelConfig(path=model_path(), name="large")
        own = other.model_copy(update={"memory_budget": 20 * MIB})
        async with box(tmp_path, small, large, own, memory_budget=100 * MIB, preload=True) as here:
            for name, available in (("large", 100), ("own", 20)):
                held = await here.until(name, "failed")
                assert f"and {available} MiB are available" in (held.error or "")
                with pytest.raises(ModelLoadError, match=r"needs \d+ MiB .*engine.memory_budget"):
                    await here.run(name)
            assert await here.run("small") > 0

    trio.run(main)


def test_a_model_that_cannot_be_loaded_keeps_no_memory(tmp_path: Path) -> None:
    broken = next(one for one in corpus() if one.name == "model-tensor-missing")
    (tmp_path / "broken.gguf").write_bytes(broken.data)

    async def main() -> None:
        models = [ModelConfig(path=tmp_path / "broken.gguf"), *tiny(tmp_path, "good")]
        async with box(tmp_path, *models, memory_budget=ONE + MIB) as here:
            with pytest.raises(ModelLoadError):
                await here.run("broken")
            assert await here.run("good") > 0
            assert here.states() == ["failed", "loaded"]

    trio.run(main)


def test_a_model_gets_less_context_where_it_would_not_fit(tmp_path: Path) -> None:
    with model_path().open("rb") as file:
        facts = read_facts(file)
    enough_for = estimate(facts, 1024, 1).total

    async def main() -> None:
        model = ModelConfig(path=model_path(), name="real", slots=2)
        async with box(tmp_path, model, context_tokens=4096, memory_budget=enough_for) as here:
            assert await here.run("real") == 4
            held = here.held("real")
            assert (held.context_tokens, held.slots) == (1024, 1)
            assert "context 1024 of 4096 tokens" in held.plan_note
            with pytest.raises(AgentError) as caught:
                await here.run("real", prompt="word " * 2000)
            assert caught.value.details["context_tokens"] == 1024

    trio.run(main)


# --- isolation -------------------------------------------------------------------------------------------------------


def test_two_crashes_by_its_jobs_put_a_model_aside_and_a_retry_or_another_file_lifts_that(tmp_path: Path) -> None:
    async def main() -> None:
        models = tiny(tmp_path, "bad", "good")
        async with box(tmp_path, *models) as here:
            for again in (lambda: here.pool.retry("bad"), lambda: models[0].path.write_bytes(llama().build())):
                await here.run("good")
                for _ in range(2):
                    await here.crash("bad")
                held = await here.until("bad", "failed")
                assert "crashed 2 times (was ended by signal SIGSEGV" in (held.error or "")
                with pytest.raises(
                    ModelLoadError, match=r"models retry bad, replace bad\.gguf, or wait: .* 10 min"
                ) as caught:
                    await here.run("bad")
                assert str(tmp_path) not in caught.value.message
                assert 0 < (caught.value.retry_after or 0) <= quarantine.COOL_DOWN
                assert await here.run("good") > 0
                assert again()
                await here.until("bad", "idle")
                assert await here.run("bad") > 0
            assert not here.pool.retry("good")
            with pytest.raises(ModelNotFoundError, match="it runs: bad, good"):
                here.pool.retry("other")

    trio.run(main)


def test_a_model_is_unloaded_by_hand_unless_it_has_work(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, *tiny(tmp_path, "a")) as here:
            assert not here.pool.unload("a")

            asked = False

            async def refused() -> None:
                nonlocal asked
                if not asked:  # at the first token of many
                    asked = True
                    with pytest.raises(ModelBusyError, match="1 running and 0 waiting"):
                        here.pool.unload("A.gguf")

            assert await here.run("a", 400, refused) > 0
            pid = here.held("a").pid
            assert here.pool.unload(here.held("a").hash)
            held = here.held("a")
            assert (held.state, await here.run("a") > 0) == ("idle", True)
            assert here.held("a").pid != pid
            with pytest.raises(ModelNotFoundError):
                here.pool.unload("b")

    trio.run(main)


def test_after_the_cool_down_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "COOL_DOWN", 1.5)

    async def main() -> None:
        async with box(tmp_path, *tiny(tmp_path, "bad")) as here:
            for _ in range(2):
                await here.crash("bad")
            await here.until("bad", "failed")
            await here.until("bad", "idle")
            assert await here.run("bad") > 0

    trio.run(main)


def test_a_kill_from_outside_is_no_crash_of_the_model(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, *tiny(tmp_path, "m")) as here:
            for _ in range(4):
                await here.run("m")
                pid = here.held("m").pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await here.until("m", "idle")
            assert await here.run("m") > 0

    trio.run(main)


@pytest.mark.parametrize("how", ["sleeps", "loops"])
def test_a_process_that_hangs_is_ended_when_it_owes_an_answer_and_the_next_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(patience, "BUSY_LIMIT", 1.0)
    started: list[int] = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """The first process is one that loops; those after it are as they should be."""
        if how == "loops" and not started:
            at = command.index("agent.engine.worker")
            command = [sys.executable, "-m", "tests.looping_worker", *command[at + 1 :]]
        process = subprocess.Popen(command, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr(child, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))

    async def main() -> None:
        async with box(tmp_path, *tiny(tmp_path, "m")) as here:

            async def cancel_when_it_hangs(scope: trio.CancelScope) -> None:
                pid = (await here.until("m", "loaded")).pid
                process = psutil.Process(pid)
                if how == "sleeps":
                    process.suspend()
                else:
                    before = process.cpu_times().user
                    while process.cpu_times().user < before + 0.3:
                        await trio.sleep(0.01)
                scope.cancel()

            with structlog.testing.capture_logs() as logs, trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_when_it_hangs, nursery.cancel_scope)
                    await here.run("m", 10_000)
                while not [line for line in logs if line["event"] == "engine.child_hung"]:
                    await trio.sleep(0.01)
            assert await here.run("m") > 0
            assert len(started) == 2
            assert not psutil.pid_exists(started[0])

    trio.run(main)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group of the kernel's memory controller; skips the test where this user may not make one."""
    places = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
    for root, limit_file in places.items():
        group = Path(root) / f"shoal-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit_file).exists():
                (group / limit_file).write_text(str(limit))
                yield group
                return
        finally:
            for _ in range(100):
                try:
                    group.rmdir()
                    break
                except OSError:
                    signal.sigtimedwait([], 0.05)
    pytest.skip("no memory control group can be made here")


def test_a_child_that_the_kernel_kills_for_memory_is_loaded_smaller_and_the_agent_lives(tmp_path: Path) -> None:
    async def main(group: Path) -> None:
        model = ModelConfig(path=model_path(), name="real")
        async with box(tmp_path, model, context_tokens=4096, slots=4, threads=2) as here:
            await here.run("real")
            before = here.held("real")
            (group / "cgroup.procs").write_text(str(before.pid))
            # Vectors are made in a context of their own, which is taken when it is first needed: what a loaded model
            # generates with is in its memory already, and whole large pages at a time.
            vectors = InferRequest(v=2, job="e", kind="embedding", model="real", texts=("word " * 300,))
            with pytest.raises(EngineError, match="for want of memory"):
                await here.pool.generate(before.hash, vectors, ignore)
            assert await here.run("real") == 4
            after = here.held("real")
            assert after.pid != before.pid
            assert 0 < after.memory_bytes <= 0.75 * before.memory_bytes
            assert after.cells < before.cells
            assert after.plan_note

    with memory_group(4 * MIB) as group:
        trio.run(main, group)


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changed_after_it_was_hashed_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (model,) = tiny(tmp_path, "m")
    loaded: list[str] = []

    def change() -> None:
        """Other bytes, of the same length, under the same time."""
        stamp = model.path.stat()
        model.path.write_bytes(llama().with_({"general.name": "n"}).build())
        os.utime(model.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    class ChangedMeanwhile(Child):
        """A real child, started just before the file is changed."""

        def __init__(self) -> None:
            super().__init__()
            if not loaded:
                change()
            loaded.append("")

    if when == "while":
        monkeypatch.setattr(loading, "Child", ChangedMeanwhile)

    async def main() -> None:
        async with box(tmp_path, model) as here:
            old = (await here.until("m", "idle")).hash
            if when == "before":
                change()
            with pytest.raises(AgentError):
                await here.run("m")
            with trio.fail_after(LIMIT):
                while here.held("m").hash == old:
                    await trio.sleep(0.005)
            assert await here.run("m") > 0

    trio.run(main)


def test_a_disk_that_takes_no_conversations_is_told_and_logged_once(tmp_path: Path) -> None:
    (model,) = tiny(tmp_path, "m")
    folder = tmp_path / "state" / "sessions"
    folder.parent.mkdir()
    folder.write_text("in the way")

    async def talk(here: Box) -> None:
        request = InferRequest(
            job="j", kind="completion", model="m", prompt="abc", session="talk", sampling=Sampling(max_tokens=4)
        )

        async def take(event: object) -> None: ...

        await here.pool.generate(here.held("m").hash, request, take)

    async def main() -> None:
        async with box(tmp_path, model) as here:
            with structlog.testing.capture_logs() as logs, trio.fail_after(LIMIT):
                while not here.held("m").unsaved:
                    await talk(here)
                await talk(here)
                said = [line for line in logs if line["event"] == "engine.conversations_unsaved"]
                assert [(line["model"], line["reason"]) for line in said] == [("m", here.held("m").unsaved)]
                folder.unlink()
                while here.held("m").unsaved:
                    await talk(here)
                assert any(folder.rglob("*.kv"))

    trio.run(main)


#: A part of those that the reader lets through: a file for each way in which llama.cpp could take it badly.
CHILDREN = (
    "model-heads-8", "model-rope-0", "model-epsilon-nan", "model-architecture-unknown", "model-blocks-more",
    "model-tokens-missing", "model-tokens-all-the-same", "model-bos-far-out", "model-merges-for-nothing",
    "model-unigram", "model-rwkv", "model-tensor-missing", "model-tensor-turned", "model-experts-without-tensors",
    "model-next-layers", "model-weights-nan", "model-shifted", "model-only-a-norm",
)  # fmt: skip


def test_no_corrupt_file_ends_the_agent_or_leaves_a_process(tmp_path: Path) -> None:
    files = {one.name: one for one in corpus() if one.name in CHILDREN or "mutant" in one.name}
    assert set(CHILDREN) < set(files)
    mutants = [name for name in files if name.startswith("mutant") and _is_read(files[name].data)]
    refused = [one for one in corpus() if one.refused][::9]
    names = [*CHILDREN, *mutants[:6]]
    models = []
    for one in [*(files[name] for name in names), *refused]:
        path = tmp_path / f"{one.name}.gguf"
        path.write_bytes(one.data)
        models.append(ModelConfig(path=path))
    good = tiny(tmp_path, "good")

    async def main() -> None:
        async with box(tmp_path, *good, *models) as here:
            for one in refused:
                assert (await here.until(one.name, "failed")).error
            for name in names:
                await here.until(name, "idle")
                with contextlib.suppress(AgentError):
                    await here.run(name)
                assert here.held(name).state in ("loaded", "failed", "loading", "idle")
                # Nothing is kept from the next by what this one took.
                here.pool.unload(name)
            assert await here.run("good") > 0

    trio.run(main)
    assert not [
        process for process in psutil.Process().children(recursive=True) if "worker" in " ".join(_line(process))
    ]


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_read(data: bytes) -> bool:
    try:
        read_facts(data)
    except GgufError:
        return False
    return True
