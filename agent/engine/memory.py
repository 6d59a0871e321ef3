"""How much memory a model takes, and how much of it fits into what there is. Pure.

What llama.cpp 0c1e570 allocates on a CPU, with flash attention, one unified cache, and one output of each
sequence a step; the figures behind it are in docs/adr/0019-memory-is-counted-before-loading.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fleet.models.gguf import GgufFacts
from fleet.models.gguf_header import TENSOR_TYPES

MIB: Final = 1 << 20

#: Tokens a decoding step takes in, and the least it is lowered to where memory is short.
BATCH: Final = 512
MIN_BATCH: Final = 64
#: A model that cannot be given this much context is not loaded, unless less was asked for.
MIN_CONTEXT: Final = 512
#: A cache's cells come in such blocks.
CELL_BLOCK: Final = 256

#: Tokens of a text at most that is to become a vector, and of all texts that are read together; and how many these are.
EMBEDDED_TOKENS: Final = 2048
EMBEDDED_TEXTS: Final = 16
#: A model that also generates text computes the logits of every token it embeds, whether or not they are wanted
#: (llama.cpp 0c1e570). Steps of so many tokens keep them to 32 MiB, where 2,048 tokens of SmolLM2 took 400.
_EMBEDDED_LOGITS: Final = 32 * MIB
_EMBEDDED_STEPS: Final = (32, 128)
#: Sequences that are over and kept beside the cache may take this part of what it does, and no more than that in all.
_PARKING: Final = 2
_MOST_PARKING: Final = 64 * MIB
#: Architectures that have no logits, as far as their names say so.
_HEADLESS: Final = ("bert", "gemma-embedding")

#: The child's interpreter with llama.cpp and NumPy loaded, and what a vocabulary's entry takes in tables.
_PROCESS: Final = 50 * MIB
_VOCABULARY_ENTRY: Final = 320
#: What is lost where llama.cpp places its buffers.
_ROUNDING: Final = MIB // 2
#: Sequences that are over are kept for their prefixes and need a number each; see `worker`.
_KEPT_SEQUENCES: Final = 2
_MOST_SEQUENCES: Final = 128
_BYTES: Final = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Estimate:
    """Bytes a loaded model takes. `weights` are mapped from the file: the kernel may drop them, and then every token
    waits for the disk, so they count like the rest. `vectors` is for embeddings, and taken when the first ones are
    asked for; `parking` is for sequences that are over, and taken as they end.
    """

    weights: int
    kv: int
    compute: int
    process: int
    vectors: int = 0
    parking: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute + self.process + self.vectors + self.parking


@dataclass(frozen=True)
class Wish:
    """What a model is to be loaded with: tokens of context for a request, requests at a time, and flash attention."""

    context: int
    slots: int
    flash: bool = True


@dataclass(frozen=True)
class Plan:
    """What a model is loaded with. `cells` are tokens of all requests together, `batch` those of one step.

    `why` says what of the wish was cut, and is empty where nothing was.
    """

    context: int
    slots: int
    cells: int
    batch: int
    estimate: Estimate
    why: str = ""


@dataclass(frozen=True)
class TooLarge:
    """There is no plan: the least that the model can be run with needs more bytes than there are."""

    needed: int
    available: int

    @property
    def reason(self) -> str:
        """For people, with both numbers."""
        return f"it needs {show(self.needed)} of memory at least, and {show(max(self.available, 0))} are available"

    @property
    def details(self) -> dict[str, object]:
        """For programs."""
        return {"needed_bytes": self.needed, "available_bytes": max(self.available, 0)}


def estimate(
    facts: GgufFacts,
    cells: int,
    slots: int,
    ubatch: int = BATCH,
    kv_type: str = "F16",
    outputs: int | None = None,
    *,
    flash: bool = True,
) -> Estimate:
    """What a model takes with a cache of `cells` tokens for `slots` sequences, `ubatch` tokens a step.

    `outputs` is of how many tokens of a step the logits are wanted, by default one of each sequence. `kv_type` is the
    name of the cache's tensor type.
    """
    kept = facts.window or facts.state_bytes
    sequences = min(_MOST_SEQUENCES, slots + (_KEPT_SEQUENCES if kept else slots))
    ubatch = min(ubatch, _padded(cells))
    outputs = min(ubatch, sequences if outputs is None else outputs)
    kv = compute = 0
    if not facts.embedding:
        kv, compute = _context(facts, cells, sequences, ubatch, outputs, facts.vocab_size, kv_type, flash=flash)
    return Estimate(
        weights=facts.weight_bytes,
        kv=kv,
        compute=compute,
        process=_PROCESS + _VOCABULARY_ENTRY * facts.vocab_size,
        vectors=_vectors(facts, cells, flash=flash),
        parking=min(kv // _PARKING, _MOST_PARKING),
    )


def reads_whole(facts: GgufFacts) -> bool:
    """Whether a text has to be read in one step for its vector, as by a model that looks both ways."""
    return facts.embedding and facts.pooling != "last"


def embedding_step(vocab_size: int) -> int:
    """Tokens of a step that reads texts in parts."""
    least, most = _EMBEDDED_STEPS
    return max(least, min(most, _EMBEDDED_LOGITS // (4 * vocab_size) // least * least))


def _vectors(facts: GgufFacts, cells: int, *, flash: bool) -> int:
    """What the context for embeddings takes, which has `cells` tokens or fewer."""
    room = min(EMBEDDED_TOKENS, cells)
    whole = reads_whole(facts)
    step = min(room, room if whole else embedding_step(facts.vocab_size))
    vocabulary = 0 if any(name in facts.architecture for name in _HEADLESS) else facts.vocab_size
    kv, compute = _context(facts, room, EMBEDDED_TEXTS, step, step, vocabulary, "F16", flash=flash)
    return (kv if vocabulary else 0) + compute


def _context(
    facts: GgufFacts,
    cells: int,
    sequences: int,
    ubatch: int,
    outputs: int,
    vocabulary: int,
    kv_type: str,
    *,
    flash: bool,
) -> tuple[int, int]:
    """Bytes of a context's cache, and of what it computes in; `outputs` tokens of a step have logits."""
    cells = _padded(cells)
    window_cells = min(cells, _padded(facts.window * sequences + ubatch))
    windowed = [heads for heads, window in zip(facts.kv_heads, facts.windowed, strict=True) if window]
    full = [heads for heads, window in zip(facts.kv_heads, facts.windowed, strict=True) if not window]
    block, block_bytes = _BYTES[kv_type]
    head = facts.key_length + facts.value_length
    kv = (cells * sum(full) + window_cells * sum(windowed)) * head // block * block_bytes
    masks = 2 * ubatch * (cells * any(full) + window_cells * any(windowed))
    # Without flash attention there is a table of scores, for one layer at a time.
    scores = 0 if flash else 4 * ubatch * facts.heads * (cells if any(full) else window_cells)
    logits = 4 * outputs * (vocabulary + 2 * facts.embedding_length)
    results = 4 * vocabulary * max(sequences, outputs)
    compute = max(4 * ubatch * _widest(facts) + masks + scores, logits) + results + _ROUNDING
    return kv + facts.state_bytes * sequences, compute


