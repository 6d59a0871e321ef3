"""What a model's name says of it: family, version, size, purpose, variant and quantisation. Pure.

Names come from Hugging Face (`bartowski/Llama-3.2-1B-Instruct-GGUF`), Ollama (`qwen2.5-coder:1.5b`), LM Studio
(`qwen3-8b@q4_k_m`) and files (`gemma-3-1b-it-UD-Q4_K_XL-00001-of-00002.gguf`). Folders, the maker's name and words of
packaging are left out; every other word that has no place of its own is part of the variant, so that no two models are
taken for one because a word was not understood. A name counts as read only if it begins with a family that is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import ClassVar, Final

from fleet.errors import FleetError
from fleet.models.families import BY_WORDS, MAKERS, MOST_WORDS, PUBLISHERS, SIZE_WORDS, Family
from fleet.models.quantisation import Quantisation, ggml_names, is_method, is_width, quantisation
from fleet.models.reference import canonical_name

MAX_NAME: Final = 256

_UNITS: Final = {"m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER: Final = r"[0-9]{1,4}(?:\.[0-9]{1,3})?"
_SIZE: Final = re.compile(rf"(?:(?P<many>[0-9]{{1,3}})x|(?P<effective>e))?(?P<number>{_NUMBER})(?P<unit>[mbt])")
_ACTIVE: Final = re.compile(rf"a({_NUMBER})([mbt])")
_EXPERTS: Final = re.compile(r"[0-9]{1,3}e")
_VERSION: Final = re.compile(r"(?:v(?=[0-9])0?|(?=[1-9]|0(?:\.|$)))([0-9]{1,2}(?:\.[0-9]{1,3}){0,2}n?)")
#: A family's last word with the version written on to it.
_GLUED: Final = re.compile(r"([a-z]+)([0-9]{1,2}(?:\.[0-9]{1,3}){0,2}n?)")
_SPLIT_FILE: Final = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_READABLE: Final = re.compile(r"[a-z0-9._:@+ -]*")
_BETWEEN: Final = re.compile(r"[_:@+ -]+|(?<![0-9])\.|\.(?![0-9])")
#: Other ways to write what is one word elsewhere, or two: 0_5b, qwen2_5, 12-2024, qwen2.5vl.
_REWRITTEN: Final = (
    (re.compile(r"(?<![0-9a-z.])([01])_([0-9]{1,2}[mb])(?![0-9a-z])"), r"\1.\2"),
    (re.compile(r"(?<![0-9._])([0-9])_([0-9])(?![0-9a-z]|_[0-9])"), r"\1.\2"),
    (re.compile(r"(?<![0-9a-z.])(0[1-9]|1[0-2])-(20[0-9]{2})(?![0-9a-z])"), r"\2\1"),
    (re.compile(r"(?<=[0-9])vl(?![0-9a-z])"), "-vl"),
)
_PURPOSES: Final = {
    word: purpose
    for purpose, words in {
        "audio": "asr audio speech tts",
        "base": "base pretrain pretrained pt",
        "chat": "chat",
        "code": "code coder coding",
        "embed": "embed embedding embeddings",
        "guard": "guard",
        "instruct": "inst instruct it",
        "math": "math",
        "reasoning": "reason reasoner reasoning think thinking",
        "rerank": "rerank reranker reranking",
        "reward": "reward",
        "vision": "vision vl",
    }.items()
    for word in words.split()
}
#: How far a model was trained, as against what for.
STAGES: Final = frozenset({"base", "chat", "instruct"})
#: Words of packaging. `mlx` and `bnb` are engines' own formats, which the quantisation beside them says.
_PACKAGING: Final = frozenset({"gguf", "ggml", "hf", "i1", "imat", "imatrix", "latest", "mlx"})
#: Words of a variant that leave the number of parameters as it is: dates, context lengths, English.
_SAME_SIZE: Final = re.compile(r"[0-9]{4,8}|[0-9]{1,4}k|en")


class ModelNameError(FleetError):
    """What should name a model cannot: it is empty, longer than MAX_NAME, or an alias that leads nowhere."""

    code: ClassVar[str] = "bad_request"


@dataclass(frozen=True)
class ModelName:
    """What a name says. An empty field, or None, is one of which the name says nothing.

    `size` is in parameters, as nominal as the name is (`1B` is 10^9), None for a word such as `mini` whose number is
    not known; `size_label` is the size as written, with the unit in upper case: `1.5B`, `8x7B`, `E2B`, `mini`. `active`
    is the parameters that take part in a token, of a mixture of experts. `purposes` and `variant` are sorted; `variant`
    has every word that says which model this is and fits nowhere else. `raw` is the name as it was given.
    """

    family: str = ""
    version: str = ""
    size: int | None = None
    size_label: str = ""
    active: int | None = None
    purposes: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    quantisation: Quantisation | None = None
    raw: str = field(default="", compare=False)

    @property
    def size_known(self) -> bool:
        """Whether anything is known of the size, as a number or as a word."""
        return self.size is not None or bool(self.size_label)

    @property
    def canonical(self) -> str:
        """One spelling for all names that say the same; reading it gives this very record, but for `raw`.

        Of a name without a known family, the name itself, in lower case.
        """
        if not self.family:
            return _stem(self.raw)
        rest = list(self._rest())
        found = _family([*self.family.split("-"), *rest])[0]
        if found is None or found.name != self.family:
            rest.insert(0, "latest")  # mistral, and of the variant nemo, is not mistral-nemo
        return "-".join([self.family, *rest])

    def without_quantisation(self) -> str:
        """The canonical name as far as the quantisation: what two forms of one model have in common."""
        return self.canonical.removesuffix(f"-{self.quantisation.name.lower()}" if self.quantisation else "")

    def same_size(self, other: ModelName) -> bool:
        """Whether both name one size: 0.5B is 500M, and phi-4-mini 3.8B; E2B is not 2B. False where one is unknown."""
        if self.active != other.active or not (self.size_known and other.size_known):
            return False
        if self.size_label and self.size_label == other.size_label:
            return True
        plain = not any(_is_mixed(name.size_label) for name in (self, other))
        return plain and self.size is not None and self.size == other.size

    def _rest(self) -> Iterator[str]:
        if self.version:
            # A bare 12 before a 2024 would be a date.
            yield f"v{self.version}" if self.version in ("10", "11", "12") else self.version
        if self.size_label:
            yield self.size_label.lower()
        if self.active is not None:
            yield f"a{label_of(self.active).lower()}"
        yield from self.purposes
        yield from self.variant
        if self.quantisation is not None:
            yield self.quantisation.name.lower()


@lru_cache(maxsize=4096)
def parse_name(raw: str) -> ModelName:
    """Read a name of at most MAX_NAME characters, whatever they are; in time linear in their number.

    Never fails for what the name says: what cannot be read has no family. A name with any character but ASCII letters,
    digits, spaces and `._:@+-/\\` is not read at all, so that nothing passes for what it merely looks like. Raises
    ModelNameError for a longer one.
    """
    if len(raw) > MAX_NAME:
        raise ModelNameError(f"a model's name has at most {MAX_NAME} characters, not {len(raw)}")
    stem = _stem(raw)
    if not _READABLE.fullmatch(stem):
        return ModelName(raw=raw)
    words, quantised = _words(_SPLIT_FILE.sub("", stem))
    family, version, rest = _family(words)
    reading = _Reading(family, version, quantised)
    for word in reading.sizes(rest):
        reading.take(word)
    return reading.name(raw)


def label_of(parameters: int) -> str:
    """A number of parameters as names say it, to a thousand: 135M, 1.5B."""
    for unit, size in reversed(_UNITS.items()):  # noqa: B007 - the last of them is used below
        if parameters >= size and parameters * 1000 % size == 0:
            break
    return _written(f"{parameters / size:.3f}") + unit.upper()


def read_size(label: str) -> tuple[int | None, str]:
    """A size alone, such as a header's `8x7B`: its parameters and the label as ModelName has it; (None, "") if none."""
    found = _SIZE.fullmatch(label.strip().lower())
    return _sized(found) if found else (None, "")


