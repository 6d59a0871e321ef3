"""Where a job runs: here, at a peer (and at which next if that fails), or nowhere, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.routing.pace import borrow_only, is_slow
from agent.routing.score import Numbers, finish, numbers_of, preference
from fleet.models.substitution import Match
from fleet.net.messages import ModelPresence

Policy = Literal["never", "prefer", "require"]

#: What is said of a box that could be asked but is not among those that are.
_NOT_NEEDED: Final = "not needed"
#: The same of one whose model is further from what was asked for than this box's own.
_LESSER: Final = "what it holds is further from what was asked for"
#: Characters of a model's name in a reason.
_SHORT_NAME: Final = 64


@dataclass(frozen=True)
class Rules:
    """When a box is good enough. Rates in tokens per second; `max_age` in seconds since a peer last spoke."""

    threshold: float = 10.0
    borrow_only_below: float = 3.0
    max_age: float = 90.0


@dataclass(frozen=True)
class Ask:
    """What is to be decided: the policy, about how many tokens the prompt and the answer have, and the PeerID of the
    box that had the conversation last (None where there is none). `spread` orders boxes that are equal (see
    `agent.routing.score.preference`).
    """

    policy: Policy = "prefer"
    tokens: int = 0
    remembered_by: str | None = None
    spread: str = ""


@dataclass(frozen=True)
class PeerState:
    """A peer as this box knows it. `age` is seconds since its last presence, `rtt` seconds or None before a ping.

    `model` is what it holds that may answer, None when there is nothing or it (not `heard`) has never said. `match` is
    how that fits what was asked for, and `choice` how well: 0 is the best that there is, and what is less comes after.
    `refused`: it turned this box's key away at the last attempt to connect. `best_rate` is the best of all its models,
    `asked` how many jobs this box has there now; `health` and `record` are 0..1 (see `agent.routing.score`).
    `refusing` says why it takes no jobs now, by its own word.
    """

    peer_id: str
    name: str
    connected: bool
    age: float
    draining: bool
    model: ModelPresence | None
    rtt: float | None = None
    heard: bool = True
    refused: bool = False
    relayed: bool = False
    best_rate: float | None = None
    asked: int = 0
    health: float = 1.0
    record: float = 0.0
    refusing: str = ""
    match: Match | None = None
    choice: int = 0

    @property
    def may_hold(self) -> bool:
        """Whether it holds the model, or nobody knows."""
        return self.model is not None or not self.heard


@dataclass(frozen=True)
class LocalState:
    """What this box holds itself that may answer; `model` is None when there is nothing. For `match` and `choice` see
    PeerState.

    `slow` is what `agent.routing.pace` makes of its rate, None to go by the threshold alone.
    """

    peer_id: str
    name: str
    model: ModelPresence | None
    slow: bool | None = None
    health: float = 1.0
    match: Match | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one box, and why, in words that fit a header. `numbers` where it holds the model; `choice`
    says how well that fits, 0 the best.
    """

    peer_id: str
    name: str
    accepted: bool
    reason: str
    decode_rate: float | None = None
    numbers: Numbers | None = None
    choice: int = 0

    def __str__(self) -> str:
        return f"{self.name}={self.reason}"


@dataclass(frozen=True)
class Decision:
    """The boxes to try, best first, as PeerIDs (this box's own means here), and a verdict for every box looked at.

    An empty `order` is a refusal; `refusal` is then the error code.
    """

    order: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    refusal: Literal["", "no_local_model", "no_capable_peer"] = ""

    def without(self, refused: Mapping[str, str]) -> Decision:
        """The decision with boxes taken out, by PeerID, each with the reason."""
        if not refused:
            return self
        order = tuple(peer for peer in self.order if peer not in refused)
        verdicts = tuple(
            replace(one, accepted=False, reason=refused[one.peer_id]) if one.peer_id in refused else one
            for one in self.verdicts
        )
        return Decision(order, verdicts, self.refusal if order else self.refusal or "no_capable_peer")


