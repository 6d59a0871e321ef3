"""Routing decisions, by the numbers of docs and behaviours."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

import pytest

from agent.routing.decide import LocalState, PeerState, Policy, decide
from fleet.net.messages import ModelPresence

HASH = "sha256:" + "0" * 64
State = Literal["idle", "loading", "loaded", "failed"]


def model(rate: float | None = 50.0, state: State = "loaded", queued: int = 0) -> ModelPresence:
    return ModelPresence(hash=HASH, name="m", state=state, context_tokens=2048, decode_rate=rate, queued=queued)


def peer(
    name: str,
    holding: ModelPresence | None,
    *,
    connected: bool = True,
    age: float = 1.0,
    draining: bool = False,
    rtt: float | None = 0.001,
) -> PeerState:
    return PeerState(f"id-{name}", name, connected, age, draining, holding, rtt)


def local(holding: ModelPresence | None = None) -> LocalState:
    return LocalState("me", "here", holding)


def test_b2_a_box_that_holds_the_model_runs_it() -> None:
    decision = decide("prefer", local(model()), [peer("a", model(500))], max_age=90)
    assert decision.order == ("me",)


def test_b5_nobody_can_and_every_box_says_why() -> None:
    peers = [
        peer("off", model(), connected=False),
        replace(peer("closed", None, connected=False), refused=True),
        peer("old", model(), age=91),
        peer("bye", model(), draining=True),
        peer("none", None),
        peer("bad", model(state="failed")),
    ]
    decision = decide("prefer", local(), peers, max_age=90)
    assert decision.order == ()
    assert decision.refusal == "no_capable_peer"
    assert [str(v) for v in decision.verdicts] == [
        "here=does not hold the model",
        "off=not connected",
        "closed=refuses this box's key",
        "old=silent for 91 s",
        "bye=shutting down",
        "none=does not hold the model",
        "bad=cannot load the model",
    ]


@pytest.mark.parametrize(
    ("policy", "held", "order", "refusal"),
    [
        ("never", True, ("me",), ""),
        ("never", False, (), "no_local_model"),
        ("require", True, ("id-a",), ""),
        ("require", False, ("id-a",), ""),
        ("prefer", False, ("id-a",), ""),
        ("prefer", True, ("me",), ""),
    ],
)
def test_b1_b6_b7_policies(policy: Policy, held: bool, order: tuple[str, ...], refusal: str) -> None:
    decision = decide(policy, local(model() if held else None), [peer("a", model())], max_age=90)
    assert decision.order == order
    assert decision.refusal == refusal


def test_b7_require_without_a_peer_is_refused_even_if_this_box_could() -> None:
    decision = decide("require", local(model()), [], max_age=90)
    assert decision.refusal == "no_capable_peer"


def test_b9_order_of_equal_peers() -> None:
    best_first = [
        peer("loaded-fast", model(90)),
        peer("loaded-slow-idle", model(10)),
        peer("loaded-slow-busy", model(10, queued=3)),
        peer("loaded-slow-busy-far", model(10, queued=3), rtt=0.3),
        peer("loaded-unmeasured", model(None)),
        peer("idle-fast", model(500, state="idle")),
    ]
    shuffled = random.Random(3).sample(best_first, len(best_first))
    decision = decide("prefer", local(), shuffled, max_age=90)
    assert decision.order == tuple(p.peer_id for p in best_first)


def test_b11_presence_older_than_90_s_excludes() -> None:
    assert decide("prefer", local(), [peer("a", model(), age=90.0)], max_age=90).order == ("id-a",)
    assert decide("prefer", local(), [peer("a", model(), age=90.1)], max_age=90).order == ()


def test_a_local_model_that_cannot_load_falls_back_to_peers() -> None:
    decision = decide("prefer", local(model(state="failed")), [peer("a", model())], max_age=90)
    assert decision.order == ("id-a",)
    assert str(decision.verdicts[0]) == "here=cannot load the model"
