"""The families of models that are known by name: the words they begin with and what all of their models are. Data.

A family that is not here is unknown: its models are served by hash and by exact name, and never in place of another.
So a missing entry costs a convenience and a wrong one an answer from the wrong model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

#: Words that are sizes in names of any family.
SIZE_WORDS: Final = frozenset({"nano", "tiny", "mini", "small", "medium", "large"})
_SIZED: Final = frozenset({"xs", "s", "m", "l", "xl", "xxl", "base"})
_M: Final = 10**6
_B: Final = 10**9


@dataclass(frozen=True)
class Family:
    """One family. `phrases` are the words with which its names begin, joined by `-`; the first is what it is called.

    `purposes` hold for all its models, said or not. `sizes` is parameters by version and size word, for names that say
    no number: `4` is phi-4, `4 mini` is phi-4-mini. `sized` families have small, base and large for sizes, so that
    `base` is no purpose there. `architectures` is what `general.architecture` can be, each with the versions that have
    it (none: any); a family without them may have any.
    """

    name: str
    phrases: tuple[str, ...]
    purposes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    sized: bool = False
    architectures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def size_words(self) -> frozenset[str]:
        """Words that are sizes in names of this family."""
        own = {key.rpartition(" ")[2] for key in self.sizes if " " in key}
        return SIZE_WORDS | own | (_SIZED if self.sized else set())


def _family(
    phrases: str,
    purposes: str = "",
    *,
    sizes: Mapping[str, int] | None = None,
    sized: bool = False,
    arch: Mapping[str, tuple[str, ...]] | None = None,
) -> Family:
    words = tuple(phrases.split())
    return Family(words[0], words, tuple(purposes.split()), sizes or {}, sized, arch or {})


_BERT: Final = {"xs": 22 * _M, "small": 33 * _M, "s": 33 * _M, "base": 109 * _M, "large": 335 * _M}
_LLAMA: Final = {"llama": ()}

FAMILIES: Final[tuple[Family, ...]] = (
    # --- text, by maker ----------------------------------------------------------------------------------------------
    _family("llama", arch={"llama": ("", "1", "2", "3", "3.1", "3.2", "3.3"), "llama4": ("4",), "mllama": ("3.2",)}),
    _family("llama-guard", "guard", arch={"llama": (), "llama4": ("4",)}),
    _family("codellama code-llama", "code", arch=_LLAMA),
    _family("tinyllama", arch=_LLAMA),
    _family("openllama open-llama", arch=_LLAMA),
    _family(
        "gemma",
        arch={"gemma": ("", "1", "1.1"), "gemma2": ("2",), "gemma3": ("3",), "gemma3n": ("3n",), "gemma4": ("4",)},
    ),
    _family("codegemma", "code", arch={"gemma": ()}),
    _family("embeddinggemma", "embed", arch={"gemma-embedding": (), "gemma3": ()}),
    _family("functiongemma", arch={"gemma3": ()}),
    _family("medgemma", arch={"gemma3": ()}),
    _family("paligemma", "vision"),
    _family("recurrentgemma", arch={"recurrentgemma": ()}),
    _family("shieldgemma", "guard", arch={"gemma2": ()}),
    _family("t5gemma"),
    _family(
        "qwen",
        arch={
            "qwen": ("", "1"), "qwen2": ("1.5", "2", "2.5"), "qwen2moe": ("1.5", "2"), "qwen2vl": ("2", "2.5"),
            "qwen3": ("3",), "qwen3moe": ("3",), "qwen3vl": ("3",), "qwen3vlmoe": ("3",), "qwen3next": ("3",),
        },
    ),
    _family("codeqwen", "code", arch={"qwen2": ()}),
    _family("qwq", "reasoning", arch={"qwen2": ()}),
    _family("qvq", "reasoning vision"),
    _family("smollm", arch={"llama": ("", "1", "2"), "smollm3": ("3",)}),
    _family("smolvlm", "vision", arch=_LLAMA),
    _family(
        "phi",
        sizes={
            "1": 1300 * _M, "1.5": 1300 * _M, "2": 2700 * _M, "3 mini": 3800 * _M, "3 small": 7 * _B,
            "3 medium": 14 * _B, "3.5 mini": 3800 * _M, "4": 14 * _B, "4 mini": 3800 * _M,
        },
        arch={"phi2": ("1", "1.5", "2"), "phi3": ("3", "3.5", "4"), "phimoe": ("3.5",), "llama": ("4",)},
    ),
    _family("mistral", arch={"llama": (), "mistral3": ()}),
    _family(
        "mistral-small",
        sizes={"3": 24 * _B, "3.1": 24 * _B, "3.2": 24 * _B},
        arch={"llama": (), "mistral3": ()},
    ),
    _family("mistral-nemo", sizes={"": 12 * _B}, arch=_LLAMA),
    _family("mistral-medium"),
    _family("mistral-large", arch=_LLAMA),
    _family("mixtral", arch=_LLAMA),
    _family("ministral", arch={"llama": (), "mistral3": ()}),
    _family("codestral", "code", arch={"llama": (), "mamba2": ()}),
    _family("devstral", "code", sizes={" small": 24 * _B}, arch={"llama": (), "mistral3": ()}),
    _family("magistral", "reasoning", sizes={" small": 24 * _B}, arch={"llama": (), "mistral3": ()}),
    _family("mathstral", "math", arch=_LLAMA),
    _family("pixtral", "vision"),
    _family("voxtral", "audio"),
    _family("deepseek", arch={"deepseek": (), "deepseek2": (), "deepseek32": (), "llama": ()}),
    _family("deepseek-r1", "reasoning"),
    _family("deepseek-r1-distill-qwen", "reasoning", arch={"qwen2": ()}),
    _family("deepseek-r1-distill-llama", "reasoning", arch=_LLAMA),
    _family("granite"),
    _family("granite-embedding", "embed"),
    _family("granite-guardian", "guard"),
    _family("olmo", arch={"olmo": ("", "1"), "olmo2": ("2", "3")}),
    _family("olmoe", arch={"olmoe": ()}),
    _family("molmo", "vision"),
    _family("tulu"),
    _family("gpt-oss", arch={"gpt-oss": ()}),
    _family("gpt2 gpt-2", sizes={"": 124 * _M, " medium": 355 * _M, " large": 774 * _M}, arch={"gpt2": ()}),
    _family("gpt-j", arch={"gptj": ()}),
    _family("gpt-neo"),
    _family("gpt-neox", arch={"gptneox": ()}),
    _family("pythia", arch={"gptneox": ()}),
    _family("opt"),
    _family("bloom", arch={"bloom": ()}),
    _family("bloomz", arch={"bloom": ()}),
    _family("t5"),
    _family("flan-t5", sized=True),
    _family("mpt", arch={"mpt": ()}),
    _family("falcon", arch={"falcon": ("",), "llama": ("3",)}),
    _family("falcon-h1", arch={"falcon-h1": ()}),
    _family("falcon-mamba", arch={"mamba": ()}),
    _family("mamba", arch={"mamba": (), "mamba2": ()}),
    _family("rwkv"),
    _family("jamba", arch={"jamba": ()}),
    _family("lfm"),
    _family("stablelm"),
    _family("stable-code", "code"),
    _family("starcoder", "code", arch={"starcoder": (), "starcoder2": ("2",)}),
    _family("starcoderbase", "code", arch={"starcoder": ()}),
    _family("command-r", arch={"command-r": (), "cohere2": ()}),
    _family("command-r-plus", arch={"command-r": ()}),
    _family("command-r7b", sizes={"": 7 * _B}, arch={"cohere2": ()}),
    _family("command-a", arch={"cohere2": ()}),
    _family("aya"),
    _family("aya-expanse"),
    _family("exaone", arch={"exaone": (), "exaone4": ("4",), "exaone-moe": ()}),
    _family("exaone-deep", "reasoning"),
    _family("yi", arch=_LLAMA),
    _family("glm"),
    _family("chatglm"),
    _family("internlm"),
    _family("internvl", "vision"),
    _family("minicpm"),
    _family("minicpm-v", "vision"),
    _family("ernie"),
    _family("hunyuan"),
    _family("kimi-k2"),
    _family("baichuan"),
    _family("bitnet"),
    _family("openelm", arch={"openelm": ()}),
    _family("apertus"),
    _family("seed-oss"),
    _family("smallthinker"),
    _family("nemotron"),
    _family("solar"),
    _family("arcee"),
    _family("danube"),
    _family("dbrx", arch={"dbrx": ()}),
    _family("grok"),
    # --- text, trained further from another family's: what they came from stays in their names ------------------------
    _family("dolphin"),
    _family("hermes"),
    _family("openhermes"),
    _family("openchat"),
    _family("orca"),
    _family("orca-mini"),
    _family("vicuna"),
    _family("wizardlm"),
    _family("wizardcoder", "code"),
    _family("wizardmath", "math"),
    _family("zephyr"),
    _family("starling"),
    _family("neural-chat"),
    _family("openthinker", "reasoning"),
    _family("deepscaler", "reasoning"),
    _family("cogito"),
    _family("sqlcoder", "code"),
    # --- pictures and sound ------------------------------------------------------------------------------------------
    _family("llava", "vision"),
    _family("bakllava", "vision"),
    _family("moondream", "vision"),
    _family("idefics", "vision"),
    _family("whisper", "audio", sized=True, sizes={
        " tiny": 39 * _M, " base": 74 * _M, " small": 244 * _M, " medium": 769 * _M, " large": 1550 * _M,
        "2 large": 1550 * _M, "3 large": 1550 * _M,
    }),
    _family("distil-whisper", "audio", sized=True),
    _family("ultravox", "audio"),
    _family("outetts", "audio"),
    # --- vectors -----------------------------------------------------------------------------------------------------
    _family("nomic-embed-text", "embed", sizes={"1": 137 * _M, "1.5": 137 * _M}),
    _family("nomic-embed-code", "code embed"),
    _family("all-minilm", "embed", sizes={" l6": 22 * _M, "2 l6": 22 * _M, " l12": 33 * _M, "2 l12": 33 * _M}),
    _family("all-mpnet", "embed", sized=True),
    _family("paraphrase-multilingual", "embed"),
    _family("bge", "embed", sized=True, sizes={f"{v} {w}": n for v in ("", "1.5") for w, n in _BERT.items()}),
    _family("bge-m3", "embed", sizes={"": 567 * _M}),
    _family("bge-reranker", "rerank", sized=True),
    _family("gte", "embed", sized=True, sizes={f" {w}": n for w, n in _BERT.items()}),
    _family("gte-qwen", "embed"),
    _family("e5", "embed", sized=True, sizes={f"{v} {w}": n for v in ("", "2") for w, n in _BERT.items()}),
    _family("multilingual-e5", "embed", sized=True, sizes={" small": 118 * _M, " base": 278 * _M, " large": 560 * _M}),
    _family("e5-mistral", "embed", arch=_LLAMA),
    _family("mxbai-embed", "embed", sized=True, sizes={"1 large": 335 * _M}),
    _family("mxbai-rerank", "rerank", sized=True),
    _family("snowflake-arctic-embed", "embed", sized=True),
    _family("jina-embeddings", "embed", sized=True),
    _family("jina-reranker", "rerank", sized=True),
)  # fmt: skip

#: Words of a phrase -> family.
BY_WORDS: Final[Mapping[tuple[str, ...], Family]] = {
    tuple(phrase.split("-")): family for family in FAMILIES for phrase in family.phrases
}
MOST_WORDS: Final = max(map(len, BY_WORDS))
BY_NAME: Final[Mapping[str, Family]] = {family.name: family for family in FAMILIES}

#: Makers whose name some put before a model's, and words that say as little of it.
MAKERS: Final = frozenset({
    "meta", "google", "microsoft", "nvidia", "ibm", "mistralai", "cohere", "nousresearch", "nous", "h2o", "apple",
    "c4ai", "eleutherai", "tiiuae", "allenai", "huggingfacetb", "liquidai", "tencent", "baidu", "baai", "openai",
})  # fmt: skip
#: The same where a low line stands between the two, as in `Qwen_Qwen3-8B`: here they may be names of families.
PUBLISHERS: Final = MAKERS | frozenset({
    "meta-llama", "qwen", "deepseek-ai", "ibm-granite", "coherelabs", "cohereforai", "thudm", "zai-org", "01-ai",
    "internlm", "lgai-exaone", "stabilityai", "bigcode", "codellama", "openbmb", "cognitivecomputations", "tinyllama",
    "nomic-ai", "mixedbread-ai", "unsloth", "bartowski", "lmstudio-community", "arcee-ai", "huggingfaceh4", "deepseek",
    "mistral", "moonshotai", "bytedance-seed", "speakleash", "swiss-ai", "upstage",
})  # fmt: skip
