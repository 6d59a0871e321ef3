"""Servers beside a box, as real HTTP on loopback: found, used, cancelled, lost, found again, and never believed."""

from __future__ import annotations

import itertools
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agent.config import EngineConfig, ExternalEngineConfig, ModelConfig
from agent.engine.external import engine as engine_module
from agent.engine.external.engines import ExternalEngines
from agent.engine.external.held import ExternalModel
from agent.engine.external.workload import ExternalJob
from agent.engine.pool import EnginePool
from agent.errors import (
    AgentError,
    BadRequestError,
    ContextLengthError,
    DrainingError,
    EngineError,
    ModelLoadError,
    NoLocalModelError,
    OverloadedError,
)
from agent.jobs.answer import AnswerCheck
from fleet.net.messages import ChatMessage, Delta, Finished, InferRequest, ModelPresence, Sampling, Started
from tests.external_fakes import KINDS, PIECES, Fake, digest_of, serving
from tests.harness import free_port

BOX = "12D3KooWKzhWZgtKjsJdPvh4NM6JA133YYCWzX2JKkow7dJzzEU1"
PEER = "12D3KooWPeer"


def chat(text: str = "tell me a story about a box", **fields: Any) -> InferRequest:
    sampling = Sampling(**fields.pop("sampling", {}))
    return InferRequest(
        job="job-1",
        kind="chat",
        model="m",
        messages=(ChatMessage(role="user", content=text),),
        sampling=sampling,
        **fields,
    )


@asynccontextmanager
async def using(
    *entries: dict[str, Any], detect: bool = False, box: str = BOX, wait: bool = True, max_queue: int = 32
) -> AsyncIterator[ExternalEngines]:
    """Engines that have been looked at once."""
    changes = trio.Event()
    engines = ExternalEngines(
        [ExternalEngineConfig(**entry) for entry in entries],
        EngineConfig(detect=detect, max_queue=max_queue),
        box,
        changes.set,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engines.run)
        if wait:
            await engines.wait_looked()
        yield engines
        nursery.cancel_scope.cancel()


def run(scenario: Callable[[], Awaitable[Any]], limit: float = 20.0) -> Any:
    async def main() -> Any:
        with trio.fail_after(limit):
            return await scenario()

    return trio.run(main)


async def collect(model: ExternalModel, request: InferRequest) -> list[Started | Delta | Finished]:
    """Every event of a job; each is held against what the jobs of this box check of any answer."""
    job = model.admit(request)
    check = AnswerCheck(request.model_copy(update={"model": model.identity.hash}), model.context_tokens)
    events: list[Started | Delta | Finished] = []
    try:
        while not events or not isinstance(events[-1], Finished):
            event = await job.next()
            events.append(event)
            if isinstance(event, Started):
                check.start(event)
            elif isinstance(event, Delta):
                check.delta(event)
            else:
                check.finish(event, 60_000)
    finally:
        job.close()
        model.release(job)
    return events


