"""Points, tiers, records and weights: what they are, and how far any one key can move them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.contribution import (
    MOST_OF_ONE,
    TIERS,
    Accounts,
    points_of,
    score,
    tier_of,
    weight_of,
)
from fleet.document.facts import Used

BOX, OTHER, THIRD = b"b" * 32, b"o" * 32, b"t" * 32
COUNTS = st.integers(0, 1 << 40)


@pytest.mark.parametrize(
    ("points", "tier"),
    [
        (0, ""),
        (0.999, ""),
        (1, "bronze"),
        (99.9, "bronze"),
        (100, "silver"),
        (499.9, "silver"),
        (500, "gold"),
        (1499.9, "gold"),
        (1500, "platinum"),
        (3999.9, "platinum"),
        (4000, "diamond"),
        (9999.9, "diamond"),
        (10000, "master"),
        (1e12, "master"),
    ],
)
def test_tiers_begin_at_their_thresholds(points: float, tier: str) -> None:
    assert tier_of(points) == tier


@pytest.mark.parametrize(
    ("jobs", "tokens", "failures", "points"),
    [
        (0, 0, 0, 0),
        (1, 900, 0, 1.0),
        (10, 0, 0, 1.0),  # vectors have no tokens of an answer
        (1, 900, 1, 0.5),
        (0, 5000, 3, 0),
        (1 << 40, 1 << 40, 0, MOST_OF_ONE),
    ],
)
def test_points_are_for_tokens_and_success(jobs: int, tokens: int, failures: int, points: float) -> None:
    assert points_of(Used(BOX, jobs, tokens, failures)) == pytest.approx(points)


@given(st.tuples(COUNTS, COUNTS, COUNTS))
def test_a_box_cannot_raise_its_own_score(claim: tuple[int, int, int]) -> None:
    accounts = Accounts(lambda key: True)
    accounts.put(OTHER, Used(BOX, 3, 4000, 1))
    before = accounts.score(BOX)
    accounts.put(BOX, Used(BOX, *claim))
    assert accounts.score(BOX) == before


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS), max_size=4), st.tuples(COUNTS, COUNTS, COUNTS))
def test_one_more_word_is_worth_a_bounded_number_of_points(
    honest: list[tuple[int, int, int]], claim: tuple[int, int, int]
) -> None:
    before = score(BOX, [Used(BOX, *one) for one in honest])
    after = score(BOX, [*(Used(BOX, *one) for one in honest), Used(BOX, *claim)])
    assert before.points <= after.points <= before.points + MOST_OF_ONE
    for found in (before, after):
        assert 0.0 <= found.record <= 1.0
        assert 1.0 <= found.weight <= 2.0


def test_two_boxes_that_praise_one_another_stay_below_gold() -> None:
    accounts = Accounts(lambda key: True)
    accounts.put(BOX, Used(OTHER, 1 << 40, 1 << 40, 0))
    accounts.put(OTHER, Used(BOX, 1 << 40, 1 << 40, 0))
    for key in (BOX, OTHER):
        assert accounts.score(key).tier == "silver"
        assert accounts.score(key).weight <= weight_of("silver")


def test_one_slanderer_weighs_as_much_as_one_honest_consumer() -> None:
    honest = [Used(BOX, 100, 10_000, 0)] * 9
    slander = Used(BOX, 0, 0, 1 << 40)
    clean, smeared = score(BOX, honest), score(BOX, [*honest, slander])
    assert smeared.points == clean.points
    assert smeared.record > 0.9 * clean.record


def test_failing_costs_record_and_serving_earns_it() -> None:
    new = score(BOX, [])
    good = score(BOX, [Used(BOX, 1000, 300_000, 0)])
    bad = score(BOX, [Used(BOX, 0, 0, 1000)])
    assert bad.record < 0.1 < new.record == 0.5 < good.record
    assert (new.tier, good.tier) == ("", "silver")


def test_weights_grow_by_a_sixth_a_tier() -> None:
    weights = [weight_of(""), *(weight_of(tier) for tier, _ in TIERS)]
    assert weights == pytest.approx([1 + step / 6 for step in range(7)])


def test_the_word_of_a_box_that_is_shut_out_counts_no_more() -> None:
    inside = {BOX, OTHER, THIRD}
    accounts = Accounts(lambda key: key in inside)
    accounts.put(OTHER, Used(BOX, 10, 99_000, 0))
    accounts.put(THIRD, Used(BOX, 10, 9_000, 0))
    assert accounts.score(BOX).points == pytest.approx(110)
    inside.remove(OTHER)
    accounts.forget_scores()
    assert accounts.score(BOX).points == pytest.approx(10)
    assert accounts.score(BOX).consumers == 1
    inside.remove(BOX)
    accounts.forget_scores()
    assert accounts.score(BOX).points == 0
    assert not list(accounts.scores())


def test_an_account_that_changes_or_is_taken_back_changes_the_score() -> None:
    accounts = Accounts(lambda key: True)
    accounts.put(OTHER, Used(BOX, 1, 900, 0))
    assert accounts.score(BOX).points == pytest.approx(1)
    accounts.put(OTHER, Used(BOX, 2, 1800, 0))
    assert accounts.score(BOX).points == pytest.approx(2)
    assert [found.peer for found in accounts.scores()] == [BOX]
    accounts.take_back(OTHER, BOX)
    assert accounts.score(BOX).points == 0
    assert not list(accounts.scores())
