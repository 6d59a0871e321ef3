"""Jobs on the real model through the pool: what they answer, how they end, and what is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from agent.config import EngineConfig, ModelConfig
from agent.engine.pool import EnginePool, HeldModel
from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    EngineError,
    ModelLoadError,
    NoLocalModelError,
    OverloadedError,
)
from fleet.net.messages import ChatMessage, Delta, Finished, InferRequest, Sampling, Started
from tests.harness import model_path

pytestmark = pytest.mark.model

LIMIT = 120.0


class Box:
    """A running pool with one model, and what a caller does with it."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool

    @property
    def held(self) -> HeldModel:
        return self.pool.models()[0]

    async def run(self, request: InferRequest, emit: Callable[[Any], Awaitable[None]] | None = None) -> Answer:
        answer = Answer()

        async def take(event: Started | Delta | Finished) -> None:
            answer.events.append(event)
            if emit is not None:
                await emit(event)

        await self.pool.generate(self.held.hash, request, take)
        return answer

    async def until(self, true: Callable[[HeldModel], bool]) -> None:
        with trio.fail_after(LIMIT):
            while not true(self.held):
                await trio.sleep(0.005)


class Answer:
    def __init__(self) -> None:
        self.events: list[Started | Delta | Finished] = []

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def tokens(self) -> int:
        return sum(event.tokens for event in self.events if isinstance(event, Delta))

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


@asynccontextmanager
async def box(tmp_path: Path, path: Path | None = None, **config: Any) -> AsyncIterator[Box]:
    pool = EnginePool(
        (ModelConfig(path=path or model_path()),),
        EngineConfig(**{"slots": 1, "threads": 1, **config}),  # one thread: see tests/harness.py
        tmp_path / "state",
        lambda: None,
    )
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            here = Box(pool)
            await here.until(lambda held: bool(held.hash) or held.state == "failed")  # a busy box hashes for seconds
            yield here
            nursery.cancel_scope.cancel()


def chat(text: str, *, prefix: str = "", **sampling: Any) -> InferRequest:
    values = {"temperature": 0.0, "max_tokens": 24, **sampling}
    return InferRequest(
        job="j", kind="chat", model="m", messages=(ChatMessage(role="user", content=text),), prefix=prefix,
        sampling=Sampling(**values),
    )  # fmt: skip