def decide(ask: Ask, local: LocalState, peers: Sequence[PeerState], rules: Rules) -> Decision:
    """Choose the boxes for a job.

    - `never`: here, or nowhere. No peer is looked at.
    - `require`: peers that decode at the threshold or faster. One that has not been measured may do so: it is asked
      after those that have.
    - `prefer` without the model here: any peer that has it.
    - `prefer` with the model here: here, as long as this box decodes at the threshold or faster and has a free slot.
      Below the threshold, peers that are faster are asked first; with its slots taken, peers at the threshold or
      above; of either, those alone that would be done before this box. This box follows them, then the rest of them.

    A rate that has not been measured: this box then runs the job itself, which measures it, and so does a fleet where
    nobody has measured anything. A peer is not taken to be faster than this box, or to be at the threshold, before it
    has been measured; where this box cannot run the job it is asked, after those that are equal but known.

    A box whose best rate is below `borrow_only_below` is asked by nobody; it still serves itself.

    All this is among boxes whose models fit what was asked for equally well (`choice`). Those with one that fits better
    come before all others, this box included, unless they refuse jobs now; those with one that fits less come after
    all others, and not before this box has failed.
    """
    here = _judge_local(ask.policy, local)
    if ask.policy == "never":
        if here.accepted:
            return Decision((local.peer_id,), (here,))
        return Decision((), (here,), "no_local_model")
    verdicts = [_judge_peer(ask, peer, rules) for peer in sorted(peers, key=lambda p: (p.name, p.peer_id))]
    own = here.numbers if here.accepted else None
    if own is None:
        able = [v for v in verdicts if v.accepted]
        if ask.policy == "require":
            verdicts = [_fast_enough(v, rules.threshold) for v in verdicts]
            able = [v for v in verdicts if v.accepted]
            order = sorted(able, key=lambda v: (v.choice, v.decode_rate is None, _preference(v, ask.spread)))
        else:
            order = sorted(able, key=lambda v: _order(v, ask.spread))
        return Decision(_ids(order), (here, *verdicts), "" if order else "no_capable_peer")
    fitting = sorted((v for v in verdicts if _fits_better(v, here)), key=lambda v: _order(v, ask.spread))
    slow = is_slow(here.decode_rate, rules.threshold, False) if local.slow is None else local.slow
    if not slow and own.jobs < own.slots:
        rest = (v if _fits_better(v, here) else _left_out(v, _needless(v, here)) for v in verdicts)
        return Decision(_ids([*fitting, here]), (here, *rest))
    own_rate = here.decode_rate if slow else None
    verdicts = [_beside(v, here, own_rate, rules.threshold) for v in verdicts]
    able = [v for v in verdicts if v.accepted and not _fits_better(v, here)]
    able.sort(key=lambda v: _order(v, ask.spread))
    done = finish(own)
    sooner: list[Verdict] = []
    later: list[Verdict] = []
    for verdict in able:
        numbers = _known(verdict)
        (later if numbers.refusing or finish(numbers) >= done else sooner).append(verdict)
    why = _rate(here.decode_rate) if slow else f"{own.jobs} jobs on {own.slots} slots"
    here = replace(here, reason=f"{here.reason}, {why}")
    return Decision(_ids([*fitting, *sooner, here, *later]), (here, *verdicts))


def _judge_local(policy: Policy, local: LocalState) -> Verdict:
    model = local.model
    if model is None:
        return Verdict(local.peer_id, local.name, False, "does not hold the model")
    numbers = numbers_of(model, health=local.health, rtt=0.0, record=1.0, remote=False)
    found = Verdict(local.peer_id, local.name, False, "cannot load the model", model.decode_rate, numbers, local.choice)
    if model.state == "failed":
        return found
    if policy == "require":
        return replace(found, reason="offload is required")
    return replace(found, accepted=True, reason=f"holds {_what(model, local.match) or 'the model'}")