def _is_mixed(label: str) -> bool:
    """Whether a label counts otherwise than all parameters: E2B, 8x7B, 17B-16E."""
    return "x" in label or "-" in label or (label.startswith("E") and label[1:2].isdigit())


def _stem(raw: str) -> str:
    return canonical_name(raw.replace("\\", "/"))


def _sized(found: re.Match[str]) -> tuple[int | None, str]:
    number = round(Decimal(found["number"]) * _UNITS[found["unit"]])
    if not number or (found["many"] and not int(found["many"])):
        return None, ""
    label = _written(found["number"]) + found["unit"].upper()
    if found["many"]:
        return number * int(found["many"]), f"{int(found['many'])}x{label}"
    return (number, f"E{label}") if found["effective"] else (number, label)


def _words(stem: str) -> tuple[list[str], str]:
    """The words of a stem, and the last of ggml's quantisations in it, which is no word then."""
    publisher, line, name = stem.partition("_")
    if line and publisher in PUBLISHERS and _family(_BETWEEN.split(name))[0]:
        stem = name
    quantised = ""
    if spans := ggml_names(stem):
        start, end = spans[-1]
        quantised, stem = stem[start:end], f"{stem[:start]} {stem[end:]}"
    for pattern, written in _REWRITTEN:
        stem = pattern.sub(written, stem)
    return [word for word in _BETWEEN.split(stem) if word], quantised


