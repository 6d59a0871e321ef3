"""Regular expressions of JSON Schema as GBNF, for text inside a JSON string. Pure.

Of the dialect of ECMA-262: characters and their escapes, classes, groups, alternatives, repetitions, `^` at the
beginning and `$` at the end. Look-around, back references, word boundaries and properties of Unicode are refused. A
pattern that is not anchored may stand anywhere in the text, as the standard says.
"""

from __future__ import annotations

import re
from typing import Final

from agent.engine.structure.notation import Grammar, in_class

MAX_PATTERN: Final = 1024
_MAX_NESTING: Final = 24
_MAX_REPEAT: Final = 4096

_Ranges = list[tuple[int, int]]
_DIGIT: Final[_Ranges] = [(0x30, 0x39)]
_WORD: Final[_Ranges] = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_BLANKS: Final = (0x20, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF)
_SPACE: Final[_Ranges] = [(0x9, 0xD), (0x2000, 0x200A), *((code, code) for code in _BLANKS)]
_LINES: Final[_Ranges] = [(0xA, 0xA), (0xD, 0xD), (0x2028, 0x2029)]
_SETS: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_SHORT: Final = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\", 0x2F: "/"}
_LAST: Final = 0x10FFFF
#: The second half of a pair of surrogates: tools in JavaScript write a character past U+FFFF as two escapes.
_LOW_HALF: Final = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class PatternError(Exception):
    """The pattern cannot be used; the text says why and where."""


def string_of(pattern: str, grammar: Grammar) -> str:
    """The JSON strings whose text the pattern matches. Raises PatternError."""
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"it is longer than {MAX_PATTERN} characters")
    return _Reader(pattern, grammar).whole()


