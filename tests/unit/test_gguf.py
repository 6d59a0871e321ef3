"""The reader of GGUF headers: what it finds, and that nothing in a file makes it fail otherwise than by saying why."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.models.gguf import GgufError, GgufFacts, read_facts, size_label
from fleet.models.gguf_header import MAX_TEXTS, TENSOR_TYPES
from fleet.models.reference import canonical_name, is_hash, matches
from tests.corpus.gguf.build import ARRAY, STRING, U8, Gguf, Raw, Tensor, array, llama, text
from tests.corpus.gguf.corrupt import Corrupt, corpus
from tests.harness import model_path

#: What the reader may take besides what it returns.
MOST = 16 << 20


def facts_of(changes: dict[str, Any] | None = None, **fields: Any) -> GgufFacts:
    return read_facts(llama().with_(changes or {}, **fields).build())


def peak(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
    except GgufError:
        pass
    finally:
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def test_the_facts_of_a_small_file_are_read() -> None:
    facts = facts_of()
    assert (facts.version, facts.architecture, facts.name, facts.quantisation) == (3, "llama", "Tiny", "F32")
    assert (facts.block_count, facts.context_length, facts.embedding_length) == (2, 512, 32)
    assert (facts.heads, facts.kv_heads, facts.key_length, facts.value_length) == (4, (2, 2), 8, 8)
    assert (facts.feed_forward, facts.experts, facts.window, facts.windowed) == (64, 0, 0, (False, False))
    parameters = 32 * 264 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert (facts.parameters, facts.size_label, facts.vocab_size) == (parameters, "27K", 264)
    assert facts.tensor_bytes == (("F32", 4 * parameters),)
    assert facts.weight_bytes == 4 * parameters
    assert facts.chat_template == llama().entries["tokenizer.chat_template"]
    assert (facts.embedding, facts.pooling) == (False, "")
    assert facts.data_end == facts.file_bytes


def test_bytes_are_counted_by_tensor_type() -> None:
    model = llama(kind=8)
    facts = read_facts(model.build())
    of_type = dict(facts.tensor_bytes)
    assert set(of_type) == {"Q8_0", "F32"}
    assert [name for name, _ in facts.tensor_bytes] == ["Q8_0", "F32"]
    assert of_type["F32"] == 4 * 32 * 5
    assert sum(of_type.values()) == sum(tensor.size for tensor in model.tensors)


def test_the_tokenizer_hash_is_that_of_what_makes_tokens_and_of_nothing_else() -> None:
    tokens = llama().entries["tokenizer.ggml.tokens"]
    base = facts_of().tokenizer_hash
    assert len(bytes.fromhex(base)) == 32
    turned = replace(llama(), entries=dict(reversed(llama().entries.items())))
    same = [
        facts_of({"general.name": "Other"}),
        facts_of({"tokenizer.chat_template": None}),
        read_facts(turned.build()),
    ]
    assert {facts.tokenizer_hash for facts in same} == {base}
    others = [
        facts_of({"tokenizer.ggml.tokens": [*tokens[:-1], "last"]}),
        facts_of({"tokenizer.ggml.model": "gpt2"}),
        facts_of({"tokenizer.ggml.pre": "smollm"}),
        facts_of({"tokenizer.ggml.merges": ["a b"]}),
        facts_of({"tokenizer.ggml.merges": ["a", "b"]}),
        facts_of({"tokenizer.ggml.scores": [1.0] * 264}),
    ]
    assert len({base, *(facts.tokenizer_hash for facts in others)}) == 7


def test_the_tokenizer_hash_does_not_depend_on_where_the_tokens_stand() -> None:
    """They are longer than the pieces in which the file is read."""
    tokens = ["t" * 700 + str(number) for number in range(5000)]
    model = llama(vocabulary=5000).with_({"tokenizer.ggml.tokens": tokens})
    padded = {"pad": "x" * 1000, "array": array(U8, bytes(777_777)), **model.entries}
    assert read_facts(replace(model, entries=padded).build()).tokenizer_hash == read_facts(model.build()).tokenizer_hash


def test_heads_may_be_given_for_each_layer() -> None:
    facts = facts_of({"llama.attention.head_count_kv": [2, 0], "llama.attention.key_length": 24})
    assert (facts.kv_heads, facts.key_length, facts.value_length) == ((2, 0), 24, 8)
    assert facts_of({"llama.attention.head_count_kv": None}).kv_heads == (4, 4)
    assert facts_of({"llama.feed_forward_length": [16, 48]}).feed_forward == 48


def _other(architecture: str, changes: dict[str, Any]) -> GgufFacts:
    model = llama(blocks=6)
    entries = {key.replace("llama.", f"{architecture}.", 1): value for key, value in model.entries.items()}
    model = replace(model, entries={**entries, "general.architecture": architecture})
    return read_facts(model.with_({f"{architecture}.{key}": value for key, value in changes.items()}).build())


@pytest.mark.parametrize(
    ("architecture", "pattern", "windowed"),
    [
        ("gemma3", None, "111110"),
        ("gemma2", None, "101010"),
        ("gemma3", 3, "110110"),
        ("smallthinker", None, "011101"),
        ("gemma4", [1, 0, 0, 1, 1, 1], "100111"),
        ("gemma4", None, "000000"),
    ],
)
def test_which_layers_have_the_sliding_window(architecture: str, pattern: Any, windowed: str) -> None:
    facts = _other(architecture, {"attention.sliding_window": 128, "attention.sliding_window_pattern": pattern})
    assert facts.window == 128
    assert facts.windowed == tuple(letter == "1" for letter in windowed)
    assert not any(_other(architecture, {"attention.sliding_window_pattern": pattern}).windowed)


@pytest.mark.parametrize(
    ("architecture", "changes", "pooling", "embedding"),
    [
        ("bert", {"pooling_type": 2, "attention.causal": False}, "cls", True),
        ("nomic-bert", {}, "", True),
        ("qwen3", {"pooling_type": 3}, "last", True),
        ("qwen3", {"pooling_type": 0}, "none", False),
        ("qwen3", {"attention.causal": False}, "", True),
        ("qwen3", {"attention.causal": True}, "", False),
    ],
)
def test_what_gives_vectors_is_known(architecture: str, changes: dict[str, Any], pooling: str, embedding: bool) -> None:
    facts = _other(architecture, changes)
    assert (facts.pooling, facts.embedding) == (pooling, embedding)


def test_experts_and_states_are_read() -> None:
    facts = facts_of({"llama.expert_count": 8, "llama.expert_used_count": 2})
    assert (facts.experts, facts.experts_used) == (8, 2)
    assert facts_of({"llama.expert_count": 8, "llama.expert_used_count": [2, 4]}).experts_used == 4
    state = {"ssm.inner_size": 64, "ssm.state_size": 16, "ssm.conv_kernel": 4, "ssm.group_count": 1}
    hybrid = _other("mamba2", {**state, "attention.head_count_kv": [0, 0, 0, 2, 0, 0]})
    assert hybrid.state_bytes == 4 * 5 * (3 * (64 + 2 * 16) + 16 * 64)


@pytest.mark.parametrize(("architecture", "key"), [("mamba2", "ssm.state_size"), ("rwkv7", "wkv.head_size")])
def test_a_model_that_keeps_a_state_needs_no_heads(architecture: str, key: str) -> None:
    heads = {"attention.head_count": 0, "attention.head_count_kv": 0}
    facts = _other(architecture, {**heads, key: 64})
    assert (facts.heads, set(facts.kv_heads), facts.key_length) == (0, {0}, 0)
    with pytest.raises(GgufError, match="no layer has attention"):
        _other(architecture, {**heads, key: 0})


CORPUS = corpus()


def test_the_corpus_is_large_and_always_the_same() -> None:
    assert len({one.name for one in CORPUS}) == len(CORPUS) >= 150
    assert [one.data for one in CORPUS[:200]] == [one.data for one in corpus()[:200]]


@pytest.mark.parametrize("one", CORPUS, ids=lambda one: one.name)
def test_a_corrupt_file_is_refused_with_a_reason_or_read(one: Corrupt) -> None:
    found = _read(one)
    if isinstance(found, GgufError):
        assert found.code == "model_load"
        assert 0 < len(found.message) <= 400
    else:
        assert not one.refused
        assert found.data_end <= found.file_bytes


def _read(one: Corrupt) -> GgufFacts | GgufError:
    try:
        return read_facts(one.data)
    except GgufError as error:
        return error


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cut-empty", "cut short"),
        ("cut-last-byte", "cut short"),
        ("hostile-magic-zip", "not a GGUF"),
        ("hostile-version-1", "version 1"),
        ("hostile-big-endian-3", "big-endian"),
        ("hostile-keys-2-63", "metadata entries"),
        ("hostile-tensors-minus-1", "tensors"),
        ("hostile-key-twice", "there twice"),
        ("hostile-text-2-63", "a string of 9223372036854775808 bytes"),
        ("hostile-array-of-arrays", "not supported"),
        ("hostile-tensor-overlap", "share the bytes"),
        ("hostile-tensor-size-wraps", "impossible size"),
        ("hostile-tensor-half-a-block", "multiples of 256"),
        ("hostile-tensor-type-255", "type 255"),
        ("hostile-alignment-0", "alignment is 0"),
        ("hostile-alignment-33", "power of two"),
        ("value-blocks-0", "block_count is 0"),
        ("value-blocks-10-9", "block_count is 1000000000"),
        ("value-blocks-missing", "block_count is missing"),
        ("value-context-0", "context_length is 0"),
        ("value-blocks-text", "no whole number"),
        ("value-architecture-path", "architecture"),
        ("value-kv-heads-3-of-4", "does not divide"),
        ("value-heads-0", r"head_count is 0 or missing in layer 0, which has 2 heads of keys and values"),
        ("value-heads-0-in-a-layer", r"head_count is 0 or missing in layer 1, which has 2 heads"),
        ("value-heads-0-and-kv-heads-0", r"head_count is 0 or missing: no layer has attention"),
        ("value-kv-heads-0", r"head_count_kv is 0 or missing: no layer has attention"),
        ("value-tokens-fewer", "does not fit"),
        ("value-scores-fewer", "one number for each of 264 tokens"),
    ],
)
def test_the_reason_names_what_is_wrong(name: str, says: str) -> None:
    found = next(one for one in CORPUS if one.name == name)
    with pytest.raises(GgufError, match=says):
        read_facts(found.data)


def test_a_short_file_is_told_with_both_numbers() -> None:
    whole = llama().build()
    with pytest.raises(GgufError) as caught:
        read_facts(whole[:-50])
    assert caught.value.details == {"file_bytes": len(whole) - 50, "promised_bytes": len(whole)}
    assert caught.value.code == "model_load"


def _texts(count: int, size: int) -> Raw:
    return Raw(ARRAY, struct.pack("<IQ", STRING, count) + text(b"x" * size) * count)


FISH = "\U0001f41f"
LARGE: dict[str, Gguf] = {
    "large-texts": llama().with_({f"k{i}": FISH + "x" * ((1 << 20) - 4) for i in range(12)}),
    "many-entries": llama().with_({f"{i:04}" + "k" * 250: FISH * 100 for i in range(4000)}),
    "many-texts": llama().with_({"a": _texts(1 << 17, 0), "b": _texts(1 << 16, 0)}),
    "many-tensors": Gguf(
        llama().entries, [*llama().tensors, *(Tensor(f"{i:063}", (8,)) for i in range(16_000))]
    ),
    "long-vocabulary": llama().with_({"tokenizer.ggml.tokens": _texts(200_000, 90)}),
    "many-lists": llama().with_(
        {f"{i}.attention.head_count": array(U8, bytes(512)) for i in range(4000)}
    ),
    "one-long-list": llama().with_({"x.feed_forward_length": array(U8, bytes(1 << 20))}),
}  # fmt: skip


@pytest.mark.parametrize("file", LARGE.values(), ids=LARGE)
def test_a_large_header_takes_little_memory(file: Gguf) -> None:
    data = file.build()
    assert peak(lambda: read_facts(data)) < MOST


def test_more_texts_than_any_vocabulary_has_are_refused() -> None:
    half = _texts(MAX_TEXTS // 2 + 1, 0)
    assert facts_of({"a": half}).name == "Tiny"
    with pytest.raises(GgufError, match=f"texts; the limit is {MAX_TEXTS}"):
        facts_of({"a": half, "b": half})


def test_a_long_template_is_kept_whole() -> None:
    template = "{{ x }}" * 20_000
    assert facts_of({"tokenizer.chat_template": template}).chat_template == template
    with pytest.raises(GgufError, match="limit"):
        facts_of({"tokenizer.chat_template": "x" * ((1 << 20) + 1)})


def test_lengths_that_promise_gigabytes_take_no_memory() -> None:
    for one in CORPUS:
        if one.name.startswith("hostile-"):
            assert peak(lambda one=one: read_facts(one.data)) < 1 << 20, one.name  # type: ignore[misc]


def test_the_real_model_and_a_cut_copy_of_it(tmp_path: Path) -> None:
    path = model_path()
    with path.open("rb") as file:
        facts = read_facts(file)
        assert peak(lambda: read_facts(file)) < MOST
        file.seek(0)
        (tmp_path / "cut.gguf").write_bytes(file.read(10_000_000))
    assert (facts.architecture, facts.size_label, facts.quantisation) == ("llama", "135M", "Q4_1")
    assert (facts.block_count, facts.vocab_size, facts.parameters) == (30, 49152, 134_515_008)
    assert (facts.heads, set(facts.kv_heads), facts.key_length, facts.feed_forward) == (9, {3}, 64, 1536)
    assert dict(facts.tensor_bytes) == {"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544}
    assert facts.tokenizer_hash == "d8ed4619f050faf988cf07dafc508c6136c4b1d2eefde2aa3644b083c2f7f9b0"
    assert facts.chat_template is not None
    assert "<|im_start|>" in facts.chat_template
    assert facts.data_end == facts.file_bytes == path.stat().st_size
    with (tmp_path / "cut.gguf").open("rb") as file, pytest.raises(GgufError, match=f"10000000.*{facts.file_bytes}"):
        read_facts(file)


@pytest.mark.model
def test_tensor_types_are_those_of_ggml() -> None:
    """Asked in a process of its own: the tests' process loads no llama.cpp."""
    code = (
        "import ctypes, json, pathlib, sys, llama_cpp\n"
        "ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / 'lib' / 'libggml-base.so'))\n"
        "ggml.ggml_type_name.restype = ctypes.c_char_p\n"
        "ggml.ggml_type_size.restype = ctypes.c_size_t\n"
        "ggml.ggml_blck_size.restype = ctypes.c_int64\n"
        "print(json.dumps([[ggml.ggml_type_name(i).decode(), ggml.ggml_blck_size(i), ggml.ggml_type_size(i)]"
        " for i in json.loads(sys.argv[1])]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(TENSOR_TYPES))], capture_output=True, text=True, check=True
    )
    found = [(name.upper(), block, size) for name, block, size in json.loads(done.stdout)]
    assert found == [(name.upper(), block, size) for name, block, size in TENSOR_TYPES.values()]


def test_counts_are_labelled_as_people_say_them() -> None:
    assert [size_label(n) for n in (7, 1500, 134_515_008, 1_100_000_000, 70 * 10**9)] == [
        "7",
        "1.5K",
        "135M",
        "1.1B",
        "70B",
    ]


def test_b27_a_model_is_named_by_hash_or_by_name_in_any_case() -> None:
    digest = "sha256:" + "a" * 64
    assert is_hash(digest)
    assert not is_hash(digest.upper())
    assert not is_hash(digest[:-1])
    assert canonical_name("/x/SmolLM2.Q4_1.gguf") == "smollm2.q4_1"
    assert matches("SMOLLM2.q4_1", model_hash=digest, name="SmolLM2.Q4_1.gguf")
    assert matches(digest, model_hash=digest, name="other")
    assert not matches("sha256:" + "b" * 64, model_hash=digest, name="sha256:" + "b" * 64)
