"""How a new box gets in: it knocks with its invite's secret, a member vouches for it, and it carries the fleet home.

Two calls on a link that may do nothing else: `join.ask` (who I am, and the proof that I hold the token) is answered
with the member's countersignature, after every governing op of the fleet, and the addresses of some boxes, have been
streamed; `join.done` delivers the join op that the new box signed, and is answered once it is on the member's disk.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from fleet.document import bodies
from fleet.document.clock import HybridClock
from fleet.document.invites import Offer, Token
from fleet.document.op import MAX_OP, Op, read_op, write_op
from fleet.document.replica import Replica
from fleet.errors import DeniedError, FleetError, MessageError, RefusedOpError, RemoteError
from fleet.gossip.rate_limit import Buckets, Rate
from fleet.identity.keys import Identity, public_key_from_peer_id
from fleet.net.rpc import IncomingCall, Router

METHOD_ASK: Final = "join.ask"
METHOD_DONE: Final = "join.done"
#: The only thing an invite's secret may do here.
SCOPE_JOIN: Final = "join"
#: Bytes of ops in one message.
_CHUNK: Final = 256 * 1024
#: What a new box takes from the member it knocks at: 100,000 governing ops of 1 KiB.
_MAX_GOVERNING: Final = 100 * 1024 * 1024

#: Other boxes whose addresses a new box is given.
_ADDRESSES: Final = 64
#: Claims with one invite that are looked at: each is answered with every governing op, megabytes in a large fleet.
CLAIMS: Final = Rate(per_second=1, burst=16)
#: Calls with one invite of whatever sort. A flood of bad ones leaves the others their chance at the next try, and costs
#: this box a hundredth of a core; good ones have a limit of their own, so bad ones use up nothing of it.
TRIES: Final = Rate(per_second=100, burst=200)
#: What a join that is not signed by its author costs, in tries: nobody who plays by the rules sends such.
BAD_COST: Final = 10
#: How long a box that was vouched for has to deliver its join.
_PROMISE_MS: Final = 60_000

log = structlog.get_logger("shoal.joining")

#: `call(method, body, on_event)` on a link to one member.
Call = Callable[[str, Mapping[str, object], Callable[[object], Awaitable[None]]], Awaitable[object]]


def offer_of(replica: Replica, peer_id: str) -> Offer | None:
    """The invite whose secret a peer knocks with, unless it has expired."""
    try:
        offer = replica.governance.offers.get(public_key_from_peer_id(peer_id))
    except FleetError:
        return None
    return offer if offer is not None and _now_ms() <= offer.terms.expires else None


class Doorkeeper:
    """A member's side: lets new boxes in, with the member's own key."""

    def __init__(self, replica: Replica, identity: Identity) -> None:
        self._replica = replica
        self._identity = identity
        self._clock = HybridClock()
        #: Claims that were countersigned and not delivered yet, and until when (ms) each keeps its use of the invite.
        self._promised: dict[tuple[str, bytes], int] = {}
        self._claims: Buckets[str] = Buckets(CLAIMS)
        self._tries: Buckets[str] = Buckets(TRIES)

    def offer_methods(self, router: Router) -> None:
        """Answer the two calls."""
        router.add(METHOD_ASK, SCOPE_JOIN, self.ask)
        router.add(METHOD_DONE, SCOPE_JOIN, self.done)

    async def ask(self, call: IncomingCall) -> Mapping[str, object]:
        """Check a claim, send the governing ops, and countersign.

        Raises DeniedError with why: expired, used up, bound to another box, or this box itself cannot vouch; and
        RemoteError `overloaded`, retryable, while every use that is left is promised to others, or too many knock.
        """
        self._admit(call)
        offer = offer_of(self._replica, call.peer_id)
        if offer is None:
            raise DeniedError("the invite has expired; ask an admin for a new one")
        body = call.body
        joiner, proof = (body.get("key"), body.get("proof")) if isinstance(body, dict) else (None, None)
        if not (type(joiner) is bytes and len(joiner) == 32 and type(proof) is bytes and len(proof) == 64):
            raise MessageError("join.ask takes a key of 32 bytes and a proof of 64")
        terms, fleet = offer.terms, self._replica.fleet_id
        now = _now_ms()
        self._promised = {claim: until for claim, until in self._promised.items() if until > now}
        promised = {key for invite_id, key in self._promised if invite_id == offer.invite_id and key != joiner}
        refusal = offer.refusal(joiner, now)
        if refusal is not None:
            raise DeniedError(f"{refusal}; ask an admin for a new one")
        if replace(offer, used_by=offer.used_by | promised).refusal(joiner, now) is not None:
            # Whoever was promised the last use may never come for it.
            raise RemoteError(
                "overloaded",
                "every use of the invite is promised to other boxes at the moment; knock again in a minute",
                retryable=True,
            )
        if not bodies.proof_holds(terms.key, proof, fleet, offer.invite_id, joiner):
            raise DeniedError("the proof does not show the invite's secret")
        if not self._claims.take(offer.invite_id, time.monotonic()):
            raise RemoteError("overloaded", "many boxes knock with this invite at once; knock again", retryable=True)
        standing = self._replica.view.standing(joiner)
        if standing.reason in ("revoked", "denied by the firewall"):
            raise DeniedError(f"this box's key is {standing.reason}; make a new identity, or ask an admin")
        own = self._replica.governance.authority
        if self._identity.public_key not in own.members or self._identity.public_key in own.revoked:
            raise DeniedError("this box is no member itself and cannot let anybody in; knock at another")
        self._promised[offer.invite_id, joiner] = now + _PROMISE_MS
        await self._send_governing(call)
        self._promised[offer.invite_id, joiner] = _now_ms() + _PROMISE_MS  # a slow link may have taken minutes
        for op in self._replica.ops.governing_ops():
            self._clock.observe(op.hlc, _now_ms())
        hlc = self._clock.tick(_now_ms())
        join = bodies.vouch(self._identity, fleet, offer.invite_id, joiner, terms.key, proof, hlc)
        log.info("join.vouched", invite=offer.invite_id, joiner=joiner.hex())
        return {"by": join.by, "hlc": join.hlc, "sig": join.sig}

    def _admit(self, call: IncomingCall) -> None:
        if not self._tries.take(call.peer_id, time.monotonic()):
            raise RemoteError("overloaded", "too many calls with this invite at once; knock again", retryable=True)

    async def _send_governing(self, call: IncomingCall) -> None:
        chunk: list[bytes] = []
        size = 0
        # Certificates first: what rests on them is then accepted at once. Last, where to find some of the others.
        governing = sorted(self._replica.ops.governing_ops(), key=lambda op: (op.kind != "cert", op.hlc))
        for op in (*governing, *self._whereabouts()):
            if size + len(op.raw) > _CHUNK:
                await call.send({"ops": chunk})
                chunk, size = [], 0
            chunk.append(op.raw)
            size += len(op.raw)
        await call.send({"ops": chunk})

    def _whereabouts(self) -> list[Op]:
        """Addresses of this box and of some others, as they wrote them."""
        facts = self._replica.ops.facts()
        others = [key for key in facts if key != self._identity.public_key]
        chosen = random.SystemRandom().sample(others, min(_ADDRESSES, len(others)))
        found = (facts.get(key, {}).get("addr") for key in (self._identity.public_key, *chosen))
        return [op for op in found if op is not None]

    async def done(self, call: IncomingCall) -> Mapping[str, object]:
        """Take in the join op of a box that this one vouched for within the last minute, and nothing else.

        Raises DeniedError where it is not one that this invite allows, and RemoteError `overloaded`, retryable.
        """
        self._admit(call)
        body = call.body
        raw = body.get("op") if isinstance(body, dict) else None
        if type(raw) is not bytes or len(raw) > MAX_OP:
            raise MessageError("join.done takes an op")
        op = self._promised_join(call.peer_id, raw)
        (outcome,) = await self._replica.offer([raw])
        if outcome.state == "refused":
            if outcome.reason == "signature":
                self._tries.charge(call.peer_id, time.monotonic(), BAD_COST)
            raise DeniedError(f"the join was not accepted ({outcome.reason})", details={"reason": outcome.reason})
        # By author: of a box that knocks again the first claim is kept, and not this one.
        surplus = self._replica.governance.authority.surplus_joins
        return {"lost": any((one.author, one.path) == (op.author, op.path) for one in surplus)}

    def _promised_join(self, peer_id: str, raw: bytes) -> Op:
        """The join that was promised a use of the caller's invite; raises DeniedError where the bytes are none."""
        try:
            op = read_op(raw)
            offer = self._replica.governance.offers.get(public_key_from_peer_id(peer_id))
        except FleetError as error:
            raise DeniedError(f"the join was not accepted: {error.message}") from None
        if op.kind != "join" or offer is None or op.path != offer.invite_id:
            raise DeniedError("only the join of a box that came with this invite is taken here")
        if self._promised.get((op.path, op.author), 0) <= _now_ms():
            raise DeniedError(
                "this box has not vouched for the joining one, or that was over a minute ago; knock again"
            )
        return op