def text_of(events: list[Started | Delta | Finished]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def until(condition: Callable[[], bool]) -> None:
    """What another thread or task is about to do; the test's own limit bounds it."""
    while not condition():
        await trio.sleep(0.005)


async def in_thread(event: threading.Event) -> None:
    await trio.to_thread.run_sync(event.wait, 10.0)
    assert event.is_set()


# --- found -----------------------------------------------------------------------------------------------------------


def test_what_a_server_says_of_a_model_is_told_to_others_as_what_it_reads_as(tmp_path: Path) -> None:
    """The name says neither size nor quantisation; what the server states beside it does."""

    async def scenario() -> None:
        with serving(Fake("ollama", models=["smollm2:instruct", "mine"])) as fake:
            servers = [ExternalEngineConfig(url=fake.url, kind="ollama")]
            pool = EnginePool([], EngineConfig(), tmp_path, lambda: None, engines=servers, box=BOX)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                known = {held.name: held for held in pool.models()}
                assert known["smollm2:instruct"].reads == "smollm-2-134.5m-instruct-q4_1"
                assert known["mine"].reads == ""
                assert all(held.named and not held.doubts for held in known.values())
                nursery.cancel_scope.cancel()

    run(scenario)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("told", [True, False])
def test_each_kind_is_recognised_listed_and_used(kind: str, told: bool) -> None:
    async def scenario() -> None:
        with serving(Fake(kind)) as fake:
            async with using({"url": fake.url, "kind": kind if told else "auto"}) as engines:
                (fact,) = engines.facts()
                assert (fact.kind, fact.error, fact.models, fact.url) == (kind, None, 1, fake.url)
                (model,) = engines.models()
                assert (model.name, model.state) == ("tiny-model", "loaded")
                assert model.context_tokens == (4096 if kind == "openai" else 2048)
                assert engines.find("Tiny-Model") is model
                assert engines.find(model.identity.hash) is model
                for request in (chat(), InferRequest(job="j", kind="completion", model="m", prompt="Once")):
                    events = await collect(model, request)
                    assert text_of(events) == "".join(PIECES)
                    last = events[-1]
                    assert isinstance(last, Finished)
                    assert (last.reason, last.completion_tokens) == ("stop", len(PIECES))
                    assert last.prompt_tokens == 21
                    assert [event.tokens for event in events if isinstance(event, Delta)] == [1] * len(PIECES)
                assert model.decode.value is not None
                assert model.decode.value > 0
                # What the box will say of it in its presence is within what others take.
                ModelPresence(
                    hash=model.identity.hash, name=model.name, state=model.state, context_tokens=model.context_tokens,
                    decode_rate=model.decode.value, prefill_rate=model.prefill.value, slots=model.slots,
                )  # fmt: skip
                assert model.running == model.queued == 0

    run(scenario)


def test_prompts_are_counted_by_the_server_where_it_says_so_in_time() -> None:
    async def scenario() -> None:
        for kind in ("llama-server", "vllm"):
            with serving(Fake(kind)) as fake:
                async with using({"url": fake.url}) as engines:
                    started = (await collect(engines.models()[0], chat()))[0]
                    assert isinstance(started, Started)
                    assert started.prompt_tokens == 21

    run(scenario)


def test_sampling_is_passed_on() -> None:
    async def scenario() -> None:
        with serving(Fake("openai")) as fake:
            async with using({"url": fake.url + "/v1"}) as engines:
                wanted = {"max_tokens": 5000, "temperature": 0.3, "top_p": 0.7, "seed": 7, "stop": ("x", "y")}
                await collect(engines.models()[0], chat(sampling=wanted))
            (job,) = fake.jobs()
            assert job.path == "/v1/chat/completions"
            sent = {
                key: job.body[key] for key in ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "model")
            }
            assert sent == {
                "max_tokens": 4096, "temperature": 0.3, "top_p": 0.7, "seed": 7, "stop": ["x", "y"], "stream": True,
                "model": "tiny-model",
            }  # fmt: skip
            assert job.headers["accept-encoding"] == "identity"

    run(scenario)


def test_an_answer_is_gone_on_with_where_the_server_can() -> None:
    async def scenario() -> None:
        for kind in KINDS:
            with serving(Fake(kind)) as fake:
                async with using({"url": fake.url}) as engines:
                    (model,) = engines.models()
                    if kind in ("lmstudio", "openai"):
                        with pytest.raises(EngineError, match="cannot go on"):
                            model.admit(chat(prefix="Once upon"))
                        assert not fake.jobs()
                        continue
                    await collect(model, chat(prefix="Once upon"))
                    (job,) = fake.jobs()
                    assert job.body["messages"][-1] == {"role": "assistant", "content": "Once upon"}
                    assert job.body.get("continue_final_message", False) is (kind != "ollama")

    run(scenario)


def test_ollama_models_have_one_id_on_every_box_and_others_never() -> None:
    async def scenario() -> None:
        hashes: dict[str, list[set[str]]] = {}
        for kind in KINDS:
            for box in ("box-a", "box-b"):
                with serving(Fake(kind, models=["a:1b", "b:2b"])) as fake:
                    async with using({"url": fake.url}, box=box) as engines:
                        hashes.setdefault(kind, []).append({model.identity.hash for model in engines.models()})
        assert all(len(found) == 2 for pair in hashes.values() for found in pair)
        for kind, (one, other) in hashes.items():
            assert (one == other) is (kind == "ollama")
            assert bool(one & other) is (kind == "ollama")
        # A digest as such would be the hash of the manifest's file.
        assert "sha256:" + digest_of("a:1b") not in hashes["ollama"][0]

    run(scenario)