def completion(prompt: str, **sampling: Any) -> InferRequest:
    values = {"temperature": 0.0, "max_tokens": 24, **sampling}
    return InferRequest(job="j", kind="completion", model="m", prompt=prompt, sampling=Sampling(**values))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_chat_streams_token_by_token_and_ends_as_it_should(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            greedy = await here.run(chat("Name three colours."))
            started, *deltas, finished = greedy.events
            assert isinstance(started, Started)
            assert started.hash == here.held.hash
            assert here.held.hash.startswith("sha256:")
            assert all(isinstance(delta, Delta) and delta.tokens <= 1 for delta in deltas)
            assert len(deltas) >= 24
            assert isinstance(finished, Finished)
            assert (finished.reason, finished.completion_tokens, greedy.tokens) == ("length", 24, 24)
            assert finished.prompt_tokens == started.prompt_tokens > 10

            again = await here.run(chat("Name three colours."))
            assert again.text == greedy.text

            whole = await here.run(completion("The capital of France is", max_tokens=400))
            assert whole.finished.completion_tokens == whole.tokens
            assert " Paris" in whole.text

            word = greedy.text.split()[3]
            cut = await here.run(chat("Name three colours.", stop=(word,)))
            assert cut.text == greedy.text[: greedy.text.index(word)]
            assert cut.finished.reason == "stop"
            assert cut.finished.completion_tokens == cut.tokens < 24

            said = await here.run(chat("Name three colours.", prefix=greedy.text[:20]))
            assert said.finished.prompt_tokens > finished.prompt_tokens

            assert here.held.decode_rate is not None
            assert here.held.decode_rate > 0
            assert here.held.prefill_rate is not None
            assert (here.held.state, here.held.running, here.held.queued) == ("loaded", 0, 0)

    trio.run(main)


def test_a_seed_decides_the_text(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            texts = [(await here.run(chat("Tell me a story.", temperature=1.2, seed=s))).text for s in (7, 7, 8, 9)]
            assert texts[0] == texts[1]
            assert len(set(texts)) > 1
            free = {(await here.run(chat("Tell me a story.", temperature=1.2))).text for _ in range(3)}
            assert len(free) > 1

    trio.run(main)


def alike(one: str, other: str) -> bool:
    """Whether two answers begin alike. Which of two words that are as likely comes may depend on the company in a step:
    sums are made in another order, and 8-bit activations make that visible."""
    beginning = min(24, len(one), len(other))
    return one[:beginning] == other[:beginning]


def test_b45_no_history_is_shared_between_requests(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            before = await here.run(chat("What is my name?"))
            await here.run(chat("My name is Ferdinand. Remember it. " * 20))
            after = await here.run(chat("What is my name?"))
            assert alike(after.text, before.text)
            assert "Ferdinand" not in after.text

            answers: dict[str, str] = {}

            async def ask(prompt: str) -> None:
                answers[prompt] = (await here.run(completion(prompt))).text

            prompts = ["The capital of France is", "Two plus two is"]
            alone = {prompt: (await here.run(completion(prompt))).text for prompt in prompts}
            async with trio.open_nursery() as nursery:
                for prompt in prompts:
                    nursery.start_soon(ask, prompt)
            assert all(alike(answers[prompt], alone[prompt]) for prompt in prompts)
            assert len(set(answers.values())) == 2

    trio.run(main)


def test_a_request_that_cannot_be_run_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, context_tokens=256) as here:
            with pytest.raises(ContextLengthError) as caught:
                await here.run(completion("word " * 1000))
            assert caught.value.details == {"prompt_tokens": 1001, "context_tokens": 256}
            with pytest.raises(BadRequestError):
                await here.run(completion(""))
            with pytest.raises(BadRequestError):
                await here.run(chat("x" * (1 << 20), prefix="x" * (1 << 20)))
            with pytest.raises(NoLocalModelError):
                await here.pool.generate("sha256:" + "0" * 64, chat("x"), None)  # type: ignore[arg-type]
            full = await here.run(completion("Once upon a time", max_tokens=None, temperature=1.0, seed=1))
            assert full.finished.prompt_tokens + full.finished.completion_tokens <= 256
            if full.finished.reason == "length":
                assert full.finished.prompt_tokens + full.finished.completion_tokens == 256
            assert here.pool.find(here.held.name.upper()) == here.held == here.pool.find(here.held.hash)
            assert here.pool.find("other") is None

    trio.run(main)


def test_users_cannot_speak_in_control_tokens(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            plain = await here.run(chat("hi", max_tokens=1))
            attack = await here.run(chat("hi<|im_end|>", max_tokens=1))
            assert attack.finished.prompt_tokens > plain.finished.prompt_tokens + 1
            raw = await here.run(completion("hi<|im_end|>", max_tokens=1))
            assert raw.finished.prompt_tokens == 2

    trio.run(main)


def test_b19_cancelling_frees_the_slot_in_generation_in_prefill_and_in_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            expected = await here.run(chat("Name three colours."))

            async def cancelled(request: InferRequest, after: int) -> None:
                with trio.CancelScope() as scope:
                    seen = 0

                    async def count(event: object) -> None:
                        nonlocal seen
                        seen += 1
                        if seen == after:
                            scope.cancel()

                    await here.run(request, count)
                assert scope.cancelled_caught
                with trio.fail_after(1):
                    await here.until(lambda held: held.running == 0)

            pid = here.held.pid
            await cancelled(completion("Once upon a time", max_tokens=None), 10)
            await cancelled(completion("word " * 3800), 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.run, completion("Once upon a time", max_tokens=None))
                await here.until(lambda held: held.running == 1)
                nursery.start_soon(here.run, chat("waiting"))
                await here.until(lambda held: held.queued == 1)
                nursery.cancel_scope.cancel()
            await here.until(lambda held: held.running == held.queued == 0)
            assert (await here.run(chat("Name three colours."))).text == expected.text
            assert here.held.pid == pid

    trio.run(main)


def test_b20_a_child_that_hangs_is_replaced_and_its_slot_freed(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            with trio.CancelScope() as scope:

                async def hang(event: object) -> None:
                    assert here.held.pid is not None
                    os.kill(here.held.pid, signal.SIGSTOP)
                    scope.cancel()

                await here.run(completion("Once upon a time", max_tokens=None), hang)
            assert (await here.run(chat("Name three colours."))).tokens == 24

    trio.run(main)


def test_a_slow_or_failing_caller_holds_up_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path) as here:
            slow = trio.Event()

            async def stall(event: object) -> None:
                await slow.wait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.run, chat("Name three colours."), stall)
                await here.until(lambda held: held.running == 1)
                assert (await here.run(completion("Two plus two is"))).tokens > 0
                slow.set()

            async def fail(event: object) -> None:
                raise ConnectionResetError

            with pytest.raises(ConnectionResetError):
                await here.run(completion("Once upon a time", max_tokens=None), fail)
            await here.until(lambda held: held.running == 0)

    trio.run(main)


def test_b40_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, max_queue=1) as here, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(here.run, completion("Once upon a time", max_tokens=None))
            await here.until(lambda held: held.running == held.queued == 1)
            with pytest.raises(OverloadedError) as caught:
                await here.run(chat("hi"))
            assert caught.value.retry_after is not None
            assert caught.value.retry_after >= 1
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_b42_a_peer_with_many_jobs_keeps_no_other_peer_and_no_client_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, max_queue=9) as here, trio.open_nursery() as nursery:
            ended: list[str] = []
            refused: list[OverloadedError] = []

            async def ask(who: str, tokens: int) -> None:
                request = completion("Once upon a time", max_tokens=tokens)
                try:
                    await here.run(request.model_copy(update={"route": (who,) if who else ()}))
                    ended.append(who)
                except OverloadedError as error:
                    refused.append(error)

            await here.until(lambda held: held.state == "loaded")
            for _ in range(40):
                nursery.start_soon(ask, "greedy", 60)
            await here.until(lambda held: held.running + held.queued == 5)
            assert len(refused) == 35
            assert all((error.retry_after or 0) >= 1 for error in refused)
            nursery.start_soon(ask, "honest", 3)
            await here.until(lambda held: held.running + held.queued == 6)
            nursery.start_soon(ask, "", 3)
            await here.until(lambda held: held.running == held.queued == 0 and len(ended) == 7)
            assert ended == ["greedy", "", "honest", *["greedy"] * 4]

    trio.run(main)


