"""How long a job would wait and take."""

from __future__ import annotations

import pytest

from agent.engine.forecast import ANSWER_TOKENS, JOB_SECONDS, Forecast, work_of
from fleet.net.messages import ChatMessage, InferRequest, Sampling


def request(deadline_ms: int | None = None, max_tokens: int | None = 10, begin_ms: int | None = None) -> InferRequest:
    sampling = Sampling(max_tokens=max_tokens)
    return InferRequest(
        job="j", kind="completion", model="m", prompt="x" * 40, sampling=sampling, deadline_ms=deadline_ms,
        begin_ms=begin_ms,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ahead", "running", "slots", "wait"),
    [(0, 0, 4, 0), (0, 3, 4, 0), (0, 4, 4, 0.25), (3, 4, 4, 1.0), (0, 1, 1, 1.0), (5, 1, 1, 6.0)],
)
def test_a_slot_comes_free_as_often_as_jobs_end(ahead: int, running: int, slots: int, wait: float) -> None:
    assert Forecast(ahead, running, slots, 2.0, None).wait == pytest.approx(2.0 * wait)
    assert Forecast(ahead, running, slots, None, None).wait == pytest.approx(JOB_SECONDS * wait)


def test_an_answer_takes_its_tokens_and_no_longer_than_others_did() -> None:
    assert Forecast(0, 0, 1, None, 5.0).done_in(request(max_tokens=10)) == pytest.approx(2.0)
    assert Forecast(0, 0, 1, None, 1.0).done_in(request(max_tokens=None)) == pytest.approx(ANSWER_TOKENS)
    assert Forecast(0, 0, 1, 3.0, 1.0).done_in(request(max_tokens=None)) == pytest.approx(3.0)
    assert Forecast(0, 0, 1, None, None).done_in(request()) == 0.0


def test_a_job_that_cannot_be_in_time_is_told_how_long_it_would_take() -> None:
    busy = Forecast(2, 1, 1, 4.0, None)
    assert busy.too_late(request(deadline_ms=None)) is None
    assert busy.too_late(request(deadline_ms=12_000)) is None
    words = busy.too_late(request(deadline_ms=11_999))
    assert busy.come_back(request(deadline_ms=2_000)) == 10
    assert busy.come_back(request(deadline_ms=None)) == busy.retry_after == 6
    assert words == "it would be done in about 12.0 s and has 11.999 s left (2 jobs wait before it, 1 run)"


def test_b40_a_job_whose_turn_comes_too_late_is_told_when_it_would() -> None:
    busy = Forecast(2, 1, 1, 4.0, None)
    assert busy.wait == 12.0
    assert busy.too_late(request(begin_ms=10_000)) is None, "the job that runs may be half done"
    words = busy.too_late(request(begin_ms=9_999))
    assert words == "its turn would come in about 12.0 s and it waits for 9.999 s (2 jobs wait before it, 1 run)"
    assert busy.come_back(request(begin_ms=1_000)) == 9, "by then it would begin in time"
    assert Forecast(200, 1, 1, None, None).too_late(request(begin_ms=1)) is None, "nobody knows how long jobs take"
    assert Forecast(0, 0, 1, 3600.0, None).too_late(request(begin_ms=1)) is None, "a slot is free"


@pytest.mark.parametrize(("ahead", "after"), [(0, 5), (2, 8), (20, 53)])
def test_who_is_refused_comes_back_when_half_of_those_before_it_have_gone(ahead: int, after: int) -> None:
    assert Forecast(ahead, 2, 2, 10.0, None).retry_after == after


@pytest.mark.parametrize(("seconds", "slots", "after"), [(None, 1, 5), (0.1, 4, 1), (9.0, 2, 5), (60.0, 4, 15)])
def test_who_is_refused_may_come_back_when_a_job_has_left(seconds: float | None, slots: int, after: int) -> None:
    assert Forecast(0, slots, slots, seconds, None).retry_after == after


def test_work_is_the_prompt_and_the_answer() -> None:
    assert work_of(request(max_tokens=10)) == 20.0
    assert work_of(request(max_tokens=None)) == 10.0 + ANSWER_TOKENS
    chat = InferRequest(job="j", kind="chat", model="m", messages=(ChatMessage(role="user", content="x" * 8),))
    assert work_of(chat) == 2.0 + ANSWER_TOKENS
    assert work_of(InferRequest(job="j", kind="embedding", model="m", texts=("x" * 8, "x" * 8))) == 4.0
    assert work_of(InferRequest(job="j", kind="embedding", model="m", texts=("x",))) == 1.0
