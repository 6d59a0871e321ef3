"""Boxes that compare documents over real links on a mock clock, with peers that lie, hang, break off and crawl."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
import trio
import trio.lowlevel

from fleet.document.acceptance import MAX_FACTS
from fleet.document.op import read_op
from fleet.document.replica import Replica
from fleet.errors import RemoteError, StoreError
from fleet.gossip import sync_messages as wire
from fleet.gossip.antientropy import BULK, CALL_LIMIT, EXCHANGE_LIMIT, INTERVAL
from fleet.gossip.digest_tree import DIGEST_BYTES
from fleet.gossip.intake import Intake
from fleet.gossip.sync_server import OF_AUTHOR
from fleet.identity.keys import Identity
from fleet.net.rpc import Handler, IncomingCall
from tests.sim.gossip_box import (
    ADMIN,
    GENESIS,
    GossipBox,
    Wire,
    answering,
    cert,
    certs,
    connect,
    fact,
    held,
    identity,
    in_step,
    members,
    op,
    plain_fact,
    simulate,
    two,
)

# --- what an exchange costs -------------------------------------------------------------------------------------------


async def cost(nursery: trio.Nursery, a: GossipBox, b: GossipBox) -> int:
    """Bytes on the wire of one exchange, both ways, with its frames, without the greeting."""
    link = await connect(nursery, a, b)
    await trio.lowlevel.checkpoint()
    before = link.sent
    report = await a.sync.exchange(a.neighbours()[0])
    assert report.error == ""
    assert in_step(a, b)
    return link.sent - before


def test_equal_documents_cost_some_digests() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        facts = [fact(members(1)[0], seq) for seq in range(1, 50)]
        a, b = two(facts, facts)
        assert await cost(nursery, a, b) <= 2 * DIGEST_BYTES + 50

    simulate(scenario)


@pytest.mark.parametrize("lacks", ["a", "b"])
def test_one_difference_among_20000_costs_at_most_4_kilobytes(lacks: str) -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        author = members(1)[0]
        crowd = [plain_fact(bytes([number]) * 32, seq) for number in range(100) for seq in range(200)]
        news = fact(author, 1, "node", size=300)
        a, b = two([*crowd, *([news] if lacks == "b" else [])], [*crowd, *([news] if lacks == "a" else [])])
        counts = [b.count(method) for method in (wire.METHOD_ROOTS, wire.METHOD_NODES, wire.METHOD_IDS)]
        spent = await cost(nursery, a, b)
        assert spent <= 4096
        assert sum(one.count for one in counts) <= 4

    simulate(scenario)


def test_5000_differences_go_both_ways_in_small_messages_and_little_over_their_own_bytes() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        one, other = members(2)
        ours = [fact(one, seq, f"hold/{seq}") for seq in range(1, 251)]
        theirs = [fact(other, seq, f"hold/{seq}") for seq in range(1, 251)]
        crowd = members(22)[2:]
        base = certs([one, other, *crowd])
        half = [fact(member, seq) for member in crowd[:10] for seq in range(1, 226)]
        rest = [fact(member, seq) for member in crowd[10:] for seq in range(1, 226)]
        a, b = GossipBox(one, [*base, *ours, *half]), GossipBox(other, [*base, *theirs, *rest])
        missing = [*ours, *half, *theirs, *rest]
        assert len(missing) == 5000
        link = await connect(nursery, a, b)
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await trio.sleep(1)
        assert in_step(a, b)
        assert link.sent <= 1.25 * sum(len(each.raw) for each in missing)
        assert max(link.a.largest, link.b.largest) <= wire.MAX_BATCH + 16 * 1024
        # What came in bulk is no news: none of it was passed on.
        assert a.broadcast.lost == b.broadcast.lost == {}

    simulate(scenario)


# --- what breaks off, and what comes in the wrong order --------------------------------------------------------------


def test_an_exchange_that_breaks_off_keeps_what_it_fetched() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        crowd = members(12)
        a, b = two([], [*certs(crowd)[2:], *(fact(each, seq) for each in crowd for seq in range(1, 200))])
        total = sum(len(each.raw) for each in b.replica.ops.ops())
        link = await connect(nursery, a, b)
        link.b.break_at = link.b.sent + 400_000
        report = await a.sync.exchange(a.neighbours()[0])
        assert report.error == "peer_unreachable"
        got = sum(len(each.raw) for each in a.replica.ops.ops())
        assert 0.2 * total < got < 0.9 * total
        again = await connect(nursery, a, b)
        assert (await a.sync.exchange(a.neighbours()[0])).error == ""
        assert in_step(a, b)
        assert again.b.sent <= 1.25 * total - got

    simulate(scenario)


def test_what_governs_comes_first_and_waits_for_the_certificates_it_rests_on() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        helper = identity("helper")
        crowd = [identity(f"crowd {number}") for number in range(300)]
        # A chain: the genesis admin made the helper an admin, the helper certified the crowd, the crowd wrote facts.
        # The clocks run backwards, so that no order by time helps.
        chain = [op(ADMIN, 9, "cert", helper.public_key.hex(), "admin", hlc=10**9)]
        chain += [
            op(helper, seq, "cert", each.public_key.hex(), "member", hlc=10**6 - seq)
            for seq, each in enumerate(crowd, 1)
        ]
        a, b = two([], [*chain, *(fact(each, 1) for each in crowd)])
        link = await connect(nursery, a, b)
        assert (await a.sync.exchange(a.neighbours()[0])).error == ""
        assert in_step(a, b)
        assert a.intake.waiting == 0
        kinds = [each.kind for each in a.replica.ops.ops()]
        assert kinds.index("node") == len(kinds) - 300
        # What had to wait was not fetched twice.
        assert link.b.sent <= 1.3 * sum(len(each.raw) for each in b.replica.ops.ops())

    simulate(scenario)


def test_a_broadcast_that_overtakes_its_certificate_waits_for_it() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b = two([], [])
        late = identity("late")
        await connect(nursery, a, b)
        link = b.neighbours()[0]

        async def nothing(event: object) -> None:
            raise AssertionError

        await link.call(wire.METHOD_GOSSIP, {"o": [fact(late, 1, "node").raw]}, nothing)
        assert a.intake.waiting == 1
        await link.call(wire.METHOD_GOSSIP, {"o": [cert(late, 3).raw]}, nothing)
        assert a.intake.waiting == 0
        assert fact(late, 1, "node").id in a.replica.ops

    simulate(scenario)


def test_a_box_comes_back_from_a_partition_with_what_both_sides_wrote() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(12)
        base = certs(who)
        boxes = [GossipBox(each, base) for each in who]
        for box in boxes:
            nursery.start_soon(box.run)
        wires: dict[tuple[int, int], Wire] = {}
        rng = random.Random(4)
        pairs = {(i, (i + 1) % 12) for i in range(12)} | {tuple(rng.sample(range(12), 2)) for _ in range(14)}
        for i, j in sorted(pairs):
            wires[i, j] = await connect(nursery, boxes[i], boxes[j])
        for (i, j), link in wires.items():
            if (i < 6) != (j < 6):
                await link.cut()
        await trio.sleep(5)
        for number, box in enumerate(boxes):
            await box.write("node", "node", {"name": f"box {number}"})
        await trio.sleep(25)
        assert in_step(*boxes[:6])
        assert in_step(*boxes[6:])
        assert not in_step(*boxes)
        await connect(nursery, boxes[2], boxes[9])  # a single link between the halves
        began = trio.current_time()
        while not in_step(*boxes):
            await trio.sleep(0.5)
        assert trio.current_time() - began <= 3 * INTERVAL

    simulate(scenario)


def test_what_comes_in_bulk_goes_on_within_seconds() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(10)
        base = certs(who)
        news = [fact(who[0], seq) for seq in range(1, 3 * BULK // 2)]
        boxes = [GossipBox(who[0], [*base, *news]), *(GossipBox(each, base) for each in who[1:])]
        for box in boxes:
            nursery.start_soon(box.run)
        for left, right in pairwise(boxes[1:]):
            await connect(nursery, left, right)
        await trio.sleep(25)
        # The first box of the row learns what only a box apart from them knew.
        await connect(nursery, boxes[0], boxes[1])
        began = trio.current_time()
        while not in_step(*boxes):
            await trio.sleep(0.1)
        assert trio.current_time() - began <= 3.5 * INTERVAL  # such rows took 33 to 94 s without
        assert sum(box.broadcast.lost.total() for box in boxes) == 0

    simulate(scenario)


def test_the_slowest_link_gets_there_in_the_end() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        who = members(6)
        a, b = two([], [*certs(who)[2:], *(fact(each, seq) for each in who for seq in range(1, 250))])
        size = sum(len(each.raw) for each in b.replica.ops.ops())
        link = await connect(nursery, a, b)
        link.a.bytes_per_second = link.b.bytes_per_second = 4000
        nursery.start_soon(a.sync.run)
        began = trio.current_time()
        held_after_a_minute = 0
        while not in_step(a, b):
            await trio.sleep(1)
            if trio.current_time() - began < EXCHANGE_LIMIT:
                held_after_a_minute = len(a.replica.ops)
        assert trio.current_time() - began <= 2 * size / 4000
        assert 100 < held_after_a_minute < len(b.replica.ops)
        assert not a.neighbours()[0].closed.is_set()

    simulate(scenario)


# --- peers that do not play by the rules -----------------------------------------------------------------------------


class Liar:
    """A peer that answers with whatever a test gives it, over a real link."""

    def __init__(self, **answers: Handler) -> None:
        self.box = GossipBox(members(2)[1], certs(members(2)))
        for method, handler in answers.items():
            self.box.router.add("sync." + method, "sync", handler)


def made_up(rng: random.Random, count: int = 1 << 20) -> list[object]:
    return [count, rng.randbytes(16 * DIGEST_BYTES), [count // 16] * 16]


async def exchange_with(nursery: trio.Nursery, liar: Liar) -> tuple[GossipBox, str]:
    a = GossipBox(members(2)[0], [*certs(members(2)), *(fact(members(1)[0], seq) for seq in range(1, 100))])
    before = held(a)
    await connect(nursery, a, liar.box)
    began = trio.current_time()
    report = await a.sync.exchange(a.neighbours()[0])
    assert trio.current_time() - began <= EXCHANGE_LIMIT
    assert held(a) == before
    return a, report.error


@pytest.mark.parametrize(
    "answer",
    [
        {"f": None},
        {"f": [0, b"\xff"]},
        {"g": [17, bytes(320), [1] * 17]},
        {"g": [1, b"x" * 32], "f": 3},
        {"g": [5, b"x" * 32]},
    ],
)
def test_a_malformed_answer_ends_the_exchange(answer: Mapping[str, object]) -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        _, error = await exchange_with(nursery, Liar(roots=answering(answer), ops=answering({"o": [], "gone": b""})))
        assert error == "bad_request"

    simulate(scenario)


def test_a_peer_that_makes_up_digests_for_ever_costs_a_bounded_exchange_and_is_then_left_alone() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        rng = random.Random(1)
        asked = 0

        async def nodes(call: IncomingCall) -> Mapping[str, object]:
            nonlocal asked
            asked += 1
            assert isinstance(call.body, dict)
            return {"n": [made_up(rng) for _ in call.body["p"]]}

        async def ids(call: IncomingCall) -> Mapping[str, object]:
            nonlocal asked
            asked += 1
            assert isinstance(call.body, dict)
            return {"i": [None for _ in call.body["p"]]}

        async def roots(call: IncomingCall) -> Mapping[str, object]:
            nonlocal rounds
            rounds += 1
            return {"g": made_up(rng)}

        rounds = 0
        liar = Liar(roots=roots, nodes=nodes, ids=ids)
        a, _ = await exchange_with(nursery, liar)
        assert asked <= 512
        rounds = 0
        nursery.start_soon(a.sync.run)
        await trio.sleep(1000)
        assert rounds <= 12  # a hundred without the pauses

    simulate(scenario)


def test_a_peer_that_sends_events_where_there_are_none_is_cut_short() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        stopped = trio.Event()

        async def roots(call: IncomingCall) -> Mapping[str, object]:
            try:
                while True:
                    await call.send({"pad": bytes(100_000)})
            finally:
                stopped.set()

        _, error = await exchange_with(nursery, Liar(roots=roots))
        assert error == "bad_request"
        with trio.fail_after(1):
            await stopped.wait()

    simulate(scenario)


def test_a_peer_that_lists_ops_it_does_not_have_is_not_asked_for_them_again() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        invented = sorted(bytes([number]) * 32 for number in range(10))

        async def roots(call: IncomingCall) -> Mapping[str, object]:
            return {"g": [10, wire.pack_ids(invented)]}

        async def ops(call: IncomingCall) -> Mapping[str, object]:
            nonlocal asked
            assert isinstance(call.body, dict)
            asked += 1
            return {"o": [], "gone": call.body["i"]}

        asked = 0
        a, error = await exchange_with(nursery, Liar(roots=roots, ops=ops, push=answering({"x": b""})))
        assert (error, asked) == ("", 1)
        await a.sync.exchange(a.neighbours()[0])
        assert asked == 1

    simulate(scenario)


def test_ops_that_were_not_asked_for_are_not_taken() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        smuggled = cert(identity("stranger"), 50)
        wanted = bytes([7]) * 32
        liar = Liar(
            roots=answering({"g": [1, wanted]}),
            ops=answering({"o": [smuggled.raw], "gone": b""}),
            push=answering({"x": b""}),
        )
        _, error = await exchange_with(nursery, liar)
        assert error == "bad_request"

    simulate(scenario)


def test_a_peer_that_stops_answering_holds_up_nobody_for_long() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        async def hang(call: IncomingCall) -> Mapping[str, object]:
            await trio.sleep_forever()
            return {}

        who = members(3)
        base = certs(who)
        a, healthy = GossipBox(who[0], base), GossipBox(who[2], [*base, fact(who[2], 1)])
        silent = Liar(roots=hang)
        silent.box.router.add(wire.METHOD_GOSSIP, "sync", hang)
        nursery.start_soon(a.run)
        await connect(nursery, a, silent.box)
        await trio.sleep(0.1)
        await connect(nursery, a, healthy)
        await trio.sleep(CALL_LIMIT + 1)
        assert fact(who[2], 1).id in a.replica.ops
        assert a.sync.last[silent.box.who.peer_id].error == "peer_timeout"
        # News reach the healthy one although the silent one never takes a message.
        for number in range(5):
            news = await a.write("node", "node", {"name": str(number)})
            await trio.sleep(1.1)
            assert news.id in healthy.replica.ops

    simulate(scenario)


def test_an_op_that_was_refused_is_not_fetched_again_every_ten_seconds() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        one, other = members(2)
        base = certs([one, other])
        forged = fact(identity("stranger"), 1)
        bad = read_op(fact(other, 1).raw[:-1] + b"\xff")
        a = GossipBox(one, base)
        b = GossipBox(other, [*base, forged, bad], verify=lambda each: True)
        fetched = b.count(wire.METHOD_OPS)
        await connect(nursery, a, b)
        for _ in range(5):
            report = await a.sync.exchange(a.neighbours()[0])
            assert report.error == ""
        assert fetched.count == 1
        assert a.intake.refused == {"unknown_author": 1, "signature": 1}
        # The same id with a good signature is taken from somebody else.
        third = members(3)[2]
        honest = GossipBox(third, [*base, fact(other, 1)])
        await connect(nursery, a, honest)
        link = next(each for each in a.neighbours() if each.peer_id == third.peer_id)
        await a.sync.exchange(link)
        assert fact(other, 1).id in a.replica.ops

    simulate(scenario)


def test_ops_a_peer_refuses_are_not_pushed_again() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        one, other = members(2)
        base = certs([one, other])
        bad = read_op(fact(other, 1).raw[:-1] + b"\xff")
        a, b = GossipBox(one, [*base, bad], verify=lambda each: True), GossipBox(other, base)
        pushes = b.count(wire.METHOD_PUSH)
        await connect(nursery, a, b)
        for _ in range(3):
            await a.sync.exchange(a.neighbours()[0])
        assert pushes.count == 1
        assert b.intake.refused == {"signature": 1}

    simulate(scenario)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        (wire.METHOD_ROOTS, {}),
        (wire.METHOD_ROOTS, []),
        (wire.METHOD_NODES, {"t": "g", "p": ["0" * 16]}),
        (wire.METHOD_NODES, {"t": "x", "p": [""]}),
        (wire.METHOD_IDS, {"t": "g", "p": [""] * 65}),
        (wire.METHOD_OPS, {"i": bytes(32 * 4097), "max": 1 << 18}),
        (wire.METHOD_OPS, {"i": bytes(32), "max": 1 << 30}),
        (wire.METHOD_PUSH, {"o": [bytes(20_000)]}),
        (wire.METHOD_PUSH, {"o": "text"}),
        (wire.METHOD_GOSSIP, {"o": [b""] * 3000}),
        (wire.METHOD_SEQ, {"a": b"short"}),
    ],
)
def test_b31_a_malformed_request_is_refused_and_the_link_stays(method: str, body: Mapping[str, object]) -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b = two([], [])
        await connect(nursery, a, b)

        async def nothing(event: object) -> None:
            raise AssertionError

        with pytest.raises(RemoteError) as caught:
            await a.neighbours()[0].call(method, body, nothing)
        assert caught.value.remote_code == "bad_request"
        assert (await a.sync.exchange(a.neighbours()[0])).error == ""

    simulate(scenario)


def test_a_peer_that_calls_or_pushes_without_end_is_told_to_wait() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        a, b = two([], [])
        await connect(nursery, a, b)
        link = a.neighbours()[0]

        async def nothing(event: object) -> None:
            raise AssertionError

        with pytest.raises(RemoteError) as caught:
            for _ in range(5000):
                await link.call(wire.METHOD_SEQ, {"a": bytes(32)}, nothing)
        assert caught.value.remote_code == "overloaded"
        await trio.sleep(10)
        junk = [fact(members(1)[0], seq).raw[:-1] + b"\xff" for seq in range(1, 1001)]
        with pytest.raises(RemoteError) as caught:
            for start in range(0, len(junk), 200):
                await link.call(wire.METHOD_PUSH, {"o": junk[start : start + 200]}, nothing)
        assert caught.value.remote_code == "overloaded"

    simulate(scenario)


def test_a_box_that_rewrites_its_facts_for_ever_is_heard_a_whole_set_at_once_and_then_slowly() -> None:
    async def scenario(nursery: trio.Nursery) -> None:
        one, other = members(2)
        a, b = two([], [])
        await connect(nursery, a, b)
        link = a.neighbours()[0]

        async def nothing(event: object) -> None:
            raise AssertionError

        async def push(author: Identity, seqs: range) -> int:
            """How many of these are held at the end."""
            ops = [fact(author, seq) for seq in seqs]
            await link.call(wire.METHOD_PUSH, {"o": [op.raw for op in ops], "bulk": True}, nothing)
            return sum(op.id in b.replica.ops for op in ops)

        burst = int(OF_AUTHOR.burst)
        assert burst >= MAX_FACTS
        taken = 0
        for start in range(1, 3 * burst, MAX_FACTS):
            await push(one, range(start, start + MAX_FACTS))
            taken = b.replica.ops.highest_seq(one.public_key)
        assert burst <= taken <= burst + MAX_FACTS
        assert await push(one, range(5000, 5010)) == 0
        assert await push(other, range(1, 2)) == 1, "another author has its own share"
        await trio.sleep(10)
        await push(one, range(5000, 5100))
        assert b.replica.ops.highest_seq(one.public_key) in range(5015, 5025)

    simulate(scenario)


def test_a_disk_that_is_full_is_no_ones_business() -> None:
    class FullDisk:
        def commit(self, added: object, dropped: object) -> None:
            raise StoreError("cannot write /var/lib/shoal/document.db")

        def close(self) -> None:
            """Nothing to close."""

    async def scenario(nursery: trio.Nursery) -> None:
        intake = Intake(Replica(GENESIS, certs(members(2)), FullDisk()))
        with pytest.raises(RemoteError) as caught:
            await intake.take("peer", [fact(members(1)[0], 1).raw], relay=True)
        assert caught.value.remote_code == "store"
        assert "/var" not in caught.value.message

    simulate(scenario)
