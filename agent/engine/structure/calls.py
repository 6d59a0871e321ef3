"""Finds the call of a function in the text a model writes, token by token. Pure.

All forms in use are recognised whatever the model: `<tool_call>{...}</tool_call>` (Hermes, Qwen, SmolLM) anywhere in a
text, and at its beginning a bare object, one after `<|python_tag|>` or `[TOOL_CALLS]`, in a list, or in a fenced block.
An object is a call if it has the name of a function that was offered and `arguments` or `parameters`. Text is held back
only as long as it may still become a call. An answer has one call; what follows it is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

#: Characters of an object that is held back because its name comes last; past this it is text.
MAX_HELD: Final = 64 * 1024
#: Characters before the name, blanks for the most part.
_MAX_HEAD: Final = 512

_MARK: Final = "<tool_call>"
_MARKS: Final = (_MARK, "<|python_tag|>", "[TOOL_CALLS]", "```json", "```", "[")
_VALUES: Final = ("arguments", "parameters")
_LATER: Final = (*_VALUES, "type", "id", "function")
_BLANKS: Final = " \t\r\n"


@dataclass(frozen=True)
class Text:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The model calls this function."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments' JSON text."""

    text: str


Piece = Text | CallBegin | CallArguments


class JsonEnd:
    """Finds where a JSON value that comes in pieces ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False
        self._bare = False

    def feed(self, text: str) -> int | None:
        """Where the value ends in `text`, which is one more piece of it; None if it goes on."""
        at = 0
        while at < len(text):
            char = text[at]
            at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
                    if not self._depth:
                        return at
            elif self._bare:
                if char in ",}]" or char in _BLANKS:
                    return at - 1
            elif char == '"':
                self._in_string = self._begun = True
            elif char in "{[":
                self._depth += 1
                self._begun = True
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at
            elif not self._begun and char not in _BLANKS:
                self._bare = True
        return None


class CallParser:
    """Follows one answer. `names` are the functions that were offered; `certain`: the answer is a call, not text."""

    def __init__(self, names: Iterable[str], *, certain: bool = False) -> None:
        self._certain = certain
        self._names = tuple(sorted(names, key=len, reverse=True))
        self._ends_of_names = tuple(f'{name}"' for name in self._names)
        self._state: Literal["start", "text", "head", "object", "arguments", "after"] = "start"
        self._buffer = ""
        #: What stands before the object that may be a call.
        self._mark = ""
        #: What has come of an object, or of arguments, that is known only at its end.
        self._held = ""
        self._end = JsonEnd()
        self._argued = self._quoted = False
        #: Whether a call was found.
        self.called = False

    def push(self, text: str) -> list[Piece]:
        """What the next piece of text makes certain."""
        pieces: list[Piece] = []
        if self._state == "after" or not text:
            return pieces
        self._buffer += text
        while self._advance(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The text is at its end: what was held back is what it looks like.

        A call that is certain, and was cut before its arguments begin, is neither text nor a call.
        """
        rest = self._mark + self._held + self._buffer
        self._mark = self._held = self._buffer = ""
        if self._state == "arguments":
            return [CallArguments(rest)] if rest else []
        if self._certain and self._state != "text":
            return []
        return [Text(rest)] if rest and self._state != "after" else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move; False where more text is needed."""
        match self._state:
            case "start":
                return self._start()
            case "text":
                return self._text(pieces)
            case "head":
                return self._head(pieces)
            case "object":
                return self._object(pieces)
            case "arguments":
                return self._arguments(pieces)
            case _:
                self._buffer = ""
                return False

    def _start(self) -> bool:
        text = self._buffer.lstrip(_BLANKS)
        if not text and len(self._buffer) < _MAX_HEAD:
            return False
        for mark in _MARKS:
            if text.startswith(mark):
                break
            if mark.startswith(text):
                return False
        else:
            mark = ""
            if not text.startswith("{"):
                self._state = "text"
                return True
        at = len(self._buffer) - len(text) + len(mark)
        self._mark, self._buffer, self._state = self._buffer[:at], self._buffer[at:], "head"
        return True

    def _text(self, pieces: list[Piece]) -> bool:
        text = self._buffer
        at = text.find("<")
        while at >= 0:
            if text.startswith(_MARK, at):
                if at:
                    pieces.append(Text(text[:at]))
                self._mark, self._buffer, self._state = _MARK, text[at + len(_MARK) :], "head"
                return True
            if _MARK.startswith(text[at:]):
                break
            at = text.find("<", at + 1)
        certain = len(text) if at < 0 else at
        if certain:
            pieces.append(Text(text[:certain]))
        self._buffer = text[certain:]
        return False

    def _head(self, pieces: list[Piece]) -> bool:
        found, name, at = self._look()
        if found == "maybe" and len(self._buffer) < _MAX_HEAD:
            return False
        if found == "call":
            self.called = True
            pieces.append(CallBegin(name))
            self._mark, self._buffer, self._state = "", self._buffer[at:], "arguments"
            self._end = JsonEnd()
        elif found == "object":
            self._mark, self._buffer, self._state = self._mark + self._buffer[:at], self._buffer[at:], "object"
            self._end = JsonEnd()
        else:
            # The mark is passed by, so that it is not looked at again.
            if self._mark:
                pieces.append(Text(self._mark))
            self._mark, self._state = "", "text"
        return True

    def _look(self) -> tuple[Literal["maybe", "no", "call", "object"], str, int]:
        """Whether an object that begins in the buffer is a call: its name, and where its arguments begin."""
        text, at = self._buffer, 0

        def blanks() -> None:
            nonlocal at
            while at < len(text) and text[at] in _BLANKS:
                at += 1

        def one_of(*wanted: str) -> str | None:
            nonlocal at
            for word in wanted:
                if text.startswith(word, at):
                    at += len(word)
                    return word
            rest = text[at:]
            return "" if any(word.startswith(rest) for word in wanted) else None

        blanks()
        if self._mark and text[at : at + 1] == "[":
            at += 1
            blanks()
        begin = at
        for step in ("{", "key", ":", '"', "name", ",", "value", ":"):
            match step:
                case "key":
                    found = one_of('"name"', *(f'"{key}"' for key in _LATER))
                    if found and found != '"name"':
                        return "object", "", begin
                case "name":
                    found = one_of(*self._ends_of_names)
                    name = found[:-1] if found else ""
                case "value":
                    found = one_of(*(f'"{key}"' for key in _VALUES))
                    if found is None:
                        # Another key comes first: it may be a call all the same.
                        return ("object", "", begin) if text[at : at + 1] == '"' else ("no", "", 0)
                case _:
                    found = one_of(step)
            if not found:
                return ("no" if found is None else "maybe"), "", 0
            if step != '"':
                blanks()
        return "call", name, at

    def _object(self, pieces: list[Piece]) -> bool:
        end = self._end.feed(self._buffer)
        self._held += self._buffer if end is None else self._buffer[:end]
        rest = "" if end is None else self._buffer[end:]
        self._buffer = ""
        if end is None and len(self._mark) + len(self._held) < MAX_HELD:
            return False
        call = _call_of(self._held, self._names) if end is not None else None
        if call is None:
            pieces.append(Text(self._mark + self._held))
            self._mark, self._held, self._buffer, self._state = "", "", rest, "text"
            return True
        self.called = True
        pieces += [CallBegin(call[0]), CallArguments(call[1])]
        self._mark, self._held, self._state = "", "", "after"
        return False

    def _arguments(self, pieces: list[Piece]) -> bool:
        text = self._buffer if self._argued else self._buffer.lstrip(_BLANKS)
        self._buffer = ""
        if not text:
            return False
        if not self._argued:
            self._argued, self._quoted = True, text[0] == '"'
        end = self._end.feed(text)
        piece = text[:end]
        if self._quoted:  # a string with JSON in it, which is known only at its end
            self._held += piece
            piece = "" if end is None else _unquoted(self._held)
            self._held = self._held if end is None else ""
        if piece:
            pieces.append(CallArguments(piece))
        if end is not None:
            self._state = "after"
        return False


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _call_of(text: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Name and arguments of a whole object, None where it is no call."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or value.get("name") not in tuple(names):
        return None
    for key in _VALUES:
        if key in value:
            found = value[key]
            return value["name"], found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return None
