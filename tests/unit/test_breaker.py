"""Boxes that keep failing are left alone, and tried again by one job at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.jobs.breaker import FAILURES, OPEN_FIRST, OPEN_LONGEST, RECONNECTS, Breaker

PEER, MODEL = "12D3a", "sha256:aa"


def broken(now: float = 0.0, *, gone: bool = False) -> Breaker:
    breaker = Breaker()
    opened = [breaker.failed(PEER, MODEL, now, gone=gone) for _ in range(FAILURES)]
    assert opened == [False, False, True]
    return breaker


def test_single_failures_change_nothing_and_a_success_forgives() -> None:
    breaker = Breaker()
    for _ in range(10):
        assert not breaker.failed(PEER, MODEL, 0.0)
        assert not breaker.failed(PEER, MODEL, 0.0)
        assert breaker.refusal(PEER, MODEL, 0.0) is None
        breaker.done(PEER, MODEL)


def test_failures_of_long_ago_do_not_count() -> None:
    breaker = Breaker()
    assert not any(breaker.failed(PEER, MODEL, at) for at in (0.0, 1000.0, 2000.0, 3000.0))


def test_an_open_breaker_concerns_one_model_of_one_peer() -> None:
    breaker = broken()
    refusal = breaker.refusal(PEER, MODEL, 1.0)
    assert refusal == "failed 3 times, left alone for 9 s"
    assert breaker.refusal(PEER, "sha256:bb", 1.0) is None
    assert breaker.refusal("12D3b", MODEL, 1.0) is None


def test_one_job_tries_and_the_others_stay_away_until_it_has_ended() -> None:
    breaker = broken()
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST) is None
    breaker.asked(PEER, MODEL, OPEN_FIRST)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST + 1) == "failed before, another job is trying it"
    breaker.let_go(PEER, MODEL)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST + 1) is None
    breaker.asked(PEER, MODEL, OPEN_FIRST + 1)
    breaker.done(PEER, MODEL)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST + 1) is None
    assert not breaker.failed(PEER, MODEL, OPEN_FIRST + 2)


def test_a_trial_that_nobody_reports_on_does_not_keep_others_away_for_ever() -> None:
    breaker = broken()
    breaker.asked(PEER, MODEL, OPEN_FIRST)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST + 59) is not None
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST + 61) is None


def test_each_failed_trial_doubles_the_time_up_to_a_limit() -> None:
    breaker, now, waits = broken(), 0.0, []
    for _ in range(8):
        began = now
        while breaker.refusal(PEER, MODEL, now) is not None:
            now += 1.0
        waits.append(now - began)
        breaker.asked(PEER, MODEL, now)
        assert breaker.failed(PEER, MODEL, now)
    assert waits == [min(OPEN_LONGEST, OPEN_FIRST * 2**n) for n in range(8)]


def test_jobs_that_were_under_way_when_it_opened_do_not_make_it_longer() -> None:
    breaker = broken()
    assert not breaker.failed(PEER, MODEL, 1.0)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST) is None


def test_b24_a_peer_that_is_back_is_tried_at_once_and_has_one_chance() -> None:
    breaker = broken(gone=True)
    breaker.link_up(PEER)
    assert breaker.refusal(PEER, MODEL, 1.0) is None
    breaker.asked(PEER, MODEL, 1.0)
    assert breaker.failed(PEER, MODEL, 1.0)
    assert breaker.refusal(PEER, MODEL, 2.0) is not None


def test_a_peer_that_answered_with_failures_or_lies_gains_nothing_by_hanging_up() -> None:
    breaker = broken()
    breaker.link_up(PEER)
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST - 1) is not None
    assert breaker.refusal(PEER, MODEL, OPEN_FIRST) is None
    mixed = Breaker()
    assert [mixed.failed(PEER, MODEL, 0.0, gone=gone) for gone in (False, True, True)] == [False, False, True]
    mixed.link_up(PEER)
    assert mixed.refusal(PEER, MODEL, 1.0) is not None
    mixed.asked(PEER, MODEL, OPEN_FIRST)
    mixed.done(PEER, MODEL)
    for _ in range(FAILURES):
        mixed.failed(PEER, MODEL, OPEN_FIRST, gone=True)
    mixed.link_up(PEER)
    assert mixed.refusal(PEER, MODEL, OPEN_FIRST) is None, "a success has forgiven what it did before"


def test_a_peer_that_hangs_up_on_every_job_is_believed_so_often_and_no_more() -> None:
    breaker = broken(gone=True)
    tried = 0
    for _ in range(20):
        breaker.link_up(PEER)
        if breaker.refusal(PEER, MODEL, 1.0) is None:
            tried += 1
            breaker.asked(PEER, MODEL, 1.0)
            breaker.failed(PEER, MODEL, 1.0, gone=True)
    assert tried == RECONNECTS
    assert breaker.refusal(PEER, MODEL, 1.0 + OPEN_FIRST * 2**RECONNECTS) is None, "in its time it may try again"


def test_what_is_remembered_is_bounded() -> None:
    breaker = Breaker()
    for number in range(5000):
        breaker.failed(f"peer-{number}", MODEL, 0.0)
    assert len(breaker._pairs) == 4096


@given(
    st.lists(
        st.tuples(st.sampled_from(["asked", "failed", "gone", "done", "let_go", "up"]), st.floats(0, 100)), max_size=60
    )
)
def test_whatever_happens_a_peer_can_be_tried_again(events: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for kind, pause in events:
        now += pause
        match kind:
            case "asked":
                breaker.asked(PEER, MODEL, now)
            case "failed":
                breaker.failed(PEER, MODEL, now)
            case "gone":
                breaker.failed(PEER, MODEL, now, gone=True)
            case "done":
                breaker.done(PEER, MODEL)
            case "let_go":
                breaker.let_go(PEER, MODEL)
            case _:
                breaker.link_up(PEER)
    assert breaker.refusal(PEER, MODEL, now + OPEN_LONGEST + 60) is None