def plan(facts: GgufFacts, available: int, wish: Wish) -> Plan | TooLarge:
    """The largest plan within `available` bytes, never more than the wish.

    A cache for half of what all slots could use is asked for, as few requests use their whole context; one that runs
    short lets the youngest wait. What does not fit is given up in this order: cells down to one whole context, slots,
    then context, and only below MIN_CONTEXT the size of a step, which slows prompts down.
    """
    context = min(wish.context, facts.context_length)
    least = min(context, MIN_CONTEXT)
    whole = context if facts.embedding else max(context, context * wish.slots // 2)

    def fits(cells: int, slots: int, batch: int) -> bool:
        return counted(cells, slots, batch).total <= available

    def counted(cells: int, slots: int, batch: int) -> Estimate:
        """With as much to park in as is left beside the rest: it saves time, and nothing depends on it."""
        found = estimate(facts, cells, slots, batch, flash=wish.flash)
        return replace(found, parking=max(0, min(found.parking, available - found.total + found.parking)))

    slots, batch = wish.slots, BATCH
    if not facts.embedding:  # what these save is for text that is generated
        while slots > 1 and not fits(context, slots, batch):
            slots //= 2
        while batch > MIN_BATCH and not fits(least, slots, batch):
            batch //= 2
    if not fits(least, slots, batch):
        return TooLarge(counted(least, slots, batch).total, available)
    # The estimate grows with the cells, so the most that fit are found by halving.
    low, high = least, whole
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle, slots, batch) else (low, middle - 1)
    cells = min(_padded(low), _padded(whole)) if fits(_padded(low), slots, batch) else low
    found = Plan(min(context, low), slots, cells, batch, counted(cells, slots, batch))
    return replace(found, why=_why(found, context, whole, wish.slots, available))


def budget_of(setting: int | str | None, total: int, available: int) -> int:
    """Bytes that all models of a box may take together.

    `setting` is as `size_of` takes it, or None for what is available less a reserve for everything else.
    """
    return available - reserve(total) if setting is None else size_of(setting, total)


def size_of(setting: int | str, total: int) -> int:
    """Bytes that a setting means: a number of them, `1.5GiB`, `800MiB`, or `60%` of `total`."""
    if isinstance(setting, int):
        return setting
    number = float(setting.rstrip("%GMiB"))
    return int(number * (total / 100 if setting.endswith("%") else 1 << 30 if setting.endswith("GiB") else MIB))


def reserve(total: int) -> int:
    """Bytes of a box's memory that models are not given, unless a budget is set: a twentieth, 256 MiB to 2 GiB."""
    return min(max(total // 20, 256 * MIB), 2048 * MIB)


def show(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 10 * (1 << 30) else f"{size / MIB:.0f} MiB"


def _widest(facts: GgufFacts) -> int:
    """Values a token takes where a layer is at its widest: in the feed-forward part, the experts, or attention."""
    wide = facts.embedding_length
    heads = facts.heads * (facts.key_length + facts.value_length)
    keys = max(facts.kv_heads, default=0) * (facts.key_length + facts.value_length)
    expert = facts.expert_feed_forward or facts.feed_forward
    return max(
        5 * wide + 3 * facts.feed_forward,
        (5 + facts.experts_used) * wide + 3 * facts.experts_used * expert + 2 * facts.experts,
        4 * wide + 2 * heads + 2 * keys,
    )


def _padded(cells: int) -> int:
    return -(-cells // CELL_BLOCK) * CELL_BLOCK


def _why(found: Plan, context: int, whole: int, slots: int, available: int) -> str:
    cut = []
    if found.context < context:
        cut.append(f"context {found.context} of {context} tokens")
    if found.slots < slots:
        cut.append(f"{found.slots} of {slots} requests at a time")
    if found.context == context and found.cells < whole:
        cut.append(f"a cache of {found.cells} of {whole} tokens")
    if found.batch < BATCH:
        cut.append(f"steps of {found.batch} tokens")
    return f"{', '.join(cut)}: {show(available)} are available" if cut else ""