@dataclass(frozen=True)
class Welcome:
    """What a new box brings home: its own join op, and the governing ops of the fleet, not checked yet."""

    join: Op
    ops: Sequence[bytes]


async def join(token: Token, identity: Identity, call: Call) -> Welcome:
    """Get in with a token over a link that was opened with its secret.

    Raises RemoteError with the member's reason, RefusedOpError when the member's countersignature does not hold, and
    PeerUnreachableError when the link breaks; then the same token can be used again, here or at another member.
    """
    ops: list[bytes] = []
    size = 0

    async def take(event: object) -> None:
        nonlocal size
        chunk = event.get("ops") if isinstance(event, dict) else None
        if not isinstance(chunk, list) or not all(type(raw) is bytes and len(raw) <= MAX_OP for raw in chunk):
            raise MessageError("the member sent something that is no list of ops")
        size += sum(map(len, chunk))
        if size > _MAX_GOVERNING:
            raise MessageError(f"the member sent more than {_MAX_GOVERNING} bytes of ops")
        ops.extend(chunk)

    fleet, key = token.genesis.fleet_id, token.secret.public_key
    proof = bodies.prove_invite(token.secret, fleet, token.invite_id, identity.public_key)
    answer = await call(METHOD_ASK, {"key": identity.public_key, "proof": proof}, take)
    try:
        if not isinstance(answer, dict):
            raise TypeError
        claim = bodies.Join(key, proof, answer["by"], answer["hlc"], answer["sig"])
        hlc = claim.hlc + 1
        op = write_op(identity, fleet, seq=1, hlc=hlc, kind="join", path=token.invite_id, body=claim.body())
        if not bodies.join_is_vouched_for(op, bodies.read_join(op.body)):
            raise RefusedOpError("signature", "the member's countersignature does not hold")
    except (KeyError, TypeError, ValueError):
        raise MessageError("the member's answer is malformed") from None

    async def nothing(event: object) -> None:
        """`join.done` has no events."""

    settled = await call(METHOD_DONE, {"op": op.raw}, nothing)
    if isinstance(settled, dict) and settled.get("lost") is True:
        raise RefusedOpError("used_up", "another box has claimed the invite first; ask an admin for a new one")
    return Welcome(op, ops)


def _now_ms() -> int:
    return int(time.time() * 1000)
