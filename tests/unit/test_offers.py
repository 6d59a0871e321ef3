"""What boxes hold and may answer with: which of a box's models is taken, in which order boxes come, what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from agent.routing.decide import Ask, Decision, LocalState, PeerState, Rules, decide
from agent.routing.offers import MAX_OFFERS, Found, Names, Offers
from fleet.models.aliases import Aliases
from fleet.models.name import ModelNameError
from fleet.models.substitution import Substitution
from fleet.net.messages import ModelPresence

NONE = Names()
SMOL = "smollm2-135m-instruct"


def held(name: str, number: int, *, reads: str | None = None, **changes: Any) -> ModelPresence:
    fields: dict[str, Any] = {"state": "loaded", "context_tokens": 2048, "decode_rate": 50.0, **changes}
    return ModelPresence(hash=f"sha256:{number:064x}", name=name, reads=name if reads is None else reads, **fields)


def found(
    asked: str, models: list[ModelPresence], substitution: Substitution = "none", names: Names = NONE
) -> list[Found | None]:
    selection = Offers().select(asked, substitution, models, names)
    return [selection.best_of([model]) for model in models]


def places(
    asked: str, models: list[ModelPresence], substitution: Substitution = "none", names: Names = NONE
) -> list[int | None]:
    return [one.place if one else None for one in found(asked, models, substitution, names)]


def route(
    asked: str, here: list[ModelPresence], peers: dict[str, ModelPresence], substitution: Substitution, **changes: Any
) -> Decision:
    """What is decided where this box holds `here` and each peer one model."""
    selection = Offers().select(asked, substitution, [*here, *peers.values()], NONE)
    own = selection.best_of(here)
    local = LocalState("me", "here", None)
    if own is not None:
        local = LocalState("me", "here", own.model, match=own.chosen.match, choice=own.place)
    states = []
    for name, model in peers.items():
        one = selection.best_of([model])
        state = PeerState(name, name, True, 1.0, False, one.model if one else None, 0.001, **changes)
        if one is not None:
            state = PeerState(
                name, name, True, 1.0, False, one.model, 0.001,
                match=one.chosen.match, choice=one.place, **changes,
            )  # fmt: skip
        states.append(state)
    return decide(Ask("prefer"), local, states, Rules())


def test_b35_a_hash_and_a_name_that_cannot_be_read_are_served_as_ever() -> None:
    odd, other = held("Ωmega???", 1, reads=""), held("what-ever", 2, reads="")
    assert places(odd.hash, [odd, other]) == [0, None]
    assert places("WHAT-ever.gguf", [odd, other]) == [None, 0]
    assert places("Ωmega???", [odd, other]) == [0, None]


def test_one_name_with_two_contents_is_one_place_for_both() -> None:
    """As it always was: who asks by that name gets the box that is best for the job."""
    small, large = held("shop", 1, reads=f"{SMOL}-q2_k"), held("shop", 2, reads=f"{SMOL}-q8_0")
    assert places("shop", [small, large]) == [0, 0]
    named, same = held(SMOL, 3, reads=f"{SMOL}-q4_1"), held("file", 4, reads=f"{SMOL}-q8_0")
    assert places(SMOL, [small, named, same, large]) == [2, 0, 1, 1]


def test_b38_another_quantisation_only_where_it_is_allowed_and_the_better_goes_first() -> None:
    models = [held(f"{SMOL}-{kind}", number) for number, kind in enumerate(("q2_k", "q8_0", "q5_k_m"))]
    assert places(f"{SMOL}-q4_1", models) == [None, None, None]
    assert places(f"{SMOL}-q4_1", models, "quant") == [2, 0, 1]
    assert all(one and one.chosen.match.substituted for one in found(f"{SMOL}-q4_1", models, "quant"))


@pytest.mark.parametrize("asked", ["gemma-3-2b-it", "llama-2-7b", "smollm2-360m-instruct", SMOL + "-abliterated"])
def test_b36_another_model_is_none_whatever_its_name(asked: str) -> None:
    """A file says more than the name that it happens to have."""
    impostor = held(asked, 1, reads="gemma-3-270m-instruct-q8_0", named=False)
    assert places(asked, [impostor]) == [None]
    assert places(asked, [impostor], "quant") == [None]


def test_b37_what_is_of_no_known_family_stands_in_for_nothing() -> None:
    assert places(f"{SMOL}-q4_1", [held("a", 1, reads="")], "family") == [None]
    assert places("a-7b-q4_0", [held(f"{SMOL}-q8_0", 1)], "family") == [None]


def test_a_box_that_is_too_old_to_say_is_known_by_the_name_alone() -> None:
    old = ModelPresence(hash="sha256:" + "1" * 64, name=f"{SMOL}.q8_0", state="loaded", context_tokens=1)
    assert (old.reads, old.named) == (None, True)
    assert places(SMOL, [old]) == [0]
    assert places(SMOL, [held(f"{SMOL}.q8_0", 1, reads="")]) == [None]


def test_of_one_box_the_best_that_it_can_load_is_taken() -> None:
    models = [held(f"{SMOL}-q2_k", 1), held(f"{SMOL}-q8_0", 2), held(f"{SMOL}-f16", 3, state="failed")]
    selection = Offers().select(SMOL, "none", models, NONE)
    best, only = selection.best_of(models), selection.best_of(models[2:])
    assert best is not None
    assert best.model is models[1]
    assert only is not None
    assert only.model.state == "failed"
    assert selection.best_of([held("gemma-3-270m", 4)]) is None


def test_names_of_the_document_go_before_names_of_models() -> None:
    models = [held("till", 1, reads=""), held(f"{SMOL}-q8_0", 2)]
    assert places("till", models) == [0, None]
    names = Names(Aliases({"till": SMOL}), {f"sha256:{9:064x}": f"{SMOL}-q4_1"})
    assert places("till", models, names=names) == [None, 0]
    assert places(f"sha256:{9:064x}", models, names=names) == [None, None]
    assert places(f"sha256:{9:064x}", models, "quant", names) == [None, 0]
    with pytest.raises(ModelNameError):
        places("  ", models)


def test_a_choice_is_kept_until_boxes_hold_something_else_or_the_document_changes() -> None:
    offers, models = Offers(), [held(f"{SMOL}-q8_0", 1)]
    first = offers.select(SMOL, "none", models, NONE)
    busier = [model.model_copy(update={"running": 3}) for model in models]
    assert offers.select(SMOL, "none", busier, NONE) is first
    assert offers.select(SMOL, "quant", busier, NONE) is not first
    more = [*models, held(f"{SMOL}-f16", 2)]
    assert offers.select(SMOL, "none", more, NONE).best_of(more[1:]) is not None
    assert offers.select(SMOL, "none", models, NONE) is not first
    again = offers.select(SMOL, "none", models, NONE)
    assert offers.select(SMOL, "none", models, Names()) is not again


def test_boxes_that_name_thousands_of_models_keep_nobody_from_a_model() -> None:
    flood = [held(f"{SMOL}-x{number}-q4_1", 1000 + number) for number in range(MAX_OFFERS + 50)]
    common, rare = held(f"{SMOL}-q8_0", 1), held("what-ever", 2, reads="")
    models = [*flood, rare, common, common]
    for asked, wanted in ((SMOL, common), ("What-Ever", rare), (rare.hash, rare), (flood[-1].name, flood[-1])):
        selection = Offers().select(asked, "none", models, NONE)
        assert len(selection.choice.order) + len(selection.choice.passed) <= MAX_OFFERS
        best = selection.best_of(models)
        assert best is not None
        assert best.model == wanted


def test_boxes_come_by_how_well_their_models_fit_and_then_by_load() -> None:
    peers = {
        "fast-q2": held(f"{SMOL}-q2_k", 1, decode_rate=900.0),
        "busy-q8": held(f"{SMOL}-q8_0", 2, running=4, queued=9, decode_rate=20.0),
        "q8": held(f"{SMOL}-q8_0", 2, decode_rate=10.0),
        "360m": held("smollm2-360m-instruct-q8_0", 3, decode_rate=900.0),
    }
    assert route(f"{SMOL}-q4_1", [], peers, "none").order == ()
    decision = route(f"{SMOL}-q4_1", [], peers, "quant")
    assert decision.order == ("q8", "busy-q8", "fast-q2")
    assert {v.name: v.reason for v in decision.verdicts}["q8"] == f"candidate, has {SMOL}-q8_0"
    assert route(f"{SMOL}-q4_1", [], peers, "family").order == ("q8", "busy-q8", "fast-q2", "360m")


def test_this_box_gives_way_to_a_better_fit_and_not_to_a_lesser_one() -> None:
    here, better = held(f"{SMOL}-q4_1", 1, decode_rate=1.0), held(f"{SMOL}-q8_0", 2)
    lesser = held(f"{SMOL}-q2_k", 3, decode_rate=900.0)
    peers = {"better": better, "lesser": lesser}
    decision = route(SMOL, [here], peers, "none")
    assert decision.order == ("better", "me")
    assert {v.name: v.reason for v in decision.verdicts} == {
        "here": "holds the model, 1 tok/s",
        "better": "candidate",
        "lesser": "what it holds is further from what was asked for",
    }
    quick = here.model_copy(update={"decode_rate": 50.0})
    assert route(SMOL, [quick], peers, "none").order == ("better", "me")
    assert route(SMOL, [quick], {"better": better}, "none", refusing="hot").order == ("me",)
    assert route(f"{SMOL}-q4_1", [quick], peers, "quant").order == ("me",)
