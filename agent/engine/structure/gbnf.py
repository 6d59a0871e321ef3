"""GBNF, llama.cpp's notation for grammars, read into a tree that knows where each rule stands.

Of that notation everything but tokens by id or name (`<[7]>`, `<|im_end|>`) is read: a grammar is about text, and a
control token is none. llama.cpp's own parser says NULL to a bad grammar without a place, and overflows its stack at
20,000 parentheses (measured with llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from agent.engine.structure.problem import GrammarError

#: Bytes of a grammar that a client or a peer may send, and of one that a schema may become.
MAX_GRAMMAR: Final = 64 * 1024
MAX_PRODUCED: Final = 256 * 1024
MAX_RULES: Final = 16_384
#: Texts, classes, names, groups and repetitions in a grammar.
MAX_PARTS: Final = 50_000
MAX_NESTING: Final = 64
MAX_REPEAT: Final = 65_536
LAST_CODE: Final = 0x10FFFF
#: Surrogates, which are no characters.
_HALVES: Final = (0xD800, 0xDFFF)


@dataclass(frozen=True)
class Literal:
    """Exactly this text; may be empty."""

    text: str


@dataclass(frozen=True)
class CharClass:
    """One character of these inclusive ranges of code points, which are in order and neither meet nor touch.

    `class_of` makes one of any ranges. A class of 50,000 ranges costs 16 comparisons to look at, not 50,000.
    """

    ranges: tuple[tuple[int, int], ...]

    def has(self, code: int) -> bool:
        """Whether it matches this code point."""
        return self.meets(code, code)

    def meets(self, low: int, high: int) -> bool:
        """Whether it matches any code point from `low` to `high`."""
        before = bisect_right(self.ranges, (high, LAST_CODE))
        return before > 0 and self.ranges[before - 1][1] >= low

    @cached_property
    def leads(self) -> int:
        """The first bytes of its characters in UTF-8, and others perhaps that begin no character: bit N for byte N."""
        found = 0
        for low, high in self.ranges:
            first, last = chr(low).encode()[0], chr(high).encode()[0]
            found |= (1 << last + 1) - (1 << first)
        return found


def class_of(ranges: Iterable[tuple[int, int]], *, negated: bool = False) -> CharClass:
    """One character of these ranges, or of all others. Halves of a character (surrogates) are in none."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted([*ranges, _HALVES] if negated else ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    if negated:
        ends = [-1, *(high for _, high in merged)]
        starts = [*(low for low, _ in merged), LAST_CODE + 1]
        merged = [(end + 1, start - 1) for end, start in zip(ends, starts, strict=True) if end + 1 < start]
    else:
        pieces = [((low, min(high, _HALVES[0] - 1)), (max(low, _HALVES[1] + 1), high)) for low, high in merged]
        merged = [(low, high) for both in pieces for low, high in both if low <= high]
    return CharClass(tuple(merged))


@dataclass(frozen=True)
class Ref:
    """What another rule says; `at` is its offset in the text."""

    rule: str
    at: int


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times, without an end where `most` is None."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Choice:
    """One of several sequences."""

    options: tuple[tuple[Node, ...], ...]


Node = Literal | CharClass | Ref | Repeat | Choice


@dataclass(frozen=True)
class Rule:
    """A rule's right side, and the offset of its name."""

    body: Choice
    at: int


_SPACE: Final = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_OR_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_PLAIN: Final = re.compile(r'[^"\\]+')
# Possessive throughout: giving back blanks to try again took minutes for 8,000 of them without a brace behind.
_BOUNDS: Final = re.compile(r"\{[ \t]*+([0-9]++)[ \t]*+(,?+)[ \t]*+([0-9]*+)[ \t]*+\}")
_HEX: Final = {"x": 2, "u": 4, "U": 8}
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}


