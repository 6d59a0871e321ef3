"""Reading names of models: held to a corpus of real names, and to what must hold of any text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.models.families import BY_NAME, BY_WORDS, FAMILIES
from fleet.models.name import MAX_NAME, ModelName, ModelNameError, label_of, parse_name, read_size
from fleet.models.quantisation import Quantisation, stated_quantisation

CORPUS = Path(__file__).parents[1] / "corpus" / "model_names.yaml"
ENTRIES: list[Mapping[str, Any]] = yaml.load(CORPUS.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


def count(label: str) -> int | None:
    """Parameters as a plain label has them, without the parser's help."""
    label = label.removeprefix("E")
    if not label[:1].isdigit() or "-" in label:
        return None
    whole, _, part = label[:-1].partition(".")
    return (int(whole) * 1000 + int((part + "000")[:3])) * UNITS[label[-1]] // 1000


def test_the_corpus_is_large_and_names_nothing_twice() -> None:
    assert len(ENTRIES) >= 300
    assert len({entry["name"] for entry in ENTRIES}) == len(ENTRIES)
    assert {key for entry in ENTRIES for key in entry} == {
        "name", "family", "version", "size", "params", "active", "purpose", "variant", "quant",
    }  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_b36_a_real_name_says_what_it_says(entry: Mapping[str, Any]) -> None:
    size = entry.get("size", "")
    wanted = {
        "family": entry.get("family", ""),
        "version": entry.get("version", ""),
        "size_label": size,
        "size": entry["params"] if "params" in entry else count(size),
        "active": count(entry.get("active", "")),
        "purposes": tuple(sorted(entry.get("purpose", "").split())),
        "variant": tuple(sorted(str(entry.get("variant", "")).split())),
        "quantisation": Quantisation(entry["quant"]) if "quant" in entry else None,
    }
    read = parse_name(entry["name"])
    if not wanted["family"]:
        for unread in ("version", "purposes", "variant"):
            del wanted[unread]
    assert {field: getattr(read, field) for field in wanted} == wanted
    assert read.raw == entry["name"]
    assert parse_name(read.canonical) == read


# --- what must hold of any name --------------------------------------------------------------------------------------

SCRAPS = (
    "v1 v0 0 00 3 3.0 3n 05 v05 v2.0.0 0.0 12 7b 1.5b 8x7b 0x7b e2b e4b a3b a0b 16e 17b 128e 1m 4k 128k 1234.567b"
    " a1234.567b 0b 01.50b mini small base tiny l6 large xs nano instruct it chat embed vl 2.5vl q4_0 q4_k_m iq4_nl ud"
    " qat i1 awq gptq 4bit int4 8bit bf16 q4 k m nl 4.0bpw mxfp4_moe gguf latest hf mlx meta google nous h2o en 2407"
    " 12-2024 2024 abliterated text embedding qwen_ meta-llama_ 2_6 0_5b distill r1 plus 3.8b s l q8_0_4_8 ud-q4_k_xl"
)
WORDS = ["-".join(words) for words in BY_WORDS] + SCRAPS.split()
MADE_UP = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from("-_:@./ ")), max_size=9).map(
    lambda parts: "".join(word + between for word, between in parts)[:MAX_NAME]
)
NEARLY = st.text(alphabet="qk40-_.:x8bem llama3", max_size=MAX_NAME)


@given(MADE_UP | NEARLY | st.text(max_size=MAX_NAME))
@example("llama-llama-guard")
@example("llama.12-2024")
@example("llama-q4_0-q4_0_4bit")
@example("llama-q8_0_4_8_2_6")
@example("mistral-x-nemo")
@example("phi-mini-3.8b-v3")
@example("a\n/llama-3.2-1b")
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_and_its_canonical_form_says_the_same(text: str) -> None:
    read = parse_name(text)
    assert read.raw == text
    if len(read.canonical) <= MAX_NAME:
        assert parse_name(read.canonical) == read
    if read.size is not None:
        assert read.size > 0
    assert not {"", "gguf", "latest"} & set(read.variant)


