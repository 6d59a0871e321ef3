"""Boxes that tell one another what is new, over real links on a mock clock, and a box that comes back from a backup."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import trio
import trio.lowlevel

from fleet.errors import RemoteError
from fleet.gossip import sync_messages as wire
from fleet.gossip.antientropy import INTERVAL
from fleet.gossip.broadcast import FACTS_OF_AUTHOR, FANOUT, MAX_PENDING, MESSAGES
from fleet.gossip.own_seq import highest_seq
from fleet.net.rpc import IncomingCall
from tests.sim.gossip_box import (
    ADMIN,
    FLEET,
    GossipBox,
    answering,
    cert,
    certs,
    connect,
    fact,
    identity,
    in_step,
    members,
    simulate,
    two,
)

# --- broadcasts -------------------------------------------------------------------------------------------------------


async def chain(nursery: trio.Nursery, count: int) -> list[GossipBox]:
    """Boxes in a row, each linked to the next; anti-entropy does not run."""
    base = certs(members(count))
    boxes = [GossipBox(each, base) for each in members(count)]
    for left, right in pairwise(boxes):
        await connect(nursery, left, right)
    for box in boxes:
        nursery.start_soon(box.broadcast.run)
    await trio.testing.wait_all_tasks_blocked()
    return boxes


def test_news_go_on_at_once_and_never_back() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        boxes = await chain(nursery, 5)
        counts = [box.count(wire.METHOD_GOSSIP) for box in boxes]
        began = trio.current_time()
        news = await boxes[0].write("node", "node", {"name": "first"})
        await trio.sleep(0.01)
        assert all(news.id in box.replica.ops for box in boxes)
        assert trio.current_time() - began < 0.1
        await trio.sleep(5)
        assert [one.count for one in counts] == [0, 1, 1, 1, 1]

    simulate(scenario)


def test_many_news_are_one_message_a_second_and_an_old_fact_is_not_sent_after_a_new_one() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b = await chain(nursery, 2)
        counted = b.count(wire.METHOD_GOSSIP)
        for number in range(300):
            await a.write("node", "node", {"name": str(number)})
            await a.write("node", f"hold/{number % 10}", {"name": str(number)})
            await trio.sleep(0.01)
        await trio.sleep(2)
        assert in_step(a, b)
        assert counted.count <= 5
        assert sum(len(body["o"]) for body in counted.bodies) <= 11 * counted.count  # type: ignore[index]

    simulate(scenario)


def test_at_most_six_neighbours_are_told() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(11)
        boxes = [GossipBox(each, certs(who)) for each in who]
        counts = [box.count(wire.METHOD_GOSSIP) for box in boxes]
        for box in boxes[1:]:
            await connect(nursery, boxes[0], box)
        nursery.start_soon(boxes[0].broadcast.run)
        await trio.testing.wait_all_tasks_blocked()
        await boxes[0].write("node", "node", {"name": "x"})
        await trio.sleep(3)
        assert sum(one.count for one in counts) == FANOUT

    simulate(scenario)


def test_a_noisy_member_is_slowed_down_and_its_facts_still_come() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b, c = await chain(nursery, 3)
        for seq in range(1, 201):
            await a.write("node", f"hold/{seq}", {"name": "x"})
        await c.write("node", "node", {"name": "quiet"})
        await trio.sleep(5)
        most = FACTS_OF_AUTHOR.burst + 6 * FACTS_OF_AUTHOR.per_second
        assert len(b.replica.facts_of(a.who.public_key)) <= most
        assert b.broadcast.lost["limit_of_author"] >= 200 - most
        assert all("node" in box.replica.facts_of(c.who.public_key) for box in (a, b))
        for box in (a, b, c):
            nursery.start_soon(box.sync.run)
        await trio.sleep(10 * INTERVAL)
        assert in_step(a, b, c)

    simulate(scenario)


def test_forgeries_use_up_nobody_elses_share_but_the_senders() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b = await chain(nursery, 2)
        victim = members(1)[0]
        assert victim == a.who

        async def nothing(event: object) -> None:
            raise AssertionError

        for start in range(1, 1001, 50):
            forged = [fact(victim, seq).raw[:-1] + b"\xff" for seq in range(start, start + 50)]
            await a.neighbours()[0].call(wire.METHOD_GOSSIP, {"o": forged}, nothing)
            await trio.sleep(1 / MESSAGES.per_second)
        assert b.broadcast.lost["limit_of_peer"] > 500
        assert b.intake.refused == {"signature": 1000 - b.broadcast.lost["limit_of_peer"]}
        assert b.broadcast._facts.level(victim.public_key, trio.current_time()) == FACTS_OF_AUTHOR.burst

    simulate(scenario)


def test_more_than_may_wait_is_left_to_anti_entropy() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(2)
        a, b = GossipBox(who[0], certs(who)), GossipBox(who[1], certs(who))
        # Nobody sends yet, so all of it waits.
        for start in range(0, 12):
            crowd = identity(f"crowd {start}")
            await a.replica.offer([cert(crowd, 10 + start).raw])
            await a.replica.offer([fact(crowd, seq, size=1500).raw for seq in range(1, 100)])
        assert a.broadcast.lost["overflow"] > 0
        assert a.broadcast._pending_bytes <= MAX_PENDING
        await connect(nursery, a, b)
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await trio.sleep(3 * INTERVAL)
        assert in_step(a, b)
        assert a.broadcast._pending_bytes == 0

    simulate(scenario)


def test_a_lost_broadcast_comes_by_anti_entropy() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        async def lose(call: IncomingCall) -> Mapping[str, object]:
            raise RemoteError("peer_unreachable", "lost")

        a, b = two([], [])
        b.router.add(wire.METHOD_GOSSIP, "sync", lose)
        await connect(nursery, a, b)
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await trio.sleep(5)
        news = await a.write("node", "node", {"name": "x"})
        await trio.sleep(1.5 * INTERVAL)
        assert a.broadcast.lost["failed"] == 1
        assert news.id in b.replica.ops

    simulate(scenario)


# --- a key that was restored from a backup ---------------------------------------------------------------------------


def test_a_restored_box_learns_how_far_it_had_counted_and_believes_only_its_own_signature() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(4)
        base = certs(who)
        me = who[0]
        restored = GossipBox(me, [*base, fact(me, 3)])
        fresh = GossipBox(who[1], [*base, fact(me, 3), fact(me, 40), fact(me, 17)])
        liar, forger = GossipBox(who[2], base), GossipBox(who[3], base)
        other = fact(who[1], 1 << 40)
        liar.router.add(wire.METHOD_SEQ, "sync", answering({"o": other.raw}))
        forged = fact(me, 1 << 40)
        forger.router.add(wire.METHOD_SEQ, "sync", answering({"o": forged.raw[:-1] + b"\xff"}))
        for box in (fresh, liar, forger):
            await connect(nursery, restored, box)
        found = await highest_seq(restored.neighbours(), FLEET, me.public_key)
        assert (found.seq, found.answered) == (40, 1)
        assert found.op == fact(me, 40)
        await restored.intake.take("peer", [found.op.raw], relay=False)
        assert (await restored.write("node", "node", {})).seq == 41
        nobody = await highest_seq(restored.neighbours()[:1], FLEET, identity("nobody").public_key)
        assert (nobody.seq, nobody.op, nobody.answered) == (0, None, 1)
        admins = await highest_seq(restored.neighbours()[:1], FLEET, ADMIN.public_key)
        assert admins.seq == len(who)

    simulate(scenario)
