"""How boxes are named by what they are: `site=berlin,ram>=2GB`. The grammar; who matches is `agent.reconcile.selector`.

    SELECTOR  = TERM ("," TERM)*           every term has to hold
    TERM      = ("ram" | "disk") COMPARE SIZE | ("cpus" | "rate") COMPARE NUMBER | ("arch" | "gpu" | "name") IS WORD
              | LABEL IS WORD
    COMPARE   = "=" | "!=" | ">=" | "<=" | ">" | "<"        IS = "=" | "!="
    SIZE      = NUMBER, and B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024)

`ram` and `disk` are what the box has in all, `rate` is the tokens per second that its fastest model was measured at.
`gpu` is any, none or a part of its name. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast

from agent.errors import BadRequestError

Compare = Literal["=", "!=", ">=", "<=", ">", "<"]

MAX_TERMS: Final = 16
MAX_TEXT: Final = 512

_NUMBER: Final = r"[0-9]{1,6}(?:\.[0-9]{1,3})?"
_UNITS: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_SIZE: Final = rf"{_NUMBER}(?:[KMGT]?B|[KMGT]iB)?"
_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
_COMPARE: Final = r"(?:!=|>=|<=|=|>|<)"
_IS: Final = r"(?:!=|=)"
_TERM: Final = (
    rf"(?:(?:ram|disk){_COMPARE}{_SIZE}|(?:cpus|rate){_COMPARE}{_NUMBER}"
    rf"|(?!(?:ram|disk|cpus|rate)[=!]){_WORD}{_IS}{_WORD})"
)
#: A whole selector, as the JSON Schema of a placement has it too.
PATTERN: Final = rf"^{_TERM}(?:,{_TERM}){{0,{MAX_TERMS - 1}}}$"
_SELECTOR: Final = re.compile(PATTERN)
_PARTS: Final = re.compile(rf"({_WORD})({_COMPARE})(.+)")

#: Names of one processor architecture, to the one that boxes tell.
_ARCHITECTURES: Final = {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64", "armv7": "armv7l"}
SIZES: Final = frozenset({"ram", "disk"})
NUMBERS: Final = frozenset({"cpus", "rate"})


@dataclass(frozen=True)
class Term:
    """One thing that has to hold of a box. `value` is a number for sizes (in bytes) and numbers, else a word; `label`
    says that `key` is a label's name, whatever it reads like."""

    key: str
    compare: Compare
    value: float | str
    label: bool = False
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.key}{self.compare}{self.value}"


class SelectorError(BadRequestError):
    """A selector that cannot be read; the message says which term, and what there is."""


def is_selector(text: str) -> bool:
    """Whether `parse_selector` takes a text."""
    return len(text) <= MAX_TEXT and _SELECTOR.fullmatch(text) is not None


def parse_selector(text: str) -> tuple[Term, ...]:
    """The terms of a selector, in their order; none of an empty text. Raises SelectorError."""
    text = text.strip()
    if not text:
        return ()
    if len(text) > MAX_TEXT:
        raise SelectorError(f"a selector has at most {MAX_TEXT} characters")
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MAX_TERMS:
        raise SelectorError(f"a selector has at most {MAX_TERMS} terms")
    return tuple(map(_term, parts))


def _term(text: str) -> Term:
    parts = _PARTS.fullmatch(text)
    if parts is None or not _SELECTOR.fullmatch(text):
        raise SelectorError(
            f"{text[:80]!r} is no term of a selector; there are LABEL=VALUE, ram>=2GB, disk>=64GiB, cpus>=4, rate>=10,"
            " arch=aarch64, gpu=any or none or its name, name=BOX, each also with !=, joined by commas"
        )
    key, compare, value = parts[1], cast("Compare", parts[2]), parts[3]
    if key in SIZES:
        number = re.match(_NUMBER, value)
        assert number is not None
        return Term(key, compare, float(number[0]) * _UNITS[value[number.end() :]], text=text)
    if key in NUMBERS:
        return Term(key, compare, float(value), text=text)
    if key == "arch":
        return Term(key, compare, _ARCHITECTURES.get(value.lower(), value.lower()), text=text)
    if key in ("gpu", "name"):
        return Term(key, compare, value, text=text)
    return Term(key, compare, value, label=True, text=text)
