"""Requests on their way to the engine: whatever one is, the others and the process live on."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.engine.desk import LITTLE, Desk, size_of
from agent.engine.inbox import Inbox
from agent.engine.prepare import Prepared, Preparer
from agent.engine.protocol import Cancel, Embed, Failed, Stats, Submit
from agent.errors import ContextLengthError


def submit(id: int, prompt: str = "hi", *messages: tuple[str, str, str], **more: Any) -> Submit:
    return Submit(id, "completion", messages, prompt, "", 8, 0.0, 1.0, 1, (), **more)


class Preparing:
    """A preparer whose work on a text lasts until it is let go, or fails as the text says."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def prepare(self, job: Submit) -> Prepared:
        if job.prompt.startswith("slow"):
            assert self.go.wait(10)
        if job.prompt == "long":
            raise ContextLengthError("too long", details={"prompt_tokens": 9, "context_tokens": 8})
        if job.prompt == "surrogate":
            "\ud800".encode()
        if job.prompt == "memory":
            raise MemoryError
        return Prepared(job, [1, 2], 3)


def desk_of(preparer: Preparing) -> tuple[Desk, Inbox[Any]]:
    inbox: Inbox[Any] = Inbox(lambda: None, lambda: None)
    desk = Desk(inbox, cast(Any, SimpleNamespace()), 8, cast(Preparer, preparer))
    desk.start()
    return desk, inbox


def next_of(inbox: Inbox[Any]) -> Any:
    (item,) = inbox.take(wait=True)
    return item


@pytest.mark.parametrize(
    ("prompt", "code"), [("long", "context_length_exceeded"), ("surrogate", "bad_request"), ("memory", "bad_request")]
)
def test_what_cannot_be_prepared_is_an_error_of_its_own_and_the_next_one_runs(prompt: str, code: str) -> None:
    desk, inbox = desk_of(Preparing())
    desk.put(submit(1, prompt))
    error = next_of(inbox)
    assert isinstance(error, Failed)
    assert (error.id, error.code) == (1, code)
    desk.put(submit(2))
    assert next_of(inbox).job.id == 2


def test_little_requests_and_questions_do_not_wait_for_large_ones() -> None:
    preparer = Preparing()
    desk, inbox = desk_of(preparer)
    desk.put(submit(1, "slow" + "x" * LITTLE))
    desk.put(submit(2))
    assert next_of(inbox).job.id == 2
    desk.put(Stats(7))
    assert next_of(inbox) == Stats(7)
    preparer.go.set()
    assert next_of(inbox).job.id == 1


def test_a_request_that_is_cancelled_while_it_is_prepared_is_over_at_once_and_passed_over_later() -> None:
    preparer = Preparing()
    desk, inbox = desk_of(preparer)
    desk.put(submit(1, "slow"))
    desk.put(submit(2))
    desk.put(Cancel(1))
    assert inbox.take(wait=True) == []
    assert inbox.cancelled_on_the_way() == (1,)
    assert inbox.cancelled_on_the_way() == ()
    preparer.go.set()
    ids = []
    while 2 not in ids:
        ids += [item.job.id for item in inbox.take(wait=True)]
    assert [id for id in ids if inbox.take_up(id)] == [2]


def test_a_request_that_the_engine_has_is_ended_by_the_engine() -> None:
    desk, inbox = desk_of(Preparing())
    desk.put(submit(1))
    assert inbox.take_up(next_of(inbox).job.id)
    desk.put(Cancel(1))
    assert inbox.cancelled_on_the_way() == ()
    assert inbox.cancelled() == {1}


def test_the_size_of_a_request_is_all_its_text() -> None:
    assert size_of(Embed(1, ("ab", "c"), "")) == 3
    assert size_of(submit(1, "", ("user", "abc", "{}"), tools="[]", output_text="x")) == 8
