"""A replica: what it acknowledges, whom it tells, and how it writes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio

from fleet.document.facts import Node
from fleet.document.op import Op
from fleet.document.replica import Change, Draft, Replica, _commit
from fleet.document.view import fold
from fleet.errors import RefusedOpError, StoreError
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of

BOX = Identity.from_seed(seed_of("box"))
OTHER = Identity.from_seed(seed_of("other"))


class Disk:
    """A store in memory that can be full."""

    def __init__(self) -> None:
        self.ops: dict[bytes, Op] = {}
        self.full = False

    def commit(self, added: Iterable[Op], dropped: Iterable[Op]) -> None:
        if self.full:
            raise StoreError("no space")
        for op in dropped:
            self.ops.pop(op.id, None)
        self.ops |= {op.id: op for op in added}

    def close(self) -> None:
        """Nothing to let go of."""


def states(outcomes: Iterable[object]) -> list[str]:
    return [outcome.state + (f":{outcome.reason}" if outcome.reason else "") for outcome in outcomes]  # type: ignore[attr-defined]


def test_each_op_gets_its_outcome_in_order() -> None:
    async def scenario() -> None:
        fleet, disk = Fleet(), Disk()
        replica = Replica(fleet.genesis, store=disk)
        (cert,) = fleet.certify(BOX.peer_id)
        fact = fleet.write("node", "node", Node(name="a").body(), author=BOX)
        forged = fact.raw[:-1] + bytes([fact.raw[-1] ^ 1])
        outcomes = await replica.offer([fact.raw, cert.raw, cert.raw, fact.raw, forged, b"", b"x" * 20_000])
        assert states(outcomes) == [
            "refused:unknown_author", "new", "held", "new", "refused:signature", "refused:size", "refused:size",
        ]  # fmt: skip
        assert set(disk.ops) == {cert.id, fact.id}
        stranger = fleet.write("node", "node", Node(name="b").body(), author=OTHER)
        bad = stranger.raw[:-1] + bytes([stranger.raw[-1] ^ 1])
        assert states(await replica.offer([bad])) == ["refused:signature"]
        assert replica.refused["signature"] == 2
        assert states(await replica.offer([forged])) == ["held"], "it carries the id of an op that was checked"

    trio.run(scenario)


def test_a_large_offer_is_the_same_as_many_small_ones() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        boxes = [Identity.from_seed(seed_of(f"b{n}")) for n in range(700)]
        ops = fleet.certify(*(box.peer_id for box in boxes))
        ops += [fleet.write("node", "node", Node(name=f"b{n}").body(), author=box) for n, box in enumerate(boxes)]
        raws = [op.raw for op in ops]
        raws[5] = raws[5][:-1] + bytes([raws[5][-1] ^ 1])
        large, small = Replica(fleet.genesis), Replica(fleet.genesis)
        outcomes = await large.offer(raws)
        singly = [(await small.offer([raw]))[0] for raw in raws]
        assert outcomes == singly
        assert [index for index, outcome in enumerate(outcomes) if outcome.state == "refused"] == [5, 705]
        assert large.view.digest() == small.view.digest() == fold(fleet.genesis, large.ops.ops()).digest()

    trio.run(scenario)


def test_listeners_hear_of_a_change_once_it_is_on_disk() -> None:
    async def scenario() -> None:
        fleet, disk = Fleet(), Disk()
        replica = Replica(fleet.genesis, store=disk)
        heard: list[tuple[Change, set[bytes]]] = []
        stop = replica.subscribe(lambda change: heard.append((change, set(disk.ops))))
        (cert,) = fleet.certify(BOX.peer_id)
        await replica.offer([cert.raw])
        first = await replica.write(BOX, "node", "node", Node(name="a").body())
        second = await replica.write(BOX, "node", "node", Node(name="b").body())
        assert [change.governance for change, _ in heard] == [True, False, False]
        assert heard[2][0] == Change((second,), (first,), False)
        assert all({op.id for op in change.added} <= held for change, held in heard)
        stop()
        await replica.write(BOX, "node", "node", Node(name="c").body())
        assert len(heard) == 3

    trio.run(scenario)


def test_a_disk_that_is_full_acknowledges_nothing_until_it_has_room() -> None:
    async def scenario() -> None:
        fleet, disk = Fleet(), Disk()
        replica = Replica(fleet.genesis, store=disk)
        heard: list[Change] = []
        replica.subscribe(heard.append)
        one, two = fleet.certify(BOX.peer_id, OTHER.peer_id)
        disk.full = True
        with pytest.raises(StoreError):
            await replica.offer([one.raw])
        assert (replica.unsaved, heard, disk.ops) == (True, [], {})
        with pytest.raises(StoreError):
            await replica.offer([one.raw])  # offered again: it is still not acknowledged
        disk.full = False
        assert states(await replica.offer([two.raw])) == ["new"]
        assert (replica.unsaved, set(disk.ops)) == (False, {one.id, two.id})
        assert [op.id for change in heard for op in change.added] == [one.id, two.id]

    trio.run(scenario)


def test_what_left_the_set_and_came_back_while_the_disk_was_full_is_kept() -> None:
    fleet, disk = Fleet(), Disk()
    one, two, three = fleet.certify(BOX.peer_id, OTHER.peer_id, fleet.admin.peer_id)
    disk.ops = {one.id: one}
    changes = [Change((two,), (one,), True), Change((one, three), (two,), True), Change((), (three,), True)]
    _commit(disk, changes)
    assert set(disk.ops) == {one.id}


def test_a_key_writes_with_its_next_numbers_and_after_all_it_has_seen() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        replica = Replica(fleet.genesis, wall_ms=lambda: 5)
        (cert,) = fleet.certify(BOX.peer_id)
        await replica.offer([cert.raw])
        earlier = await replica.offer([fleet.write("node", "hold/a", {}, author=BOX).raw])
        assert states(earlier) == ["new"]
        ops = await replica.write_all(BOX, [Draft("node", "node", {}), Draft("node", "addr", [])])
        assert [op.seq for op in ops] == [2, 3]
        assert ops[0].hlc < ops[1].hlc
        with pytest.raises(RefusedOpError, match="unknown_author"):
            await replica.write(BOX, "fw", OTHER.public_key.hex(), ["allow", []])
        assert replica.ops.highest_seq(BOX.public_key) == 3

    trio.run(scenario)


def test_a_clock_that_is_a_year_ahead_drags_nobody_along() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        now = 1_800_000_000_000
        replica = Replica(fleet.genesis, wall_ms=lambda: now)
        (cert,) = fleet.certify(BOX.peer_id)
        await replica.offer([cert.raw])
        assert replica.ops.get(cert.id) is not None
        mad = fleet.write("node", "node", {}, author=BOX)
        ahead = Replica(fleet.genesis, [cert], wall_ms=lambda: now + 400 * 86_400_000)
        far = await ahead.write(BOX, "node", "addr", [])
        assert far.hlc >> 16 > now
        assert states(await replica.offer([mad.raw, far.raw])) == ["new", "new"]
        own = await replica.write(BOX, "node", "hold/a", {})
        assert own.hlc >> 16 <= now + 1

    trio.run(scenario)