def _judge_peer(ask: Ask, peer: PeerState, rules: Rules) -> Verdict:
    """Whether a peer can be asked at all."""
    model = peer.model
    numbers = None
    if model is not None:
        numbers = numbers_of(
            model,
            tokens=ask.tokens,
            asked=peer.asked,
            health=peer.health,
            record=peer.record,
            rtt=peer.rtt,
            relayed=peer.relayed,
            remembers=peer.peer_id == ask.remembered_by,
            refusing=bool(peer.refusing),
        )
    obstacle = _obstacle(peer, rules)
    other = _what(model, peer.match)
    reason = obstacle or (f"busy: {peer.refusing}" if peer.refusing else "candidate")
    if other and not (obstacle or peer.refusing):
        reason = f"candidate, has {other}"
    rate = model.decode_rate if model else None
    return Verdict(peer.peer_id, peer.name, not obstacle, reason, rate, numbers, peer.choice)


def _what(model: ModelPresence | None, match: Match | None) -> str:
    """The name of a model that is another than was asked for; empty of one that is not."""
    return model.name[:_SHORT_NAME] if model is not None and match is not None and match.substituted else ""


def _obstacle(peer: PeerState, rules: Rules) -> str:
    """Why a peer cannot be asked; empty if it can."""
    if not peer.connected:
        return "refuses this box's key" if peer.refused else "not connected"
    if not peer.age <= rules.max_age:
        return f"silent for {peer.age:.0f} s"
    if peer.draining:
        return "shutting down"
    if peer.model is None:
        return "does not hold the model"
    if peer.model.state == "failed":
        return "cannot load the model"
    if borrow_only(peer.best_rate, rules.borrow_only_below):
        return f"only borrows, {_rate(peer.best_rate)} at best"
    return ""


def _fast_enough(verdict: Verdict, threshold: float) -> Verdict:
    """For `require`: a peer below the threshold is none."""
    if not verdict.accepted or verdict.decode_rate is None or verdict.decode_rate >= threshold:
        return verdict
    return _left_out(verdict, f"{_rate(verdict.decode_rate)}, below {threshold:g}")


def _better(verdict: Verdict, own: float | None, threshold: float) -> Verdict:
    """For a box that could run the job itself at its `own` rate (None: at the threshold or faster, or not known)."""
    rate = verdict.decode_rate
    if not verdict.accepted:
        return verdict
    if rate is None:
        return _left_out(verdict, "not measured yet")
    if own is not None and rate <= own:
        return _left_out(verdict, f"{_rate(rate)}, no faster than here")
    if own is None and rate < threshold:
        return _left_out(verdict, f"{_rate(rate)}, below {threshold:g}")
    return verdict


def _left_out(verdict: Verdict, reason: str) -> Verdict:
    return replace(verdict, accepted=False, reason=reason) if verdict.accepted else verdict


def _fits_better(verdict: Verdict, here: Verdict) -> bool:
    """Whether a box may be asked before this one because what it holds is nearer to what was asked for."""
    return verdict.accepted and verdict.choice < here.choice and not _known(verdict).refusing


def _needless(verdict: Verdict, here: Verdict) -> str:
    return _LESSER if verdict.choice > here.choice else _NOT_NEEDED


def _beside(verdict: Verdict, here: Verdict, own: float | None, threshold: float) -> Verdict:
    """For a box that is slow or busy itself; `own` as `_better` has it."""
    if verdict.choice > here.choice:
        return _left_out(verdict, _LESSER)
    return _better(verdict, own, threshold) if verdict.choice == here.choice else verdict


def _order(verdict: Verdict, spread: str) -> tuple[int | float | bool | str, ...]:
    """What boxes are sorted by: those that refuse come last, then how well their models fit, then how good they are."""
    return (_known(verdict).refusing, verdict.choice, *_preference(verdict, spread))


def _preference(verdict: Verdict, spread: str) -> tuple[int | float | bool | str, ...]:
    return preference(_known(verdict), verdict.peer_id, spread)


def _known(verdict: Verdict) -> Numbers:
    if verdict.numbers is None:
        raise ValueError("only holders are ordered")
    return verdict.numbers


def _ids(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return tuple(verdict.peer_id for verdict in verdicts)


def _rate(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:.3g} tok/s"