def test_models_that_only_embed_or_run_elsewhere_are_left_out_and_contexts_are_what_they_will_be() -> None:
    async def scenario() -> None:
        for kind, second in (("ollama", 6000), ("lmstudio", 4096)):
            with serving(Fake(kind, models=["a:latest", "org/b.gguf", "some-embed"])) as fake:
                async with using({"url": fake.url}) as engines:
                    found = [(model.name, model.context_tokens, model.state) for model in engines.models()]
                    first = "a" if kind == "ollama" else "a:latest"
                    assert found == [(first, 2048, "loaded"), ("b", second, "idle")]

    run(scenario)


def test_the_configuration_says_which_models_with_which_context_and_how_many_jobs() -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", models=["a:1b", "org/b:2b", "c"])) as fake:
            entry = {"url": fake.url, "models": ("A:1b", "b:2b"), "context_tokens": 512, "slots": 3}
            async with using(entry) as engines:
                assert [model.name for model in engines.models()] == ["a:1b", "b:2b"]
                assert {model.context_tokens for model in engines.models()} == {512}
                assert {model.slots for model in engines.models()} == {3}
            assert not [asked for asked in fake.asked if asked.body == {"model": "c"}]

    run(scenario)


def test_a_list_is_bounded_and_bad_names_are_skipped() -> None:
    async def scenario() -> None:
        names = ["x" * 300, "", "bad\nname", "sha256:" + "0" * 64, "half\ud800", *(f"m{n}" for n in range(500))]
        for kind in KINDS:
            with serving(Fake(kind, models=names)) as fake:
                async with using({"url": fake.url, "kind": kind}) as engines:
                    found = [model.name for model in engines.models()]
                    assert found == [f"m{n}" for n in range(32)]
        with ExitStack() as stack:
            fakes = [stack.enter_context(serving(Fake("vllm", models=names))) for _ in range(5)]
            async with using(*({"url": fake.url} for fake in fakes)) as engines:
                assert len(engines.models()) == 128

    run(scenario)


def test_another_agent_of_the_fleet_is_no_engine() -> None:
    async def scenario() -> None:
        with serving(Fake("shoal")) as fake:
            for kind in ("auto", "openai", "vllm"):
                async with using({"url": fake.url, "kind": kind}) as engines:
                    assert engines.models() == ()
                    assert "is a Shoal agent" in (engines.facts()[0].error or "")

    run(scenario)


# --- looked for, and left alone --------------------------------------------------------------------------------------


def test_b39_detection_looks_at_loopback_only_and_not_at_all_unless_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    async def connect(host: Any, port: Any, **more: Any) -> trio.SocketStream:
        asked.append((host, port))
        raise OSError("nobody here")

    monkeypatch.setattr(trio, "open_tcp_stream", connect)

    async def scenario(detect: bool, *entries: dict[str, Any]) -> None:
        async with using(*entries, detect=detect) as engines:
            assert engines.models() == ()
            assert [fact.detected for fact in engines.facts()] == [
                False for entry in entries if entry.get("enabled", True)
            ]

    run(lambda: scenario(False))
    assert asked == []
    run(lambda: scenario(False, {"url": "http://localhost:11434", "enabled": False}))
    assert asked == []
    run(lambda: scenario(True))
    assert sorted(asked) == [("127.0.0.1", 1234), ("127.0.0.1", 8000), ("127.0.0.1", 8080), ("127.0.0.1", 11434)]
    asked.clear()
    run(lambda: scenario(True, {"url": "http://localhost:11434/v1", "enabled": False}))
    assert sorted(asked) == [("127.0.0.1", 1234), ("127.0.0.1", 8000), ("127.0.0.1", 8080)]


def test_what_is_detected_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with serving(Fake("ollama")) as fake:
            from agent.engine.external import engines as engines_module
            from agent.engine_url import parse_engine_url

            places = tuple(parse_engine_url(url) for url in (fake.url, f"http://127.0.0.1:{free_port()}"))
            monkeypatch.setattr(engines_module, "WELL_KNOWN", places)
            async with using(detect=True) as engines:
                (fact,) = engines.facts()
                assert (fact.kind, fact.detected, fact.url) == ("ollama", True, fake.url)
                assert text_of(await collect(engines.models()[0], chat())) == "".join(PIECES)

    run(scenario)


