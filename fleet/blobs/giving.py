"""What a box gives of one blob: what it has, who follows it, whose turn it is, and what they are shown.

Turns are shared out by `fleet.blobs.slots`. The first holder, which nobody could replace, shows each follower other
blocks (`fleet.blobs.seeding`); everybody else shows what it has.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.errors import BlobError, MissingBlockError
from fleet.blobs.held import Held
from fleet.blobs.messages import MAX_INDEXES, Shown
from fleet.blobs.partial import Partial
from fleet.blobs.seeding import SuperSeeder
from fleet.blobs.slots import Slots, Turn

#: Seconds in which blocks that have come are gathered before followers are told.
SAID_AFTER: Final = 0.02


class Follower:
    """A peer that follows a blob here; only used from the event loop. `given` counts bytes sent to it."""

    def __init__(self, peer: str, near: bool) -> None:
        self.peer: Final = peer
        self.near: Final = near
        self.given = 0
        #: Blocks go over the link one at a time, in the order in which they were asked for.
        self.sending: Final = trio.Lock()
        self._bits = False
        self._have: list[int] = []
        self._turn = 0
        self._wake = trio.Event()

    def show_all(self) -> None:
        """Tell it anew what is here."""
        self._bits, self._have = True, []
        self._wake.set()

    def show(self, indexes: tuple[int, ...]) -> None:
        """Tell it of more blocks, together with what comes within SAID_AFTER."""
        self._have.extend(indexes)
        self._wake.set()

    def give_turn(self, blocks: int) -> None:
        """Tell it that it may ask for so many blocks."""
        self._turn += blocks
        self._wake.set()

    async def next(self, bits: Callable[[], bytes]) -> Shown:
        """The next thing to tell it, waiting for it; `bits` gives what is here."""
        if not (self._bits or self._have or self._turn):
            self._wake = trio.Event()
            await self._wake.wait()
        if not (self._bits or self._turn):
            await trio.sleep(SAID_AFTER)
        have, self._have = tuple(self._have[:MAX_INDEXES]), self._have[MAX_INDEXES:]
        turn, self._turn = self._turn, 0
        everything, self._bits = bits() if self._bits else None, False
        return Shown(bits=everything, have=have, turn=turn)


@dataclass(frozen=True)
class Terms:
    """What `Giving` asks others. `find` gives what there is of a blob; `alone` whether nobody else has the whole of it;
    `closed` whether nothing is given now; `lost` is told that rot was found; `post` runs something in the event loop,
    soon, from any thread; `given` is told, in the event loop, how many bytes were sent; `clock` gives seconds."""

    find: Callable[[str], Held | Partial | None]
    alone: Callable[[str], bool]
    closed: Callable[[], bool]
    lost: Callable[[str], None]
    post: Callable[[Callable[[], None]], None]
    given: Callable[[int], None]
    clock: Callable[[], float]
    slots: int


class Giving:
    """One blob. `asked`, `read` and `sent` may be called from any thread, the others from the event loop alone."""

    def __init__(self, blob: str, terms: Terms) -> None:
        self.blob: Final = blob
        self.followers: dict[str, Follower] = {}
        self._terms = terms
        self._lock = threading.Lock()
        self._slots = Slots(terms.slots)
        self._seeder: SuperSeeder | None = None
        #: Whether every block was with somebody else once: from then on this is a source like any other.
        self._seeded = False
        self._rng = random.Random()  # noqa: S311 - what is shown to whom is no secret
        #: What followers were told of, all together, when `changed` was last called.
        self._told: tuple[object, bool, bytes] | None = None

    # --- followers ----------------------------------------------------------------------------------------------------

    def join(self, follower: Follower, have: bytes) -> None:
        """A peer follows; `have` is its bitfield, or nothing. What it followed by over another link is replaced."""
        self.leave(self.followers.get(follower.peer))
        self.followers[follower.peer] = follower
        if self._told is None:
            self._told = self._state()
        self._seed_if_alone()
        follower.show_all()
        with self._lock:
            if self._seeder is not None:
                self._seeder.peer_up(follower.peer, self._read_bits(have))
                self._slots.want(follower.peer, near=follower.near)
        self.share_out()

    def leave(self, follower: Follower | None) -> None:
        """A peer follows no more. Said of one that was replaced: nothing changes."""
        if follower is None or self.followers.get(follower.peer) is not follower:
            return
        del self.followers[follower.peer]
        with self._lock:
            self._slots.leave(follower.peer)
            if self._seeder is not None:
                self._seeder.peer_down(follower.peer)
        self.share_out()

    def want(self, peer: str, want: bool) -> None:
        """A follower wants a turn, or has nothing to ask for."""
        follower = self.followers.get(peer)
        if follower is None:
            return
        with self._lock:
            if want:
                self._slots.want(peer, near=follower.near)
            else:
                self._slots.finish(peer)
                self._turn_over(peer)
        self.share_out()

    # --- what is here -------------------------------------------------------------------------------------------------

    def bits(self) -> bytes:
        """What a follower is shown, as a bitfield; nothing at all where there is nothing of the blob here."""
        found = self._terms.find(self.blob)
        if found is None or self._terms.closed():
            return b""
        with self._lock:
            if self._seeder is not None:
                return b""
        if isinstance(found, Held):
            return Bitfield.full(found.manifest.blocks).to_bytes()
        return found.have.to_bytes()

    def changed(self) -> None:
        """What is here may have changed otherwise than by one more block, or whether anything is given at all.

        Where it has not, followers are told nothing: who was shown some blocks by a super-seeder would take it that
        they are gone, and ask others for what is on its way."""
        state = self._state()
        if state == self._told and (self._seeder is None or self._terms.alone(self.blob)):
            return
        self._told = state
        with self._lock:
            self._seeder, self._seeded = None, False
        self._seed_if_alone()
        for follower in self.followers.values():
            follower.show_all()
        self.share_out()

    def _state(self) -> tuple[object, bool, bytes]:
        found = self._terms.find(self.blob)
        have = found.have.to_bytes() if isinstance(found, Partial) else b""
        return found, self._terms.closed(), have

    def note_block(self, index: int) -> None:
        """One more block is here."""
        for follower in self.followers.values():
            follower.show((index,))

    # --- what lanes do ------------------------------------------------------------------------------------------------

    def asked(self, peer: str, index: int) -> bool:
        """A peer asks for a block; False where it has no turn."""
        if self._terms.closed():
            return False
        with self._lock:
            given = self._slots.asked(peer, self._terms.clock())
        if given:
            self.share_out()
        return given

    def read(self, index: int) -> bytes | None:
        """A block; None where it is not here (any more). Blocks on the disk."""
        found = self._terms.find(self.blob)
        if found is None or not 0 <= index < found.manifest.blocks:
            return None
        try:
            return found.read(index)
        except MissingBlockError:
            if isinstance(found, Held) or not found.has(index):
                self._terms.post(self.changed)
                self._terms.lost(self.blob)
            return None
        except BlobError:
            return None

    def sent(self, peer: str, index: int, size: int) -> None:
        """A block for which `asked` was true is out; with `size` 0 it was not sent and will not be."""
        seeded = False
        with self._lock:
            self._slots.sent(peer, self._terms.clock())
            seeder = self._seeder
            if seeder is not None:
                if size:
                    seeder.sent(peer, index)
                if peer not in self._slots.holders:
                    self._turn_over(peer)
                if seeder.done:
                    self._seeder, self._seeded, seeded = None, True, True
        if size:
            self._terms.post(lambda: self._count(peer, size))
        if seeded:
            self._terms.post(self._show_all)
        self.share_out()

    def _count(self, peer: str, size: int) -> None:
        self._terms.given(size)
        follower = self.followers.get(peer)
        if follower is not None:
            follower.given += size

    def _show_all(self) -> None:
        for follower in self.followers.values():
            follower.show_all()

    # --- turns --------------------------------------------------------------------------------------------------------

    def share_out(self) -> None:
        """Give the turns that can begin now; to be called now and then too, since turns that are not used end."""
        if self._terms.closed():
            return
        given: list[tuple[Turn, tuple[int, ...]]] = []
        with self._lock:
            for turn in self._slots.grant(self._terms.clock()):
                shown: tuple[int, ...] = ()
                if self._seeder is not None:
                    shown = self._seeder.reveal(turn.peer, turn.blocks)
                    if not shown:
                        # All that is left is on its way to others: it is asked again when the next turn is shared out.
                        self._slots.finish(turn.peer)
                        continue
                    # What a follower cannot know of it cannot want.
                    self._slots.want(turn.peer, near=self._is_near(turn.peer))
                given.append((turn, shown))
        if given:
            self._terms.post(lambda: self._tell(given))

    def look(self) -> None:
        """To be called twice a second."""
        with self._lock:
            if self._seeder is not None:
                for peer in self.followers:
                    self._slots.want(peer, near=self._is_near(peer))
        self.share_out()

    def _tell(self, given: list[tuple[Turn, tuple[int, ...]]]) -> None:
        for turn, shown in given:
            follower = self.followers.get(turn.peer)
            if follower is not None:
                follower.show(shown)
                follower.give_turn(turn.blocks)

    def _turn_over(self, peer: str) -> None:
        if self._seeder is not None:
            self._seeder.turn_over(peer)

    def _is_near(self, peer: str) -> bool:
        follower = self.followers.get(peer)
        return follower is None or follower.near

    # --- super-seeding ------------------------------------------------------------------------------------------------

    def _seed_if_alone(self) -> None:
        found = self._terms.find(self.blob)
        with self._lock:
            if self._seeded or self._seeder is not None or not isinstance(found, Held):
                return
            if not self._terms.alone(self.blob):
                return
            seeder = SuperSeeder(found.manifest.blocks, self._rng)
            for peer, follower in self.followers.items():
                seeder.peer_up(peer)
                self._slots.want(peer, near=follower.near)
            self._seeder = seeder

    def _read_bits(self, raw: bytes) -> Bitfield | None:
        found = self._terms.find(self.blob)
        if found is None or not raw:
            return None
        try:
            return Bitfield.from_bytes(raw, found.manifest.blocks)
        except BlobError:
            return None
