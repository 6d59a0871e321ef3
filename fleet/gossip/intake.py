"""The one door for ops that come from peers: what is held is passed over, what was refused is remembered.

An op whose author is not known yet waits here, within limits, until the certificate it rests on has come.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from fleet.document.acceptance import PASSING, check
from fleet.document.op import SIGNATURE_BYTES, Op, op_id, read_op
from fleet.document.replica import Change, Outcome, Replica
from fleet.errors import RefusedOpError, RemoteError, StoreError

log = structlog.get_logger("shoal.gossip")

#: Refusals remembered of one peer, and peers remembered: 64 * 1024 ids of ~150 bytes.
MAX_REFUSED: Final = 1024
MAX_PEERS: Final = 64
#: Bytes of ops that wait for a certificate or an invite, and what one peer may have among them.
MAX_WAITING: Final = 8 * 1024 * 1024
MAX_WAITING_OF_PEER: Final = 4 * 1024 * 1024
#: What an op occupies in memory beyond its bytes, about.
_OVERHEAD: Final = 1024
#: Refusals that may end when somebody's standing changes.
_MAY_PASS: Final = PASSING | {"quota"}
_NEVER: Final = -1


@dataclass(frozen=True)
class Origin:
    """Where an op came from; `relay` False for one that came in bulk: its sender caught this box up."""

    peer_id: str
    relay: bool


@dataclass(frozen=True)
class Taken:
    """What became of ops that a peer sent: how many were new, and the ids this box refused."""

    new: int
    refused: tuple[bytes, ...]
    #: How many were malformed or not signed by their author: nobody who plays by the rules sends such.
    bad: int


class RefusedIds:
    """Ids of ops by peer that are not worth sending or fetching again. An id does not cover the signature, so one
    peer's bad copy must not keep another's good one out: each peer has its own list, and forgets its oldest."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, OrderedDict[bytes, int]] = OrderedDict()

    def add(self, peer_id: str, identifier: bytes, until_version: int = _NEVER) -> None:
        """Remember one; with `until_version` only while the authority version is that one."""
        own = self._peers.setdefault(peer_id, OrderedDict())
        self._peers.move_to_end(peer_id)
        own[identifier] = until_version
        own.move_to_end(identifier)
        if len(own) > MAX_REFUSED:
            own.popitem(last=False)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)

    def holds(self, peer_id: str, identifier: bytes, version: int) -> bool:
        """Whether the op is still refused."""
        own = self._peers.get(peer_id)
        found = None if own is None else own.get(identifier)
        return found is not None and found in (_NEVER, version)


class _WaitingRoom:
    """Ops that rest on others that have not come. Bounded in all and for each peer; the oldest goes first."""

    def __init__(self) -> None:
        self._ops: OrderedDict[bytes, tuple[Op, Origin]] = OrderedDict()
        self._bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._ops)

    def __contains__(self, identifier: bytes) -> bool:
        return identifier in self._ops

    def add(self, op: Op, origin: Origin) -> bool:
        """Let an op wait; False where the peer has too much here already."""
        size = len(op.raw) + _OVERHEAD
        if op.id in self._ops or self._bytes[origin.peer_id] + size > MAX_WAITING_OF_PEER:
            return False
        self._ops[op.id] = (op, origin)
        self._bytes[origin.peer_id] += size
        while self._bytes.total() > MAX_WAITING:
            self._remove(next(iter(self._ops)))
        return True

    def _remove(self, identifier: bytes) -> tuple[Op, Origin]:
        op, origin = self._ops.pop(identifier)
        self._bytes[origin.peer_id] -= len(op.raw) + _OVERHEAD
        if not self._bytes[origin.peer_id]:
            del self._bytes[origin.peer_id]
        return op, origin

    def ready(self, replica: Replica) -> list[tuple[Op, Origin]]:
        """Take out what can be accepted now; drops what never will."""
        found = []
        for identifier, (op, _) in list(self._ops.items()):
            try:
                check(op, replica.ops)
            except RefusedOpError as error:
                if error.reason not in PASSING:
                    self._remove(identifier)
                continue
            found.append(self._remove(identifier))
        return found


