"""Keys as people name them: what `KEY` on a command line means, and how a key is shown. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from agent.cli.client import ClientError
from fleet.document.op import is_key_path
from fleet.document.view import View
from fleet.errors import FleetError
from fleet.identity.keys import peer_id_from_public_key, public_key_from_peer_id

#: Characters of a PeerID's end that are shown, and the fewest that find it.
_END: Final = 8
_SHORTEST_END: Final = 6
#: What the PeerID of every Ed25519 key starts with.
_PEER_ID_START: Final = "12D3KooW"


class Names:
    """The names of one fleet's keys, as one view has them."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._names: dict[str, list[bytes]] = {}
        for key, box in view.boxes.items():
            # A box chooses its name itself: none may pass for a key.
            if box.node.name and not box.node.name.startswith(_PEER_ID_START) and not is_key_path(box.node.name):
                self._names.setdefault(box.node.name, []).append(key)

    def find(self, text: str) -> bytes:
        """The key that a PeerID, 64 hex digits, the end of a known PeerID, or a box's name stands for.

        Raises ClientError `usage` where it is none of these, or more than one key; the message names the nearest.
        """
        text = text.strip().removeprefix("…")
        if is_key_path(text.lower()):
            return bytes.fromhex(text)
        try:
            return public_key_from_peer_id(text)  # before any name: who is called what is for boxes to say
        except FleetError as error:
            if text.startswith(_PEER_ID_START) and len(text) > 40:
                raise ClientError("usage", f"{text}: {error.message}") from None
        found = set(self._names.get(text, ()))
        if _SHORTEST_END <= len(text) < 40:
            found |= {key for key in self._known() if peer_id_from_public_key(key).endswith(text)}
        if found:
            return _only(text, sorted(found), "the name, or the end of the PeerID,")
        near = difflib.get_close_matches(text, list(self._names), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; see `shoal boxes`"
        raise ClientError("usage", f"{text!r} is no PeerID, no 64 hex digits, and no box of this fleet{hint}")

    def of(self, key: bytes) -> str:
        """A short text for a key: what it is called, and the end of its PeerID."""
        end = "…" + peer_id_from_public_key(key)[-_END:]
        name = self._view.box(key).node.name
        if key in self._view.genesis.recovery:
            name = "recovery key"
        elif key in self._view.authority.rank:
            name = "admin"
        elif name in ("admin", "recovery key"):
            name = f"a box that calls itself {name}"
        return f"{name} ({end})" if name else end

    def _known(self) -> set[bytes]:
        authority = self._view.authority
        firewall = self._view.governance.firewall
        return {*authority.rank, *authority.members, *authority.revoked, *firewall.named()}


def _only(text: str, keys: Sequence[bytes], what: str) -> bytes:
    if len(keys) == 1:
        return keys[0]
    listed = ", ".join(peer_id_from_public_key(key) for key in keys[:8])
    raise ClientError("usage", f"{text!r} is {what} of {len(keys)} boxes; say which by its PeerID: {listed}")
