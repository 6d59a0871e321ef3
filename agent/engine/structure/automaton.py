"""A grammar as an automaton with a stack, and the walk of a text through it.

The tree of a rule becomes states that are joined by characters, by steps without one, and by calls of other rules. A
walk keeps every stack that the text so far allows, shared and counted once. llama.cpp walks the same way but without a
limit: a grammar of 300 bytes with rules that call the next one twice kept it busy for good, one of 2,000 choices that
may be empty too (measured with llama-cpp-python 0.3.36). Here both are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.engine.structure.gbnf import (
    MAX_GRAMMAR,
    CharClass,
    Choice,
    Literal,
    Node,
    Ref,
    Repeat,
    Rule,
    place,
    read,
)
from agent.engine.structure.problem import GrammarError

#: States a grammar may have once its repetitions are written out, and steps that may be taken to build them.
MAX_STATES: Final = 32_768
MAX_WORK: Final = 100_000
#: Stacks that a text may leave open at a time, steps to find them, and calls that may be open in each.
MAX_STACKS: Final = 1024
MAX_STEPS: Final = 8192
MAX_DEPTH: Final = 1024
#: Calls that may be open in all stacks together once a long text is cut back to where it stands.
MAX_OPEN: Final = 50_000

_SPLIT: Final = 0
_CHAR: Final = 1
_CALL: Final = 2
_END: Final = 3

#: The stack of a walk that has come to the end of `root`.
_BOTTOM: Final = 0


class TooAmbiguousError(Exception):
    """A text leaves more ways open in a grammar than are followed."""


class Automaton:
    """A grammar, ready to be walked through. Immutable; any number of walks share it."""

    def __init__(self, text: str, *, limit: int = MAX_GRAMMAR) -> None:
        """Raises GrammarError for a text that is no grammar, is left-recursive or too large when written out."""
        rules = read(text, limit=limit)
        self.text = text
        #: By state: what kind it is; the states after it (of a split all, else one); its class, or the rule it calls.
        self.kind: list[int] = []
        self.after: list[tuple[int, ...]] = []
        self.char: list[CharClass | None] = []
        self.call: list[int] = []
        self._work = 0
        #: By code point, its class: a letter that stands in a thousand places is one thing to ask about.
        self._letters: dict[int, CharClass] = {}
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._rules = list(rules.values())
        self._names = list(rules)
        self._at = 0
        self.start: list[int] = [self._rule(rule) for rule in self._rules]
        self.root = self._numbers["root"]
        self._refuse_left_recursion(self._nullable())

    # --- building, from the end of a rule to its beginning -----------------------------------------------------------

    def _rule(self, rule: Rule) -> int:
        self._at = rule.at
        return self._node(rule.body, self._state(_END))

    def _state(self, kind: int, after: tuple[int, ...] = (), char: CharClass | None = None, call: int = -1) -> int:
        if len(self.kind) >= MAX_STATES:
            raise self._too_large()
        self.kind.append(kind)
        self.after.append(after)
        self.char.append(char)
        self.call.append(call)
        return len(self.kind) - 1

    def _too_large(self) -> GrammarError:
        return GrammarError(
            "the grammar is too large once its repetitions are written out, in this rule or before it",
            *place(self.text, self._at),
        )

    def _node(self, node: Node, then: int) -> int:
        self._spend(1)
        match node:
            case Literal(text):
                for char in reversed(text):
                    then = self._state(_CHAR, (then,), self._letter(ord(char)))
                return then
            case CharClass():
                return self._state(_CHAR, (then,), node)
            case Ref(name, _):
                return self._state(_CALL, (then,), call=self._numbers[name])
            case Choice(options):
                self._spend(len(options))
                starts = tuple(dict.fromkeys(self._sequence(option, then) for option in options))
                return starts[0] if len(starts) == 1 else self._state(_SPLIT, starts)
            case Repeat():
                return self._repeat(node, then)

    def problem(self, message: str) -> GrammarError:
        """An error that is about the whole of the grammar: it points at `root`."""
        return GrammarError(message, *place(self.text, self._rules[self.root].at))

    def _spend(self, steps: int) -> None:
        self._work += steps
        if self._work > MAX_WORK:
            raise self._too_large()

    def _letter(self, code: int) -> CharClass:
        found = self._letters.get(code)
        if found is None:
            found = self._letters[code] = CharClass(((code, code),))
        return found

    def _sequence(self, nodes: Iterable[Node], then: int) -> int:
        for node in reversed(tuple(nodes)):
            then = self._node(node, then)
        return then

    def _repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            loop = self._state(_SPLIT)
            self.after[loop] = (self._node(node.node, loop), then)
            start = loop
        else:
            start = then
            for _ in range(node.most - node.least):
                start = self._state(_SPLIT, (self._node(node.node, start), then))
        for _ in range(node.least):
            start = self._node(node.node, start)
        return start

    # --- left recursion ----------------------------------------------------------------------------------------------

    def _nullable(self) -> list[bool]:
        """By rule, whether it may match nothing."""
        nullable = [False] * len(self.start)
        seen: list[set[int]] = [set() for _ in self.start]
        waiting: dict[int, list[tuple[int, int]]] = {}
        ahead = list(enumerate(self.start))
        while ahead:
            rule, state = ahead.pop()
            if nullable[rule] or state in seen[rule]:
                continue
            seen[rule].add(state)
            match self.kind[state]:
                case 0:  # _SPLIT
                    ahead += [(rule, after) for after in self.after[state]]
                case 2:  # _CALL
                    if nullable[self.call[state]]:
                        ahead.append((rule, self.after[state][0]))
                    else:
                        waiting.setdefault(self.call[state], []).append((rule, self.after[state][0]))
                case 3:  # _END
                    nullable[rule] = True
                    ahead += waiting.pop(rule, [])
        return nullable

    def _refuse_left_recursion(self, nullable: list[bool]) -> None:
        first = [self._called_first(start, nullable) for start in self.start]
        done = [False] * len(first)
        open_ = [False] * len(first)
        for root in range(len(first)):
            path: list[tuple[int, list[int]]] = [(root, list(first[root]))] if not done[root] else []
            if path:
                open_[root] = True
            while path:
                rule, ahead = path[-1]
                if not ahead:
                    done[rule], open_[rule] = True, False
                    path.pop()
                    continue
                called = ahead.pop()
                if open_[called]:
                    raise GrammarError(
                        f"the rule {self._names[called][:64]!r} comes to itself again before any character",
                        *place(self.text, self._rules[called].at),
                    )
                if not done[called]:
                    open_[called] = True
                    path.append((called, list(first[called])))

    def _called_first(self, start: int, nullable: list[bool]) -> set[int]:
        """Rules that are called from `start` before a character has been taken."""
        called: set[int] = set()
        seen: set[int] = set()
        ahead = [start]
        while ahead:
            state = ahead.pop()
            if state in seen:
                continue
            seen.add(state)
            if self.kind[state] == _SPLIT:
                ahead += self.after[state]
            elif self.kind[state] == _CALL:
                called.add(self.call[state])
                if nullable[self.call[state]]:
                    ahead.append(self.after[state][0])
        return called


class State:
    """Where a text has come to: the open stacks, each by the number of its top. `complete`: it may end here."""

    __slots__ = ("complete", "next", "stacks")

    def __init__(self, stacks: tuple[int, ...], *, complete: bool) -> None:
        self.stacks = stacks
        self.complete = complete
        #: By code point: the state after it, None where it cannot follow.
        self.next: dict[int, State | None] = {}


class Walk:
    """Walks of texts through one automaton; what was found is kept, so that most steps are a look into a table."""

    def __init__(self, automaton: Automaton) -> None:
        """Raises TooAmbiguousError where not even the beginning is within the limits, GrammarError where none is."""
        self._automaton = automaton
        #: Work done so far, in stacks that were looked at: about a microsecond each.
        self.work = 0
        self._forget()
        self._begin = self._close([(automaton.start[automaton.root], _BOTTOM)])
        if not self._begin.stacks and not self._begin.complete:
            raise automaton.problem(f"nothing can begin: rules call each other more than {MAX_DEPTH} deep first")

    @property
    def begin(self) -> State:
        """Where every text begins."""
        return self._begin

    def _forget(self) -> None:
        self._tops: dict[tuple[int, int], int] = {}
        #: By number of a stack: the state on top, the stack below, how many there are.
        self._state: list[int] = [-1]
        self._below: list[int] = [_BOTTOM]
        self._depth: list[int] = [0]
        self._states: dict[frozenset[int], State] = {}
        self._kept = 0

    @property
    def kept(self) -> int:
        """How much has been found so far: stacks, and steps between states."""
        return len(self._state) + self._kept

    def step(self, state: State, code: int) -> State | None:
        """The state after one more character, None where it cannot follow. Raises TooAmbiguousError."""
        if code in state.next:
            return state.next[code]
        automaton, found = self._automaton, []
        self.work += len(state.stacks)
        for stack in state.stacks:
            top = self._state[stack]
            char = automaton.char[top]
            if char is not None and char.has(code):
                found.append((automaton.after[top][0], self._below[stack]))
        after = self._close(found) if found else None
        if after is not None and not after.stacks and not after.complete:
            after = None  # every way on is nested too deeply
        state.next[code] = after
        self._kept += 1
        return after

    def text(self, state: State, text: str, most: int | None = None) -> State | None:
        """The state after a text, None where it cannot follow. Raises TooAmbiguousError, also past `most` work."""
        now: State | None = state
        for char in text:
            if most is not None and self.work > most:
                raise TooAmbiguousError
            now = self.step(now, ord(char)) if now is not None else None
            if now is None:
                return None
        return now

    def may_follow(self, state: State, low: int, high: int) -> bool:
        """Whether any character from `low` to `high` can come next."""
        self.work += len(state.stacks)
        return any(char.meets(low, high) for char in self._classes(state))

    def leads(self, state: State) -> int:
        """The bytes that the next character may begin with, and others perhaps that begin none: bit N for byte N."""
        self.work += len(state.stacks)
        found = 0
        for char in self._classes(state):
            found |= char.leads
        return found

    def _classes(self, state: State) -> Iterable[CharClass]:
        chars = (self._automaton.char[self._state[stack]] for stack in state.stacks)
        return (char for char in chars if char is not None)

    def compact(self, state: State) -> State:
        """Forget everything but one state, which is returned anew; the others must not be used any more.

        Raises TooAmbiguousError where its stacks have more than MAX_OPEN calls that are not shared.
        """
        # A stack has a higher number than what is below it.
        needed: set[int] = set()
        for stack in state.stacks:
            while stack != _BOTTOM and stack not in needed:
                needed.add(stack)
                stack = self._below[stack]
            if len(needed) > MAX_OPEN:
                raise TooAmbiguousError
        was = [(stack, self._state[stack], self._below[stack]) for stack in sorted(needed)]
        self.work += len(was)
        self._forget()
        now = {_BOTTOM: _BOTTOM}
        for stack, top, below in was:
            now[stack] = self._push(top, now[below])
        self._begin = self._close([(self._automaton.start[self._automaton.root], _BOTTOM)])
        return self._intern(frozenset(now[stack] for stack in state.stacks), complete=state.complete)

    def _close(self, ahead: list[tuple[int, int]]) -> State:
        """All stacks with a character on top that can be reached from these (state, stack below)."""
        automaton = self._automaton
        seen: set[tuple[int, int]] = set()
        tops: set[int] = set()
        complete = False
        steps = 0
        while ahead:
            item = ahead.pop()
            if item in seen:
                continue
            seen.add(item)
            steps += 1
            if steps > MAX_STEPS:
                self.work += MAX_STEPS
                raise TooAmbiguousError
            state, below = item
            kind = automaton.kind[state]
            if kind == _CHAR:
                tops.add(self._push(state, below))
                if len(tops) > MAX_STACKS:
                    self.work += steps
                    raise TooAmbiguousError
            elif kind == _SPLIT:
                # Ways are counted where they are listed: 2,000 to choose from, 2,000 times over, are never listed.
                steps += len(automaton.after[state])
                if steps <= MAX_STEPS:
                    ahead += [(after, below) for after in automaton.after[state]]
            elif kind == _CALL:
                back = automaton.after[state][0]
                # A call at the end of a rule leaves nothing to come back to: lists then need no deeper stack.
                if automaton.kind[back] != _END:
                    below = self._push(back, below)
                    if self._depth[below] > MAX_DEPTH:
                        continue
                ahead.append((automaton.start[automaton.call[state]], below))
            elif below == _BOTTOM:
                complete = True
            else:
                ahead.append((self._state[below], self._below[below]))
        self.work += steps
        return self._intern(frozenset(tops), complete=complete)

    def _push(self, state: int, below: int) -> int:
        number = self._tops.get((state, below))
        if number is None:
            number = self._tops[state, below] = len(self._state)
            self._state.append(state)
            self._below.append(below)
            self._depth.append(self._depth[below] + 1)
        return number

    def _intern(self, tops: frozenset[int], *, complete: bool) -> State:
        key = tops | {_BOTTOM} if complete else tops
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = State(tuple(sorted(tops)), complete=complete)
        return state