class Intake:
    """Takes ops from peers into a replica, until `close`. `refused` counts refusals by reason, for `doctor`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.refused: Final[Counter[str]] = Counter()
        self._refused_ids = RefusedIds()
        self._waiting = _WaitingRoom()
        self._origins: dict[bytes, Origin] = {}
        self._tried_at = replica.ops.authority_version
        self._stale: Final[OrderedDict[bytes, None]] = OrderedDict()
        self.close: Final[Callable[[], None]] = replica.subscribe(self._note_dropped)

    @property
    def waiting(self) -> int:
        """How many ops wait for what they rest on."""
        return len(self._waiting)

    def origin(self, identifier: bytes) -> Origin | None:
        """Where an op that is being committed came from; None for one that was written here. For listeners."""
        return self._origins.get(identifier)

    def unwanted(self, peer_id: str, identifier: bytes) -> bool:
        """Whether there is no point in fetching an op from this peer: it was refused, is stale, or waits."""
        return (
            identifier in self._stale
            or identifier in self._waiting
            or self._refused_ids.holds(peer_id, identifier, self._replica.ops.authority_version)
        )

    def forgo(self, peer_id: str, identifier: bytes) -> None:
        """Do not fetch this op from this peer again: it said it has it, and then did not."""
        self._refused_ids.add(peer_id, identifier)

    async def take(self, peer_id: str, raws: Sequence[bytes], *, relay: bool) -> Taken:
        """Offer a peer's ops to the replica; those that are new are on disk when this returns.

        Raises RemoteError (`store`, retryable) where the disk does not take them. Cancelling it leaves what was
        committed so far.
        """
        origin = Origin(peer_id, relay)
        fresh: dict[bytes, bytes] = {}
        refused: list[bytes] = []
        bad = 0
        for raw in raws:
            if len(raw) <= SIGNATURE_BYTES:
                self.refused["size"] += 1
                bad += 1
                continue
            identifier = op_id(raw[:-SIGNATURE_BYTES])
            if identifier in self._replica.ops or identifier in self._stale or identifier in self._waiting:
                continue
            if self.unwanted(peer_id, identifier):
                refused.append(identifier)
                continue
            fresh[identifier] = raw
        outcomes = await self._offer(fresh, dict.fromkeys(fresh, origin)) if fresh else []
        new = 0
        for identifier, raw, outcome in zip(fresh, fresh.values(), outcomes, strict=True):
            if outcome.state == "new":
                new += 1
            elif outcome.state == "refused":
                bad += outcome.reason in ("size", "form", "limits", "body", "signature", "other_fleet")
                if self._refuse(identifier, raw, origin, outcome.reason):
                    refused.append(identifier)
            elif identifier not in self._replica.ops:
                self._note_stale(identifier)
        if refused:  # one line however many there are: a peer must not fill the log
            log.debug("ops.refused", peer=peer_id, count=len(refused), last=refused[-1].hex())
        new += await self._admit_waiting()
        return Taken(new, tuple(refused), bad)

    async def _offer(self, raws: dict[bytes, bytes], origins: dict[bytes, Origin]) -> list[Outcome]:
        registered = [identifier for identifier in origins if identifier not in self._origins]
        for identifier in registered:
            self._origins[identifier] = origins[identifier]
        try:
            return await self._replica.offer(list(raws.values()))
        except StoreError:
            # Its message names files of this box: that is for the log, where the replica put it, not for peers.
            raise RemoteError("store", "the box cannot store the fleet document now", retryable=True) from None
        finally:
            for identifier in registered:
                del self._origins[identifier]

    def _refuse(self, identifier: bytes, raw: bytes, origin: Origin, reason: str) -> bool:
        """Note a refusal; False where the op waits and is not refused for good."""
        self.refused[reason] += 1
        if reason in PASSING and self._waiting.add(read_op(raw), origin):
            return False
        version = self._replica.ops.authority_version if reason in _MAY_PASS else _NEVER
        self._refused_ids.add(origin.peer_id, identifier, version)
        return True

    def _note_stale(self, identifier: bytes) -> None:
        """A fact older than what is held: whoever still has it gets the newer one, and nobody has to send it again."""
        self._stale[identifier] = None
        if len(self._stale) > MAX_REFUSED:
            self._stale.popitem(last=False)

    async def _admit_waiting(self) -> int:
        """After a change of authority: take in what waited for it, and what waited for that."""
        new = 0
        while self._waiting and self._tried_at != self._replica.ops.authority_version:
            self._tried_at = self._replica.ops.authority_version
            ready = self._waiting.ready(self._replica)
            if ready:
                raws = {op.id: op.raw for op, _ in ready}
                outcomes = await self._offer(raws, {op.id: origin for op, origin in ready})
                new += sum(outcome.state == "new" for outcome in outcomes)
        return new

    def _note_dropped(self, change: Change) -> None:
        """Facts that were replaced are stale from now on. Claims beyond the bounds, and what rested on them, are not:
        they come back with a certificate, or with more uses."""
        for op in change.dropped:
            if op.kind == "node" and self._replica.ops.was_certified(op.author):
                self._note_stale(op.id)
