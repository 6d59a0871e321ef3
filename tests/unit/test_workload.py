"""When jobs go to the child: never to one that may hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import trio
import trio.testing

from agent.engine.child import Child
from agent.engine.job import QueuedJob
from agent.engine.protocol import Cancel, Done, FrameBuffer, Message, Submit
from agent.engine.workload import CANCEL_LIMIT, SUSPECT_AFTER, Workload
from tests.engine_box import completion

HASH = "sha256:" + "0" * 64


class Deaf:
    """A child that reads what it is sent and says nothing."""

    pid = 1

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.killed_at: float | None = None

    def post(self, frame: bytes) -> None:
        self.heard += FrameBuffer().feed(frame)

    def kill(self) -> None:
        self.killed_at = trio.current_time()

    @property
    def jobs(self) -> int:
        return sum(isinstance(message, Submit) for message in self.heard)


class Box:
    """A workload of two slots with a child that is deaf."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.child = Deaf()
        self.jobs = Workload("m", slots=2, max_queue=8, on_change=lambda: None)
        self.attach(self.child)

    def attach(self, child: Deaf) -> None:
        self.jobs.attach(cast(Child, child), self.nursery, 2)

    def admit(self) -> QueuedJob:
        return self.jobs.admit(completion("x"), 512)

    def confirm(self, job: QueuedJob) -> None:
        done = Done(job.id, "cancelled", 1, 0, 0.0, 0.0)
        self.jobs.take_event(cast(Child, self.child), done, HASH)


def with_box(story: Callable[[Box], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await story(Box(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_child_that_may_hang_gets_no_more_jobs_though_it_has_a_slot() -> None:
    async def story(box: Box) -> None:
        box.jobs.release(box.admit())
        await trio.sleep(SUSPECT_AFTER / 2)
        other = box.admit()
        assert box.child.jobs == 2, "until then it is as good as any"
        await trio.sleep(SUSPECT_AFTER)
        box.confirm(other)  # a slot is free
        box.admit()
        assert (box.child.jobs, box.jobs.running, box.jobs.queued) == (2, 1, 1)
        await trio.sleep(CANCEL_LIMIT)
        assert box.child.killed_at == CANCEL_LIMIT
        assert (box.child.jobs, box.jobs.queued) == (2, 1), "nor while it dies"

    with_box(story)


def test_a_child_that_confirms_late_gets_jobs_again() -> None:
    async def story(box: Box) -> None:
        job = box.admit()
        box.jobs.release(job)
        await trio.sleep(SUSPECT_AFTER + 0.1)
        box.admit()
        assert box.child.jobs == 1
        box.confirm(job)
        await trio.testing.wait_all_tasks_blocked()
        assert box.child.jobs == 2
        await trio.sleep(CANCEL_LIMIT)
        assert box.child.killed_at is None
        assert sum(isinstance(message, Cancel) for message in box.child.heard) == 1

    with_box(story)


def test_the_next_child_is_not_suspected_for_the_last_ones_silence() -> None:
    async def story(box: Box) -> None:
        box.jobs.release(box.admit())
        await trio.sleep(SUSPECT_AFTER + 0.1)
        box.admit()
        assert box.child.jobs == 1
        after = Deaf()
        box.attach(after)
        assert after.jobs == 1

    with_box(story)
