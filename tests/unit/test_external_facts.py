"""What the fleet document is told of the models of servers beside a box, and what doctor says of the servers."""

from __future__ import annotations

from dataclasses import replace

from agent.engine.pool import HeldModel
from agent.observe.known import Facts, ModelFact, ServerFact
from agent.observe.warnings import evaluate
from agent.own_facts import MAX_MODELS, documented, is_near, performance
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


def test_b13_b14_the_document_hears_of_rates_that_are_known_and_of_the_engine_that_they_are_of() -> None:
    own = replace(ONE, engine="", engine_version="llama-cpp-python 1", decode_rate=12.345, prefill_rate=0.04321)
    assert performance(own) == {"decode": 12.3, "prefill": 0.0432, "engine": "llama-cpp-python 1"}
    assert performance(replace(ONE, decode_rate=12.0)) == {"decode": 12.0}, "a rate of 0 would be a claim"
    moved = replace(own, decode_rate=13.0)
    assert is_near(performance(own), performance(moved))
    assert not is_near(performance(own), performance(replace(own, decode_rate=14.0)))
    assert not is_near(performance(own), performance(replace(moved, engine_version="llama-cpp-python 2")))
    assert not is_near({"decode": 12.0}, performance(own))
    assert not is_near(None, performance(own))
