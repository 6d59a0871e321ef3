"""Which model may answer for which: never another one, unless that is allowed, and then the better first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.models.aliases import Aliases, Reference
from fleet.models.choice import MAX_LISTED, Choice, choose
from fleet.models.described import Stated, describe
from fleet.models.name import parse_name
from fleet.models.substitution import REASONS, SUBSTITUTIONS, Match, Offer, Refusal, Substitution, match
from tests.unit.test_model_names import ENTRIES


def hash_of(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def offer(name: str, *, content: str = "", told: str = "", named: bool = True) -> Offer:
    return Offer(hash_of(content or name), name, parse_name(told or name), named)


def asked(text: str, known_as: Mapping[str, str] | None = None) -> Reference:
    return Aliases().resolve(text, known_as)


def outcome(reference: Reference, of: Offer, substitution: Substitution) -> str:
    found = match(reference, of, substitution)
    return found.fit if isinstance(found, Match) else found.reason


def outcomes(reference: Reference, of: Offer) -> tuple[str, ...]:
    """With none, quant and family allowed."""
    return tuple(outcome(reference, of, substitution) for substitution in SUBSTITUTIONS)


def names(choice: Choice) -> list[str]:
    return [chosen.offer.name for chosen in choice.order]


def chosen_of(text: str, *offers: str, substitution: Substitution = "none") -> list[str]:
    return names(choose(asked(text), map(offer, offers), substitution))


# --- 35: content ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["what ever", "llama-3.2-1b", "ГЕММА", "", "x" * 256, "gemma-3-2b"])
def test_b35_the_exact_hash_serves_whatever_it_is_called(name: str) -> None:
    held = Offer(hash_of("content"), name, parse_name(name), named=False)
    assert outcomes(asked(hash_of("content")), held) == ("hash",) * 3


def test_b35_another_hash_never_serves_by_itself() -> None:
    held = offer("smollm2-135m-instruct-q4_1")
    assert outcomes(asked(hash_of("other")), held) == ("hash",) * 3
    refusal = match(asked(hash_of("other")), held, "family")
    assert isinstance(refusal, Refusal)
    assert (refusal.allowed_by, str(refusal)) == (None, "other content")
    assert outcomes(asked(hash_of("other")), Offer("", held.name, held.model)) == ("hash",) * 3


def test_b35_a_model_whose_name_is_a_hash_is_not_that_content() -> None:
    assert outcomes(asked(hash_of("x")), Offer(hash_of("y"), hash_of("x"), parse_name("x"))) == ("hash",) * 3


@pytest.mark.parametrize(
    ("known", "held", "expected"),
    [
        ("smollm2-135m-instruct-q4_1", "smollm2-135m-instruct-q8_0", ("hash", "quant", "quant")),
        ("smollm2-135m-instruct-q4_1", "smollm2-135m-instruct-q4_1", ("hash", "quant", "quant")),
        ("smollm2-135m-instruct-q4_1", "smollm2-360m-instruct-q4_1", ("hash", "hash", "family")),
        ("smollm2-135m-instruct-q4_1", "smollm2-135m-q4_1", ("hash", "hash", "hash")),
        ("whatever", "whatever", ("hash", "hash", "hash")),
    ],
)
def test_b35_a_hash_that_the_fleet_knows_has_substitutes_if_they_are_allowed(
    known: str, held: str, expected: tuple[str, ...]
) -> None:
    reference = asked(hash_of("wanted"), {hash_of("wanted"): known})
    assert outcomes(reference, offer(held)) == expected


# --- 36 and 37: what never stands in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "held", "reason"),
    [
        ("llama2-7b", "llama3-7b", "version"),
        ("llama-7b", "llama-2-7b", "version"),
        ("llama-2-7b", "llama-7b", "version"),
        ("gemma-270m", "gemma-2b", "size"),
        ("gemma-3-270m", "gemma-2-2b", "version"),
        ("gemma-3n-2b", "gemma-3n-e2b", "size"),
        ("qwen3-30b-a3b", "qwen3-30b", "size"),
        ("smollm2-135m", "llama2-135m", "family"),
        ("tinyllama-1.1b", "llama-1.1b", "family"),
        ("deepseek-r1-7b", "deepseek-r1-distill-qwen-7b", "family"),
        ("smollm2-135m", "smollm2-135m-instruct", "type"),
        ("smollm2-135m-instruct", "smollm2-135m", "type"),
        ("smollm2-135m-instruct", "smollm2-135m-chat", "type"),
        ("qwen3-8b-base", "qwen3-8b", "type"),
        ("qwen2.5-coder-7b", "qwen2.5-7b", "type"),
        ("qwen3-0.6b", "qwen3-embedding-0.6b", "type"),
        ("llama-3-8b-instruct", "llama-3-8b-instruct-abliterated", "variant"),
        ("qwen3-4b-instruct-2507", "qwen3-4b-instruct", "variant"),
        ("llama2-7b", "mistral-8b-instruct", "family"),
        ("llama2-7b", "llama3-8b-instruct", "version"),
        ("llama3-7b", "llama3-8b-instruct", "size"),
    ],
)
def test_b36_another_model_is_refused_with_what_differs(want: str, held: str, reason: str) -> None:
    found = outcomes(asked(want), offer(held))
    assert found[:2] == (reason, reason)
    sizes_alone = parse_name(want).active == parse_name(held).active and want.startswith("gemma")
    assert found[2] == ("family" if reason == "size" and (sizes_alone or "a3b" in want) else reason)


def test_b36_all_that_differs_is_told_the_first_as_the_reason() -> None:
    refusal = match(asked("llama2-7b-chat-q4_0"), offer("gemma-3-270m-it-abliterated-q8_0"), "family")
    assert isinstance(refusal, Refusal)
    assert [found.what for found in refusal.differs] == ["family", "version", "size", "type", "variant", "quantisation"]
    assert str(refusal) == (
        "family gemma instead of llama; version 3 instead of 2; size 270M instead of 7B; type instruct instead of chat;"
        " variant abliterated instead of none; quantisation Q8_0 instead of Q4_0"
    )
    assert (refusal.reason, refusal.allowed_by) == ("family", None)


@pytest.mark.parametrize(
    ("want", "held", "reason", "words"),
    [
        ("whatever-7b", "llama2-7b", "unknown_family", "the name asked for is of no known family"),
        ("llama2-7b", "whatever-7b", "unknown_family", "the one here is of no known family"),
        ("whatever-7b-q4_0", "whatever-7b-q8_0", "unknown_family", "the name asked for is of no known family"),
        ("llamа2-7b", "llama2-7b", "unknown_family", "the name asked for is of no known family"),
        ("llama3.2", "llama3.2-1b", "unknown_size", "the name asked for says no size"),
        ("llama3.2-1b", "llama3.2", "unknown_size", "the size of the one here is not known"),
        ("llama3.2-q4_0", "llama3.2-q8_0", "unknown_size", "the name asked for says no size"),
    ],
)
def test_b37_what_is_not_known_never_stands_in(want: str, held: str, reason: str, words: str) -> None:
    assert outcomes(asked(want), offer(held)) == (reason,) * 3
    refusal = match(asked(want), offer(held), "family")
    assert isinstance(refusal, Refusal)
    assert (refusal.allowed_by, str(refusal).startswith(words)) == (None, True)


def test_b37_a_size_that_is_a_word_is_no_number_to_compare() -> None:
    assert outcomes(asked("granite-4-tiny"), offer("granite-4-small")) == ("size",) * 3
    assert outcomes(asked("granite-4-tiny-q4_0"), offer("granite-4-tiny-q8_0")) == ("quantisation", "quant", "quant")
    assert outcomes(asked("phi-4-mini"), offer("phi-4")) == ("size", "size", "family")
    assert outcomes(asked("llama-4-scout-17b-16e"), offer("llama-4-scout-16x17b")) == ("size",) * 3


def test_b37_a_name_of_no_known_family_still_serves_as_that_very_name() -> None:
    assert outcomes(asked("Shop/Whatever.GGUF"), offer("whatever")) == ("name",) * 3
    assert outcomes(asked("ГЕММА"), offer("гемма")) == ("name",) * 3
    assert outcomes(asked("llamа2-7b"), offer("llamа2-7b")) == ("name",) * 3


def test_b36_a_file_that_is_called_what_it_is_not_does_not_serve_by_its_name() -> None:
    stated = Stated(architecture="gemma3", basename="gemma-3", size_label="270M", parameters=268098176)
    for name, reason in (
        ("gemma-3-2b.gguf", "size"),
        ("gemma-2-270m.gguf", "version"),
        ("smollm-3-270m.gguf", "family"),
        ("smollm-3-270m-q4_0.gguf", "family"),
    ):
        model = describe(name, stated).model
        assert outcome(asked(name), Offer(hash_of(name), name, model, named=False), "none") == reason
        assert outcome(asked(name), Offer(hash_of(name), name, model, named=True), "none") == "name"
    model = describe("gemma-3-270m-pt.gguf", Stated(architecture="gemma3", basename="gemma-3", finetune="it")).model
    assert outcome(asked("gemma-3-270m-pt"), Offer("", "gemma-3-270m-pt", model, named=False), "none") == "type"


def test_b36_a_file_that_cannot_be_what_it_is_called_does_not_serve_by_its_name() -> None:
    model = describe("llama-2-7b.gguf", Stated(architecture="gemma3")).model
    assert outcomes(asked("llama-2-7b"), Offer("", "llama-2-7b", model, named=False)) == ("unknown_family",) * 3
    assert outcomes(asked("llama-2-7b-q8_0"), Offer("", "llama-2-7b", model)) == ("unknown_family",) * 3


def test_b36_a_header_that_says_more_than_the_name_contradicts_nothing() -> None:
    model = describe("gemma-3-270m.gguf", Stated(architecture="gemma3", basename="gemma-3", finetune="it")).model
    assert outcome(asked("gemma-3-270m"), Offer("", "gemma-3-270m", model, named=False), "none") == "name"
    assert outcome(asked("whatever"), Offer("", "whatever", model, named=False), "none") == "name"


# --- 38: quantisations, and what may be allowed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "held", "expected"),
    [
        ("smollm2-135m-q4_1", "smollm2-135m-q8_0", ("quantisation", "quant", "quant")),
        ("smollm2-135m-q4_1", "smollm2-135m", ("quantisation", "quant", "quant")),
        ("smollm2-135m-q4_k_m", "smollm2-135m-ud-q4_k_m", ("quantisation", "quant", "quant")),
        ("smollm2-135m-q4_1", "smollm2-360m-q4_1", ("size", "size", "family")),
        ("smollm2-135m-q4_1", "smollm2-360m-q8_0", ("size", "size", "family")),
        ("smollm2-135m-q4_1", "smollm3-360m-q8_0", ("version",) * 3),
        ("smollm2-135m-q4_1", "smollm2-360m-instruct-q8_0", ("size",) * 3),
        ("smollm2-135m-q4_1", "SmolLM2-135M.Q4_1.gguf", ("same",) * 3),
        ("smollm2-135m", "smollm2-135m-q8_0", ("same",) * 3),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "Llama-3.2-1B-Instruct-Q4_K_M.gguf", ("same",) * 3),
        ("mixtral-8x7b", "mixtral-8x22b", ("size", "size", "family")),
    ],
)
def test_b38_what_may_answer_with_none_quant_and_family_allowed(
    want: str, held: str, expected: tuple[str, ...]
) -> None:
    assert outcomes(asked(want), offer(held)) == expected


def test_b38_a_refused_quantisation_comes_with_the_list_of_what_is_there() -> None:
    held = ["smollm2-135m-instruct.q2_k", "smollm2-135m-instruct.q8_0", "smollm2-135m-instruct.q4_1", "gemma-3-270m"]
    choice = choose(asked("smollm2-135m-instruct-q5_k_m"), map(offer, held))
    assert choice.order == ()
    assert choice.reason == "quantisation"
    better_first = ("smollm2-135m-instruct.q8_0", "smollm2-135m-instruct.q4_1", "smollm2-135m-instruct.q2_k")
    assert choice.possible == (("quant", better_first),)
    assert choice.problem() == (
        "no box that can be asked has smollm2-135m-instruct-q5_k_m; there is smollm2-135m-instruct.q8_0,"
        " smollm2-135m-instruct.q4_1, smollm2-135m-instruct.q2_k (quantisation Q8_0 instead of Q5_K_M): ask for one of"
        " them by name, or allow it with substitution quant"
    )


def test_b38_quant_serves_what_was_asked_first_then_the_better_and_says_so() -> None:
    held = ["llama-3.2-1b-q2_k", "llama-3.2-1b", "llama-3.2-1b-q8_0", "Llama-3.2-1B.Q4_K_M", "llama-3.2-3b-f16"]
    choice = choose(asked("llama3.2:1b-q4_K_M"), map(offer, held), "quant")
    assert names(choice) == ["Llama-3.2-1B.Q4_K_M", "llama-3.2-1b-q8_0", "llama-3.2-1b-q2_k", "llama-3.2-1b"]
    assert [chosen.preference for chosen in choice.order] == [0, 1, 2, 3]
    assert [chosen.match.substituted for chosen in choice.order] == [False, True, True, True]
    assert [str(chosen.match) for chosen in choice.order] == [
        "what the name asks for",
        "quantisation Q8_0 instead of Q4_K_M",
        "quantisation Q2_K instead of Q4_K_M",
        "quantisation not said instead of Q4_K_M",
    ]
    assert choice.possible == (("family", ("llama-3.2-3b-f16",)),)
    assert choice.problem() == ""
    assert choice.reason is None


def test_b38_family_serves_the_size_asked_for_then_the_larger_and_never_another_purpose() -> None:
    held = [
        "qwen3-0.6b-q8_0", "qwen3-4b-q4_0", "qwen3-4b-q8_0", "qwen3-14b-q4_0", "qwen3-1.7b-q2_k", "qwen3-32b-base",
        "qwen2.5-72b", "qwen3-coder-30b", "qwen3-8b-finetuned", "qwen3",
    ]  # fmt: skip
    choice = choose(asked("qwen3-1.7b-q4_0"), map(offer, held), "family")
    assert names(choice) == ["qwen3-1.7b-q2_k", "qwen3-14b-q4_0", "qwen3-4b-q8_0", "qwen3-4b-q4_0", "qwen3-0.6b-q8_0"]
    assert [chosen.match.fit for chosen in choice.order] == ["quant", "family", "family", "family", "family"]
    assert {passed.refusal.reason for passed in choice.passed} == {"size", "version", "unknown_size"}
    assert all(passed.refusal.allowed_by is None for passed in choice.passed)


def test_b38_without_a_quantisation_any_will_do_the_better_first_after_the_very_name() -> None:
    held = ["llama-3.2-1b-q2_k", "llama-3.2-1b-q8_0", "llama-3.2-1b", "llama-3.2-1b-instruct"]
    choice = choose(asked("llama-3.2-1b"), map(offer, held))
    assert names(choice) == ["llama-3.2-1b", "llama-3.2-1b-q8_0", "llama-3.2-1b-q2_k"]
    assert [chosen.match.fit for chosen in choice.order] == ["name", "same", "same"]
    assert not any(chosen.match.substituted for chosen in choice.order)


def test_b35_one_content_is_as_good_under_each_of_its_names() -> None:
    held = [
        offer("llama-3.2-1b-q8_0", content="a"),
        offer("llama-3.2-1b", content="a"),
        offer("llama-3.2-1b-bf16", content="b"),
        offer("llama-3.2-1b-f16", content="c"),
        Offer("", "llama-3.2-1b-f32", parse_name("llama-3.2-1b-f32")),
        Offer("", "llama-3.2-1b-q2_k", parse_name("llama-3.2-1b-q2_k")),
    ]
    choice = choose(asked("llama-3.2-1b"), held)
    assert [(chosen.offer.name, chosen.preference) for chosen in choice.order] == [
        ("llama-3.2-1b", 0), ("llama-3.2-1b-q8_0", 0), ("llama-3.2-1b-f32", 1), ("llama-3.2-1b-bf16", 2),
        ("llama-3.2-1b-f16", 3), ("llama-3.2-1b-q2_k", 4),
    ]  # fmt: skip


def test_b38_a_substitute_gains_nothing_from_another_name_for_its_content() -> None:
    """A box that calls a small model by the name asked for must not put it before the larger ones of others."""
    held = [offer("qwen3-4b", content="tiny"), offer("qwen3-0.6b", content="tiny"), offer("qwen3-14b")]
    choice = choose(asked("qwen3-4b"), held, "family")
    assert [(chosen.offer.name, chosen.preference) for chosen in choice.order] == [
        ("qwen3-4b", 0), ("qwen3-14b", 1), ("qwen3-0.6b", 2),
    ]  # fmt: skip


def test_the_error_names_the_nearest_and_the_remedy() -> None:
    held = [*(f"qwen3-{size}b" for size in range(10, 20)), "gemma-3-270m"]
    larger = choose(asked("qwen3-4b"), map(offer, held))
    assert [setting for setting, _ in larger.possible] == ["family"]
    assert "qwen3-17b and 2 more (size 10B instead of 4B)" in larger.problem()
    assert larger.problem().endswith("or allow it with substitution family")
    assert len(larger.possible[0][1]) == 10 == MAX_LISTED + 2
    other = choose(asked("qwen3-4b-instruct"), map(offer, ["gemma-3-4b-it", "qwen3-4b", "whatever"]))
    assert [passed.offer.name for passed in other.passed] == ["qwen3-4b", "gemma-3-4b-it", "whatever"]
    assert other.reason == "type"
    assert other.problem() == (
        "no box that can be asked has qwen3-4b-instruct; the nearest is qwen3-4b, which is another model (type not said"
        " instead of instruct): ask for what is there by name, or set an alias"
    )
    assert choose(asked("x"), []).problem() == "no box that can be asked has x, nor any other model"
    assert choose(asked("x"), []).reason is None
    assert choose(asked("x-q4_0"), map(offer, ["gemma-3-4b-it", "x-q8_0"])).problem() == (
        "no box that can be asked has x-q4_0, which is of no known family, so that nothing else can answer; there is"
        " x-q8_0, gemma-3-4b-it"
    )
    by_hash = choose(asked(hash_of("x")), [offer("y")])
    assert by_hash.problem().endswith("; what is asked for by its content is served by that alone")
    assert by_hash.reason == "hash"


# --- whatever is asked and held ---------------------------------------------------------------------------------------

NAMES = st.sampled_from([entry["name"] for entry in ENTRIES]) | st.text(min_size=1, max_size=40)
SETTINGS = st.sampled_from(SUBSTITUTIONS)
OFFERS = st.lists(NAMES.map(offer), max_size=8)


def readable(text: str) -> bool:
    return bool(text.strip())


@given(NAMES.filter(readable), SETTINGS)
@settings(max_examples=150, deadline=None)
def test_b36_a_name_means_itself_under_every_setting(name: str, substitution: Substitution) -> None:
    for text in (name, hash_of(name)):
        found = match(asked(text), offer(name), substitution)
        assert isinstance(found, Match)
        assert not found.substituted
        assert found.differs == ()


@given(st.text(max_size=9), OFFERS)
@settings(max_examples=100, deadline=None)
def test_b35_by_default_a_hash_is_served_by_that_content_alone(content: str, held: list[Offer]) -> None:
    wanted = hash_of(content)
    known = {wanted: held[0].name} if held else {}
    choice = choose(asked(wanted, known), [*held, Offer(wanted, "other", parse_name("other"))])
    assert {chosen.offer.hash for chosen in choice.order} == {wanted}


@given(NAMES.filter(readable), OFFERS)
@settings(max_examples=150, deadline=None)
def test_b38_allowing_more_adds_after_what_is_there(name: str, held: list[Offer]) -> None:
    before: list[Offer] = []
    for substitution in SUBSTITUTIONS:
        choice = choose(asked(name), held, substitution)
        order = [chosen.offer for chosen in choice.order]
        assert order[: len(before)] == before
        assert len(order) + len(choice.passed) == len(held)
        preferences = [chosen.preference for chosen in choice.order]
        assert preferences == sorted(preferences)
        before = order
        for chosen in choice.order:
            if chosen.match.substituted:
                assert (chosen.offer.model.family, chosen.offer.model.purposes) == (
                    parse_name(name).family, parse_name(name).purposes,
                )  # fmt: skip
        for passed in choice.passed:
            looser = passed.refusal.allowed_by
            assert looser is None or isinstance(match(asked(name), passed.offer, looser), Match)
            assert passed.refusal.reason == passed.refusal.differs[0].what
            assert passed.refusal.reason in REASONS


@given(NAMES.filter(readable), OFFERS, SETTINGS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_every_box_comes_to_the_same_order(name: str, held: list[Offer], substitution: Substitution, by: Any) -> None:
    mixed = list(held)
    by.shuffle(mixed)
    assert choose(asked(name), held, substitution) == choose(asked(name), mixed, substitution)
