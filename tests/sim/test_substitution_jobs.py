"""A job for a model that nobody has as it was asked for: who is asked instead, in which order, what its client is told.

Peers are scripted, the clock is a mock, and the choice among models is the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import trio

from agent.errors import BadRequestError, ModelNotFoundError, NoCapablePeerError
from agent.jobs.job import Job, Resumed, Routed, Substituted
from agent.jobs.neighbourhood import Survey
from agent.jobs.watch import EngineEmit
from agent.routing.decide import LocalState, PeerState
from agent.routing.offers import Names, Offers
from fleet.errors import PeerUnreachableError as LinkBrokenError
from fleet.models.aliases import Aliases
from fleet.models.substitution import Substitution
from fleet.net.messages import Delta, Finished, InferRequest, ModelPresence, Started
from tests.sim.test_jobs import Fleet, Script, fail, job, run, serve

SMOL = "smollm2-135m-instruct"
NAMES = Names(Aliases({"till": SMOL, "a": "b", "b": "a"}))


def model(name: str, number: int, **changes: object) -> ModelPresence:
    found = ModelPresence(
        hash=f"sha256:{number:064x}", name=name, reads=name, state="loaded", context_tokens=2048, decode_rate=50.0
    )
    return found.model_copy(update=changes)


Q2, Q4, Q8 = model(f"{SMOL}.q2_k", 2), model(f"{SMOL}.q4_1", 4), model(f"{SMOL}.q8_0", 8)


@dataclass
class Shelves(Fleet):
    """Peers that hold what `shelves` says, by name."""

    shelves: dict[str, ModelPresence] = field(default_factory=dict)
    own: ModelPresence | None = None
    offers: Offers = field(default_factory=Offers)

    def survey(self, asked: str, substitution: Substitution | None) -> Survey:
        own = [self.own] if self.own is not None else []
        selection = self.offers.select(asked, substitution or "none", [*own, *self.shelves.values()], NAMES)
        local, here = LocalState("me", "here", None), selection.best_of(own)
        if here is not None:
            local = replace(local, model=here.model, match=here.chosen.match, choice=here.place)
        peers = []
        for name, held in self.shelves.items():
            found = selection.best_of([held])
            state = PeerState(name, name, True, 1.0, False, found.model if found else None, 0.001)
            peers.append(replace(state, match=found.chosen.match, choice=found.place) if found else state)
        down = [PeerState(name, name, False, 0.0, False, None, heard=False) for name in self.down]
        return Survey(selection.choice, local, [*peers, *down])

    async def generate(self, model_hash: str, request: InferRequest, emit: EngineEmit) -> None:
        assert self.own is not None
        assert model_hash == self.own.hash
        self.asked.append(("me", request))
        await honest(self.own)(request, emit)

    def known_models(self) -> Sequence[str]:
        return sorted(held.name for held in self.shelves.values())


def honest(held: ModelPresence, words: Sequence[str] = ("ok",), then: BaseException | None = None) -> Script:
    async def script(request: InferRequest, emit: EngineEmit) -> None:
        assert request.model == held.hash
        await emit(Started(model=held.name, hash=held.hash, prompt_tokens=5))
        for word in words:
            await emit(Delta(text=word))
            await trio.sleep(0.01)
        if then is not None:
            raise then
        await emit(Finished(reason="stop", prompt_tokens=5, completion_tokens=1, prefill_ms=1.0, decode_ms=1.0))

    return script


def shelves(**held: ModelPresence) -> Shelves:
    return Shelves({name: honest(one) for name, one in held.items()}, shelves=held)


def asking(name: str, substitution: Substitution | None = None, **changes: object) -> Job:
    return replace(job(model=name, **changes), substitution=substitution)


def routed(events: Sequence[object]) -> Routed:
    return next(event for event in events if isinstance(event, Routed))


def test_b38_the_better_quantisation_goes_first_and_the_client_is_told() -> None:
    fleet = shelves(p=Q2, q=Q8)
    result = run(fleet, asking(f"{SMOL}-Q4_1", "quant"))
    assert (result.text, [who for who, _ in fleet.asked]) == ("ok", ["q"])
    told = routed(result.events)
    assert told.model == f"{SMOL}.q8_0"
    assert told.substituted == Substituted(f"{SMOL}-Q4_1", f"{SMOL}.q8_0", ("quantisation Q8_0 instead of Q4_1",))


def test_b38_the_lesser_one_only_after_all_of_the_better_have_failed() -> None:
    fleet = shelves(p=Q2, q=Q8, r=Q8)
    fleet.peers |= {"q": fail(LinkBrokenError("broke")), "r": fail(LinkBrokenError("broke"))}
    result = run(fleet, asking(f"{SMOL}-q4_1", "quant"))
    assert result.text == "ok"
    assert (sorted(who for who, _ in fleet.asked[:2]), fleet.asked[2][0]) == (["q", "r"], "p")
    assert routed(result.events).model == f"{SMOL}.q2_k"


def test_the_last_attempt_is_this_boxs_own_where_it_can_run_the_job() -> None:
    held = dict.fromkeys("pqrs", Q8)
    fleet = Shelves({name: fail(LinkBrokenError("broke")) for name in held}, shelves=held, own=Q2)
    result = run(fleet, asking(f"{SMOL}-q4_1", "quant"))
    assert result.text == "ok"
    assert [who for who, _ in fleet.asked[2:]] == ["me"]
    assert (routed(result.events).local, routed(result.events).model) == (True, Q2.name)


def test_b38_without_leave_it_is_refused_with_what_there_is() -> None:
    fleet = shelves(p=Q2, q=Q8)
    error = run(fleet, asking(f"{SMOL}-q4_1")).error
    assert isinstance(error, ModelNotFoundError)
    assert f"there is {SMOL}.q8_0, {SMOL}.q2_k (quantisation Q8_0 instead of Q4_1)" in error.message
    assert "allow it with substitution quant" in error.message
    assert error.details == {
        "known": [f"{SMOL}.q2_k", f"{SMOL}.q8_0"],
        "param": "model",
        "reason": "quantisation",
        "substitution": "none",
        "possible": {"quant": [f"{SMOL}.q8_0", f"{SMOL}.q2_k"]},
    }
    assert fleet.asked == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("llama2-7b-instruct", "family"),
        ("smollm-135m-instruct", "version"),
        ("smollm2-360m-instruct", "size"),
        ("smollm2-135m-base", "type"),
    ],
)
def test_b36_another_family_version_size_or_type_is_refused_with_that_reason(asked: str, reason: str) -> None:
    error = run(shelves(p=Q8), asking(asked, "quant")).error
    assert isinstance(error, ModelNotFoundError)
    assert error.details["reason"] == reason
    assert f"{reason} " in error.message


def test_b37_an_unknown_family_stands_in_for_nothing() -> None:
    error = run(shelves(p=model("what-ever-7b", 1)), asking("other-7b", "family")).error
    assert isinstance(error, ModelNotFoundError)
    assert (error.details["reason"], error.details["possible"]) == ("unknown_family", {})


def test_b35_the_content_asked_for_is_served_under_any_name() -> None:
    odd = model("???", 9, reads="")
    result = run(shelves(p=Q8, q=odd), asking(odd.hash))
    assert result.text == "ok"
    assert (routed(result.events).model, routed(result.events).substituted) == ("???", None)


def test_an_alias_is_the_model_that_it_stands_for() -> None:
    result = run(shelves(p=Q4), asking("TILL"))
    assert (result.text, routed(result.events).substituted) == ("ok", None)
    error = run(shelves(p=Q4), asking("a")).error
    assert isinstance(error, BadRequestError)
    assert "a -> b -> a" in error.message


def test_a_box_that_runs_another_model_than_it_was_asked_for_is_not_believed() -> None:
    fleet = shelves(p=Q8, q=Q8)
    fleet.peers["p"] = serve(["x"])  # says that it runs content of another hash
    fleet.shelves["p"] = Q8.model_copy(update={"decode_rate": 900.0})
    result = run(fleet, asking(SMOL))
    assert (result.text, [who for who, _ in fleet.asked]) == ("ok", ["p", "q"])


def test_a_substitute_that_goes_on_with_a_text_is_told_too() -> None:
    fleet = shelves(p=Q4, q=Q8)
    fleet.peers["p"] = honest(Q4, ["a"], LinkBrokenError("broke"))
    result = run(fleet, asking(f"{SMOL}-q4_1", "quant", on_interrupt="resume"))
    assert result.text == "aok"
    assert routed(result.events).substituted is None
    (resumed,) = [event for event in result.events if isinstance(event, Resumed)]
    assert cast(Substituted, resumed.routed.substituted).ran == f"{SMOL}.q8_0"


def test_while_a_neighbour_is_away_it_may_still_come_with_the_model() -> None:
    fleet = shelves(p=Q8)
    fleet.down = ["q"]
    error = run(fleet, asking(f"{SMOL}-q4_1")).error
    assert isinstance(error, NoCapablePeerError)
    assert "quantisation Q8_0 instead of Q4_1" in error.message
    assert error.details["possible"] == {"quant": [f"{SMOL}.q8_0"]}
