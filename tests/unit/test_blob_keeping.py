"""Two boxes that delete their copies of a blob, each because the other has one: at most one of them does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from fleet.blobs.keeping import LIMIT, Keeping
from fleet.errors import RemoteError

BLOB = "sha256:" + "ab" * 32


@dataclass
class Call:
    body: object
    peer_id: str


@dataclass
class Line:
    """Stands for a link to a box; an answer takes a while."""

    box: Box
    peer_id: str
    asker: str
    refuses: bool = False

    async def call(self, method: str, body: dict[str, Any], on_event: object) -> object:
        await trio.sleep(0.1)
        if self.refuses:
            raise RemoteError("unknown_method", "an older version")
        found = await self.box.keeping._answer(Call(body, self.asker))  # type: ignore[arg-type]
        await trio.sleep(0.1)
        return found


@dataclass
class Box:
    name: str
    held: bool = True
    lines: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeping = Keeping(lambda blob: self.held, self)
        self.changed = trio.Event()

    def links(self) -> list[Any]:
        return self.lines

    async def wait_change(self) -> None:
        await self.changed.wait()

    async def delete(self, *others: str) -> bool:
        with self.keeping.leaving(BLOB):
            if await self.keeping.somebody(BLOB, others) is None:
                return False
            await trio.sleep(1.0)  # until it is gone
            self.held = False
        return True


def two() -> tuple[Box, Box]:
    a, b = Box("a"), Box("b")
    a.lines.append(Line(b, "b", "a"))
    b.lines.append(Line(a, "a", "b"))
    return a, b


@pytest.mark.parametrize("later", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.3, 5.0])
def test_of_two_at_most_one_deletes_its_copy(later: float) -> None:
    async def main() -> None:
        a, b = two()
        done: list[bool] = []

        async def first() -> None:
            done.append(await a.delete("b"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.sleep(later)
            done.append(await b.delete("a"))
        assert a.held or b.held
        if later >= 0.25:
            assert sorted(done) == [False, True]
        # Whoever was refused keeps its copy again.
        for box in (a, b):
            assert box.keeping._leaving[BLOB] == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_that_is_not_connected_yet_is_waited_for_and_not_for_ever() -> None:
    async def main() -> None:
        a, b = two()
        line = a.lines.pop()
        began = trio.current_time()
        assert not await a.delete("b")
        assert trio.current_time() - began == pytest.approx(LIMIT)

        async def come() -> None:
            await trio.sleep(4)
            a.lines.append(line)
            a.changed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            assert await a.delete("b")
        assert b.held

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_that_has_none_or_does_not_understand_keeps_nothing() -> None:
    async def main() -> None:
        a, b = two()
        b.held = False
        assert not await a.delete("b")
        b.held = True
        a.lines[0].refuses = True
        assert not await a.delete("b")
        assert a.held

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
