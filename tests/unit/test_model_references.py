"""What a request asks for: hashes, names and aliases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.models.aliases import MAX_STEPS, Aliases, Reference
from fleet.models.name import MAX_NAME, ModelName, ModelNameError, parse_name
from fleet.models.reference import canonical_name, matches

HASH = "sha256:" + "ab" * 32


def test_b35_a_hash_is_a_hash() -> None:
    found = Aliases().resolve(HASH)
    assert found == Reference(HASH, HASH)
    assert (found.hash, found.name, found.model) == (HASH, "", ModelName())
    for near in (HASH.upper(), f" {HASH}"):
        assert Aliases().resolve(near).hash == ""


def test_b35_a_hash_is_what_the_fleet_knows_it_as_and_no_alias() -> None:
    aliases = Aliases({HASH: "llama-3.2-1b", f"x/{HASH}": "llama-3.2-1b", "small": HASH})
    assert aliases.resolve(HASH).target == HASH
    found = aliases.resolve("small", known_as={HASH: "smollm2-135m-instruct-q4_1"})
    assert (found.hash, found.aliases) == (HASH, ("small",))
    assert found.model == parse_name("smollm2-135m-instruct-q4_1")
    assert aliases.resolve("small", known_as={HASH: "x" * 999}).model.family == ""


def test_a_name_is_read() -> None:
    found = Aliases().resolve("bartowski/Llama-3.2-1B-Instruct-GGUF")
    assert (found.hash, found.name) == ("", "llama-3.2-1b-instruct-gguf")
    assert found.model == parse_name("llama-3.2-1b-instruct")


def test_an_alias_stands_for_what_it_names() -> None:
    aliases = Aliases({"Till": "assistant", "assistant": "smollm2-135m-instruct", "pinned": HASH})
    found = aliases.resolve("shop/TILL.gguf")
    assert (found.asked, found.target) == ("shop/TILL.gguf", "smollm2-135m-instruct")
    assert found.aliases == ("till", "assistant")
    assert found.model == parse_name("smollm2-135m-instruct")
    assert aliases.resolve("pinned").hash == HASH
    assert aliases.resolve("other").aliases == ()


def test_an_alias_goes_before_a_model_of_that_name() -> None:
    assert Aliases({"llama-3.2-1b": "gemma-3-270m"}).resolve("Llama-3.2-1B").target == "gemma-3-270m"


@pytest.mark.parametrize(
    ("targets", "chain"),
    [
        ({"a": "a"}, "a -> a"),
        ({"a": "b", "b": "a"}, "a -> b -> a"),
        ({"a": "b", "b": "c", "c": "b"}, "a -> b -> c -> b"),
    ],
)
def test_aliases_that_lead_back_are_refused(targets: dict[str, str], chain: str) -> None:
    with pytest.raises(ModelNameError, match=f"the alias a leads nowhere: {chain}; set one of them to a model"):
        Aliases(targets).resolve("a")


def test_aliases_are_followed_so_far_and_no_further() -> None:
    chain = {f"a{step}": f"a{step + 1}" for step in range(MAX_STEPS)}
    assert Aliases(chain).resolve("a0").target == f"a{MAX_STEPS}"
    with pytest.raises(ModelNameError, match="leads nowhere"):
        Aliases({**chain, f"a{MAX_STEPS}": "end"}).resolve("a0")


def test_entries_that_cannot_be_meant_are_left_out() -> None:
    odd = {"": "x", "empty": "", "long": "x" * (MAX_NAME + 1), "y" * (MAX_NAME + 1): "x", HASH: "x", "models/": "x"}
    aliases = Aliases(odd)
    for alias in ("empty", "long", HASH, "models/"):
        assert aliases.resolve(alias).target == alias
    assert Aliases({"a": "x" * MAX_NAME}).resolve("a").target == "x" * MAX_NAME


def test_two_spellings_of_one_alias_mean_the_same_on_every_box() -> None:
    both = {"Small": "first", "small": "second"}
    turned = dict(reversed(both.items()))
    assert Aliases(both).resolve("small").target == Aliases(turned).resolve("SMALL").target == "first"


@pytest.mark.parametrize("asked", ["", " ", "\t"])
def test_no_name_at_all_is_refused(asked: str) -> None:
    with pytest.raises(ModelNameError, match="no model is named") as refused:
        Aliases().resolve(asked)
    assert refused.value.code == "bad_request"


def test_a_name_that_is_too_long_is_refused() -> None:
    assert Aliases().resolve("x" * MAX_NAME).name == "x" * MAX_NAME
    with pytest.raises(ModelNameError, match="at most 256 characters, not 257"):
        Aliases().resolve("x" * (MAX_NAME + 1))


@given(st.text(max_size=300), st.dictionaries(st.text(max_size=9), st.text(max_size=300), max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_reference_or_refused(asked: str, targets: dict[str, str]) -> None:
    try:
        found = Aliases({**targets, "x": asked}).resolve(asked)
    except ModelNameError:
        return
    assert found.asked == asked
    assert bool(found.hash) != bool(found.name) or found.name == ""


@pytest.mark.parametrize("odd", ["llama\u212a", "llama-3\u200b", "llama-3\x00", "lla\nma-3", "х/llama-3\x7f"])
def test_b37_what_does_not_show_or_only_looks_alike_equals_no_name(odd: str) -> None:
    plain = "".join("k" if c == "\u212a" else c for c in odd if c.isprintable())
    assert not matches(odd, model_hash=HASH, name=plain)
    assert matches(odd, model_hash=HASH, name=odd)


def test_names_are_compared_in_any_case_and_without_folders() -> None:
    assert canonical_name("Shop/BÜRO-Ä.GGUF") == "büro-ä"
    assert canonical_name("a/b/C.gguf") == "c"
    assert canonical_name("\u212a") == "\u212a"


def test_a_canonical_name_is_never_longer_than_the_name() -> None:
    assert canonical_name("İ" * 256) == "İ" * 256
    assert canonical_name("ÄÖ-\u212a") == "äö-\u212a"


@pytest.mark.parametrize(
    "asked", ["sha256:zz", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, HASH + "0", HASH + "\n"]
)
def test_what_begins_like_a_hash_and_is_none_is_told_what_one_is(asked: str) -> None:
    with pytest.raises(ModelNameError, match="64 hex digits"):
        Aliases().resolve(asked)
