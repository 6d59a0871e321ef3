"""Which box had a conversation last, so that its next turn finds the cells of the turns before. Pure and bounded."""

from __future__ import annotations

from typing import Final

#: Conversations that are remembered; past it, those used longest ago are forgotten.
REMEMBERED: Final = 1024


class Conversations:
    """The PeerID that served a conversation last, by who owns it, its name, and the model."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._boxes: dict[tuple[str, str, str], str] = {}

    def note(self, owner: str, session: str, model: str, peer_id: str) -> None:
        """A box has served a turn; a conversation without a name is none."""
        if not session:
            return
        key = (owner, session, model)
        self._boxes.pop(key, None)
        self._boxes[key] = peer_id
        if len(self._boxes) > self._most:
            del self._boxes[next(iter(self._boxes))]

    def last(self, owner: str, session: str, model: str) -> str | None:
        """The box that served its last turn, None where it is not known."""
        return self._boxes.get((owner, session, model)) if session else None