def read(text: str, *, limit: int = MAX_GRAMMAR) -> dict[str, Rule]:
    """The rules by name, all that they refer to among them, `root` too.

    Raises GrammarError with line and column. Takes time linear in the text, which may have `limit` bytes.
    """
    if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise GrammarError(f"the grammar is larger than {limit} bytes", 1, 1)
    return _Reader(text).rules()


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of an offset, from 1."""
    before = text[:at]
    return before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1


_ANY: Final = class_of([], negated=True)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._refs: dict[str, int] = {}
        self._parts = 0

    def rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        self._skip(_SPACE_OR_LINES)
        while self._at < len(self._text):
            at = self._at
            name = self._take(_NAME)
            if name is None:
                raise self._problem("a rule's name is expected here, made of letters, digits and hyphens")
            if name in rules:
                raise self._problem(f"there is a rule {name[:64]!r} already", at)
            if len(rules) >= MAX_RULES:
                raise self._problem(f"there are more than {MAX_RULES} rules", at)
            self._skip(_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._problem("'::=' is expected here")
            self._at += 3
            self._skip(_SPACE_OR_LINES)
            rules[name] = Rule(self._choice(0), at)
            if self._at < len(self._text) and self._take(_LINE_END) is None:
                raise self._problem(
                    "there is no '(' for this ')'" if self._peek() == ")" else "this cannot stand in a rule"
                )
            self._skip(_SPACE_OR_LINES)
        if "root" not in rules:
            raise self._problem("there is no rule 'root'", 0)
        for name, at in self._refs.items():
            if name not in rules:
                raise self._problem(f"there is no rule {name[:64]!r}", at)
        return rules

    def _choice(self, depth: int) -> Choice:
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_OR_LINES)
            options.append(self._sequence(depth))
        return Choice(tuple(options))

    def _sequence(self, depth: int) -> tuple[Node, ...]:
        nodes: list[Node] = []
        space = _SPACE_OR_LINES if depth else _SPACE
        while True:
            node = self._item(depth, nodes)
            if node is None:
                return tuple(nodes)
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise self._problem(f"the grammar has more than {MAX_PARTS} parts")
            nodes.append(node)
            self._skip(space)

    def _item(self, depth: int, before: list[Node]) -> Node | None:
        """What stands here; a repetition takes the place of the last of `before`. None at the end of a sequence."""
        at, char = self._at, self._peek()
        if char == '"':
            return Literal(self._string())
        if char == "[":
            return self._class()
        if char == ".":
            self._at += 1
            return _ANY
        if char == "(":
            if depth >= MAX_NESTING:
                raise self._problem(f"parentheses are nested more than {MAX_NESTING} deep")
            self._at += 1
            self._skip(_SPACE_OR_LINES)
            inner = self._choice(depth + 1)
            if self._peek() != ")":
                raise self._problem("')' is expected here", self._at)
            self._at += 1
            return inner
        if char and char in "*+?{":
            if not before:
                raise self._problem(f"there is nothing before this {char!r} that could be repeated")
            return self._repeat(before.pop(), *self._bounds(char))
        if char in ("<", "!"):
            raise self._problem("tokens cannot be named in a grammar here; write the text they stand for")
        name = self._take(_NAME)
        if name is None:
            return None
        self._refs.setdefault(name, at)
        return Ref(name, at)

    def _repeat(self, node: Node, least: int, most: int | None) -> Repeat:
        # As with parentheses: whoever walks the tree does so by recursion.
        inner, depth = node, 1
        while isinstance(inner, Repeat):
            inner, depth = inner.node, depth + 1
        if depth > MAX_NESTING:
            raise self._problem(f"more than {MAX_NESTING} repetitions of each other")
        return Repeat(node, least, most)

    def _bounds(self, char: str) -> tuple[int, int | None]:
        if char != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        found = _BOUNDS.match(self._text, self._at)
        if found is None:
            raise self._problem("a repetition looks like {3}, {3,} or {3,7}")
        if max(len(found[1]), len(found[3])) > 6:
            raise self._problem(f"more than {MAX_REPEAT} repetitions")
        least = int(found[1])
        most = int(found[3]) if found[3] else (None if found[2] else least)
        if not found[2] and found[3]:
            raise self._problem("a repetition looks like {3}, {3,} or {3,7}")
        if max(least, most or 0) > MAX_REPEAT:
            raise self._problem(f"more than {MAX_REPEAT} repetitions")
        if most is not None and most < least:
            raise self._problem("the upper bound of a repetition is below the lower one")
        self._at = found.end()
        return least, most

    def _string(self) -> str:
        start = self._at
        self._at += 1
        parts: list[str] = []
        while (char := self._peek()) != '"':
            if not char:
                raise self._problem("this text has no closing '\"'", start)
            if char == "\\":
                parts.append(chr(self._escape()))
            else:
                found = _PLAIN.match(self._text, self._at)
                assert found is not None
                parts.append(found[0])
                self._at = found.end()
        self._at += 1
        return "".join(parts)

    def _class(self) -> CharClass:
        start = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while (char := self._peek()) != "]":
            if not char:
                raise self._problem("this '[' has no ']'", start)
            at = self._at
            low = high = self._code(start)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._code(start)
                if high < low:
                    raise self._problem("this range ends before it begins", at)
            ranges.append((low, high))
        self._at += 1
        found = class_of(ranges, negated=negated)
        if not found.ranges:
            raise self._problem("this class matches no character", start)
        return found

    def _code(self, start: int) -> int:
        char = self._peek()
        if not char:
            raise self._problem("this '[' has no ']'", start)
        if char == "\\":
            return self._escape()
        self._at += 1
        return ord(char)

    def _escape(self) -> int:
        at = self._at
        char = self._text[at + 1 : at + 2]
        if char in _ESCAPES and char:
            self._at += 2
            return ord(_ESCAPES[char])
        digits = self._text[at + 2 : at + 2 + _HEX.get(char, 0)]
        if not digits or len(digits) < _HEX[char] or not re.fullmatch("[0-9a-fA-F]+", digits):
            raise self._problem('no such escape; there are \\t \\r \\n \\\\ \\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH')
        code = int(digits, 16)
        if code > LAST_CODE or 0xD800 <= code < 0xE000:
            raise self._problem("this is no character of Unicode")
        self._at += 2 + len(digits)
        return code

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _problem(self, message: str, at: int | None = None) -> GrammarError:
        return GrammarError(message, *place(self._text, self._at if at is None else at))
