"""Who leaves when memory is needed: the idle one that was used least recently, and never one with work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agent.engine import room as room_module
from agent.engine.box_memory import BoxMemory
from agent.engine.memory import MIB, Wish, estimate, reserve
from agent.engine.room import ROOM_LIMIT, NoRoomError, Room
from fleet.models.gguf import read_facts
from tests.corpus.gguf.build import llama

FACTS = replace(
    read_facts(llama(embedding=64, blocks=4).build()), context_length=4096, tensor_bytes=(("F32", 100 * MIB),)
)
WISH = Wish(4096, 1)
ONE = estimate(FACTS, 4096, 1).total
#: One that has no more beside the rest to park in.
BARE = ONE - estimate(FACTS, 4096, 1).parking


class Model:
    """A model as the room sees it."""

    def __init__(self, room: Room, name: str, last_used: float = 0.0) -> None:
        self.room = room
        self.name = name
        self.last_used = last_used
        self.idle = False
        self.left = False

    async def take(self, *, urgent: bool = True, most: int | None = None, wish: Wish = WISH) -> int:
        found = await self.room.take(self, FACTS, wish, most=most, urgent=urgent)
        return found.context

    def leave(self) -> None:
        assert self.idle
        self.idle = False
        self.left = True
        self.room.give_back(self)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_models_are_loaded_side_by_side_as_long_as_there_is_memory() -> None:
    async def main() -> None:
        room = Room(2 * ONE)
        a, b, c = (Model(room, name) for name in "abc")
        assert await a.take() == await b.take() == 4096
        assert room.claimed(a) == ONE
        assert room.available() == 0
        with pytest.raises(NoRoomError) as caught:
            await c.take(urgent=False)
        assert caught.value.ever
        assert caught.value.details["available_bytes"] == 0
        assert "a, b cannot be unloaded now" in caught.value.reason
        room.give_back(a)
        assert await c.take(urgent=False) == 4096

    run(main)


def test_the_idle_one_that_was_used_least_recently_leaves() -> None:
    async def main() -> None:
        room = Room(3 * ONE)
        models = [Model(room, name, used) for name, used in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
        for model in models:
            await model.take()
            model.idle = True
        models[1].idle = False
        assert await Model(room, "d").take() == 4096
        assert [model.left for model in models] == [False, False, True]

    run(main)


def test_one_with_work_never_leaves_and_the_job_waits_or_is_refused_with_the_numbers() -> None:
    async def main() -> None:
        room = Room(ONE + MIB)
        busy, late = Model(room, "busy"), Model(room, "late")
        await busy.take()
        began = trio.current_time()
        with pytest.raises(NoRoomError, match="busy cannot be unloaded now") as caught:
            await late.take()
        assert trio.current_time() - began == ROOM_LIMIT
        assert caught.value.ever
        assert caught.value.details["available_bytes"] == MIB
        assert caught.value.details["needed_bytes"] > MIB  # type: ignore[operator]
        assert not busy.left

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.take)
            await wait_all_tasks_blocked()
            assert room.claimed(late) == 0
            busy.idle = True
            room.note_change()
        assert busy.left
        assert room.claimed(late) == ONE

    run(main)


def test_what_never_fits_is_refused_at_once_and_unloads_nobody() -> None:
    async def main() -> None:
        room = Room(101 * MIB)
        with pytest.raises(NoRoomError) as caught:
            await Model(room, "a").take()
        assert not caught.value.ever
        assert caught.value.details["available_bytes"] == 101 * MIB
        large = Room(2 * ONE)
        idle = Model(large, "idle")
        await idle.take()
        idle.idle = True
        with pytest.raises(NoRoomError) as caught:
            await Model(large, "bounded").take(most=50 * MIB)
        assert not caught.value.ever
        assert not idle.left

    run(main)


def test_a_smaller_plan_is_taken_where_nobody_can_leave_and_whole_context_where_one_can() -> None:
    async def main() -> None:
        room = Room(ONE + BARE - MIB)
        first, second = Model(room, "first"), Model(room, "second")
        await first.take()
        assert 512 <= await second.take() < 4096
        room.give_back(second)
        first.idle = True
        assert await second.take() == 4096
        assert first.left

    run(main)


def test_one_that_is_only_preloaded_unloads_nobody() -> None:
    async def main() -> None:
        room = Room(ONE)
        first = Model(room, "first")
        await first.take()
        first.idle = True
        with pytest.raises(NoRoomError):
            await Model(room, "second").take(urgent=False)
        assert not first.left

    run(main)


def test_cancelling_a_wait_leaves_no_claim_and_lets_the_next_take_its_turn() -> None:
    async def main() -> None:
        room = Room(ONE)
        busy, gone, late = (Model(room, name) for name in ("busy", "gone", "late"))
        await busy.take()
        with trio.move_on_after(1) as scope:
            await gone.take()
        assert scope.cancelled_caught
        assert room.claimed(gone) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.take)
            await wait_all_tasks_blocked()
            room.give_back(busy)
        assert room.claimed(late) == ONE

    run(main)


def test_without_a_budget_memory_that_others_took_is_not_there() -> None:
    async def main() -> None:
        box = BoxMemory(64 << 30, 10 * ONE + reserve(64 << 30))
        room = Room(None, lambda: box)
        assert room.budget == 10 * ONE
        await Model(room, "a").take()
        assert room.available() == min(9 * ONE, 10 * ONE - FACTS.weight_bytes)
        box = BoxMemory(64 << 30, FACTS.weight_bytes + reserve(64 << 30) + 5 * MIB)
        assert room.available() == 5 * MIB
        with pytest.raises(NoRoomError):
            await Model(room, "b").take(urgent=False)

    run(main)


def test_the_limit_is_shorter_than_a_client_waits() -> None:
    assert room_module.ROOM_LIMIT < 30
