"""Which tokens go into a step, and who waits for whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.schedule import ALONE_LIMIT, MIN_CHUNK, STEP_LIMIT, Pace, Running, Slice, plan, to_yield

BATCH = 512


def one(id: int, length: int, decoded: int = 0) -> Running:
    return Running(id, "", list(range(length)), length, id, seq=id, decoded=decoded)


def shares(slices: list[Slice]) -> dict[int, int]:
    return {each.sequence.id: each.count for each in slices}


RUNNING = st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 1)), min_size=1, max_size=20).map(
    lambda found: [one(id, length, min(length - 1, int(length * share))) for id, (length, share) in enumerate(found)]
)


@given(RUNNING, st.integers(MIN_CHUNK, BATCH), st.integers(MIN_CHUNK, BATCH))
def test_a_step_is_within_its_bounds_and_nobody_that_generates_is_left_out(
    running: list[Running], chunk: int, alone: int
) -> None:
    slices = plan(running, BATCH, chunk, alone)
    assert 0 < sum(each.count for each in slices) <= BATCH
    assert len({each.sequence.id for each in slices}) == len(slices)
    for each in slices:
        assert each.start == each.sequence.decoded
        assert 0 < each.count <= each.sequence.pending
        assert each.completes == (each.count == each.sequence.pending)
    generating = {each.id for each in running if each.pending == 1}
    assert generating <= set(shares(slices))
    prompts = [each for each in running if each.pending != 1]
    of_prompts = sum(count for id, count in shares(slices).items() if id not in generating)
    assert of_prompts <= alone
    if generating:
        assert of_prompts <= chunk * max(1, len(prompts) // len(generating))
    if prompts:
        assert min(prompts, key=lambda each: each.order).id in shares(slices), "the oldest always moves on"


@given(RUNNING)
def test_everybody_comes_to_the_end(running: list[Running]) -> None:
    total = sum(each.pending for each in running)
    for _ in range(total):
        slices = plan([each for each in running if each.pending > 0], BATCH, 64, 256)
        if not slices:
            break
        for each in slices:
            each.sequence.decoded += each.count
    assert all(each.pending == 0 for each in running)


def test_prompts_fill_a_step_where_nobody_generates_as_far_as_it_may_go() -> None:
    assert shares(plan([one(1, 2000)], BATCH, 64, BATCH)) == {1: BATCH}
    assert shares(plan([one(1, 2000), one(2, 10)], BATCH, 64, BATCH)) == {1: BATCH - 10, 2: 10}
    assert shares(plan([one(1, 2000), one(2, 10)], BATCH, 64, 100)) == {1: 90, 2: 10}


def test_a_short_prompt_does_not_wait_for_a_long_one_and_both_leave_room_for_who_generates() -> None:
    generating = [one(id, 50, 49) for id in (1, 5, 6)]
    step = shares(plan([*generating, one(2, 2000), one(3, 20), one(4, 500)], BATCH, 64, BATCH))
    assert step == {1: 1, 5: 1, 6: 1, 2: 32, 3: 20, 4: 12}


def test_steps_are_longer_where_more_wait_for_their_first_token_than_for_their_next() -> None:
    def read(generating: int, prompts: int) -> int:
        others = [one(10 + id, 50, 49) for id in range(generating)]
        step = plan([*others, *(one(100 + id, 2000) for id in range(prompts))], BATCH, 32, 128)
        return sum(each.count for each in step) - generating

    assert [read(generating, prompts) for generating, prompts in ((1, 1), (4, 4), (4, 7), (15, 1))] == [32] * 4
    assert [read(4, 8), read(1, 3), read(1, 4), read(1, 15)] == [64, 96, 128, 128]


def test_steps_are_as_long_as_what_a_token_of_a_prompt_costs_allows() -> None:
    pace = Pace(BATCH)
    for _ in range(50):
        pace.note([Slice(one(1, 512), 0, 512)], 1.024)
    assert abs(pace.chunk - STEP_LIMIT * 500) <= 2
    assert abs(pace.alone - ALONE_LIMIT * 500) <= 2
    pace.note([Slice(one(1, 1), 0, 1)], 10.0)
    assert abs(pace.chunk - STEP_LIMIT * 500) <= 2, "a step of one token says nothing of many"
    for _ in range(50):
        pace.note([Slice(one(1, 64), 0, 64)], 64.0)
    assert (pace.chunk, pace.alone) == (MIN_CHUNK, MIN_CHUNK)
    for _ in range(200):
        pace.note([Slice(one(1, 512), 0, 512)], 0.001)
    assert (pace.chunk, pace.alone) == (BATCH, BATCH)


def test_the_first_step_on_a_slow_box_is_a_short_one() -> None:
    pace = Pace(BATCH)
    unknown = pace.chunk, pace.alone
    pace.start_with(0.0)
    assert (pace.chunk, pace.alone) == unknown, "nothing was found"
    pace.start_with(100.0)
    assert (pace.chunk, pace.alone) == (MIN_CHUNK, ALONE_LIMIT * 100)
    assert Pace(16).alone == 16, "a small batch is not exceeded"


def test_the_youngest_yields_and_one_alone_does_not() -> None:
    old, young = one(1, 5), one(2, 5)
    assert to_yield([young, old]) is young
    assert to_yield([old]) is None