@given(st.sampled_from(ENTRIES), st.integers(0, 255), st.sampled_from("а\u212a\u200b\u00a0\x00\n\x7fｌ٣-\u0301\ud800"))
@settings(max_examples=200, deadline=None)
def test_b37_what_merely_looks_like_a_name_is_of_no_known_family(entry: Any, place: int, odd: str) -> None:
    name = entry["name"].replace("\\", "/").rsplit("/", 1)[-1]
    place %= len(name)
    for forged in (name[:place] + odd + name[place + 1 :], name[:place] + odd + name[place:]):
        if odd != "-":
            assert parse_name(forged) == ModelName(), forged
            assert parse_name(forged).canonical != parse_name(name).canonical


@pytest.mark.parametrize("name", ["a" * (MAX_NAME + 1), "llama-3.2-1b" + " " * MAX_NAME, "é" * 300])
def test_longer_names_are_refused(name: str) -> None:
    with pytest.raises(ModelNameError, match=r"at most 256 characters, not (257|268|300)"):
        parse_name(name)


@pytest.mark.parametrize("name", ["", " ", "-", ".gguf", "/", "::", "\\", "gguf", "latest"])
def test_b37_nothing_is_of_no_known_family(name: str) -> None:
    assert parse_name(name) == ModelName()


def test_every_family_is_found_under_all_its_names() -> None:
    assert len(BY_NAME) == len(FAMILIES)
    for family in FAMILIES:
        for phrase in family.phrases:
            for name in (phrase, phrase.upper(), f"meta/{phrase}", phrase.replace("-", "_")):
                read = parse_name(name)
                assert read.family == family.name, name
                assert set(read.purposes) == set(family.purposes)
        assert parse_name(f"{family.name}-9b").size == 9 * 10**9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Llama-3.2-1B-Instruct", "llama3.2:1b-instruct"),
        ("Meta-Llama-3.2-1B-Instruct-GGUF", "llama_3.2_1b_instruct"),
        ("llama-3.0-8b", "llama-3-8b"),
        ("phi3:3.8b-mini", "phi-3-3.8b"),
        ("internlm2_5-7b", "internlm2.5-7b"),
        ("gemma3:1b-it-q4_K_M", "google_gemma-3-1b-it-Q4_K_M.gguf"),
        ("model-Q4_K.gguf", "model-Q4_K_M.gguf"),
        ("llama-3-8b-Q4_0-00001-of-00009.gguf", "llama-3-8b-Q4_0"),
        ("qwen_qwen3-8b", "qwen3-8b"),
    ],
)
def test_two_ways_to_write_one_name(one: str, other: str) -> None:
    assert parse_name(one) == parse_name(other)


@pytest.mark.parametrize(
    ("one", "other", "field"),
    [
        ("llama2-7b", "llama3-7b", "version"),
        ("llama-7b", "llama-2-7b", "version"),
        ("gemma-3-270m", "gemma-3-2b", "size"),
        ("gemma-3n-E2B", "gemma-3n-2B", "size_label"),
        ("qwen3-30b", "qwen3-30b-a3b", "active"),
        ("deepseek-r1-distill-qwen-7b", "deepseek-r1-7b", "family"),
        ("hermes-3-llama-3.1-8b", "llama-3.1-8b", "family"),
        ("tinyllama-1.1b", "llama-1.1b", "family"),
        ("qwen2.5-coder-7b", "qwen2.5-7b", "purposes"),
        ("qwen3-8b-base", "qwen3-8b", "purposes"),
        ("llama-2-7b-chat", "llama-2-7b-instruct", "purposes"),
        ("llama-3-8b-instruct-abliterated", "llama-3-8b-instruct", "variant"),
        ("qwen3-4b-instruct-2507", "qwen3-4b-instruct", "variant"),
        ("phi-3-mini-4k-instruct", "phi-3-mini-128k-instruct", "variant"),
        ("llama-3-8b-Q4_K_M", "llama-3-8b-Q4_K_S", "quantisation"),
        ("llama-3-8b-UD-Q4_K_XL", "llama-3-8b-Q4_K_XL", "quantisation"),
        ("gemma3:1b-it-qat", "gemma3:1b-it", "quantisation"),
    ],
)
def test_b36_names_of_different_models_differ(one: str, other: str, field: str) -> None:
    assert getattr(parse_name(one), field) != getattr(parse_name(other), field)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("llama-0.5b", "llama-500m", True),
        ("phi-4-mini", "phi-4-3.8b", True),
        ("granite-4-tiny", "granite-4-tiny-base", True),
        ("gemma-3n-E2B", "gemma-3n-2B", False),
        ("mixtral-8x7b", "mixtral-56b", False),
        ("llama-4-17b-16e", "llama-4-17b-128e", False),
        ("qwen3-30b-a3b", "qwen3-30b", False),
        ("llama-3.2", "llama-3.2", False),
        ("granite-4-tiny", "granite-4-small", False),
        ("phi-4-mini-flash", "phi-4-3.8b", False),
    ],
)
def test_b36_sizes_are_compared_as_numbers_where_they_are_numbers(one: str, other: str, same: bool) -> None:
    assert parse_name(one).same_size(parse_name(other)) is same
    assert parse_name(other).same_size(parse_name(one)) is same


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("llama-4-17b-16e-32e", "32e"),
        ("mixtral-8x7b-16e", "16e"),
        ("llama-7b-13b", "13b"),
        ("llama-7b-a3b-a4b", "a4b"),
        ("llama-3.1-3.2", "3.2"),
        ("llama-awq-gptq", "awq"),
        ("llama-4bit-8bit", "4bit"),
        ("llama-4bit-8bit-4bit", "8bit"),
        ("llama-awq-q4_0", "awq"),
        ("llama-f16-q4_0", "f16"),
        ("llama-3b-ud", "ud"),
        ("bge-large-base", "base"),
        ("granite-tiny-small", "small"),
        ("nous-hermes-2-pro", "pro"),
    ],
)
def test_b36_a_word_that_says_a_thing_again_is_not_lost(name: str, variant: str) -> None:
    assert parse_name(name).variant == (variant,)