def _family(words: Sequence[str]) -> tuple[Family | None, str, Sequence[str]]:
    """The family that the words begin with, the version if it is written on to it, and the words that are left."""
    if tuple(words[:2]) == ("text", "embedding"):
        words = words[2:]  # LM Studio puts it before the names of what embeds
    while len(words) > 1 and words[0] in MAKERS:
        words = words[1:]
    for count in range(min(MOST_WORDS, len(words)), 0, -1):
        first, last = tuple(words[: count - 1]), words[count - 1]
        if (family := BY_WORDS.get((*first, last))) is not None:
            return family, "", words[count:]
        found = _GLUED.fullmatch(last)
        if found and (family := BY_WORDS.get((*first, found[1]))) is not None:
            return family, _version(found[2]), words[count:]
    return None, "", words


def _version(text: str) -> str:
    """One spelling of a version: 3.0 is 3, and 01 is 1."""
    while text.endswith(".0"):
        text = text[:-2]
    return text[1:] if text[0] == "0" and text[1:2].isdigit() else text


def _written(number: str) -> str:
    """One spelling of a number: 01.50 is 1.5."""
    whole, _, part = number.partition(".")
    return ".".join(filter(None, (whole.lstrip("0") or "0", part.rstrip("0"))))


class _Reading:
    """What is known so far of a name that is being read word by word."""

    def __init__(self, family: Family | None, version: str, quantised: str) -> None:
        self._family = family
        self._version = version
        self._quantised = quantised
        self._size: int | None = None
        self._label = ""
        self._active: int | None = None
        self._purposes = set(family.purposes) if family else set()
        self._variant: set[str] = set()
        self._method = ""
        self._width = ""
        self._flags: set[str] = set()
        self._size_words = family.size_words if family else SIZE_WORDS

    def sizes(self, words: Sequence[str]) -> list[str]:
        """Take the sizes that are numbers, of each kind the first; returns the other words."""
        left, experts = [], ""
        for word in words:
            found = _SIZE.fullmatch(word)
            if found and not self._label and _sized(found)[1]:
                self._size, self._label = _sized(found)
            elif self._active is None and (active := _ACTIVE.fullmatch(word)) and float(active[1]):
                self._active = round(float(active[1]) * _UNITS[active[2]])
            elif not experts and _EXPERTS.fullmatch(word):
                experts = word
            else:
                left.append(word)
        if experts and self._label and not _is_mixed(self._label):
            # 17B-16E: what takes part in a token, and of how many experts; how much that is together is not said.
            self._size, self._label = None, f"{self._label}-{experts.upper()}"
            return left
        return [*left, experts] if experts else left

    def take(self, word: str) -> None:
        """Put a word where it belongs."""
        if word in _PACKAGING:
            return
        if word in ("ud", "qat"):
            self._flags.add(word)
        elif is_method(word):
            self._method = self._later(self._method, word)
        elif is_width(word):
            self._width = self._later(self._width, word)
        elif not self._label and word in self._size_words:
            self._label = word
        elif word in _PURPOSES and word not in self._size_words:
            self._purposes.add(_PURPOSES[word])
        elif not self._version and (found := _VERSION.fullmatch(word)):
            self._version = _version(found[1])
        else:
            self._variant.add(word)

    def name(self, raw: str) -> ModelName:
        """The record of all that was taken."""
        family, quantised = self._family, self._quantisation()
        if self._size is not None:
            # phi3:3.8b-mini says its size twice.
            self._variant = {word for word in self._variant if self._size_in_family(word) != self._size}
        elif not _is_mixed(self._label) and all(map(_SAME_SIZE.fullmatch, self._variant)):
            self._size = self._size_in_family(self._label)
        return ModelName(
            family.name if family else "",
            self._version,
            self._size,
            self._label,
            self._active,
            tuple(sorted(self._purposes)),
            tuple(sorted(self._variant)),
            quantised,
            raw,
        )

    def _size_in_family(self, label: str) -> int | None:
        return self._family.sizes.get(f"{self._version} {label}".rstrip()) if self._family else None

    def _later(self, before: str, word: str) -> str:
        """Of two words for one thing the last counts; the other one still says which model it is."""
        if before and before != word:
            self._variant.add(before)
        return word

    def _quantisation(self) -> Quantisation | None:
        """What all words about it say together; those that then have no place become part of the variant."""
        qat, ud = "qat" in self._flags, "ud" in self._flags
        other = [word for word in (self._method, self._width) if word]
        if self._quantised:
            self._variant |= set(other)
            return quantisation(self._quantised, qat=qat, ud=ud)
        self._variant -= set(other)
        if ud and not other:
            self._variant.add("ud")
            ud = False
        return quantisation("-".join(other), qat=qat, ud=ud) if other or qat else None