def test_b39_one_that_hangs_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", list_trouble="hang")) as slow, serving(Fake("vllm")) as fast:
            async with using({"url": slow.url}, {"url": fast.url}, wait=False) as engines:
                await until(lambda: len(engines.models()) == 1)
                assert engines.facts()[0].error == "has not been asked yet"
                assert text_of(await collect(engines.models()[0], chat()))
                await engines.wait_looked()
                assert "did not say within 1.5 s" in (engines.facts()[0].error or "")
                await in_thread(slow.left)

    run(scenario)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("status:500", "answers 500"),
        ("status:401", "API key"),
        ("redirect", "redirect, which is not followed"),
        ("html", "no JSON"),
        ("not-json", "no JSON"),
        ("deep", "no JSON"),
        ("garbage", "as HTTP asks"),
        ("huge-header", "as HTTP asks"),
        ("interim", "as HTTP asks"),
        ("huge-body", "more than 1048576 bytes"),
        ("half-body", "before the answer's end"),
        ("shut", "before the answer's end"),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "ollama", "lmstudio", "openai"])
def test_a_server_that_answers_badly_is_refused_with_the_reason(kind: str, trouble: str, reason: str) -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", list_trouble=trouble)) as fake:
            async with using({"url": fake.url, "kind": kind}) as engines:
                (fact,) = engines.facts()
                assert reason in (fact.error or "")
                assert engines.models() == ()
            assert "/v1/other" not in [asked.path for asked in fake.asked]

    run(scenario)


def test_nobody_listens() -> None:
    async def scenario() -> None:
        async with using({"url": f"http://127.0.0.1:{free_port()}"}) as engines:
            assert "cannot be connected to: connection refused" in (engines.facts()[0].error or "")

    run(scenario)


# --- keys and certificates -------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_read_anew_and_a_file_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("wrong\n")
    file.chmod(0o600)
    monkeypatch.setattr(engine_module, "MAX_BACKOFF", 0.05)

    async def scenario() -> None:
        with serving(Fake("vllm", key="right")) as fake:
            async with using({"url": fake.url, "api_key_file": file}) as engines:
                assert "does not take this box's API key" in (engines.facts()[0].error or "")
                file.write_text("right\n")
                await until(lambda: len(engines.models()) == 1)
                assert text_of(await collect(engines.models()[0], chat()))
                fake.key = "changed"
                with pytest.raises(EngineError, match="API key"):
                    await collect(engines.models()[0], chat())
                assert engines.models()[0].state == "failed"
                fake.key = "right"
                await until(lambda: engines.models()[0].state == "loaded")
            file.chmod(0o640)
            asked = len(fake.asked)
            async with using({"url": fake.url, "api_key_file": file}) as engines:
                assert "chmod 600" in (engines.facts()[0].error or "")
            file.unlink()
            async with using({"url": fake.url, "api_key_file": file}) as engines:
                assert "cannot be read" in (engines.facts()[0].error or "")
            assert len(fake.asked) == asked

    run(scenario)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl command to make a certificate with")
    return file


@contextmanager
def tls_fake(certificate: Path) -> Iterator[Fake]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_suffix(".crt"), certificate)
    with serving(Fake("vllm"), tls=context) as fake:
        yield fake