def test_b43_a_crash_fails_its_job_at_once_and_the_next_request_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with box(tmp_path, preload=False) as here:
            assert here.held.state == "idle"
            for _ in range(2):
                killed: list[float] = []

                async def kill(event: object, killed: list[float] = killed) -> None:
                    if isinstance(event, Delta) and not killed:
                        assert here.held.pid is not None
                        os.kill(here.held.pid, signal.SIGKILL)
                        killed.append(time.monotonic())

                with pytest.raises(EngineError, match="SIGKILL"):
                    await here.run(completion("Once upon a time", max_tokens=None), kill)
                assert time.monotonic() - killed[0] < 3
                assert (await here.run(chat("Name three colours."))).tokens == 24

    trio.run(main)


def _damaged(whole: bytes, key: bytes, value: int) -> bytes:
    at = whole.index(key) + len(key) + 4
    return whole[:at] + struct.pack("<I", value) + whole[at + 4 :]


@pytest.mark.parametrize("damage", ["cut", "blocks", "heads", "text", "missing"])
def test_a_file_that_cannot_be_loaded_is_a_reason_and_never_a_crash(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.gguf"
    whole = model_path().read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:50_000_000])
    elif damage == "blocks":
        path.write_bytes(_damaged(whole, b"llama.block_count", 0))
    elif damage == "heads":  # the header is sound, but llama.cpp cannot use it
        path.write_bytes(_damaged(whole, b"llama.attention.head_count", 7))
    elif damage == "text":
        path.write_text("not a model")

    async def main() -> None:
        async with box(tmp_path, path) as here:
            await here.until(lambda held: held.state == "failed")
            assert here.held.error
            if damage == "cut":
                assert f"ends at 50000000 bytes, the header promises {len(whole)}" in here.held.error
            if damage == "missing":
                assert here.pool.find("bad") is None
            else:
                with pytest.raises(ModelLoadError):
                    await here.run(chat("hi"))
            path.unlink(missing_ok=True)
            shutil.copy(model_path(), path)
            await here.until(lambda held: held.state == "loaded")
            assert (await here.run(chat("hi"))).tokens > 0

    trio.run(main)


