"""Health problems as data: a stable code, how bad it is, what it means and what to do about it. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["info", "warning", "error"]

#: A neighbour may be away this long before it is worth a word (seconds): restarts are not news.
QUIET_DOWN: Final = 30.0
_LOW_MEMORY: Final = 0.10


@dataclass(frozen=True)
class Warning:
    """One problem. `remedy` is what a person can do now."""

    code: str
    severity: Severity
    title: str
    text: str
    remedy: str


@dataclass(frozen=True)
class ModelFact:
    """A model this box is configured to hold."""

    name: str
    state: str
    error: str | None


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
class KnockFact:
    """A key that this box turned away, and how often."""

    peer_id: str
    remote_addr: str
    count: int


@dataclass(frozen=True)
class DocumentFacts:
    """The fleet document as this box holds it; there is none where it belongs to no fleet. Keys are PeerIDs."""

    fleet: str
    admitted: bool = True
    standing: str = "member"
    forked_admins: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    contested_invites: tuple[str, ...] = ()
    clones: int = 0
    unsaved: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything the rules look at.

    `allowed` are the PeerIDs of other boxes that may connect, `targets` those that are dialled, `addrs` the
    multiaddrs that others can dial. `memory_free` is a fraction of all memory; `engine_installed` says whether this box
    can run models at all.
    """

    peer_id: str
    name: str
    version: str
    addrs: tuple[str, ...]
    allowed: tuple[str, ...]
    targets: tuple[str, ...]
    mdns: bool
    models: tuple[ModelFact, ...] = ()
    peers: tuple[PeerFact, ...] = ()
    knocks: tuple[KnockFact, ...] = ()
    memory_free: float = 1.0
    engine_installed: bool = True
    document: DocumentFacts | None = None


def evaluate(facts: Facts) -> tuple[Warning, ...]:
    """Every problem that the facts show, worst first."""
    order = {"error": 0, "warning": 1, "info": 2}
    found = [warning for rule in _RULES for warning in rule(facts)]
    return tuple(sorted(found, key=lambda warning: order[warning.severity]))


def _models(facts: Facts) -> Iterator[Warning]:
    if facts.models and not facts.engine_installed:
        yield Warning(
            "engine_missing",
            "error",
            "this box cannot run its models",
            f"llama.cpp is not installed, and {', '.join(model.name for model in facts.models)} need it",
            "run: pip install 'shoal[engine]', or take the models out of the configuration",
        )
        return
    for model in facts.models:
        if model.state == "failed":
            yield Warning(
                "model_failed",
                "error",
                f"model {model.name} cannot be loaded",
                model.error or "the engine gave no reason",
                "mend or replace the file; it is tried again when the file changes",
            )


def _refused_by(facts: Facts) -> Iterator[Warning]:
    for peer in facts.peers:
        if peer.state == "refused":
            yield Warning(
                "refused_by_peer",
                "error",
                f"{peer.name} does not let this box in",
                f"it answered that the key {facts.peer_id} is not allowed",
                "is this box revoked, or of another fleet? on an admin's box: shoal firewall explain " + facts.peer_id,
            )
        elif peer.state == "denied":
            yield Warning(
                "peer_not_allowed",
                "error",
                f"{peer.name} is configured as a peer but not let in",
                f"the fleet document does not admit {peer.peer_id}, so it is never dialled",
                f"see why: shoal firewall explain {peer.peer_id}",
            )


def _unreachable(facts: Facts) -> Iterator[Warning]:
    for peer in facts.peers:
        if peer.state in ("unreachable", "connecting") and peer.down_for is not None and peer.down_for > QUIET_DOWN:
            yield Warning(
                "peer_unreachable",
                "warning",
                f"{peer.name} cannot be reached",
                f"for {peer.down_for:.0f} s; last: {peer.last_error or 'no answer yet'}",
                "is it on, is its agent running, does a firewall drop its port, is the address right?",
            )


def _knocking(facts: Facts) -> Iterator[Warning]:
    for knock in facts.knocks:
        if knock.peer_id not in facts.allowed:
            yield Warning(
                "unknown_key_knocks",
                "warning",
                "a box that is not allowed tries to connect",
                f"key {knock.peer_id} from {knock.remote_addr or 'an unknown address'}, {knock.count} times",
                f"if it is yours: shoal invite, or: shoal firewall allow {knock.peer_id}",
            )


