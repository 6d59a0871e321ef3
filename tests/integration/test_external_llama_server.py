"""A real llama-server as an engine: what the fakes say of it is what it does."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from agent.errors import ContextLengthError
from fleet.net.messages import Delta, Finished, InferRequest, Started
from tests.harness import free_port, model_path
from tests.integration.test_external_engines import chat, collect, run, text_of, until, using
from tests.models import cache_dir

_START_LIMIT = 90.0

pytestmark = pytest.mark.model


def _binary() -> tuple[Path, dict[str, str]]:
    """llama-server and what its environment needs; skips the test where there is none."""
    if "SHOAL_LLAMA_SERVER" in os.environ:
        return Path(os.environ["SHOAL_LLAMA_SERVER"]), {}
    try:
        package = importlib.metadata.distribution("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("there is no llama-server: set SHOAL_LLAMA_SERVER to one")
    found = cache_dir() / f"llama-server-{package.version}/build/bin/llama-server"
    if not (found.exists() and (found.parents[2] / "built.json").exists()):
        pytest.skip("there is no llama-server: set SHOAL_LLAMA_SERVER to one, or build it once with make bench-engine")
    return found, {"LD_LIBRARY_PATH": str(package.locate_file("llama_cpp/lib"))}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a llama-server that runs SmolLM2 with two slots of 1,024 tokens."""
    model = model_path()
    binary, environment = _binary()
    port = free_port()
    command = [str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--jinja"]
    command += ["--ctx-size", "2048", "--parallel", "2", "--threads", "2", "--no-warmup"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # it must not outlive the tests
        )
        try:
            deadline = time.monotonic() + _START_LIMIT
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)  # it says nowhere but here that it is ready
            else:
                log.seek(0)
                pytest.fail(f"llama-server does not start:\n{log.read()[-3000:].decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_it_is_recognised_and_says_what_it_has(server: str) -> None:
    async def scenario() -> None:
        async with using({"url": server}) as engines:
            (fact,) = engines.facts()
            assert (fact.kind, fact.error) == ("llama-server", None)
            (model,) = engines.models()
            assert model.name.startswith("smollm2")
            assert (model.state, model.slots, model.context_tokens) == ("loaded", 2, 1024)
            assert model.listed.size_bytes > 50_000_000

    run(scenario, 60)


def test_chats_and_completions_with_the_same_seed_give_the_same_text_and_true_counts(server: str) -> None:
    async def scenario() -> None:
        async with using({"url": server}) as engines:
            (model,) = engines.models()
            sampling = {"max_tokens": 12, "temperature": 0.0, "seed": 1}
            texts = []
            for _ in range(2):
                events = await collect(model, chat("Name a colour.", sampling=sampling))
                started, last = events[0], events[-1]
                assert isinstance(started, Started)
                assert isinstance(last, Finished)
                assert started.prompt_tokens == last.prompt_tokens > 8
                assert 0 < last.completion_tokens <= 12
                assert sum(isinstance(event, Delta) for event in events) >= last.completion_tokens - 1
                texts.append(text_of(events))
            assert texts[0] == texts[1] != ""
            request = InferRequest(
                job="j", kind="completion", model="m", prompt="1, 2, 3, 4,", sampling=chat(sampling=sampling).sampling
            )
            assert "5" in text_of(await collect(model, request))
            assert model.decode.value is not None
            assert model.decode.value > 0

    run(scenario, 60)


def test_an_answer_is_gone_on_with(server: str) -> None:
    async def scenario() -> None:
        async with using({"url": server}) as engines:
            (model,) = engines.models()
            sampling = {"max_tokens": 16, "temperature": 0.0}
            whole = text_of(await collect(model, chat("Count from one to ten in words.", sampling=sampling)))
            begun = whole[: len(whole) // 2]
            rest = text_of(
                await collect(model, chat("Count from one to ten in words.", sampling=sampling, prefix=begun))
            )
            assert rest
            assert not rest.startswith(begun)

    run(scenario, 60)


def test_a_cancel_frees_its_slot(server: str) -> None:
    def busy() -> int:
        return sum(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json())

    async def scenario() -> None:
        async with using({"url": server}) as engines:
            (model,) = engines.models()
            job = model.admit(chat("Write a very long story.", sampling={"max_tokens": 900}))
            for _ in range(4):
                await job.next()
            assert await trio.to_thread.run_sync(busy) == 1
            job.close()
            model.release(job)
            await until(lambda: model.running == 0)
            while await trio.to_thread.run_sync(busy):
                await trio.sleep(0.02)

    run(scenario, 60)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server: str) -> None:
    async def scenario() -> None:
        async with using({"url": server}) as engines:
            with pytest.raises(ContextLengthError) as caught:
                await collect(engines.models()[0], chat("many words " * 2000))
            tokens = caught.value.details["prompt_tokens"]
            assert isinstance(tokens, int)
            assert tokens > 2000
            assert caught.value.details["context_tokens"] == 1024

    run(scenario, 60)


def test_schemas_grammars_functions_and_logprobs_are_understood(server: str) -> None:
    async def scenario() -> None:
        async with using({"url": server}) as engines:
            (model,) = engines.models()
            schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
            sampling = {"max_tokens": 40, "temperature": 0.0}
            shaped = chat("Give me a number.", sampling=sampling, output="schema", output_text=json.dumps(schema))
            assert isinstance(json.loads(text_of(await collect(model, shaped)))["a"], int)
            ruled = chat("Yes or no?", sampling=sampling, output="grammar", output_text='root ::= "maybe"')
            assert text_of(await collect(model, ruled)) == "maybe"
            # Whether a call comes depends on the model's template, which is the server's; that it may, does not.
            tools = json.dumps([{"type": "function", "function": {"name": "find", "parameters": schema}}])
            assert await collect(model, chat("Find 7.", sampling=sampling, tools=tools))
            events = await collect(model, chat("Hi.", sampling={"max_tokens": 4, "temperature": 0.0, "logprobs": 2}))
            deltas = [event for event in events if isinstance(event, Delta) and event.text]
            assert deltas
            assert all(len(one.logprobs) == one.tokens and len(one.logprobs[0].top_logprobs) == 2 for one in deltas)

    run(scenario, 60)
