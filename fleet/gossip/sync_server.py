"""What a box answers when a peer compares documents with it. Every answer is bounded, and so is every peer's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from fleet.document.acceptance import MAX_FACTS
from fleet.document.bodies import read_join
from fleet.document.op import SIGNATURE_BYTES, Op, op_id, read_op
from fleet.document.replica import Replica
from fleet.errors import RefusedOpError, RemoteError
from fleet.gossip import sync_messages as wire
from fleet.gossip.digest_tree import ID_BYTES, MAX_DEPTH
from fleet.gossip.intake import Intake
from fleet.gossip.rate_limit import Buckets, Rate
from fleet.gossip.trees import Trees
from fleet.net.rpc import IncomingCall, Router

#: Calls of one peer: a box that fetches everything over a fast link makes some hundred.
CALLS: Final = Rate(per_second=200, burst=1000)
#: Ops one peer pushes: checking 1000 signatures a second takes a tenth of a core.
PUSHED: Final = Rate(per_second=1000, burst=20_000)
#: Bytes of ops one peer fetches: the whole document of a large fleet at once, and then what a slow disk can bear.
SERVED: Final = Rate(per_second=512 * 1024, burst=64 * 1024 * 1024)
#: New facts of one author, and claims that one member countersigned, whoever pushes them. A box that was away for long
#: has all of its facts taken at once, twice; nobody rewrites its facts for ever on everybody's disk.
OF_AUTHOR: Final = Rate(per_second=2, burst=2 * MAX_FACTS)
#: What a malformed or wrongly signed op costs its sender, in ops.
BAD_COST: Final = 50


class SyncServer:
    """Answers the sync.* calls out of one replica and its trees. `clock` gives seconds."""

    def __init__(
        self, replica: Replica, trees: Trees, intake: Intake, *, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self._replica = replica
        self._trees = trees
        self._intake = intake
        self._clock = clock
        self._calls: Buckets[str] = Buckets(CALLS)
        self._pushed: Buckets[str] = Buckets(PUSHED)
        self._served: Buckets[str] = Buckets(SERVED)
        self._of_author: Buckets[bytes] = Buckets(OF_AUTHOR)

    def offer_methods(self, router: Router) -> None:
        """Answer the calls of peers that hold SCOPE_SYNC."""
        router.add(wire.METHOD_ROOTS, wire.SCOPE_SYNC, self.roots)
        router.add(wire.METHOD_NODES, wire.SCOPE_SYNC, self.nodes)
        router.add(wire.METHOD_IDS, wire.SCOPE_SYNC, self.ids)
        router.add(wire.METHOD_OPS, wire.SCOPE_SYNC, self.ops)
        router.add(wire.METHOD_PUSH, wire.SCOPE_SYNC, self.push)
        router.add(wire.METHOD_SEQ, wire.SCOPE_SYNC, self.seq)

    def _admit(self, call: IncomingCall) -> Mapping[object, object]:
        if not self._calls.take(call.peer_id, self._clock()):
            raise RemoteError("overloaded", "too many sync calls; go on in a few seconds", retryable=True)
        return wire.read_map(call.body)

    async def roots(self, call: IncomingCall) -> Mapping[str, object]:
        """The caller's roots in, the listings of those trees whose roots differ out: nothing where all are equal."""
        body = self._admit(call)
        theirs = {name: wire.read_digest(body.get(name)) for name in wire.TREES}
        return {
            name: wire.pack_listing(self._trees[name].listing(""))
            for name, digest in theirs.items()
            if digest != self._trees[name].root
        }

    async def nodes(self, call: IncomingCall) -> Mapping[str, object]:
        """The listings of some prefixes."""
        body = self._admit(call)
        tree = self._trees[wire.read_tree(body.get("t"))]
        prefixes = wire.read_prefixes(body.get("p"))
        # At the deepest level a listing is all the ids, which may be more than a message holds: that is for `ids`.
        if any(len(prefix) >= MAX_DEPTH for prefix in prefixes):
            raise RemoteError("bad_request", f"listings are of prefixes of fewer than {MAX_DEPTH} digits")
        return {"n": [wire.pack_listing(tree.listing(prefix)) for prefix in prefixes]}

    async def ids(self, call: IncomingCall) -> Mapping[str, object]:
        """The ids under some prefixes, None where the message has no room for all of them."""
        body = self._admit(call)
        tree = self._trees[wire.read_tree(body.get("t"))]
        room = wire.MAX_IDS
        found: list[bytes | None] = []
        for prefix in wire.read_prefixes(body.get("p")):
            fits = tree.count(prefix) <= room
            ids = wire.pack_ids(tree.ids(prefix)) if fits else None
            room -= len(ids or b"") // ID_BYTES
            found.append(ids)
        return {"i": found}

    async def ops(self, call: IncomingCall) -> Mapping[str, object]:
        """As many of the ops asked for as fit, the earliest first, and the ids of those this box does not hold."""
        body = self._admit(call)
        ids = wire.read_ids(body.get("i"))
        size = wire.read_size(body.get("max"))
        if not self._served.take(call.peer_id, self._clock(), size):
            raise RemoteError("overloaded", "too many ops at once; fetch the rest later", retryable=True)
        found = {op_id: op for op_id in ids if (op := self._replica.ops.get(op_id)) is not None}
        # In the order of the clock a certificate comes before what its subject wrote.
        chosen: list[bytes] = []
        for op in sorted(found.values(), key=_written):
            size -= len(op.raw)
            if size < 0 or len(chosen) >= wire.MAX_BATCH_OPS:
                break
            chosen.append(op.raw)
        return {"o": chosen, "gone": wire.pack_ids(op_id for op_id in ids if op_id not in found)}

    async def push(self, call: IncomingCall) -> Mapping[str, object]:
        """Ops that the caller found missing here; answers with the ids of those that were refused.

        What is past an author's share is passed over in silence: whoever brings it need not be to blame, and offers it
        again the next time.

        Raises RemoteError `overloaded` where the peer pushes more than its share.
        """
        body = self._admit(call)
        raws = wire.read_ops(body.get("o"))
        now = self._clock()
        if not self._pushed.take(call.peer_id, now, len(raws)):
            raise RemoteError("overloaded", "too many ops at once; push the rest later", retryable=True)
        within, shares = self._within_shares(raws, now)
        taken = await self._intake.take(call.peer_id, within, relay=body.get("bulk") is not True)
        for identifier, key in shares.items():
            if identifier in self._replica.ops:
                # Only now is it certain who wrote it: nobody uses up another's share with forgeries.
                self._of_author.charge(key, now, 1)
        if taken.bad:
            self._pushed.charge(call.peer_id, now, BAD_COST * taken.bad)
        return {"x": wire.pack_ids(taken.refused)}

    def _within_shares(self, raws: Sequence[bytes], now: float) -> tuple[list[bytes], dict[bytes, bytes]]:
        """The ops that may be taken in, and of those that are not held the keys whose shares they use up, by op id."""
        within: list[bytes] = []
        shares: dict[bytes, bytes] = {}
        here: Counter[bytes] = Counter()
        for raw in raws:
            identifier = op_id(raw[:-SIGNATURE_BYTES])
            key = None if identifier in self._replica.ops or identifier in shares else _charged(raw)
            if key is not None:
                if self._of_author.level(key, now) < here[key] + 1:
                    continue
                here[key] += 1
                shares[identifier] = key
            within.append(raw)
        return within, shares

    async def seq(self, call: IncomingCall) -> Mapping[str, object]:
        """The op with the highest seq that this box holds of one author: the proof of how far that key had counted."""
        author = wire.read_key(self._admit(call).get("a"))
        highest = self._replica.ops.highest_seq(author)
        op = self._find(author, highest) if highest else None
        return {"o": None if op is None else op.raw}

    def _find(self, author: bytes, seq: int) -> Op | None:
        for op in self._replica.facts_of(author).values():
            if op.seq == seq:
                return op
        for op in self._replica.ops.governing_ops():
            if op.author == author and op.seq == seq:
                return op
        return None


def _charged(raw: bytes) -> bytes | None:
    """Whose share an op uses up; None for what admins write, which has an end, and for what cannot be read."""
    try:
        op = read_op(raw)
        if op.kind == "join":
            return read_join(op.body).by
    except RefusedOpError:
        return None
    return op.author if op.kind == "node" else None


def _written(op: Op) -> tuple[int, bytes]:
    return op.hlc, op.id
