"""Whether the others still take this box for one of them, whatever its own copy of the document says. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fleet.net.dialler import Neighbour


def refusing_all(neighbours: Sequence[Neighbour], linked: bool) -> tuple[str, ...]:
    """The PeerIDs of the neighbours that refuse this box's key, where every one that answers does; else nothing.

    `linked` says whether there is a link to any member. A box that was shut out hears nothing of why: who refuses it
    tells it nothing, so its own document still shows it as a member.
    """
    if linked:
        return ()
    return tuple(neighbour.peer_id for neighbour in neighbours if neighbour.state == "refused")
