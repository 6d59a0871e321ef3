"""Quantisations: one spelling for each, about how many bits a weight takes, and which keeps more of the model. Pure.

Bits are those that llama.cpp's `tools/quantize` states (measured on Llama-3.1-8B) or those of the tensor type. The
order follows the perplexities that it states for Llama-3-8B, and bits where it states none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

#: From worst to best: name, bits a weight.
_ORDER: Final = (
    ("Q1_0", 1.125), ("IQ1_S", 2.00), ("TQ1_0", 1.69), ("IQ1_M", 2.15), ("TQ2_0", 2.06), ("IQ2_XXS", 2.38),
    ("Q2_0", 2.25), ("IQ2_XS", 2.59), ("IQ2_S", 2.74), ("Q2", 2.6), ("Q2_K_S", 2.97), ("IQ2_M", 2.93), ("Q2_K", 3.16),
    ("IQ3_XXS", 3.25), ("Q3", 3.4), ("Q3_K_S", 3.64), ("IQ3_XS", 3.50), ("IQ3_S", 3.66), ("Q3_K_M", 4.00),
    ("IQ3_M", 3.76), ("Q3_K_L", 4.30), ("Q4", 4.5), ("Q4_0", 4.5), ("MXFP4", 4.25), ("NVFP4", 4.5), ("Q4_1", 5.0),
    ("IQ4_XS", 4.46), ("IQ4_NL", 4.68), ("Q4_K_S", 4.67), ("Q4_K_M", 4.89), ("Q5", 5.5), ("Q5_0", 5.5), ("Q5_1", 6.0),
    ("Q5_K_S", 5.57), ("Q5_K_M", 5.70), ("Q6", 6.5), ("Q6_K", 6.56), ("FP8", 8.0), ("Q8", 8.5), ("Q8_0", 8.5),
    ("F16", 16.0), ("BF16", 16.0), ("F32", 32.0),
)  # fmt: skip
_BITS: Final = dict(_ORDER)
_PLACE: Final = {name: place for place, (name, _) in enumerate(_ORDER)}
#: What llama.cpp itself takes these for, and other spellings.
_SAME: Final = {
    "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6_K_M": "Q6_K", "Q8_K": "Q8_0", "FP16": "F16",
    "FP32": "F32", "MXFP4_MOE": "MXFP4",
}  # fmt: skip
#: Ways that are no tensor type of ggml: the bits of those that say nothing else.
_METHODS: Final = {"AWQ": 4, "GPTQ": 4, "EXL2": 4, "EXL3": 4, "HQQ": 4, "BNB": 4}
_WIDTHS: Final = {"INT4": 4, "INT8": 8, "W4A16": 4, "W8A8": 8, "W8A16": 8, "FP4": 4, "NF4": 4}
#: Widths of which ggml has several kinds, where the name does not say which.
_GENERIC: Final = frozenset({"Q2", "Q3", "Q4", "Q5", "Q6", "Q8"})
_WIDTH: Final = re.compile(r"([2-8])BIT|([2-8](?:\.[0-9]{1,2})?)BPW")
#: A name of ggml's, in lower case, wherever no letter or digit touches it.
_GGML: Final = re.compile(
    r"(?<![a-z0-9])(?:"
    r"(?:i?q[1-8]_(?:[01](?:_[48]_[48])?|k(?:_(?:xxs|xs|s|m|l|xl|xxl))?|xxs|xs|s|m|nl)|tq[12]_0)(?!_[0-9kx])"
    r"|mxfp4(?:_moe)?|nvfp4|bf16|fp?16|fp?32|fp8"
    r")(?![a-z0-9])"
)
_FLAGS: Final = ("QAT", "UD")


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are stored. `name` is the one spelling of it, such as Q4_K_M, UD-Q4_K_XL or AWQ.

    Two are the same where their names are: UD (Unsloth's own mix) and QAT (trained for it) are other weights.
    """

    name: str

    @cached_property
    def base(self) -> str:
        """The name without UD and QAT, and of a mix that llama.cpp's header has no word for the nearest that it has.

        That is Q4_K_M for UD-Q4_K_XL; empty for QAT alone.
        """
        core = self.name
        for flag in _FLAGS:
            core = core.removeprefix(flag).removeprefix("-")
        if core in _BITS:
            return core
        scheme = core[:4]
        return _SAME.get(scheme, scheme) if core[4:5] == "_" and _SAME.get(scheme, scheme) in _BITS else core

    @cached_property
    def bits(self) -> float:
        """About how many bits a weight takes; 0.0 where the name does not say."""
        if self.base in _BITS:
            return _BITS[self.base]
        if self.name == "QAT":
            return _BITS["Q4_0"]  # the only one that its makers publish under that word alone
        widths = [_width(part) for part in self.name.split("-")]
        return max(widths) or max(_METHODS.get(part, 0.0) for part in self.name.split("-"))

    @cached_property
    def quality(self) -> float:
        """Larger is better: of two forms of one model the one that keeps more of it. 0.0 where nothing is known."""
        base = "Q4_0" if self.name == "QAT" else self.base
        place = _PLACE.get(base)
        if place is None:
            # Elsewhere than in ggml only the bits are known: just below the worst of ggml's own with as many.
            above = next((_PLACE[name] for name, bits in _ORDER if bits >= self.bits), len(_ORDER))
            return above + 0.5 if self.bits else 0.0
        larger = 0.3 * (self.base != "" and not self.name.endswith(base)) + 0.1 * self.name.startswith("UD-")
        return 1 + place + larger + 0.5 * ("QAT" in self.name)

    def refines(self, header: Quantisation) -> bool:
        """Whether this says the same as a header does and more, for which headers have no word: UD, QAT, L and XL."""
        if self.name == "QAT":
            return True
        return self.name != self.base and self.base[:4] == header.base[:4]


def ggml_names(text: str) -> list[tuple[int, int]]:
    """Where in a text, in lower case, names of ggml's quantisations stand, from first to last."""
    return [found.span() for found in _GGML.finditer(text)]


def is_method(word: str) -> bool:
    """Whether a word, in lower case, names a way to quantise that is not ggml's, such as awq."""
    return word.upper() in _METHODS


def is_width(word: str) -> bool:
    """Whether a word, in lower case, says how wide weights are, such as int4, 4bit or q4."""
    return _width(word.upper()) > 0


def quantisation(core: str, *, qat: bool = False, ud: bool = False) -> Quantisation:
    """The quantisation with this name, in any case; `qat` and `ud` where these words stand by it."""
    name = _SAME.get(core.upper(), core.upper())
    flags = [flag for flag, there in zip(_FLAGS, (qat, ud), strict=True) if there]
    return Quantisation("-".join([*flags, *([name] if name else [])]))


def stated_quantisation(text: str) -> Quantisation | None:
    """The quantisation that a header or a server names; None for what is no such name.

    `Q4_K - Medium`, as llama.cpp prints it, is not one: the header has a number, and servers the short name.
    """
    name = text.lower()
    return quantisation(name) if ggml_names(name) == [(0, len(name))] else None


def _width(part: str) -> float:
    if part in _WIDTHS:
        return float(_WIDTHS[part])
    if part in _GENERIC:
        return _BITS[part]
    found = _WIDTH.fullmatch(part)
    return float(found[1] or found[2]) if found else 0.0
