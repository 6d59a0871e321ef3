"""Building grammars: pieces of GBNF, counted repetitions that stay small, and choices that share their beginnings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final

from agent.engine.structure.gbnf import MAX_PRODUCED

_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: Copies that are written out; longer repetitions are made of rules for 64, 4096, ... of a thing.
_BLOCK: Final = 64
#: Past this many letters that lead on to more, a choice is written out instead.
_MAX_SHARED: Final = 200

_WS: Final = '( " " | "\\n" [ \\t]{0,20} )?'
_HEX: Final = "[0-9a-fA-F]"
#: An escaped character beyond the first 65,536 is one pair of escapes; half of a pair is no character.
_CHAR: Final = (
    '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" ( ["\\\\/bfnrt] | "u" ( [0-9a-cefA-CEF] H{3} | [dD] [0-7] H{2}'
    ' | [dD] [89abAB] H{2} "\\\\u" [dD] [c-fC-F] H{2} ) )'
).replace("H", _HEX)
_INTEGER: Final = '"-"? ( "0" | [1-9] [0-9]{0,15} )'
_NUMBER: Final = f'{_INTEGER} ( "." [0-9]{{1,15}} )? ( [eE] [-+]? [0-9]{{1,2}} )?'


#: Work that all schemas of one grammar may cost: names and letters that are looked at, about a microsecond each.
MAX_WORK: Final = 262_144


class TooLargeError(Exception):
    """What is being built is past MAX_PRODUCED, or took more than MAX_WORK."""


def literal(text: str) -> str:
    """Exactly this text."""
    return '"' + "".join(_escape(char) for char in text) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPED:
        return _ESCAPED[char]
    code = ord(char)
    return char if code >= 0x20 and code != 0x7F else f"\\x{code:02X}"


def class_of(chars: Iterable[str], *, negated: bool = False) -> str:
    """One of these characters, or one of all others."""
    return f"[{'^' if negated else ''}{in_class(chars)}]"


def in_class(chars: Iterable[str]) -> str:
    """Characters as they stand between brackets."""
    return "".join(
        "\\" + char if char in '\\]["' else f"\\x{ord(char):02X}" if char in "^-" else _escape(char)
        for char in sorted(set(chars))
    )


def json_text(value: object) -> str:
    """A value as it is written in an answer, with one space after commas and colons."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class Grammar:
    """Rules in the making. What is the same is kept once."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._by_body: dict[str, str] = {}
        self._size = 0
        self._work = 0
        self._made: dict[tuple[object, ...], str] = {}

    def spend(self, work: int) -> None:
        """Count work that is about to be done. Raises TooLargeError."""
        self._work += work
        if self._work > MAX_WORK:
            raise TooLargeError

    def rule(self, body: str) -> str:
        """The name of a rule with this body. Raises TooLargeError."""
        name = self._by_body.get(body)
        if name is None:
            name = self._by_body[body] = self.reserve()
            self.define(name, body)
        return name

    def reserve(self) -> str:
        """A name whose body follows."""
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        """Give a rule its body. Raises TooLargeError."""
        self._size += len(body) + len(name) + 6
        if self._size > MAX_PRODUCED:
            raise TooLargeError
        self._rules[name] = body

    def text(self, root: str) -> str:
        """The whole grammar, for a root with this body. Raises TooLargeError."""
        text = "".join(f"{name} ::= {body}\n" for name, body in {"root": root, **self._rules}.items())
        if len(text.encode()) > MAX_PRODUCED:
            raise TooLargeError
        return text

    def once(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """What `make` makes, which is asked for it only once for a key: the same part may stand in many places."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make()
        return made

    # --- JSON -------------------------------------------------------------------------------------------------------

    @property
    def ws(self) -> str:
        """At most a blank, or a new line and its indent: a model that may write more sometimes does so for ever."""
        return self.rule(_WS)

    @property
    def char(self) -> str:
        """One character in a JSON string."""
        return self.rule(_CHAR)

    @property
    def string(self) -> str:
        """Any JSON string."""
        return self.rule(f'"\\"" {self.char}* "\\""')

    @property
    def integer(self) -> str:
        """An integer of at most 16 digits."""
        return self.rule(_INTEGER)

    @property
    def number(self) -> str:
        """A number that is finite as a double."""
        return self.rule(_NUMBER)

    @property
    def value(self) -> str:
        """Any JSON value."""
        return self._recursive("value")

    @property
    def any_object(self) -> str:
        """Any JSON object."""
        return self._recursive("object")

    def _recursive(self, which: str) -> str:
        key = f"any {which}"  # no body looks like that
        if key not in self._by_body:
            value, of_object = self.reserve(), self.reserve()
            self._by_body["any value"], self._by_body["any object"] = value, of_object
            pair = self.rule(f'{self.string} ":" " "? {value}')
            array = self.rule(f'"[" {self.ws} ( {value} ( "," {self.ws} {value} )* {self.ws} )? "]"')
            self.define(of_object, f'"{{" {self.ws} ( {pair} ( "," {self.ws} {pair} )* {self.ws} )? "}}"')
            self.define(value, f'{of_object} | {array} | {self.string} | {self.number} | "true" | "false" | "null"')
        return self._by_body[key]

    # --- repetitions ------------------------------------------------------------------------------------------------

    def times(self, name: str, least: int, most: int | None) -> str:
        """`name` so many times; of size in the order of the numbers' digits."""
        return self.once(("times", name, least, most), lambda: self._repeated(name, least, most))

    def _repeated(self, name: str, least: int, most: int | None) -> str:
        self.spend(64)
        parts = [self._exactly(name, least)] if least else []
        if most is None:
            parts.append(f"{name}*")
        elif most > least:
            parts.append(self._up_to(name, most - least))
        return " ".join(parts) or '""'

    def _exactly(self, name: str, count: int) -> str:
        if count <= _BLOCK:
            return f"{name}{{{count}}}"
        blocks, rest = divmod(count, _BLOCK)
        text = self._exactly(self.rule(f"{name}{{{_BLOCK}}}"), blocks)
        return f"{text} {name}{{{rest}}}" if rest else text

    def _up_to(self, name: str, count: int) -> str:
        # Either all of a block and then the rest, or less than a block: never more than two ways at a time.
        if count <= _BLOCK:
            return f"{name}{{0,{count}}}"
        block = _BLOCK
        while block * _BLOCK <= count:
            block *= _BLOCK
        less = self._up_to(name, block - 1)
        whole = self.rule(self._exactly(name, block))
        rest = count % block
        more = self._up_to(name, rest) if rest else '""'
        for _ in range(count // block):
            more = self.rule(f"{whole} {self.rule(more)} | {less}")
        return more

    # --- choices ----------------------------------------------------------------------------------------------------

    def one_of(self, texts: Iterable[str]) -> str:
        """One of these texts. Common beginnings are shared, so that few ways are open at any time."""
        ordered = sorted(set(texts))
        return self._shared(ordered, 0, 0)

    def _shared(self, texts: list[str], skip: int, depth: int) -> str:
        if len(texts) == 1:
            return literal(texts[0][skip:])
        if depth > _MAX_SHARED:
            return self.rule(" | ".join(literal(text[skip:]) for text in texts))
        common = _common(texts[0], texts[-1], skip)
        groups: dict[str, list[str]] = {}
        for text in texts:
            groups.setdefault(text[common : common + 1], []).append(text)
        options = [self._shared(group, common, depth + 1) for group in groups.values()]
        rest = self.rule(" | ".join(options))
        return f"{literal(texts[0][skip:common])} {rest}" if common > skip else rest

    def string_but(self, texts: Iterable[str]) -> str:
        """A JSON string without escapes that is none of these."""
        plain = self.rule('[^"\\\\\\x7F\\x00-\\x1F]')
        tree = _tree(texts)
        return self.rule(f'"\\"" {self._but(tree, plain)} "\\""') if tree else self.string

    def _but(self, tree: dict[str, dict[str, object]], plain: str) -> str:
        # Written from the leaves to the root, without recursion: a name may have a thousand letters.
        made: dict[int, str] = {}
        pending: list[tuple[dict[str, object], bool]] = [(tree, False)]  # type: ignore[list-item]  # a tree of trees
        while pending:
            node, ready = pending.pop()
            children = {char: child for char, child in node.items() if char}
            if not ready:
                pending.append((node, True))
                pending += [(child, False) for child in children.values()]  # type: ignore[misc]
                continue
            options = [f"{literal(char)} {made[id(child)]}" for char, child in children.items() if char not in '"\\']
            others = {*children, '"', "\\"}
            options.append(f"[^{in_class(others)}\\x7F\\x00-\\x1F] {plain}*")
            if "" not in node:
                options.append('""')
            made[id(node)] = self.rule(" | ".join(options))
        return made[id(tree)]


def _common(first: str, last: str, start: int) -> int:
    """Where two texts that agree up to `start` differ."""
    end = min(len(first), len(last))
    while start < end and first[start] == last[start]:
        start += 1
    return start


def _tree(texts: Iterable[str]) -> dict[str, dict[str, object]]:
    """Texts by their letters; the key "" stands where one ends."""
    tree: dict[str, dict[str, object]] = {}
    for text in texts:
        node: dict[str, object] = tree  # type: ignore[assignment]
        for char in text:
            node = node.setdefault(char, {})  # type: ignore[assignment]
        node[""] = {}
    return tree
