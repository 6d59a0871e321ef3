"""The reader of GGUF headers: what it finds, and that nothing in a file makes it fail otherwise than by saying why."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fleet.models.gguf import GgufError, read_facts, size_label
from fleet.models.reference import canonical_name, is_hash, matches
from tests.harness import model_path


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _entry(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        return _string(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value, float):
        return _string(key) + struct.pack("<If", 6, value)
    return _string(key) + struct.pack("<II", 4, value)


SMALL: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 3,
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 64,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "bc", "def"] * 40,
    "tokenizer.chat_template": "{{ messages }}",
}


def small_gguf(
    changes: dict[str, Any] | None = None,
    *,
    version: int = 3,
    keys: int | None = None,
    tensors: int | None = None,
    shape: tuple[int, ...] = (64, 3),
    kind: int = 3,
    data: int = 120,
) -> bytes:
    """A whole GGUF file of one tensor; a change to None leaves the entry out."""
    entries = {key: value for key, value in {**SMALL, **(changes or {})}.items() if value is not None}
    head = b"GGUF" + struct.pack(
        "<IQQ", version, 1 if tensors is None else tensors, len(entries) if keys is None else keys
    )
    head += b"".join(_entry(key, value) for key, value in entries.items())
    head += _string("token_embd.weight") + struct.pack("<I", len(shape))
    head += b"".join(struct.pack("<Q", size) for size in shape) + struct.pack("<IQ", kind, 0)
    return head + bytes(-len(head) % 32) + bytes(data)


def test_the_facts_of_a_small_file_are_read() -> None:
    facts = read_facts(small_gguf())
    assert (facts.version, facts.architecture, facts.name, facts.quantisation) == (3, "llama", "Tiny", "Q4_1")
    assert (facts.block_count, facts.context_length, facts.embedding_length) == (2, 256, 64)
    assert (facts.parameters, facts.size_label, facts.vocab_size) == (192, "192", 120)
    assert facts.has_chat_template
    assert facts.data_end == facts.file_bytes


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "cut short"),
        (b"GGUF", "cut short"),
        (b"PK\3\4" + bytes(100), "not a GGUF"),
        (small_gguf(version=1), "version 1"),
        (small_gguf(version=0x03000000), "big-endian"),
        (small_gguf(keys=1 << 63), "metadata entries"),
        (small_gguf(tensors=(1 << 64) - 1), "tensors"),
        (small_gguf(tensors=0), "tensors"),
        (small_gguf(keys=4000), "metadata key"),
        (small_gguf({"llama.block_count": 0}), "block_count is 0"),
        (small_gguf({"llama.block_count": 10**9}), "block_count is 1000000000"),
        (small_gguf({"llama.block_count": None}), "block_count is missing"),
        (small_gguf({"llama.context_length": 0}), "context_length is 0"),
        (small_gguf({"llama.embedding_length": "64"}), "no whole number"),
        (small_gguf({"general.architecture": "../x"}), "architecture"),
        (small_gguf({"general.alignment": 33}), "power of two"),
        (small_gguf(shape=(1 << 40, 1 << 40)), "impossible size"),
        (small_gguf(shape=()), "0 dimensions"),
        (small_gguf(shape=(33, 3)), "multiples of 32"),
        (small_gguf(shape=(64, 0)), "impossible size"),
        (small_gguf(data=119), "cut short"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_the_reason(file: bytes, says: str) -> None:
    with pytest.raises(GgufError, match=says):
        read_facts(file)


def test_a_short_file_is_told_with_both_numbers() -> None:
    whole = small_gguf()
    with pytest.raises(GgufError) as caught:
        read_facts(whole[:-50])
    assert caught.value.details == {"file_bytes": len(whole) - 50, "promised_bytes": len(whole)}
    assert caught.value.code == "model_load"


def test_every_cut_of_a_small_file_is_refused() -> None:
    whole = small_gguf()
    for size in range(len(whole)):
        with pytest.raises(GgufError):
            read_facts(whole[:size])


def test_lengths_that_promise_gigabytes_take_no_memory() -> None:
    key = struct.pack("<Q", 1 << 62)
    array = _string("k") + struct.pack("<IIQ", 9, 8, 1 << 61)
    text = _string("k") + struct.pack("<IQ", 8, 1 << 40)
    tracemalloc.start()
    for tail in (key, array, text):
        with pytest.raises(GgufError):
            read_facts(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + tail + bytes(4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "extra",
    [
        {f"k{i}": "\U0001f41f" + "x" * ((1 << 20) - 4) for i in range(12)},
        {"\U0001f41f" + f"{i:04}" + "k" * 1016: "\U0001f41f" + "x" * 1000 for i in range(4000)},
    ],
    ids=["large-texts", "many-entries"],
)
def test_a_header_full_of_text_takes_little_memory(extra: dict[str, Any]) -> None:
    file = small_gguf(extra)
    tracemalloc.start()
    read_facts(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless(seed: int) -> None:
    chance = random.Random(seed)
    whole = small_gguf()
    began = time.monotonic()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.choice((0, 1, 4, 8))] = chance.randbytes(chance.choice((0, 1, 4, 8)))
        try:
            facts = read_facts(bytes(damaged))
        except GgufError:
            continue
        else:
            assert 1 <= facts.block_count <= 512
            assert facts.data_end <= facts.file_bytes
    assert time.monotonic() - began < 60


def test_the_real_model_and_a_cut_copy_of_it(tmp_path: Path) -> None:
    path = model_path()
    with path.open("rb") as file:
        facts = read_facts(file)
        file.seek(0)
        (tmp_path / "cut.gguf").write_bytes(file.read(10_000_000))
    assert (facts.architecture, facts.size_label, facts.quantisation) == ("llama", "135M", "Q4_1")
    assert (facts.block_count, facts.vocab_size) == (30, 49152)
    assert facts.data_end == facts.file_bytes == path.stat().st_size
    with (tmp_path / "cut.gguf").open("rb") as file, pytest.raises(GgufError, match=f"10000000.*{facts.file_bytes}"):
        read_facts(file)


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