def test_sizes_by_themselves() -> None:
    assert read_size("8x7B") == (56 * 10**9, "8x7B")
    assert read_size(" 0.6b ") == (600 * 10**6, "0.6B")
    for nonsense in ("", "B", "7", "0B", "0x7B", "12345B", "7B-it", "٣B", "1e9B"):
        assert read_size(nonsense) == (None, "")


@given(st.integers(1, 9999), st.sampled_from([10**6, 10**9, 10**12]), st.integers(0, 999))
@example(8192, 10**12, 3)  # more digits than a float has
def test_a_label_says_its_number(whole: int, unit: int, part: int) -> None:
    number = whole * unit + part * unit // 1000
    assert read_size(label_of(number))[0] == number


# --- quantisations ---------------------------------------------------------------------------------------------------


BEST_FIRST = (
    "F32 BF16 F16 Q8_0 FP8 Q6_K_L Q6_K Q5_K_L Q5_K_M Q5_K_S Q5_1 Q5_0 UD-Q4_K_XL Q4_K_L Q4_K_M Q4_K_S IQ4_NL IQ4_XS"
    " Q4_1 MXFP4 QAT-Q4_0 Q4_0 Q3_K_L IQ3_M UD-Q3_K_XL Q3_K_M 4BIT Q3_K_S IQ3_XXS UD-Q2_K_XL Q2_K IQ2_M IQ2_XXS"
    " IQ1_M IQ1_S"
)


def test_b38_better_quantisations_keep_more() -> None:
    qualities = [Quantisation(name).quality for name in BEST_FIRST.split()]
    assert qualities == sorted(set(qualities), reverse=True)
    assert Quantisation("QAT").quality == Quantisation("QAT-Q4_0").quality
    assert Quantisation("8BIT").quality > Quantisation("AWQ").quality > Quantisation("2BIT").quality > 0
    assert Quantisation("EXL2").quality > Quantisation("HOMEMADE").quality == 0.0


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("Q4_K_M", 4.89), ("UD-Q4_K_XL", 4.89), ("Q8_0", 8.5), ("BF16", 16.0), ("MXFP4", 4.25), ("QAT", 4.5),
        ("AWQ", 4.0), ("GPTQ-INT8", 8.0), ("EXL2-4.25BPW", 4.25), ("6BIT", 6.0), ("HOMEMADE", 0.0), ("IQ1_S", 2.0),
    ],
)  # fmt: skip
def test_bits_a_weight(name: str, bits: float) -> None:
    assert Quantisation(name).bits == bits


def test_what_a_header_states_is_one_whole_name() -> None:
    assert stated_quantisation("q4_K_M") == stated_quantisation("Q4_K") == Quantisation("Q4_K_M")
    assert [stated_quantisation(text) for text in ("", "unknown", "Q4_K - Medium", "xQ4_0", "Q4_0 Q4_0")] == [None] * 5
