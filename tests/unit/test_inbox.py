"""Cancels reach the step that runs, and do not bring others to a halt."""

from __future__ import annotations

import threading

from agent.engine.inbox import Inbox


class Step:
    """What the inbox does to the decoding step."""

    def __init__(self) -> None:
        self.aborts = 0
        self.resumes = 0
        self.inbox: Inbox[str] = Inbox(self._abort, self._resume)
        for id in (1, 2):
            self.inbox.announce(id)

    def _abort(self) -> None:
        self.aborts += 1

    def _resume(self) -> None:
        self.resumes += 1


def test_a_cancel_ends_the_step_that_its_request_is_in_alone() -> None:
    step = Step()
    assert step.inbox.begin_step({1})
    step.inbox.cancel(1)
    assert step.aborts == 1
    step.inbox.end_step()
    assert step.resumes == 1
    assert step.inbox.cancelled() == {1}
    assert not step.inbox.begin_step({1, 2}), "it is to be ended first"
    step.inbox.over(1)
    assert step.inbox.begin_step({2})
    step.inbox.cancel(1)
    assert step.aborts == 1, "it is over"


def test_a_step_that_others_are_in_goes_on_until_nobody_wants_it() -> None:
    step = Step()
    assert step.inbox.begin_step({1, 2})
    step.inbox.cancel(1)
    assert step.aborts == 0
    step.inbox.cancel(2)
    assert step.aborts == 1


def test_a_request_that_is_not_in_the_step_leaves_it_alone() -> None:
    step = Step()
    assert step.inbox.begin_step({1})
    step.inbox.cancel(2)
    step.inbox.cancel(99)
    assert step.aborts == 0
    assert step.inbox.cancelled() == {2}


def test_waiting_ends_with_a_message_or_a_cancel_and_not_again_for_the_same() -> None:
    inbox = Step().inbox
    inbox.put("a")
    assert inbox.take(wait=True) == ["a"]
    inbox.cancel(2)
    assert inbox.take(wait=True) == []
    took: list[object] = []
    waiter = threading.Thread(target=lambda: took.extend(inbox.take(wait=True)))
    waiter.start()
    inbox.put("b")
    waiter.join(5)
    assert took == ["b"]
