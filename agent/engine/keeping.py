"""What is kept of sequences that are over, for those that begin alike: in the engine's cells, beside them, on disk.

One that has just ended stays in its cells: its conversation goes on from there at no cost. As soon as others run it is
parked beside them, for every step looks at each cell that is in use: of SmolLM2-135M, at sixteen sequences, 2,048
tokens that are only kept take an eighth of the step. Imported in the child process only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from agent.engine.context import Context
from agent.engine.ledger import Ledger
from agent.engine.parking import Found, Parked, Parking
from agent.engine.prefix import Beginning, Kept, Shelf, best_beginning, common
from agent.engine.schedule import Running
from agent.engine.sessions import Saved, Sessions

#: Tokens of sequences that are over and stay in cells where they cannot be parked, but for the newest.
_KEPT: Final = 2048
#: Tokens of them that stay there while others run. A cache is looked at in blocks of so many.
_BESIDE: Final = 256
#: So many tokens more have to be alike for a sequence that is parked to be put back, rather than to go on from cells.
_WORTH: Final = 32
#: Fewer are not worth waiting for.
_FEW: Final = 8


class Keeping:
    """The cells and numbers of a context's sequences, and what is kept of those that are over."""

    def __init__(
        self, context: Context, ledger: Ledger, sequences: int, sessions: Sessions | None, *, whole_only: bool,
        parking: int,
    ) -> None:  # fmt: skip
        """`parking` bytes may be taken beside the cells. `whole_only` is as `best_beginning` has it."""
        self._context = context
        self._ledger = ledger
        self._numbers = deque(range(sequences))
        self._sessions = sessions
        self._whole_only = whole_only
        self._shelf = Shelf()
        self._parking = Parking(parking, self._gone)
        #: Conversations in cells that are not on disk yet, by llama.cpp's number.
        self._unsaved: set[int] = set()

    def __len__(self) -> int:
        return len(self._shelf) + len(self._parking)

    @property
    def parked_bytes(self) -> int:
        """What is kept beside the cells."""
        return self._parking.bytes

    def spare(self, cells: int) -> int | None:
        """The number of an empty sequence with so many cells free beside it, which stays free; None if there is none.

        What is kept goes out of its way.
        """
        return self._numbers[0] if self.make_room(cells) and self._number() else None

    def make_room(self, cells: int, *, but: int = -1) -> bool:
        """See that so many cells are free; what is kept in cells, but for sequence `but`, gives them up."""
        while self._ledger.free < cells and (oldest := self._shelf.oldest(but=but)):
            self.give_up(oldest)
        return self._ledger.free >= cells

    def give_up_oldest(self) -> bool:
        """Let go of the cells that were used longest ago by a sequence that is over; False where there are none."""
        oldest = self._shelf.oldest()
        if oldest is not None:
            self.give_up(oldest)
        return oldest is not None

    def step_aside(self) -> None:
        """Before a step of others: park what is kept in cells, as far as that can be done."""
        for kept in self._shelf.all():
            if self._shelf.tokens <= _BESIDE:
                return
            self._park(kept)

    # --- a new sequence ----------------------------------------------------------------------------------------------

    def restore(self, sequence: Running, session: str, saved: Saved) -> None:
        """Have what is on disk of a request's conversation as if it had just ended; not where it is of no use."""
        alike = common(saved.tokens, sequence.tokens)
        if alike < (len(saved.tokens) if self._whole_only else len(saved.tokens) // 2):
            return
        owner, tokens = sequence.owner, saved.tokens
        if self._parking.takes(len(saved.state)):
            self._parking.put(Parked(owner, tokens, session, saved.state))
            self._note_resident(owner, session, here=True)
        elif (seq := self._put_back(tokens, saved.state)) is not None:
            self._keep(Kept(seq, owner, list(tokens), session))

    def find(self, sequence: Running, session: str, running: Iterable[Running]) -> Beginning | Found | None:
        """The beginning that a new sequence shares with one that runs or is kept."""
        best = best_beginning(
            sequence.tokens, sequence.owner, self._shelf.all(),
            ((one.seq, one.owner, one.tokens[: one.decoded]) for one in running),
            whole_only=self._whole_only, session=session,
        )  # fmt: skip
        least = best.length + _WORTH if best else 0
        parked = self._parking.find(
            sequence.tokens, sequence.owner, session, longer_than=least, whole_only=self._whole_only
        )
        return parked or best

    def is_being_read(self, sequence: Running, found: Beginning | Found | None, running: Iterable[Running]) -> bool:
        """Whether one that runs is at a prompt that begins like a new sequence, for clearly more than was `found`.

        That is all the prompts have in common, not what has been read of it by now.
        """
        if self._whole_only:
            return False
        known = found.length if found else 0
        for one in running:
            if one.owner != sequence.owner or one.decoded >= one.prompt_tokens:
                continue
            prompt = one.tokens[: one.prompt_tokens]
            saved = min(common(prompt, sequence.tokens), len(sequence.tokens) - 1) - known
            # Where most of what is left of the other prompt is shared, a step or two is all there is to wait for.
            if saved >= _WORTH or (saved >= _FEW and 2 * saved >= one.prompt_tokens - one.decoded):
                return True
        return False

    def admit(
        self, sequence: Running, found: Beginning | Found | None, session: str, cells: int, *, alone: bool
    ) -> bool:
        """Give a new sequence its number and the beginning that was found, if there are `cells` for the rest of it.

        `alone`: it is let in however few there are, as nobody else will end and leave some.
        """
        if isinstance(found, Found):
            if self.make_room(len(found.parked.tokens) + len(sequence.tokens) - found.length + cells):
                self._bring_back(sequence, found)
                return True
            found = None
        length, seq = (found.length, found.seq) if found else (0, -1)
        if not self.make_room(len(sequence.tokens) - length + cells, but=seq) and not alone:
            return False
        self._give_cells(sequence, found, session)
        return True

    def _bring_back(self, sequence: Running, found: Found) -> None:
        parked = found.parked
        seq = self._put_back(parked.tokens, parked.state)
        if found.whole:
            # Its conversation goes on in cells, and is saved when that has ended.
            self._parking.take(parked)
            self._note_resident(parked.owner, parked.session, here=False)
        if seq is None:
            self._give_cells(sequence, None, "")
            return
        sequence.seq = seq
        self._cut(sequence, found.length, of=len(parked.tokens))

    def _put_back(self, tokens: Sequence[int], state: bytes | memoryview) -> int | None:
        """Give a number and cells to what is kept elsewhere; None where there is no room, or llama.cpp refuses it."""
        if not self.make_room(len(tokens)) or not self._number():
            return None
        seq = self._numbers.popleft()
        if self._context.restore(seq, state):
            self._ledger.append(seq, len(tokens))
            return seq
        self._context.forget(seq)
        self._numbers.append(seq)
        return None

    def _give_cells(self, sequence: Running, beginning: Beginning | None, session: str) -> None:
        if beginning is not None and beginning.kept is not None:
            self._take_over(beginning.kept, session)
            sequence.seq = beginning.seq
            self._cut(sequence, beginning.length, of=len(beginning.kept.tokens))
            return
        if not self._numbers and (oldest := self._shelf.oldest(but=beginning.seq if beginning else -1)):
            self.give_up(oldest)
        if not self._numbers and self.give_up_oldest():
            beginning = None  # it was the last that is kept, and its number is needed
        sequence.seq = self._numbers.popleft()
        if beginning is not None:
            self._context.copy(beginning.seq, sequence.seq, beginning.length)
            self._ledger.share(beginning.seq, sequence.seq, beginning.length)
            sequence.decoded = sequence.reused = beginning.length

    def _cut(self, sequence: Running, length: int, *, of: int) -> None:
        """Let a sequence go on from the first `length` of the `of` tokens whose cells it was given."""
        if length < of and not self._context.forget(sequence.seq, length):
            self.clear(sequence)
            return
        self._ledger.trim(sequence.seq, length)
        sequence.decoded = sequence.reused = length

    # --- a sequence that is over -------------------------------------------------------------------------------------

    def keep(self, sequence: Running, session: str) -> None:
        """A sequence has ended: its cells are kept."""
        self._keep(Kept(sequence.seq, sequence.owner, sequence.tokens[: sequence.decoded], session))
        if session and self._sessions is not None:
            self._unsaved.add(sequence.seq)

    def _keep(self, kept: Kept) -> None:
        self._shelf.put(kept)
        while len(self._shelf) > 1 and self._shelf.tokens > _KEPT and (oldest := self._shelf.oldest(but=kept.seq)):
            self.give_up(oldest)
        self._note_resident(kept.owner, kept.session, here=True)

    def clear(self, sequence: Running) -> None:
        """Take the cells of a sequence, and leave it its number."""
        self._context.forget(sequence.seq)
        self._ledger.drop(sequence.seq)
        sequence.decoded = sequence.reused = 0

    def release(self, sequence: Running) -> None:
        """Take the cells and the number of a sequence."""
        self.clear(sequence)
        self._numbers.append(sequence.seq)
        sequence.seq = -1

    def give_up(self, kept: Kept) -> None:
        """The cells and the number of what is kept are needed: it is parked, or else gone."""
        if not self._park(kept):
            self._take_over(kept)
            self._free(kept.seq)

    def _park(self, kept: Kept) -> bool:
        if not self._parking.takes(self._context.state_size(kept.seq)):
            return False
        parked = Parked(kept.owner, kept.tokens, kept.session, self._context.state(kept.seq), kept.seq in self._unsaved)
        self._unsaved.discard(kept.seq)
        self._shelf.take(kept.seq)
        self._free(kept.seq)
        self._parking.put(parked)
        return True

    def _free(self, seq: int) -> None:
        self._context.forget(seq)
        self._ledger.drop(seq)
        self._numbers.append(seq)

    def _take_over(self, kept: Kept, session: str = "") -> None:
        """What is kept in cells is needed for another: what is not on disk of its conversation goes there first.

        Not where the same conversation goes on: it is saved when its turn is over.
        """
        self._shelf.take(kept.seq)
        if kept.seq in self._unsaved and kept.session != session:
            self._save(kept.owner, kept.session, kept.tokens, self._context.state(kept.seq))
        self._unsaved.discard(kept.seq)
        self._note_resident(kept.owner, kept.session, here=False)

    def _number(self) -> bool:
        """See that a number is free."""
        return bool(self._numbers) or self.give_up_oldest()

    # --- conversations on disk ---------------------------------------------------------------------------------------

    def save_one(self) -> bool:
        """Put one conversation that has gone on on disk; False where there is none. For when there is nothing to do."""
        for kept in self._shelf.all():
            if kept.seq in self._unsaved:
                self._unsaved.discard(kept.seq)
                self._save(kept.owner, kept.session, kept.tokens, self._context.state(kept.seq))
                return True
        for parked in self._parking.all():
            if parked.unsaved:
                self._save(parked.owner, parked.session, parked.tokens, parked.state)
                self._parking.saved(parked)
                return True
        return False

    def _gone(self, parked: Parked) -> None:
        if parked.unsaved:
            self._save(parked.owner, parked.session, parked.tokens, parked.state)
        self._note_resident(parked.owner, parked.session, here=False)

    def _save(self, owner: str, session: str, tokens: Sequence[int], state: bytes | memoryview) -> None:
        if self._sessions is not None:
            self._sessions.save(owner, session, tokens, state)

    def _note_resident(self, owner: str, session: str, *, here: bool) -> None:
        if self._sessions is not None and session:
            self._sessions.note_resident(owner, session, here=here)
