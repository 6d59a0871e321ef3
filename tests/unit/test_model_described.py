"""What a header says of its model goes before the name of its file, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.models.described import Described, Stated, _is_short_for, describe
from fleet.models.gguf import read_facts
from fleet.models.name import MAX_NAME, ModelName, ModelNameError, parse_name
from tests.corpus.gguf.build import llama
from tests.harness import model_path

GEMMA: dict[str, Any] = {"architecture": "gemma3", "basename": "gemma-3", "size_label": "270M", "parameters": 268098176}
LLAMA: dict[str, Any] = {"architecture": "llama", "basename": "Llama-3.2", "finetune": "Instruct", "size_label": "1B"}


def said(name: str, /, **stated: Any) -> Described:
    return describe(name, Stated(**stated))


@pytest.mark.parametrize(
    ("name", "stated", "told"),
    [
        # the header is right and the name is not
        ("gemma-3-2b.gguf", GEMMA, "gemma-3-270m"),
        ("llama-3.2-1b-instruct.gguf", GEMMA, "gemma-3-270m"),
        ("model.gguf", GEMMA, "gemma-3-270m"),
        ("gemma-2-270m.gguf", GEMMA, "gemma-3-270m"),
        ("granite-3.1-2b.gguf", {"basename": "granite-3.3"}, "granite-3.3-2b"),
        ("gemma-3-270m-Q8_0.gguf", {**GEMMA, "quantisation": "Q4_K_M"}, "gemma-3-270m-q4_k_m"),
        ("gemma-3-270m.gguf", {**GEMMA, "finetune": "it"}, "gemma-3-270m-instruct"),
        ("gemma-3-270m-pt.gguf", {**GEMMA, "finetune": "it"}, "gemma-3-270m-instruct"),
        ("Qwen3-4B-Instruct.gguf", {"name": "Qwen3 4B Instruct 2507"}, "qwen-3-4b-instruct-2507"),
        ("Llama-3.2-1B-Instruct.gguf", {**LLAMA, "finetune": "Instruct-tuned"}, "llama-3.2-1b-instruct-tuned"),
        # the name says what the header has no word for
        ("gemma-3-270m-it-Q8_0.gguf", GEMMA, "gemma-3-270m-instruct-q8_0"),
        ("Llama-3.2-1B-Instruct-abliterated.gguf", LLAMA, "llama-3.2-1b-instruct-abliterated"),
        ("Llama-3.2-1B-it-UD-Q4_K_XL.gguf", {**LLAMA, "quantisation": "Q4_K_M"}, "llama-3.2-1b-instruct-ud-q4_k_xl"),
        ("Llama-3.2-1B-Instruct-Q6_K_L.gguf", {**LLAMA, "quantisation": "Q6_K"}, "llama-3.2-1b-instruct-q6_k_l"),
        ("gemma-3-270m-it-qat.gguf", {**GEMMA, "quantisation": "Q4_0"}, "gemma-3-270m-instruct-qat-q4_0"),
        ("Llama-3.2-1B-it-UD-Q4_K_XL.gguf", {**LLAMA, "quantisation": "Q2_K"}, "llama-3.2-1b-instruct-q2_k"),
        ("Mistral-7B.gguf", {"basename": "Mistral", "size_label": "7B", "release": "v0.3"}, "mistral-0.3-7b"),
        # words of a training run are no model's name where the file has one
        ("SmolLM2-135M-Instruct.gguf", {"basename": "smollm2", "finetune": "8k-lc100k-ep2"}, "smollm-2-135m-instruct"),
        ("weights.gguf", {"basename": "smollm2-135M", "finetune": "8k-mix1"}, "smollm-2-135m-8k-mix1"),
        # what it gives is stated too
        ("Qwen3-0.6B.gguf", {"architecture": "qwen3", "embeds": True}, "qwen-3-0.6b-embed"),
        ("bge-base-en.gguf", {"architecture": "bert", "embeds": True, "reranks": True}, "bge-base-embed-rerank-en"),
        # what follows from the architecture
        ("gemma-2b.gguf", {"architecture": "gemma2", "parameters": 2614341888}, "gemma-2-2b"),
        ("gemma-2b.gguf", {"architecture": "gemma", "parameters": 2506172416}, "gemma-2b"),
        ("gemma-2b.gguf", {"architecture": "llama"}, ""),
        ("llama-2-7b.gguf", {"architecture": "qwen2"}, ""),
        ("qwen2.5-7b.gguf", {"architecture": "qwen3"}, ""),
        ("qwen9-7b.gguf", {"architecture": "qwen99"}, "qwen-9-7b"),
        ("granite-3.3-2b.gguf", {"architecture": "whatever"}, "granite-3.3-2b"),
        ("gemma-3-270m.gguf", {"architecture": "gemma3", "basename": "Llama-3.2"}, "gemma-3-270m"),
        # nothing to go by
        ("model.gguf", {"architecture": "llama", "name": "workspace"}, ""),
    ],
)  # fmt: skip
def test_b36_the_header_is_believed(name: str, stated: dict[str, Any], told: str) -> None:
    described = said(name, **stated)
    assert described.told == told
    if told:
        assert described.model == parse_name(told)
    else:
        assert described.model.family == ""


@pytest.mark.parametrize(
    ("name", "stated", "size", "origin"),
    [
        # people say 1B where 1.2B are counted
        ("llama-3.2-1b", {"parameters": 1235814432}, "1B", "name"),
        ("llama-3.2-1b", {"size_label": "1.2B", "parameters": 1235814432}, "1B", "name"),
        ("qwen2.5-0.5b", {"size_label": "494M", "parameters": 494032768}, "0.5B", "name"),
        ("qwen2.5-7b", {"size_label": "7.6B", "parameters": 7615616512}, "7B", "name"),
        ("llama-3.2-1b", {"size_label": "1B", "parameters": 1235814432}, "1B", "header"),
        ("llama-3.2", {"size_label": "1B", "parameters": 1235814432}, "1B", "header"),
        # one of the two is wrong
        ("llama-3-7b", {"size_label": "8B", "parameters": 8030261248}, "8B", "header"),
        ("gemma-3-2b", {"size_label": "270M", "parameters": 268098176}, "270M", "header"),
        ("llama-3.2-1b", {"size_label": "70B", "parameters": 1235814432}, "1B", "name"),
        # both are, or there is none
        ("llama-3.2-7b", {"size_label": "70B", "parameters": 1235814432}, "1.2B", "tensors"),
        ("llama-3.2-7b", {"parameters": 1235814432}, "1.2B", "tensors"),
        ("llama-3.2", {"parameters": 1235814432}, "1.2B", "tensors"),
        ("llama-3.2", {"parameters": 27_000}, "0.027M", "tensors"),
        ("llama-3.2", {"parameters": 27}, "", "nowhere"),
        # labels that do not count all parameters once
        ("gemma-3n-e2b", {"parameters": 4457844736}, "E2B", "name"),
        ("gemma-3n-e2b", {"parameters": 27000000000}, "27B", "tensors"),
        ("mixtral-8x7b", {"parameters": 46702792704}, "8x7B", "name"),
        ("mixtral-8x7b", {"parameters": 7241732096}, "7.2B", "tensors"),
        ("smolvlm-256m", {"parameters": 134515008}, "256M", "name"),
        ("smollm-256m", {"parameters": 134515008}, "135M", "tensors"),
        ("llama-4-17b-16e", {"parameters": 107769861120}, "17B-16E", "name"),
        # sizes in words, and of families that come in one size
        ("phi-4-mini", {"size_label": "3.8B", "parameters": 3836021760}, "mini", "header"),
        ("phi-4", {"size_label": "15B", "parameters": 14659507200}, "", "name"),
        ("phi-4", {"parameters": 3836021760}, "3.8B", "tensors"),
        ("granite-4-tiny", {"size_label": "7B", "parameters": 6939037248}, "7B", "header"),
        ("granite-4-tiny", {"parameters": 6939037248}, "tiny", "name"),
        # a server's word alone
        ("llama3.2:1b", {"size_label": "1.2B"}, "1B", "name"),
        ("llama3.2:1b", {"size_label": "3.2B"}, "3.2B", "header"),
    ],
)
def test_b36_a_size_is_what_the_tensors_allow(name: str, stated: dict[str, Any], size: str, origin: str) -> None:
    described = said(name, **stated)
    assert (described.model.size_label, described.origins["size"]) == (size, origin)
    assert described.told == described.model.canonical


def test_b36_each_field_says_where_it_comes_from() -> None:
    described = said(
        "gemma-3-2b-it-Q8_0.gguf", **GEMMA, name="Gemma 3 270m", quantisation="Q4_K_M", finetune="something"
    )
    assert described.origins == {
        "family": "header", "version": "header", "size": "header", "active": "nowhere", "purposes": "name",
        "variant": "header", "quantisation": "header",
    }  # fmt: skip
    assert described.doubts == ("the name says 2B, the header 268M", "the name says Q8_0, the header Q4_K_M")
    assert said("gemma-2b", architecture="gemma2").origins["version"] == "header"
    assert said("qwen3-30b-a3b", name="Qwen3 30B A3B").origins["active"] == "header"
    assert said("qwen3-30b-a3b", tensors="Q5_K").origins["quantisation"] == "tensors"
    assert said("qwen3-30b-a3b", tensors="Q5_K").model == parse_name("qwen3-30b-a3b-q5_k_m")


def test_b36_what_name_and_header_disagree_on_is_told() -> None:
    assert said("llama-3.2-1b", **GEMMA).doubts == (
        "its name says llama 3.2, which has another architecture than gemma3",
    )
    assert said("hermes-3-8b", basename="Llama-3.2").doubts == ("the name says hermes, the header llama",)
    assert said("gemma-2-270m", basename="gemma-3").doubts == ("the name says version 2, the header 3",)
    assert said("gemma-3-270m-pt", basename="gemma-3-it").doubts == ("the name says base, the header instruct",)
    assert said("llama-7b", size_label="8B").doubts == ("the name says 7B, the header 8B",)
    assert said("llama-7b", size_label="70B", parameters=6738415616).doubts == (
        "the header says 70B, its tensors have 6.7B parameters",
    )
    assert said("gemma-3-270m-it", **GEMMA).doubts == ()


def test_a_name_alone_is_taken_at_its_word() -> None:
    described = describe("Qwen3-30B-A3B-Q4_K_M.gguf")
    assert described.model == parse_name("qwen3-30b-a3b-q4_k_m")
    assert described.origins == {
        "family": "name", "version": "name", "size": "name", "active": "name", "purposes": "nowhere",
        "variant": "nowhere", "quantisation": "name",
    }  # fmt: skip
    assert describe("whatever").told == ""
    with pytest.raises(ModelNameError):
        describe("x" * (MAX_NAME + 1))


def test_the_header_of_a_file_is_read_for_it() -> None:
    entries = {
        "general.basename": "Llama-3.2", "general.finetune": "Instruct", "general.size_label": "1B",
        "general.version": "v9", "general.name": "Other", "general.file_type": 7,
    }  # fmt: skip
    facts = read_facts(llama().with_(entries).build())
    assert (facts.basename, facts.finetune, facts.release, facts.stated_size) == ("Llama-3.2", "Instruct", "v9", "1B")
    assert facts.size_label == "1B"
    stated = Stated.of(facts)
    assert list(stated.names()) == ["Llama-3.2-1B-Instruct-v9", "Other"]
    assert (stated.quantisation, stated.tensors, stated.parameters) == ("Q8_0", "F32", facts.parameters)
    bare = read_facts(llama().build())
    assert (bare.stated_size, bare.size_label) == ("", "27K")


def test_b36_a_real_file_is_what_it_is_called() -> None:
    path = model_path()
    with path.open("rb") as file:
        described = describe(path.name, Stated.of(read_facts(file)))
    assert described.told == "smollm-2-135m-instruct-q4_1"
    assert described.doubts == ()


SCRAPS = "llama Llama-3.2 gemma-3 qwen2.5-coder phi-4 1B 270M 8x7B E2B a3b it base q8_0 abliterated"
WORDS = st.lists(st.sampled_from(SCRAPS.split()), max_size=5).map("-".join)


@given(
    WORDS | st.text(max_size=MAX_NAME),
    st.builds(
        Stated,
        architecture=st.sampled_from(["", "llama", "gemma3", "phi3", "x"]),
        name=WORDS | st.text(max_size=300),
        basename=WORDS | st.text(max_size=300),
        finetune=WORDS,
        size_label=st.sampled_from(["", "1B", "270M", "8x7B", "nonsense"]),
        quantisation=st.sampled_from(["", "Q4_0", "nonsense"]),
        parameters=st.sampled_from([0, 1, 27_000, 268098176, 1235814432, 1 << 62]),
        embeds=st.booleans(),
    ),
)
@settings(max_examples=200, deadline=None)
def test_b37_any_header_gives_a_model_that_others_read_the_same_or_one_of_no_family(name: str, stated: Stated) -> None:
    described = describe(name, stated)
    assert described.model.raw == name
    if described.told:
        assert parse_name(described.told) == described.model
    else:
        assert described.model.family == ""
    if described.model.family == "":
        assert described.told == ""
    assert described.origins.keys() == describe("x").origins.keys()
    assert isinstance(described.model, ModelName)


@pytest.mark.parametrize(
    ("named", "stated", "short"),
    [
        (135, 134.5, True),
        (135, 134.4, False),
        (1000, 1235.8, True),
        (134, 134.5, True),
        (270, 268.1, True),
        (7, 7, False),
    ],
)
def test_a_size_that_people_say_is_rounded_or_cut(named: float, stated: float, short: bool) -> None:
    assert _is_short_for(round(named * 1e6), round(stated * 1e6)) == short
