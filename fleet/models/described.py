"""Which model a file or a server's entry is: what its header states is believed over its name. Pure.

Each field of the result says where it comes from, and what the two disagreed on is kept as doubts, in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from fleet.models.families import BY_NAME
from fleet.models.gguf import GgufFacts, size_label
from fleet.models.name import MAX_NAME, STAGES, ModelName, label_of, parse_name, read_size
from fleet.models.quantisation import Quantisation, quantisation, stated_quantisation

#: Where a field comes from: the name, what the header says of itself, the tensors that are there, or nowhere.
Origin = Literal["name", "header", "tensors", "nowhere"]

#: Counted parameters as a part of those a label says: gemma-2-2b has 2.6B, Mixtral-8x7B 47B, gemma-3n-E2B 4.5B.
_PLAIN: Final = (0.75, 1.35)
#: The file has the language part alone, the label counts the eyes too.
_VISION: Final = (0.5, 1.35)
_EFFECTIVE: Final = (1.0, 2.8)
_EXPERTS: Final = (0.35, 1.1)
#: Words by which makers tell their own training runs apart, as `8k lc100k mix1 ep2`; 2507 and v2 are none of them.
_RUN: Final = re.compile(r"(?!v[0-9])(?=[0-9]*[a-z])(?=[a-z]*[0-9])[a-z0-9.]*")


@dataclass(frozen=True)
class Stated:
    """What a GGUF header states of its model, or a server of one it has. Empty or 0 where it does not say.

    `tensors` is the type of most of the weights' bytes; `parameters` is counted. `embeds` and `reranks` are what the
    header says it gives.
    """

    architecture: str = ""
    name: str = ""
    basename: str = ""
    finetune: str = ""
    release: str = ""
    size_label: str = ""
    quantisation: str = ""
    tensors: str = ""
    parameters: int = 0
    embeds: bool = False
    reranks: bool = False

    @staticmethod
    def of(facts: GgufFacts) -> Stated:
        """The part of a header's facts that says which model it is."""
        return Stated(
            architecture=facts.architecture,
            name=facts.name,
            basename=facts.basename,
            finetune=facts.finetune,
            release=facts.release,
            size_label=facts.stated_size,
            quantisation=facts.quantisation,
            tensors=facts.tensor_bytes[0][0] if facts.tensor_bytes else "",
            parameters=facts.parameters,
            embeds=facts.embedding,
            reranks=facts.pooling == "rank",
        )

    def names(self) -> Iterator[str]:
        """What the header calls its model, the most exact first; without what is too long for a name."""
        parts = (self.basename, self.size_label, self.finetune, self.release) if self.basename else ()
        whole = "-".join(part.replace("/", "-") for part in parts if part)
        yield from (name for name in (whole, self.name) if 0 < len(name) <= MAX_NAME)


@dataclass(frozen=True)
class Described:
    """Which model it is. `origins` has where each field of `model` comes from, by the field's name.

    `doubts` say what the name and the header disagreed on. After a doubt about the family with no way to settle it, the
    model has no family, and so never stands in for another.
    """

    model: ModelName
    origins: Mapping[str, Origin]
    doubts: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """What others are told of it: a name that they read as this very model.

        Empty where it has no family, or more words than a name has room for.
        """
        name = self.model.canonical if self.model.family else ""
        return name if len(name) <= MAX_NAME else ""


def describe(name: str, stated: Stated | None = None) -> Described:
    """Put together what a model's name and its header say.

    Takes any text as a name, up to MAX_NAME characters; raises ModelNameError for a longer one.
    """
    given = parse_name(name)
    if stated is None:
        return Described(given, _origins(given, dict.fromkeys(_FIELDS, "name")))
    return _Merging(given, stated).result(name)


_FIELDS: Final = ("family", "version", "size", "active", "purposes", "variant", "quantisation")