def test_certificates_are_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(*expected: str | None) -> None:
        with tls_fake(certificate) as fake:
            urls = (fake.url, fake.url.replace("127.0.0.1", "localhost"))
            for url, error in zip(urls, expected, strict=True):
                async with using({"url": url}) as engines:
                    assert (engines.facts()[0].error or "").startswith(error or "")
                    assert bool(engines.models()) is (error is None)
                    if error is None:
                        assert text_of(await collect(engines.models()[0], chat())) == "".join(PIECES)
                    else:
                        assert fake.asked == []
                fake.asked.clear()

    run(lambda: scenario("has no valid certificate", "has no valid certificate"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    run(lambda: scenario(None, "has no valid certificate"))


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_each_piece_is_passed_on_before_the_next_is_there() -> None:
    async def scenario() -> None:
        gate = threading.Semaphore(0)
        with serving(Fake("openai", gate=gate)) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job = model.admit(chat())
                for piece in PIECES:
                    gate.release()
                    event = await job.next()
                    if isinstance(event, Started):
                        event = await job.next()
                    assert isinstance(event, Delta)
                    assert event.text == piece
                assert isinstance(await job.next(), Finished)
                model.release(job)

    run(scenario)


def test_a_cancel_closes_the_connection_and_frees_the_slot() -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", trouble="stalls")) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job = model.admit(chat())
                waiting = model.admit(chat())
                assert (model.running, model.queued, model.slots) == (1, 1, 1)
                for _ in range(4):
                    await job.next()
                fake.trouble = ""
                job.close()
                model.release(job)
                await in_thread(fake.left)
                events = []
                while not events or not isinstance(events[-1], Finished):
                    events.append(await waiting.next())
                model.release(waiting)
                assert text_of(events) == "".join(PIECES)
                await until(lambda: model.running == model.queued == 0)

    run(scenario)


def test_a_cancel_while_the_server_is_silent_or_the_job_waits() -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", trouble="hang")) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job, waiting = model.admit(chat()), model.admit(chat())
                await in_thread(fake.got_job)
                model.release(waiting)
                assert model.queued == 0
                model.release(job)
                await in_thread(fake.left)
                await until(lambda: model.running == 0)
            assert len(fake.jobs()) == 1

    run(scenario)


def test_the_end_of_the_box_ends_its_jobs() -> None:
    async def scenario() -> None:
        with serving(Fake("ollama", trouble="stalls")) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job, waiting = model.admit(chat()), model.admit(chat())
                await in_thread(fake.got_job)
            with pytest.raises(DrainingError):
                while True:
                    await job.next()
            with pytest.raises(DrainingError):
                await waiting.next()
            with pytest.raises(DrainingError):
                model.admit(chat())
            await in_thread(fake.left)

    run(scenario)


def test_no_more_jobs_at_a_time_than_the_server_has_room_for_and_askers_take_turns() -> None:
    async def scenario() -> None:
        gate = threading.Semaphore(0)
        with serving(Fake("llama-server", models=["m"], slots=2, gate=gate)) as fake:
            async with using({"url": fake.url}, max_queue=6) as engines:
                (model,) = engines.models()
                greedy = [model.admit(chat(f"greedy {n}", route=("greedy",))) for n in range(4)]
                with pytest.raises(OverloadedError, match="share of the queue"):
                    model.admit(chat(route=("greedy",)))
                modest = model.admit(chat("modest", route=("modest",)))
                own = model.admit(chat("own"))
                assert (model.running, model.queued) == (2, 4)
                gate.release(1000)
                async with trio.open_nursery() as nursery:

                    async def read(job: ExternalJob) -> None:
                        while not isinstance(await job.next(), Finished):
                            pass
                        model.release(job)

                    for job in (*greedy, modest, own):
                        nursery.start_soon(read, job)
                order = [asked.body["messages"][0]["content"] for asked in fake.jobs()]
                assert set(order[:2]) == {"greedy 0", "greedy 1"}
                assert set(order[2:4]) == {"own", "modest"}
                assert fake.most_busy <= 2

    run(scenario)


def test_a_model_that_is_not_lent_is_for_this_box_alone() -> None:
    async def scenario() -> None:
        with serving(Fake("vllm")) as fake:
            async with using({"url": fake.url, "lend": False}) as engines:
                (model,) = engines.models()
                assert model.lend is False
                with pytest.raises(NoLocalModelError):
                    model.admit(chat(route=(PEER,)))
                assert text_of(await collect(model, chat()))
                assert len(fake.jobs()) == 1

    run(scenario)


CONTEXT_ERRORS = [
    '{"error"|{"code"|400,"type"|"exceed_context_size_error","message"|"request (9412 tokens) exceeds the available'
    ' context size (8192 tokens), try increasing it","n_prompt_tokens"|9412,"n_ctx"|8192}}',
    '{"object"|"error","message"|"This model\'s maximum context length is 4096 tokens. However, you requested 9512'
    ' tokens (9412 in the messages, 100 in the completion).","type"|"BadRequestError","code"|400}',
    '{"error"|{"message"|"This model\'s maximum context length is 4096 tokens. However, your messages resulted in 9412'
    ' tokens.","code"|"context_length_exceeded"}}',
]


@pytest.mark.parametrize("body", CONTEXT_ERRORS)
def test_a_prompt_that_does_not_fit(body: str) -> None:
    async def scenario() -> None:
        with serving(Fake("openai", trouble="error:" + body)) as fake:
            async with using({"url": fake.url}) as engines:
                with pytest.raises(ContextLengthError) as caught:
                    await collect(engines.models()[0], chat())
                assert caught.value.details == {"prompt_tokens": 9412, "context_tokens": 4096}
                assert engines.models()[0].state == "loaded"

    run(scenario)


@pytest.mark.parametrize(
    ("trouble", "error", "words"),
    [
        ("status:400", BadRequestError, "status 400"),
        ("status:422", BadRequestError, "status 422"),
        ("status:429:17", OverloadedError, "busy"),
        ("status:503", OverloadedError, "busy"),
        ("status:500", EngineError, r"failed \(500\)"),
        ("status:404", ModelLoadError, "no longer has"),
        ("redirect", EngineError, "not followed"),
        ("html", EngineError, "no event stream"),
        ("garbage", EngineError, "as HTTP asks"),
        ("huge-header", EngineError, "as HTTP asks"),
        ("shut", EngineError, "before the answer's end"),
        ("cut", EngineError, "before the answer's end|broke"),
        ("no-end", EngineError, "half-way"),
        ("short", EngineError, "half-way"),
        ("error-event", EngineError, "out of memory"),
        ("context-event", ContextLengthError, "does not fit"),
        ("no-json", EngineError, "no JSON"),
        ("huge-line", EngineError, "a line of more than"),
        ("comments", EngineError, "lines in a row that say nothing"),
        ("empty", EngineError, "events in a row that bring nothing"),
        ("tail", EngineError, "a stream of more than"),
        ("bad-chunk", EngineError, "as HTTP asks"),
    ],
)
def test_a_job_that_fails_has_the_right_error_and_the_next_one_works(
    trouble: str, error: type[AgentError], words: str
) -> None:
    async def scenario() -> None:
        with serving(Fake("openai", trouble=trouble)) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                with pytest.raises(error, match=words) as caught:
                    await collect(model, chat())
                assert type(caught.value) is error
                if isinstance(caught.value, OverloadedError):
                    assert caught.value.retry_after == (17 if "17" in trouble else 5)
                fake.trouble = ""
                assert text_of(await collect(model, chat())) == "".join(PIECES)

    run(scenario)


def test_what_a_server_says_of_a_refusal_is_not_told_to_peers() -> None:
    async def scenario() -> None:
        with serving(Fake("openai", trouble='error:{"error"|{"message"|"no template in /srv/secret"}}')) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                with pytest.raises(BadRequestError, match="/srv/secret"):
                    await collect(model, chat())
                with pytest.raises(BadRequestError) as caught:
                    await collect(model, chat(route=(PEER,)))
                assert "secret" not in caught.value.message
                assert fake.url not in caught.value.message

    run(scenario)


def test_an_answer_without_end_ends_at_its_limit() -> None:
    async def scenario() -> None:
        for sampling, most in (({"max_tokens": 5}, 5), ({}, 64)):
            with serving(Fake("openai", trouble="endless")) as fake:
                async with using({"url": fake.url, "context_tokens": 64}) as engines:
                    events = await collect(engines.models()[0], chat("hi", sampling=sampling))
                    last = events[-1]
                    assert isinstance(last, Finished)
                    assert (last.reason, last.completion_tokens) == ("length", most)
                    await in_thread(fake.left)

    run(scenario)


def test_a_server_that_stays_after_its_last_word_delays_the_end_but_little() -> None:
    async def scenario() -> None:
        with serving(Fake("openai", trouble="stays")) as fake:
            async with using({"url": fake.url}) as engines:
                events = await collect(engines.models()[0], chat())
                assert isinstance(events[-1], Finished)
                assert text_of(events) == "".join(PIECES)
                await in_thread(fake.left)

    run(scenario)


def test_a_slow_caller_holds_the_server_back_and_not_the_box() -> None:
    async def scenario() -> None:
        with serving(Fake("openai", trouble="endless")) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job = model.admit(chat())
                assert isinstance(await job.next(), Started)
                await until(lambda: job._receive.statistics().tasks_waiting_send == 1)
                assert job._receive.statistics().current_buffer_used <= 64
                model.release(job)
                await in_thread(fake.left)

    run(scenario)


def test_the_pool_runs_a_job_in_a_server_where_the_box_has_no_model_of_that_name_that_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        with serving(Fake("ollama")) as fake:
            missing = ModelConfig(path=tmp_path / "none.gguf", name="tiny-model")
            entry = ExternalEngineConfig(url=fake.url)
            pool = EnginePool((missing,), EngineConfig(), tmp_path, lambda: None, engines=(entry,), box=BOX)
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                held = pool.find("tiny-model")
                assert held is not None
                assert (held.engine, held.url, held.path, held.state) == ("ollama", fake.url, None, "loaded")
                events: list[Started | Delta | Finished] = []

                async def emit(event: Started | Delta | Finished) -> None:
                    events.append(event)

                await pool.generate(held.hash, chat(), emit)
                assert text_of(events) == "".join(PIECES)

                async def leave(event: Started | Delta | Finished) -> None:
                    raise ConnectionError("the client is gone")

                fake.trouble = "stalls"
                with pytest.raises(ConnectionError):
                    await pool.generate(held.hash, chat(), leave)
                await in_thread(fake.left)
                nursery.cancel_scope.cancel()

    run(scenario)


# --- lost, and found again -------------------------------------------------------------------------------------------


def test_a_server_that_vanishes_fails_with_a_reason_and_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_BACKOFF", 0.05)

    async def scenario() -> None:
        port = free_port()
        fake = Fake("ollama")
        async with using({"url": f"http://127.0.0.1:{port}"}) as engines:
            assert "connection refused" in (engines.facts()[0].error or "")
            with serving(fake, port):
                await until(lambda: len(engines.models()) == 1)
                (model,) = engines.models()
                hash = model.identity.hash
                assert text_of(await collect(model, chat()))
            with pytest.raises(ModelLoadError, match="connection refused") as caught:
                await collect(model, chat())
            assert caught.value.retry_after is not None
            assert model.state == "failed"
            assert f"ollama at http://127.0.0.1:{port} cannot be connected to" in (model.error or "")
            with pytest.raises(ModelLoadError):
                model.admit(chat())
            assert engines.find("tiny-model") is model
            with serving(fake, port):
                await until(lambda: model.state == "loaded")
                assert engines.models() == (model,)
                assert model.identity.hash == hash
                assert text_of(await collect(model, chat())) == "".join(PIECES)

    run(scenario)


def test_a_server_that_is_down_is_asked_less_and_less_often() -> None:
    async def scenario() -> list[float]:
        times: list[float] = []
        engines = ExternalEngines([ExternalEngineConfig(url="http://127.0.0.1:1")], EngineConfig(), BOX, lambda: None)
        (one,) = engines._engines

        async def fetch(path: str, post: object = None) -> object:
            times.append(trio.current_time())
            raise engine_module.ConnectTroubleError("is not there")

        one._fetch = fetch  # type: ignore[method-assign]
        with trio.move_on_after(400):
            await engines.run()
        return times

    times = trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    gaps = [round(after - before) for before, after in itertools.pairwise(times)]
    assert gaps[:8] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_models_come_and_go_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REFRESH", 0.05)

    async def scenario() -> None:
        with serving(Fake("vllm", models=["a"])) as fake:
            async with using({"url": fake.url}) as engines:
                (first,) = engines.models()
                fake.models = ["b"]
                await until(lambda: [model.name for model in engines.models()] == ["b"])
                assert first.state == "failed"
                with pytest.raises(ModelLoadError, match="no longer has it"):
                    first.admit(chat())
                assert engines.find("a") is None

    run(scenario)


def test_a_model_the_server_forgot_is_looked_for_at_once() -> None:
    async def scenario() -> None:
        with serving(Fake("vllm", models=["a", "b"])) as fake:
            async with using({"url": fake.url}) as engines:
                model = engines.find("a")
                assert model is not None
                fake.models = ["b"]
                with pytest.raises(ModelLoadError, match="no longer has a"):
                    await collect(model, chat())
                await until(lambda: [model.name for model in engines.models()] == ["b"])

    run(scenario)


def test_a_busy_server_that_is_late_with_its_list_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REFRESH", 0.02)
    monkeypatch.setattr(engine_module, "LATER_LOOK", 0.02)
    monkeypatch.setattr(engine_module, "MAX_BACKOFF", 0.02)

    async def scenario() -> None:
        gate = threading.Semaphore(0)
        with serving(Fake("vllm", gate=gate)) as fake:
            async with using({"url": fake.url}) as engines:
                (model,) = engines.models()
                job = model.admit(chat())
                await in_thread(fake.got_job)
                fake.list_trouble = "hang"
                asked = len(fake.asked)
                await until(lambda: len(fake.asked) > asked + 4)
                assert model.state == "loaded"
                gate.release(1000)
                while not isinstance(await job.next(), Finished):
                    pass
                model.release(job)
                await until(lambda: model.state == "failed")

    run(scenario)
