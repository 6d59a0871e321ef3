"""How far a key had counted, as the fleet remembers it: what a box restored from a backup asks before it writes.

A box that wrote again with a seq it had used would look like two boxes with one key. Peers answer with the op itself:
its signature is the proof, so nobody can make a key skip ahead to where it can write nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fleet.document.op import MAX_OP, Op, read_op, signature_holds
from fleet.errors import FleetError, MessageError, RefusedOpError
from fleet.gossip.peers import Peer, ask
from fleet.gossip.sync_messages import METHOD_SEQ

#: Seconds for all peers together.
LIMIT: Final = 10.0


@dataclass(frozen=True)
class HighestSeq:
    """The highest seq any peer could prove, 0 for none; its op, to be offered to the replica; how many answered."""

    seq: int
    op: Op | None
    answered: int


async def highest_seq(peers: Sequence[Peer], fleet: bytes, author: bytes, limit: float = LIMIT) -> HighestSeq:
    """Ask peers, side by side and for `limit` seconds at most, for the latest op of one author of this fleet.

    A peer that fails, lies or is silent does not count as one that answered. Raises nothing but Cancelled.
    """
    best: Op | None = None
    answered = 0

    async def one(peer: Peer) -> None:
        nonlocal best, answered
        try:
            op = _read(await ask(peer, METHOD_SEQ, {"a": author}, limit), fleet, author)
        except FleetError:
            return
        answered += 1
        if op is not None and (best is None or op.seq > best.seq):
            best = op

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(one, peer)
    return HighestSeq(0 if best is None else best.seq, best, answered)


def _read(answer: object, fleet: bytes, author: bytes) -> Op | None:
    raw = answer.get("o") if isinstance(answer, dict) else None
    if raw is None:
        return None
    if type(raw) is not bytes or len(raw) > MAX_OP:
        raise MessageError("the answer holds no op")
    op = read_op(raw)
    if op.fleet != fleet or op.author != author or not signature_holds(op):
        raise RefusedOpError("signature", "the op is not one that this key wrote for this fleet")
    return op