class _Merging:
    """One name and one header on their way to one model."""

    def __init__(self, given: ModelName, stated: Stated) -> None:
        self._stated = stated
        self._doubts: list[str] = []
        #: Whether it was the architecture that told the version.
        self._pinned = False
        self._origins: dict[str, Origin] = {}
        # Of a server that states no count its word for the size is the nearest there is.
        self._count = stated.parameters or read_size(stated.size_label)[0] or 0
        header = next((read for read in map(parse_name, stated.names()) if read.family), ModelName())
        self._header = self._possible(header, "its header's own name")
        self._given = self._possible(given, "its name")
        if self._header.family and self._given.family and self._header.family != self._given.family:
            self._doubt(f"the name says {self._given.family}, the header {self._header.family}")
            # Its other words are about the other model too; how it is quantised is said of the file.
            self._given = ModelName(quantisation=given.quantisation)
        elif self._header.family and not self._given.family:
            # Words of a name that cannot be read, such as `model`, say nothing of which model it is.
            self._given = replace(self._given, version="", active=None, purposes=(), variant=())

    def result(self, raw: str) -> Described:
        """The model, once."""
        size, label = self._size()
        model = ModelName(
            family=self._text("family"),
            version=self._text("version"),
            size=size,
            size_label=label,
            active=self._active(),
            purposes=self._purposes(),
            variant=self._variant(),
            quantisation=self._quantisation(),
            raw=raw,
        )
        if model.family:
            # Others are told the canonical name alone, so this box goes by no more than what that says.
            told = model.canonical
            if len(told) > MAX_NAME:
                self._doubt("the name and the header say more than a name has room for")
                told = ""
            model = replace(parse_name(told), raw=raw)
        return Described(model, _origins(model, self._origins), tuple(self._doubts))

    def _doubt(self, text: str) -> None:
        if text not in self._doubts:
            self._doubts.append(text)

    def _possible(self, read: ModelName, whose: str) -> ModelName:
        """`read`, without all that is of a family or version which a model of this architecture cannot be."""
        architecture = self._stated.architecture
        known = BY_NAME[read.family].architectures if read.family and architecture else {}
        if not known:
            return read
        root = read.family.partition("-")[0]
        versions = known.get(architecture, () if architecture.startswith(root) else None)
        if versions and len(versions) == 1 and not read.version:
            self._pinned = True
            return replace(read, version=versions[0])
        if versions is None or (versions and read.version not in versions):
            named = " ".join(filter(None, (read.family, read.version)))
            self._doubt(f"{whose} says {named}, which has another architecture than {architecture}")
            return ModelName(quantisation=read.quantisation)
        return read

    def _text(self, field: str) -> str:
        header, given = str(getattr(self._header, field)), str(getattr(self._given, field))
        self._origins[field] = "header" if header or (field == "version" and self._pinned) else "name"
        if header and given and header != given:
            self._doubt(f"the name says {field} {given}, the header {header}")
        return header or given

    def _size(self) -> tuple[int | None, str]:
        stated, label = read_size(self._stated.size_label)
        if not label:
            stated, label = self._header.size, self._header.size_label
        named, word = self._given.size, self._given.size_label
        if label and not self._agrees(stated, label):
            self._doubt(f"the header says {label}, its tensors have {size_label(self._count)} parameters")
            stated, label = None, ""
        if self._given.size_known and not self._agrees(named, word):
            self._doubt(f"the name says {word or label_of(named or 0)}, the header {size_label(self._count)}")
            named, word = None, ""
        if not (named or word):
            return self._stated_size(stated, label)
        in_words = not word[:1].isdigit() and named is not None
        if not label or in_words or named == stated or _is_short_for(named, stated):
            self._origins["size"] = "header" if label and named == stated else "name"
            return named, word
        if named is not None or not word[:1].isdigit():
            self._doubt(f"the name says {word}, the header {label}")
        return self._stated_size(stated, label)

    def _stated_size(self, stated: int | None, label: str) -> tuple[int | None, str]:
        self._origins["size"] = "header"
        if label or not self._count:
            return stated, label
        self._origins["size"] = "tensors"
        counted = read_size(size_label(self._count))
        return counted if counted[1] else read_size(label_of(round(self._count, -3)))

    def _agrees(self, size: int | None, label: str) -> bool:
        """Whether a size can be that of a model with so many parameters."""
        if not self._count or size is None:
            return True
        if label.startswith("E"):
            low, high = _EFFECTIVE
        elif "x" in label:
            low, high = _EXPERTS
        else:
            low, high = _VISION if "vision" in (*self._given.purposes, *self._header.purposes) else _PLAIN
        return low <= self._count / size <= high

    def _active(self) -> int | None:
        header, given = self._header.active, self._given.active
        self._origins["active"] = "header" if header is not None else "name"
        return header if header is not None else given

    def _purposes(self) -> tuple[str, ...]:
        """What either says it is for; how far it was trained, as the header says if it does."""
        header, given = set(self._header.purposes), set(self._given.purposes)
        self._origins["purposes"] = "header" if header or self._stated.embeds else "name"
        if header & STAGES:
            if given & STAGES and given & STAGES != header & STAGES:
                self._doubt(f"the name says {_list(given & STAGES)}, the header {_list(header & STAGES)}")
            given -= STAGES
        elif given - header:
            self._origins["purposes"] = "name"
        both = header | given
        if self._stated.reranks:
            both = both - {"embed"} | {"rerank"}
        elif self._stated.embeds and "rerank" not in both:
            both.add("embed")
        return tuple(sorted(both))

    def _variant(self) -> tuple[str, ...]:
        header, given = set(self._header.variant), set(self._given.variant)
        if self._given.family:
            header = {word for word in header if not _RUN.fullmatch(word)}
        self._origins["variant"] = "name" if given - header else "header"
        return tuple(sorted(header | given))

    def _quantisation(self) -> Quantisation | None:
        given = self._given.quantisation
        header = stated_quantisation(self._stated.quantisation)
        self._origins["quantisation"] = "header"
        if header is None and (header := stated_quantisation(self._stated.tensors)) is not None:
            self._origins["quantisation"] = "tensors"
        if given is None or header is None:
            if given is not None:
                self._origins["quantisation"] = "name"
            return header or given
        if given.refines(header):
            self._origins["quantisation"] = "name"
            return given if given.base else quantisation(header.name, qat=True)
        if given != header:
            self._doubt(f"the name says {given.name}, the header {header.name}")
        return header


def _is_short_for(named: int | None, stated: int | None) -> bool:
    """Whether a size that people say is one that was counted, rounded or cut to fewer digits: 1B for 1.2B."""
    if named is None or stated is None:
        return False
    short, long = str(named).rstrip("0"), str(stated).rstrip("0")
    unit = 10 ** (len(str(named)) - len(short))
    return len(short) < len(long) and named in ((stated + unit // 2) // unit * unit, stated // unit * unit)


def _origins(model: ModelName, found: Mapping[str, Origin]) -> dict[str, Origin]:
    """`found` without the fields that the model does not have."""
    has = {field: bool(getattr(model, field)) for field in _FIELDS} | {"size": model.size_known}
    return {field: found[field] if has[field] else "nowhere" for field in _FIELDS}


def _list(words: Iterable[str]) -> str:
    return " ".join(sorted(words))