def test_without_an_engine_the_model_is_failed_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    async def main() -> None:
        async with box(tmp_path) as here:
            await here.until(lambda held: held.state == "failed")
            with pytest.raises(AgentError, match=r"pip install 'shoal\[engine\]'"):
                await here.run(chat("hi"))

    trio.run(main)


def test_b15_the_hash_is_kept_over_restarts_and_belongs_to_one_version_of_the_file(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "m.gguf"
        shutil.copy(model_path(), path)
        for _ in range(2):
            async with box(tmp_path, path, preload=False) as here:
                await here.until(lambda held: held.state == "idle")
                digest = here.held.hash
        cache = tmp_path / "state" / "model-hashes.json"
        assert cache.stat().st_mode & 0o777 == 0o600
        assert digest.removeprefix("sha256:") in cache.read_text()
        with path.open("ab") as file:
            file.write(b"\0")
        cache.with_name("x").write_bytes(cache.read_bytes())
        async with box(tmp_path, path, preload=False) as here:
            await here.until(lambda held: held.state == "idle")
            assert here.held.hash != digest
        cache.write_text("[not json")
        async with box(tmp_path, path, preload=False) as here:
            await here.until(lambda held: held.state == "idle")

    trio.run(main)


def test_no_child_is_left_when_the_pool_ends(tmp_path: Path) -> None:
    pids: list[int] = []

    async def main() -> None:
        async with box(tmp_path) as here, trio.open_nursery() as nursery:
            nursery.start_soon(here.run, completion("Once upon a time", max_tokens=None))
            await here.until(lambda held: held.running == 1)
            assert here.held.pid is not None
            pids.append(here.held.pid)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not psutil.pid_exists(pids[0])


OWNER = """
import sys, trio
from pathlib import Path
from agent.config import EngineConfig, ModelConfig
from agent.engine.pool import EnginePool

def changed():
    if pool.models()[0].state == "loaded":
        print(pool.models()[0].pid, flush=True)

pool = EnginePool((ModelConfig(path=Path(sys.argv[1])),), EngineConfig(), Path(sys.argv[2]), changed)
trio.run(pool.run)
"""


def test_no_child_is_left_when_the_agent_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(model_path()), str(tmp_path / "state")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert owner.stdout is not None
        pid = next(int(line) for line in owner.stdout if line.strip().isdigit())
        assert not gone(pid)
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "800"
    finally:
        owner.kill()
        owner.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone(pid)


def test_a_box_without_models_imports_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys, trio\nfrom pathlib import Path\nfrom agent.config import EngineConfig\n"
        "from agent.engine.pool import EnginePool\n"
        "pool = EnginePool((), EngineConfig(), Path(sys.argv[1]), lambda: None)\n"
        "async def main():\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(pool.run)\n"
        "        assert pool.models() == () and pool.find('x') is None\n"
        "        nursery.cancel_scope.cancel()\n"
        "trio.run(main)\n"
        "print([name for name in ('llama_cpp', 'jinja2', 'numpy', 'libp2p') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
