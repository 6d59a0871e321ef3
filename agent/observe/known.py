"""What is known of a box when its problems are looked for: plain values, gathered by `facts`, judged by `warnings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.observe.clocks import ClockFact

#: Fewer numbers than this left to a key, and it is time for a new one.
FEW_NUMBERS: Final = 1 << 20


@dataclass(frozen=True)
class ModelFact:
    """A model this box is configured to hold. `doubts` is what its name and its header disagree on.

    `unsaved` is why conversations with it cannot be kept on disk, empty where they can.
    """

    name: str
    state: str
    error: str | None
    doubts: tuple[str, ...] = ()
    unsaved: str = ""


@dataclass(frozen=True)
class PeerFact:
    """A neighbour. `down_for` is seconds since its link broke or was first tried, None while it is connected."""

    peer_id: str
    name: str
    state: str
    last_error: str
    down_for: float | None
    version: str | None


@dataclass(frozen=True)
class ServerFact:
    """A server beside this box whose models it uses; `error` says why it cannot be used, None where it can.

    One that was `detected` is not configured, and may be gone for good.
    """

    kind: str
    url: str
    error: str | None
    detected: bool


@dataclass(frozen=True)
class KnockFact:
    """A key that this box turned away, and how often."""

    peer_id: str
    remote_addr: str
    count: int


@dataclass(frozen=True)
class LostClaimFact:
    """A box that claimed an invite after its uses were gone, and the names of those that have them."""

    peer_id: str
    name: str
    invite: str
    taken_by: tuple[str, ...]


@dataclass(frozen=True)
class DocumentFacts:
    """The fleet document as this box holds it; there is none where it belongs to no fleet. Keys are PeerIDs.

    `came_with` is the invite that this box came in with, empty where it was certified. `numbers_left` is how many more
    ops its key can write.
    """

    fleet: str
    admitted: bool = True
    standing: str = "member"
    forked_admins: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    lost_claims: tuple[LostClaimFact, ...] = ()
    came_with: str = ""
    clones: int = 0
    unsaved: bool = False
    numbers_left: int = FEW_NUMBERS


@dataclass(frozen=True)
class AuditFact:
    """The audit trail: why it cannot be written, empty where it can, and the lines that wait and that were dropped."""

    problem: str = ""
    waiting: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Facts:
    """Everything the rules look at.

    `allowed` are the PeerIDs of other boxes that may connect, `targets` those that are dialled, `addrs` the
    multiaddrs that others can dial. `memory_free` is a fraction of all memory; `engine_installed` says whether this box
    can run models at all. `turned_away` is by how much the gate's counters have grown of late, by what they count.
    `refused_by` are the names of neighbours, where every one that answers refuses this box; `join_problem` says why
    this box's last attempt to join failed. `clocks` are those of the boxes that are linked.
    """

    peer_id: str
    name: str
    version: str
    addrs: tuple[str, ...]
    allowed: tuple[str, ...]
    targets: tuple[str, ...]
    mdns: bool
    models: tuple[ModelFact, ...] = ()
    engines: tuple[ServerFact, ...] = ()
    peers: tuple[PeerFact, ...] = ()
    knocks: tuple[KnockFact, ...] = ()
    memory_free: float = 1.0
    engine_installed: bool = True
    document: DocumentFacts | None = None
    turned_away: Mapping[str, int] = field(default_factory=dict)
    refused_by: tuple[str, ...] = ()
    join_problem: str = ""
    clocks: tuple[ClockFact, ...] = ()
    audit: AuditFact = AuditFact()
