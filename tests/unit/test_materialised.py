"""The document for local apps is made while everything else goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from agent.errors import OverloadedError
from agent.materialised import Materialised
from agent.membership import Membership
from fleet.document.projection import MAPS, Projection
from fleet.document.replica import Change, Replica
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of


class Belonging:
    """As much of a membership as `Materialised` asks for."""

    def __init__(self, replica: Replica | None) -> None:
        self.replica = replica

    def subscribe(self, listener: Callable[[Change], None]) -> None:
        if self.replica is not None:
            self.replica.subscribe(listener)


def fleet_of(boxes: int) -> tuple[Fleet, Materialised, Replica]:
    fleet = Fleet()
    ops = fleet.certify(*(Identity.from_seed(seed_of(f"box {number}")).peer_id for number in range(boxes)))
    replica = Replica(fleet.genesis, ops)
    return fleet, Materialised(cast("Membership", Belonging(replica))), replica


def contents(projection: Projection) -> dict[str, dict[str, str]]:
    return {name: dict(projection.entries(name)) for name in MAPS}


def wanted(replica: Replica) -> dict[str, dict[str, str]]:
    fresh = Projection(1)
    fresh.apply(replica.view)
    return contents(fresh)


def test_a_small_document_is_there_at_once_and_that_of_no_fleet_never() -> None:
    _, materialised, replica = fleet_of(20)
    found = materialised.find()
    assert found is not None
    assert contents(found) == wanted(replica)
    assert Materialised(cast("Membership", Belonging(None))).find() is None


def test_a_large_document_is_made_in_parts_between_which_everything_else_runs() -> None:
    async def scenario() -> None:
        fleet, materialised, replica = fleet_of(700)
        passes = 0

        async def others() -> None:
            nonlocal passes
            while True:
                await trio.lowlevel.checkpoint()
                passes += 1

        async with trio.open_nursery() as nursery:
            with pytest.raises(OverloadedError) as early:
                materialised.find()
            assert early.value.retry_after
            nursery.start_soon(materialised.run)
            nursery.start_soon(others)
            while True:
                await trio.lowlevel.checkpoint()
                try:
                    found = materialised.find()
                    break
                except OverloadedError:
                    continue
            assert passes >= 1400 // 128, "a member is two entries"
            assert found is not None
            assert contents(found) == wanted(replica)

            # A change of many entries is shown in parts too.
            began, shown = passes, trio.Event()
            found.subscribe(lambda changed: shown.set() if ("settings", "model/a") in changed.keys else None)
            more = fleet.certify(*(Identity.from_seed(seed_of(f"late {number}")).peer_id for number in range(300)))
            await replica.offer([op.raw for op in (*more, fleet.write("cfg", "model/a", 1))])
            await shown.wait()
            assert passes - began >= 600 // 128
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_a_document_whose_making_was_cancelled_is_made_whole_by_the_next_run() -> None:
    async def scenario() -> None:
        _, materialised, replica = fleet_of(700)
        with pytest.raises(OverloadedError):
            materialised.find()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(materialised.run)
                for _ in range(4):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        with pytest.raises(OverloadedError):
            materialised.find()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(materialised.run)
            await trio.testing.wait_all_tasks_blocked()
            found = materialised.find()
            assert found is not None
            assert contents(found) == wanted(replica)
            nursery.cancel_scope.cancel()

    trio.run(scenario)