class _Reader:
    def __init__(self, pattern: str, grammar: Grammar) -> None:
        self._text = pattern
        self._grammar = grammar
        self._at = 0

    def whole(self) -> str:
        # `^` and `$` belong to one alternative each, as in "^a|b$".
        options = []
        while True:
            begins = self._take("^")
            body = self._sequence(0)
            ends = self._take("$")
            any_text = f"{self._grammar.char}*"
            options.append(" ".join(filter(None, ("" if begins else any_text, body, "" if ends else any_text))) or '""')
            if not self._take("|"):
                break
        if self._at < len(self._text):
            raise self._problem("this cannot stand here")
        return self._grammar.rule(f'"\\"" ( {" | ".join(options)} ) "\\""')

    def _choice(self, depth: int) -> str:
        options = [self._sequence(depth) or '""']
        while self._take("|"):
            options.append(self._sequence(depth) or '""')
        return " | ".join(options)

    def _sequence(self, depth: int) -> str:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            item = self._item(depth)
            least, most = self._bounds()
            if (least, most) == (1, 1):
                parts.append(item)
            else:
                parts.append(f"( {self._grammar.times(self._grammar.rule(item), least, most)} )")
        return " ".join(parts)

    def _item(self, depth: int) -> str:
        char = self._text[self._at]
        if char in "*+?{":
            raise self._problem(f"there is nothing before this {char!r} that could be repeated")
        if char == "^":
            raise self._problem("'^' can stand at the beginning alone")
        self._at += 1
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._one_of(self._class())
        if char == ".":
            return self._one_of(_complement(_LINES))
        if char == "\\":
            return self._one_of(self._escape())
        return self._one_of([(ord(char), ord(char))])

    def _group(self, depth: int) -> str:
        if depth >= _MAX_NESTING:
            raise self._problem(f"groups are nested more than {_MAX_NESTING} deep")
        if self._take("?") and not self._take(":"):
            raise self._problem("look-around and named groups are not supported")
        inner = self._choice(depth + 1)
        if not self._take(")"):
            raise self._problem("')' is expected here")
        return self._grammar.rule(inner)

    def _bounds(self) -> tuple[int, int | None]:
        bounds: tuple[int, int | None] = (1, 1)
        if self._take("*"):
            bounds = (0, None)
        elif self._take("+"):
            bounds = (1, None)
        elif self._take("?"):
            bounds = (0, 1)
        elif self._take("{"):
            least = self._number()
            most: int | None = least
            if self._take(","):
                most = self._number() if self._text[self._at : self._at + 1] != "}" else None
            if not self._take("}") or (most is not None and most < least):
                raise self._problem("a repetition looks like {3}, {3,} or {3,7}")
            bounds = (least, most)
        else:
            return bounds
        self._take("?")  # whether few or many are preferred changes nothing about what matches
        return bounds

    def _number(self) -> int:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in "0123456789" and self._at - start < 6:
            self._at += 1
        if start == self._at or int(self._text[start : self._at]) > _MAX_REPEAT:
            raise self._problem(f"a number of repetitions up to {_MAX_REPEAT} is expected here")
        return int(self._text[start : self._at])

    def _class(self) -> _Ranges:
        negated = self._take("^")
        ranges: _Ranges = []
        while not self._take("]"):
            low = self._in_class()
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._in_class()
                if len(low) > 1 or len(high) > 1 or low[0][0] > high[-1][1]:
                    raise self._problem("this range ends before it begins")
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        return _complement(ranges) if negated else ranges

    def _in_class(self) -> _Ranges:
        if self._at >= len(self._text):
            raise self._problem("this class has no ']'")
        char = self._text[self._at]
        self._at += 1
        if char == "\\":
            if self._take("b"):
                return [(8, 8)]
            return self._escape()
        return [(ord(char), ord(char))]

    def _escape(self) -> _Ranges:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char.lower() in _SETS and char:
            found = _SETS[char.lower()]
            return _complement(found) if char.isupper() else list(found)
        if char in _CONTROLS and char and not (char == "0" and self._text[self._at : self._at + 1].isdigit()):
            return [(_CONTROLS[char], _CONTROLS[char])]
        if char in ("x", "u"):
            size = 2 if char == "x" else 4
            digits = self._text[self._at : self._at + size]
            if len(digits) == size and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self._at += size
                code = int(digits, 16)
                low = _LOW_HALF.match(self._text, self._at) if 0xD800 <= code < 0xDC00 else None
                if low is not None:
                    self._at = low.end()
                    code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
                return [(code, code)]
        if not char or char.isalnum():
            self._at -= 1
            raise self._problem("this escape is not supported")
        return [(ord(char), ord(char))]

    def _one_of(self, ranges: _Ranges) -> str:
        """One character of these ranges, as it is written in a JSON string."""
        plain: _Ranges = []
        escaped: list[str] = []
        for low, high in _without(_merged(ranges), 0xD800, 0xDFFF):
            for code, short in _SHORT.items():
                if low <= code <= high and code != 0x2F:
                    escaped.append(short)
            plain += [(low, high)]
        for low, high in ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)):
            plain = _without(plain, low, high)
        options = []
        if plain:
            options.append("[" + "".join(_range_text(low, high) for low, high in plain) + "]")
        if escaped:
            options.append(f'"\\\\" [{in_class(escaped)}]')
        if not options:
            raise self._problem("this matches no character that an answer may hold")
        return options[0] if len(options) == 1 else self._grammar.rule(" | ".join(options))

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _problem(self, message: str) -> PatternError:
        return PatternError(f"{message} (character {self._at + 1} of the pattern)")


def _merged(ranges: _Ranges) -> _Ranges:
    merged: _Ranges = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _complement(ranges: _Ranges) -> _Ranges:
    result, start = [], 0
    for low, high in _merged(ranges):
        if start < low:
            result.append((start, low - 1))
        start = high + 1
    return [*result, (start, _LAST)] if start <= _LAST else result


def _without(ranges: _Ranges, low: int, high: int) -> _Ranges:
    result: _Ranges = []
    for start, end in ranges:
        if start < low:
            result.append((start, min(end, low - 1)))
        if end > high:
            result.append((max(start, high + 1), end))
    return [one for one in result if one[0] <= one[1]]


def _range_text(low: int, high: int) -> str:
    def one(code: int) -> str:
        return in_class(chr(code)) if code < 0x80 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"

    return one(low) if low == high else f"{one(low)}-{one(high)}"
