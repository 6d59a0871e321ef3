"""What the fleet document is told of the models of servers beside a box, and what doctor says of the servers."""

from __future__ import annotations

from dataclasses import replace

from agent.engine.pool import HeldModel
from agent.observe.known import Facts, ModelFact, ServerFact
from agent.observe.warnings import evaluate
from agent.own_facts import MAX_MODELS, documented
from fleet.document.acceptance import MAX_FACTS

ONE = HeldModel(
    hash="",
    name="m",
    path=None,
    state="loaded",
    context_tokens=1,
    decode_rate=None,
    prefill_rate=None,
    running=0,
    queued=0,
    slots=1,
    error=None,
    size_bytes=0,
    architecture="",
    quantisation="",
    size_label="",
    pid=None,
    engine="ollama",
)


def test_the_document_hears_of_no_more_models_than_it_has_room_for() -> None:
    models = [replace(ONE, hash=f"sha256:{number:064x}") for number in range(200)]
    assert documented(models) == models[:MAX_MODELS]
    # The box itself, its addresses, a rate a model, and its accounts with 128 others.
    assert 2 + 2 * MAX_MODELS + 128 < MAX_FACTS


def test_the_document_hears_only_of_what_is_lent_and_known_and_once() -> None:
    lent = replace(ONE, hash="sha256:" + "a" * 64)
    kept = replace(ONE, hash="sha256:" + "b" * 64, lend=False)
    assert documented([ONE, kept, lent, replace(lent, name="alias")]) == [lent]


def test_doctor_names_a_server_that_cannot_be_used_and_asks_for_no_llama_cpp() -> None:
    facts = Facts(
        peer_id="p",
        name="a",
        version="1",
        addrs=("/ip4/10.0.0.1/tcp/1",),
        allowed=(),
        targets=(),
        mdns=True,
        engine_installed=False,
        engines=(
            ServerFact("vllm", "http://127.0.0.1:8000", "answers 500 to /v1/models", detected=False),
            ServerFact("auto", "http://127.0.0.1:1", "cannot be connected to", detected=False),
            ServerFact("ollama", "http://127.0.0.1:11434", "cannot be connected to", detected=True),
            ServerFact("openai", "http://127.0.0.1:2", None, detected=False),
        ),
    )
    found = [(one.severity, one.title) for one in evaluate(facts) if one.code == "engine_unusable"]
    assert found == [
        ("warning", "vllm at http://127.0.0.1:8000 cannot be used"),
        ("warning", "engine at http://127.0.0.1:1 cannot be used"),
        ("info", "ollama at http://127.0.0.1:11434 cannot be used"),
    ]
    assert "engine_missing" not in {one.code for one in evaluate(facts)}
    assert "engine_missing" in {one.code for one in evaluate(replace(facts, models=(ModelFact("m", "idle", None),)))}
