"""What is wrong between a box and the others: links, refusals, strangers, and how it can be reached. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from agent.observe.known import Facts
from agent.observe.warning import Warning

#: A neighbour may be away this long before it is worth a word (seconds): restarts are not news.
QUIET_DOWN: Final = 30.0
#: What is said of each counter of the gate; the number stands before it.
_TURNED_AWAY: Final[Mapping[str, str]] = {
    "half_open_dropped": "were dropped in mid-handshake, to make room for others that came after them",
    "handshake_timed_out": "did not finish their handshake in time",
    "no_place_left": "found every place for connections taken",
    "too_many_of_one_key": "came from a box that had as many as one box may have",
}


def _outcast(facts: Facts) -> Iterator[Warning]:
    if not facts.refused_by:
        return
    document = facts.document
    says = f" (it says: {document.standing})" if document is not None else ""
    reasons = ["it was revoked or denied while it could not be told"]
    if document is not None and document.came_with:
        reasons += [f"its claim of invite {document.came_with} came after the uses were gone, by what the others know"]
    elif document is None or not document.admitted:
        reasons += ["its claim of an invite came after the uses were gone"]
    reasons += [
        "those boxes were off when it was let in and have not heard of it, which passes once they have linked to a box"
        " that has",
        "or they are of another fleet",
    ]
    tried = f"\nwhat came of its last attempt to join: {facts.join_problem}" if facts.join_problem else ""
    yield Warning(
        "outcast",
        "error",
        "every box that answers refuses this one",
        f"{', '.join(facts.refused_by)} say that the key {facts.peer_id} is not allowed. This box can ask nobody and"
        f" hears no news, so do not believe its own copy of the document{says}.\n"
        f"likely reasons, the likeliest first: {'; '.join(reasons)}{tried}",
        f"on an admin's box, which of these it is: shoal firewall explain {facts.peer_id}; then, there: shoal admit"
        f" {facts.peer_id}, or here: shoal join with a new token; a revoked key needs a new identity",
    )


def _refused_by(facts: Facts) -> Iterator[Warning]:
    for peer in facts.peers:
        if peer.state == "refused":
            yield Warning(
                "refused_by_peer",
                "error",
                f"{peer.name} does not let this box in",
                f"it answered that the key {facts.peer_id} is not allowed",
                "was this box revoked or denied, has that one been off since this one came (then it passes when they"
                " link to others), or is one of another fleet? on an admin's box: shoal firewall explain "
                + facts.peer_id,
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
            "it lets nobody in and can ask nobody"
            + (f"\nwhat came of its last attempt to join: {facts.join_problem}" if facts.join_problem else ""),
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


def _flooded(facts: Facts) -> Iterator[Warning]:
    counted = [f"{count} {_TURNED_AWAY[kind]}" for kind, count in facts.turned_away.items() if count]
    if not counted:
        return
    of_members = " a box of the fleet that does it can be denied (shoal firewall deny KEY);"
    yield Warning(
        "flooded",
        "warning",
        "this box turns connections away",
        f"of those that were opened to it in the last ten minutes, {'; '.join(counted)}. Boxes that are linked stay so;"
        " one that is not may need several attempts",
        "find who opens them (ss -tn state all, by this box's port in net.listen) and stop them at the machine's or"
        f" the network's firewall;{of_members if 'too_many_of_one_key' in facts.turned_away else ''} a port scan passes"
        " by itself",
    )


def _is_loopback(addr: str) -> bool:
    parts = addr.split("/")
    try:
        return ipaddress.ip_address(parts[2]).is_loopback
    except (ValueError, IndexError):
        return False


LINK_RULES: Final[tuple[Callable[[Facts], Iterator[Warning]], ...]] = (
    _outcast,
    _refused_by,
    _unreachable,
    _knocking,
    _alone,
    _addresses,
    _flooded,
)
