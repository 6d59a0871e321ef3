"""How much memory a model takes and what of it fits: the sums, the order in which wishes are given up, the words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.memory import (
    MIB,
    MIN_BATCH,
    MIN_CONTEXT,
    Plan,
    TooLarge,
    Wish,
    budget_of,
    embedding_step,
    estimate,
    plan,
    reads_whole,
    reserve,
    show,
    size_of,
)  # fmt: skip
from fleet.models.gguf import GgufFacts, read_facts
from tests.corpus.gguf.build import llama

SMALL = replace(
    read_facts(llama(embedding=64, blocks=4, heads=4, kv_heads=2).build()), context_length=8192, vocab_size=32_000
)


def windowed(pattern: Sequence[bool], window: int = 512) -> GgufFacts:
    return replace(SMALL, window=window, windowed=tuple(pattern))


def test_the_cache_is_counted_cell_by_cell() -> None:
    one = 4 * 2 * (16 + 16) * 2  # layers, heads of keys, keys and values, 16 bits each
    assert estimate(SMALL, 1024, 1).kv == 1024 * one
    assert estimate(SMALL, 1000, 1).kv == 1024 * one
    assert estimate(SMALL, 1024, 1, kv_type="Q8_0").kv == 1024 * one // 64 * 34
    assert estimate(replace(SMALL, kv_heads=(2, 0, 0, 2)), 1024, 1).kv == 1024 * one // 2


def test_layers_with_a_window_need_cells_for_it_alone() -> None:
    every, half, none = windowed([True] * 4), windowed([True, False] * 2), SMALL
    full = estimate(none, 8192, 1).kv
    # 512 tokens for one sequence and two that are kept, and the step's own.
    assert estimate(every, 8192, 1).kv == full * (512 * 3 + 512) // 8192
    assert estimate(half, 8192, 1).kv == full // 2 + full * (512 * 3 + 512) // 8192 // 2
    assert estimate(every, 1024, 8).kv == estimate(none, 1024, 8).kv


def test_weights_are_all_tensors_and_a_state_is_kept_for_every_sequence() -> None:
    assert estimate(SMALL, 512, 1).weights == SMALL.weight_bytes == sum(size for _, size in SMALL.tensor_bytes)
    stateful = replace(SMALL, state_bytes=1000)
    assert estimate(stateful, 512, 4).kv - estimate(SMALL, 512, 4).kv == 6 * 1000


def test_outputs_are_what_a_large_vocabulary_costs() -> None:
    large = replace(SMALL, vocab_size=262_144)
    few, all_ = estimate(large, 4096, 4).compute, estimate(large, 4096, 4, outputs=512).compute
    assert all_ > 1000 * MIB > 50 * MIB > few
    assert estimate(large, 4096, 4, 128, outputs=128).compute < all_ / 3


def test_vectors_are_counted_beside_text_in_steps_that_logits_allow() -> None:
    assert [embedding_step(size) for size in (1, 32_000, 49_152, 151_936, 262_144, 10**7)] == [
        128,
        128,
        128,
        32,
        32,
        32,
    ]
    cache = 4 * 2 * (16 + 16) * 2
    small, large = estimate(SMALL, 8192, 4), estimate(replace(SMALL, vocab_size=262_144), 8192, 4)
    logits = 2 * 4 * 128 * SMALL.vocab_size  # in the graph, and in what is handed out
    assert 2048 * cache + logits < small.vectors < 2048 * cache + logits + 2 * MIB
    assert large.vectors < 2 * small.vectors + 64 * MIB, "however large the vocabulary"
    assert estimate(SMALL, 512, 4).vectors < small.vectors
    parts = (small.weights, small.kv, small.compute, small.process, small.vectors, small.parking)
    assert small.total == sum(parts)
    assert small.parking == small.kv // 2
    assert estimate(replace(SMALL, block_count=4), 2**22, 4).parking == 64 * MIB, "however large the cache"


def test_a_model_of_vectors_alone_takes_nothing_for_text() -> None:
    bert = replace(SMALL, architecture="bert", embedding=True, pooling="mean")
    found = estimate(bert, 2048, 4)
    assert (found.kv, found.compute) == (0, 0)
    assert reads_whole(bert)
    assert not reads_whole(replace(bert, pooling="last"))
    assert not reads_whole(SMALL)
    headed = estimate(replace(bert, architecture="llama"), 2048, 4)
    assert headed.vectors - found.vectors > 4 * 2048 * SMALL.vocab_size
    wished = plan(bert, 10**12, Wish(2048, 8))
    assert isinstance(wished, Plan)
    assert (wished.context, wished.cells, wished.slots, wished.why) == (2048, 2048, 8, "")
    short = plan(bert, wished.estimate.total - 1, Wish(2048, 8))
    assert isinstance(short, Plan)
    assert (short.slots, short.batch) == (8, 512)
    assert short.context < 2048


def test_without_flash_attention_the_scores_of_a_layer_are_kept() -> None:
    with_, without = estimate(SMALL, 4096, 2), estimate(SMALL, 4096, 2, flash=False)
    assert without.compute - with_.compute == 4 * 512 * 4 * 4096
    assert without.kv == with_.kv
    wished = plan(SMALL, 10**12, Wish(4096, 2, flash=False))
    assert isinstance(wished, Plan)
    assert wished.estimate == without


SIZES = st.integers(64, 32_768)


@given(SIZES, SIZES, st.integers(1, 64), st.booleans())
def test_more_never_takes_less(cells: int, more: int, slots: int, window: bool) -> None:
    facts = windowed([True, False] * 2) if window else SMALL
    low, high = sorted((cells, more))
    assert estimate(facts, low, slots).total <= estimate(facts, high, slots).total
    assert estimate(facts, cells, slots).total <= estimate(facts, cells, slots + 1).total


@given(st.integers(-MIB, 400 * MIB), st.integers(64, 16_384), st.integers(1, 64))
def test_a_plan_fits_and_is_never_more_than_the_wish(available: int, context: int, slots: int) -> None:
    found = plan(SMALL, available, Wish(context, slots))
    wanted = min(context, SMALL.context_length)
    if isinstance(found, TooLarge):
        assert found.needed > found.available
        least = estimate(SMALL, min(wanted, MIN_CONTEXT), 1, MIN_BATCH)
        assert found.needed == least.total - least.parking > available
        return
    assert found.estimate == estimate(SMALL, found.cells, found.slots, found.batch)
    assert found.estimate.total <= available
    assert min(wanted, MIN_CONTEXT) <= found.context <= wanted
    assert found.context <= found.cells
    assert 1 <= found.slots <= slots
    whole = found.context == wanted and found.slots == slots and found.cells >= wanted * slots // 2
    assert bool(found.why) == (not whole)


def test_what_does_not_fit_is_given_up_in_order() -> None:
    facts = replace(SMALL, kv_heads=(4,) * 4, key_length=128, value_length=128)
    enough = plan(facts, 10**12, Wish(4096, 8))
    assert isinstance(enough, Plan)
    assert (enough.context, enough.slots, enough.cells, enough.batch, enough.why) == (4096, 8, 16_384, 512, "")
    steps = [enough]

    def needed() -> int:
        return steps[-1].estimate.total - steps[-1].estimate.parking

    while isinstance(found := plan(facts, needed() - 1, Wish(4096, 8)), Plan):
        assert found.estimate.parking < enough.estimate.parking, "that goes first"
        steps.append(found)
    assert found.needed > found.available
    for before, after in itertools.pairwise(steps):
        assert after.estimate.total < before.estimate.total
        assert after.context <= before.context or after.batch < before.batch
        assert after.slots <= before.slots
        assert after.batch <= before.batch
        if after.slots < 8:
            assert after.cells < 2 * 4096  # the cache of more than one whole context went first
        if after.context < 4096:
            assert after.slots == 1
        if after.batch < before.batch:
            assert before.context == MIN_CONTEXT
    assert steps[-1].batch == MIN_BATCH


def test_a_plan_and_a_refusal_say_why_with_numbers() -> None:
    whole = estimate(SMALL, 4096, 1).total
    cut = plan(SMALL, whole, Wish(8192, 4))
    assert isinstance(cut, Plan)
    assert cut.why.startswith("context 4")
    assert "1 of 4 requests at a time" in cut.why
    assert f"{show(whole)} are available" in cut.why
    refused = plan(SMALL, 10 * MIB, Wish(8192, 4))
    assert isinstance(refused, TooLarge)
    assert refused.details == {"needed_bytes": refused.needed, "available_bytes": 10 * MIB}
    assert "10 MiB are available" in refused.reason
    assert f"{refused.needed / MIB:.0f} MiB" in refused.reason
    negative = plan(SMALL, -5, Wish(8192, 4))
    assert isinstance(negative, TooLarge)
    assert negative.details["available_bytes"] == 0


@pytest.mark.parametrize(
    ("setting", "size"),
    [(1 << 30, 1 << 30), ("60%", 600), ("100%", 1000), ("800MiB", 800 << 20), ("1.5GiB", 3 << 29)],
)
def test_a_budget_may_be_bytes_or_a_share(setting: int | str, size: int) -> None:
    assert size_of(setting, 1000) == size
    assert budget_of(setting, 1000, 0) == size


def test_without_a_budget_something_is_left_for_everything_else() -> None:
    assert [reserve(size << 30) // MIB for size in (1, 8, 16, 128)] == [256, 409, 819, 2048]
    assert budget_of(None, 8 << 30, 6 << 30) == (6 << 30) - reserve(8 << 30)