def _alone(facts: Facts) -> Iterator[Warning]:
    if not facts.targets and not facts.mdns:
        yield Warning(
            "no_way_to_find_peers",
            "warning",
            "this box looks for nobody",
            "net.peers is empty and net.mdns is off; others can still dial it",
            "add addresses to net.peers, or set net.mdns: true",
        )
    if facts.document is None:
        yield Warning(
            "no_fleet",
            "warning",
            "this box belongs to no fleet",
            "it lets nobody in and can ask nobody",
            "join one: shoal join TOKEN (an admin makes a token with: shoal invite), or found one: shoal fleet init",
        )
    elif not facts.allowed:
        yield Warning(
            "alone_in_fleet",
            "info",
            "this box is alone in its fleet",
            f"the document of {facts.document.fleet} admits no other box",
            "invite others: shoal invite",
        )


def _document(facts: Facts) -> Iterator[Warning]:
    document = facts.document
    if document is None:
        return
    if not document.admitted:
        yield Warning(
            "not_admitted",
            "error",
            "the fleet does not admit this box",
            f"its own key is: {document.standing}",
            f"on an admin's box: shoal firewall explain {facts.peer_id}",
        )
    if document.unsaved:
        yield Warning(
            "document_unsaved",
            "error",
            "the fleet document cannot be written to disk",
            "changes are kept in memory and tried again",
            "free space in the state folder, and check that its disk is not read-only",
        )
    if document.clones:
        yield Warning(
            "identity_cloned",
            "error",
            "another live box has this box's key",
            f"facts that this box did not write came in {document.clones} times",
            "stop one of them, remove its identity.seed, and invite it anew",
        )
    for key in document.forked_admins:
        yield Warning(
            "admin_forked",
            "error",
            "an admin key has signed two ops with one number",
            f"{key} is no longer believed, except where it denies or revokes",
            "was the key used on two boxes at once, or stolen? revoke it, and give the admin a new one",
        )
    for path in document.conflicts:
        yield Warning(
            "setting_conflict",
            "warning",
            f"admins contradict one another about {path}",
            "two values were set without knowledge of one another; the later one holds",
            f"look at both: shoal history --of {path}; then apply the right one again",
        )
    for invite in document.contested_invites:
        yield Warning(
            "contested_invite",
            "warning",
            "more boxes claimed an invite than it has uses",
            f"invite {invite}: the first ones are in, the others are not",
            "settle it: shoal history --of " + invite + ", then certify or revoke the losers",
        )


def _own_key(facts: Facts) -> Iterator[Warning]:
    if facts.peer_id in facts.allowed or facts.peer_id in facts.targets:
        yield Warning(
            "own_key_configured",
            "warning",
            "this box's own key stands in its configuration",
            "a box does not talk to itself; was the identity file copied from another box?",
            "if so, remove the copied identity and run `shoal init` for a new one",
        )


def _addresses(facts: Facts) -> Iterator[Warning]:
    if not facts.addrs:
        yield Warning(
            "no_address",
            "info",
            "no other box can connect to this one",
            "it has no address to listen on: net.listen is empty, or this machine is in no network",
            "this box can still dial others; if it is to be dialled, set net.listen to /ip4/0.0.0.0/tcp/4210",
        )
    elif all(_is_loopback(addr) for addr in facts.addrs):
        yield Warning(
            "loopback_only",
            "info",
            "other machines cannot connect to this box",
            f"it listens on {', '.join(addr.split('/p2p/')[0] for addr in facts.addrs)} only",
            "set net.listen to /ip4/0.0.0.0/tcp/4210 unless this is meant",
        )


def _names(facts: Facts) -> Iterator[Warning]:
    names = Counter([facts.name, *{peer.peer_id: peer.name for peer in facts.peers}.values()])
    for name, count in names.items():
        if count > 1:
            yield Warning(
                "duplicate_name",
                "info",
                f"{count} boxes are called {name}",
                "names are for people; routes and logs become ambiguous",
                "give each box its own `name`",
            )


def _versions(facts: Facts) -> Iterator[Warning]:
    for peer in facts.peers:
        if peer.version is not None and peer.version != facts.version:
            yield Warning(
                "version_skew",
                "info",
                f"{peer.name} runs {peer.version}",
                f"this box runs {facts.version}",
                "update the older one",
            )


def _memory(facts: Facts) -> Iterator[Warning]:
    if facts.memory_free < _LOW_MEMORY:
        yield Warning(
            "low_memory",
            "warning",
            "memory is nearly used up",
            f"{facts.memory_free:.0%} of it is free",
            "hold smaller models here, or lower engine.context_tokens",
        )


def _is_loopback(addr: str) -> bool:
    parts = addr.split("/")
    try:
        return ipaddress.ip_address(parts[2]).is_loopback
    except (ValueError, IndexError):
        return False


_RULES: Final[tuple[Callable[[Facts], Iterator[Warning]], ...]] = (
    _models,
    _refused_by,
    _unreachable,
    _knocking,
    _alone,
    _document,
    _own_key,
    _addresses,
    _names,
    _versions,
    _memory,
)
