"""Keeps a sequence's tokens to a grammar. Imported in the child process only.

The token that was chosen without the grammar is looked at first, which takes microseconds; only where it does not fit
are others looked for, the likeliest first. llama.cpp's own grammar sampler is not used: see `automaton`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Final

import numpy as np

from agent.engine.structure.automaton import Automaton, State, TooAmbiguousError, Walk
from agent.engine.structure.gbnf import MAX_PRODUCED
from agent.errors import BadRequestError

#: Of the likeliest tokens so many are looked at before the whole vocabulary is, and so many that fit are enough.
_LIKELIEST: Final = 256
_ENOUGH: Final = 64
#: Of those that may fit by their first byte so many are looked at once one was found.
_LOOK: Final = 2000
#: And so many where none was found yet, before those of one byte are.
_LOOK_LONG: Final = 20_000
#: Work (see `Walk.work`) that one token may cost, and looking for those that fit, at each of the three stages of that:
#: tens of milliseconds. It is looked at before a step; the last one may go past it by what one step costs.
_TOKEN_WORK: Final = 20_000
_SEARCH_WORK: Final = 40_000
#: Work that the text which exists already may cost, in the thread that prepares prompts.
_PREFIX_WORK: Final = 1_000_000
#: What a walk may keep before it is cut back to where it stands.
_MAX_KEPT: Final = 200_000


class Vocabulary:
    """The texts of a model's tokens, by id; made once for a model, and shared by all its sequences."""

    def __init__(self, size: int, piece: Callable[[int], bytes], ends: Callable[[int], bool]) -> None:
        """`piece` gives a token's bytes, none for a control token; `ends` says whether it ends a text."""
        self.pieces: list[bytes] = [piece(token) for token in range(size)]
        self.ends = frozenset(token for token in range(size) if ends(token))
        self.bytes = [token for token, one in enumerate(self.pieces) if len(one) == 1 and token not in self.ends]
        self.first = np.array([one[0] if one else 0 for one in self.pieces], dtype=np.uint8)
        self.usable = np.array([bool(one) and token not in self.ends for token, one in enumerate(self.pieces)])


class Enforcer:
    """One sequence under a grammar. A look takes microseconds, a search tens of milliseconds: work is counted."""

    def __init__(self, grammar: str, vocabulary: Vocabulary, prefix: str = "") -> None:
        """`prefix` is text of the answer that exists. Raises BadRequestError for a grammar that cannot be used."""
        self._vocabulary = vocabulary
        try:
            self._walk = Walk(Automaton(grammar, limit=MAX_PRODUCED))
            state = self._walk.text(self._walk.begin, prefix, self._walk.work + _PREFIX_WORK)
        except TooAmbiguousError:
            raise _too_ambiguous() from None
        if state is None:
            raise BadRequestError("the text that is to be continued does not obey the grammar")
        self._state: State = state
        #: The first bytes of a character whose last ones are still to come.
        self._pending = b""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow: the sequence is at its end."""
        return self._state.complete and not self._state.stacks and not self._pending

    def takes(self, token: int) -> bool:
        """Whether this token may come next."""
        if token in self._vocabulary.ends:
            return self._state.complete and not self._pending
        return self._after(token) is not None

    def accept(self, token: int) -> None:
        """The token comes next. Raises BadRequestError where the grammar leaves too many ways open after it."""
        if token in self._vocabulary.ends:
            return
        after = self._after(token)
        if after is None:
            raise _too_ambiguous()
        self._state, self._pending = after
        if self._walk.kept > _MAX_KEPT:
            try:
                self._state = self._walk.compact(self._state)
            except TooAmbiguousError:
                raise _too_ambiguous() from None

    def allowed(self, logits: np.ndarray) -> list[int]:
        """Tokens that may come next, the likeliest first: all that fit of the likeliest 256, or the 64 best that fit.

        At least one. Raises BadRequestError where the vocabulary has no token for what the grammar wants, or finding
        out takes too much work.
        """
        walk, count = self._walk, min(_LIKELIEST, len(logits))
        best = np.argpartition(logits, -count)[-count:]
        found: list[int] = []
        most = walk.work + _SEARCH_WORK
        for token in best[np.argsort(-logits[best])]:
            if walk.work > most:
                break
            if self.takes(int(token)):
                found.append(int(token))
        if found:
            return found
        most = walk.work + _SEARCH_WORK
        if self._state.complete and not self._pending:
            found = list(self._vocabulary.ends)
        left = np.flatnonzero(self._vocabulary.usable & self._first_bytes(most)[self._vocabulary.first])
        looked = 0
        for token in left[np.argsort(-logits[left])]:
            if len(found) >= _ENOUGH or looked >= (_LOOK if found else _LOOK_LONG) or walk.work > most:
                break
            looked += 1
            if self._after(int(token)) is not None:
                found.append(int(token))
        if not found and looked < len(left):
            # Every text can be written in single bytes by most models, and nothing is cheaper to look at.
            most = walk.work + _SEARCH_WORK
            for token in self._vocabulary.bytes:
                if walk.work > most:
                    break
                if self._after(token) is not None:
                    found.append(token)
        if not found and walk.work > most:
            raise _too_ambiguous()
        if not found:
            raise BadRequestError(
                "the grammar cannot be gone on with here: the model has no token for what it wants",
                details={"param": "grammar"},
            )
        return sorted(found, key=lambda token: -float(logits[token]))

    def _after(self, token: int) -> tuple[State, bytes] | None:
        """Where a token leads, None where it does not fit."""
        piece = self._vocabulary.pieces[token]
        if not piece:
            return None
        try:
            text, rest = (self._pending + piece).decode(), b""
        except UnicodeDecodeError:
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                text = decoder.decode(self._pending + piece)
            except UnicodeDecodeError:
                return None
            rest = decoder.getstate()[0]
        try:
            state = self._walk.text(self._state, text, self._walk.work + _TOKEN_WORK)
            if state is None or (rest and not self._walk.may_follow(state, *_range_of(rest))):
                return None
        except TooAmbiguousError:
            return None
        return state, rest

    def _first_bytes(self, most: int) -> np.ndarray:
        """By byte, whether a token that begins with it can come next; past `most` work, that it can."""
        if not self._pending:
            leads = self._walk.leads(self._state)
            return np.array([leads >> byte & 1 for byte in range(256)], dtype=bool)
        fits = np.zeros(256, dtype=bool)
        for byte in range(0x80, 0xC0):
            data = self._pending + bytes([byte])
            try:
                code = ord(data.decode())
                low, high = code, code
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    continue
                low, high = _range_of(data)
            fits[byte] = self._walk.work > most or self._walk.may_follow(self._state, low, high)
        return fits


def _range_of(start: bytes) -> tuple[int, int]:
    """The first and the last character whose UTF-8 begins with these bytes, which are valid so far."""
    lead = start[0]
    size, bits = (2, lead & 0x1F) if lead < 0xE0 else (3, lead & 0x0F) if lead < 0xF0 else (4, lead & 0x07)
    for byte in start[1:]:
        bits = bits << 6 | byte & 0x3F
    left = 6 * (size - len(start))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[size]
    return max(bits << left, least), min((bits + 1 << left) - 1, 0x10FFFF)


def _too_ambiguous() -> BadRequestError:
    return BadRequestError(
        "the grammar leaves too many ways open at a time; give the alternatives different beginnings",
        details={"param": "grammar"},
    )
