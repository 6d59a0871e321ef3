"""When jobs go to the child: never to one that may hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
import trio.testing

from agent.engine.child import Child
from agent.engine.job import QueuedJob
from agent.engine.patience import ASLEEP_LIMIT, BUSY_LIMIT
from agent.engine.protocol import Cancel, Done, FrameBuffer, Message, Submit
from agent.engine.shares import Shares
from agent.engine.vitals import Vitals
from agent.engine.workload import SUSPECT_AFTER, Workload
from agent.errors import EngineError, OverloadedError
from tests.engine_box import completion
from tests.harness import peer_id_of

HASH = "sha256:" + "0" * 64


class Deaf:
    """A child that reads what it is sent and says nothing."""

    pid = 1

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.killed_at: float | None = None
        self.excused: bool | None = None
        #: Seconds that its main thread computes in a second.
        self.computes = 0.0
        self.born = trio.current_time()

    @property
    def ended_here(self) -> bool:
        return self.killed_at is not None

    def vitals(self) -> Vitals:
        spent = (trio.current_time() - self.born) * self.computes
        return Vitals(self.computes > 0, spent, spent, 1)

    def post(self, frame: bytes) -> None:
        self.heard += FrameBuffer().feed(frame)

    def kill(self, *, excused: bool = False) -> None:
        self.killed_at, self.excused = trio.current_time(), excused

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

    def admit(self, asker: str = "", **fields: object) -> QueuedJob:
        route = (peer_id_of(asker),) if asker else ()
        return self.jobs.admit(completion("x").model_copy(update={"route": route, **fields}), 512)

    def finish(self, job: QueuedJob, tokens: int = 1) -> None:
        self.jobs.take_event(cast(Child, self.child), Done(job.id, "stop", 1, tokens, 0.0, 0.0), HASH)

    def running(self) -> list[str]:
        """The ids of what the child was given, in that order."""
        return [str(message.id) for message in self.child.heard if isinstance(message, Submit)]

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
        await trio.sleep(ASLEEP_LIMIT)
        assert box.child.killed_at == SUSPECT_AFTER + ASLEEP_LIMIT
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
        await trio.sleep(SUSPECT_AFTER + ASLEEP_LIMIT)
        assert box.child.killed_at is None
        assert sum(isinstance(message, Cancel) for message in box.child.heard) == 1

    with_box(story)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_child_that_gets_little_of_a_core_is_given_as_much_work_and_more_time(share: float) -> None:
    async def story(box: Box) -> None:
        box.child.computes = share
        box.jobs.release(box.admit())
        await trio.sleep(BUSY_LIMIT / share)
        assert box.child.killed_at is None
        await trio.sleep(2 * SUSPECT_AFTER)
        assert box.child.killed_at is not None, "no step takes so much"

    with_box(story)


def test_a_hang_is_held_against_the_model_where_nothing_came_of_it_since_the_last_one() -> None:
    async def story(box: Box) -> None:
        async def hang() -> bool | None:
            first, second = box.admit(), box.admit()
            box.jobs.release(first)
            box.jobs.release(second)
            await trio.sleep(SUSPECT_AFTER + ASLEEP_LIMIT + 1)
            hung, box.child = box.child, Deaf()
            box.jobs.detach()
            box.jobs.end(EngineError("it is gone"))
            box.attach(box.child)
            return hung.excused

        assert await hang(), "once may be anything; and two cancels that are owed are one hang"
        box.confirm(box.admit())
        assert not await hang(), "to confirm a cancel is no work"
        box.finish(box.admit())
        assert await hang()
        assert not await hang()
        box.jobs.forget_rates()
        assert await hang(), "it is another model"

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


def test_jobs_of_others_get_no_more_than_their_share_of_the_slots_and_own_ones_the_rest() -> None:
    async def story(box: Box) -> None:
        await trio.lowlevel.checkpoint()
        box.jobs.shares = Shares(lent=0.5)
        lent = [box.admit("a"), box.admit("b"), box.admit("c")]
        assert (box.jobs.running, box.jobs.queued) == (1, 2)
        own = box.admit()
        assert box.running() == [str(lent[0].id), str(own.id)]
        box.finish(own)
        assert (box.jobs.running, box.jobs.queued) == (1, 2)
        box.finish(lent[0])
        assert box.running()[-1] == str(lent[1].id)

    with_box(story)


def test_b42_who_has_done_more_for_others_gets_more_turns_in_a_class() -> None:
    async def story(box: Box) -> None:
        await trio.lowlevel.checkpoint()
        box.jobs.shares = Shares(weight_of=lambda asker: 2.0 if asker == peer_id_of("giver") else 1.0)
        running = [box.admit(), box.admit()]
        jobs = [box.admit(asker) for _ in range(2) for asker in ("taker", "giver")]
        urgent = box.admit("taker", priority="interactive")
        for job in running:
            box.finish(job)
        assert box.running()[2:] == [str(urgent.id), str(jobs[1].id)]
        box.finish(urgent)
        box.finish(jobs[1])
        assert box.running()[4:] == [str(jobs[3].id), str(jobs[0].id)]

    with_box(story)


def test_b40_a_job_that_cannot_be_done_by_its_deadline_is_refused_at_once_and_told_how_long_it_would_take() -> None:
    async def story(box: Box) -> None:
        first = [box.admit(), box.admit()]
        await trio.sleep(8.0)  # that is how long jobs take here
        for job in first:
            box.finish(job)
        for _ in range(2):
            box.admit()
        box.admit(deadline_ms=60_000)
        with pytest.raises(OverloadedError, match=r"too little time for m: .* in about 8.0 s and has 2 s") as refused:
            box.admit(deadline_ms=2_000)
        assert refused.value.details["eta_s"] == 8.0
        assert refused.value.retry_after == 6, "by then it would be in time"
        assert box.jobs.queued == 1

    with_box(story)
