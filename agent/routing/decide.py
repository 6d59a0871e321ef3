"""Where a job runs: here, at a peer (and at which next if that fails), or nowhere, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fleet.net.messages import ModelPresence

Policy = Literal["never", "prefer", "require"]


@dataclass(frozen=True)
class PeerState:
    """A peer as this box knows it. `age` is seconds since its last presence, `rtt` seconds or None before a ping.

    `model` is its holding of the model asked for, None when it does not hold it or (not `heard`) has never said.
    `refused`: it turned this box's key away at the last attempt to connect.
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

    @property
    def may_hold(self) -> bool:
        """Whether it holds the model, or nobody knows."""
        return self.model is not None or not self.heard


@dataclass(frozen=True)
class LocalState:
    """This box's own holding of the model asked for; `model` is None when it does not hold it."""

    peer_id: str
    name: str
    model: ModelPresence | None


@dataclass(frozen=True)
class Verdict:
    """What was decided about one box, and why, in words that fit a header."""

    peer_id: str
    name: str
    accepted: bool
    reason: str
    decode_rate: float | None = None

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


def judge_peer(peer: PeerState, max_age: float) -> Verdict:
    """Whether a peer can be asked at all."""
    rate = peer.model.decode_rate if peer.model else None
    if peer.refused and not peer.connected:
        return Verdict(peer.peer_id, peer.name, False, "refuses this box's key", rate)
    if not peer.connected:
        return Verdict(peer.peer_id, peer.name, False, "not connected", rate)
    if peer.age > max_age:
        return Verdict(peer.peer_id, peer.name, False, f"silent for {peer.age:.0f} s", rate)
    if peer.draining:
        return Verdict(peer.peer_id, peer.name, False, "shutting down", rate)
    if peer.model is None:
        return Verdict(peer.peer_id, peer.name, False, "does not hold the model")
    if peer.model.state == "failed":
        return Verdict(peer.peer_id, peer.name, False, "cannot load the model", rate)
    return Verdict(peer.peer_id, peer.name, True, "candidate", rate)


def decide(policy: Policy, local: LocalState, peers: Sequence[PeerState], *, max_age: float) -> Decision:
    """Choose the boxes for a job.

    A box that holds the model runs it itself unless the policy is `require`; otherwise peers are asked in this order:
    model already loaded, then measured decode rate, then shortest queue, then round trip. `never` opens no peer.
    """
    here_ok = local.model is not None and local.model.state != "failed"
    here = _judge_local(policy, local, here_ok)
    if here_ok and policy != "require":
        return Decision((local.peer_id,), (here,))
    if policy == "never":
        return Decision((), (here,), "no_local_model")
    verdicts = {peer.peer_id: judge_peer(peer, max_age) for peer in peers}
    able = sorted((p for p in peers if verdicts[p.peer_id].accepted), key=_preference)
    order = tuple(peer.peer_id for peer in able)
    refusal: Literal["", "no_capable_peer"] = "" if order else "no_capable_peer"
    return Decision(order, (here, *verdicts.values()), refusal)


def _judge_local(policy: Policy, local: LocalState, here_ok: bool) -> Verdict:
    rate = local.model.decode_rate if local.model else None
    if local.model is None:
        return Verdict(local.peer_id, local.name, False, "does not hold the model")
    if not here_ok:
        return Verdict(local.peer_id, local.name, False, "cannot load the model", rate)
    if policy == "require":
        return Verdict(local.peer_id, local.name, False, "offload is required", rate)
    return Verdict(local.peer_id, local.name, True, "holds the model", rate)


def _preference(peer: PeerState) -> tuple[bool, float, int, float, str]:
    model = peer.model
    if model is None:
        raise ValueError("only holders are ordered")
    return (
        model.state != "loaded",
        -(model.decode_rate or 0.0),
        model.queued + model.running,
        peer.rtt if peer.rtt is not None else float("inf"),
        peer.peer_id,
    )
