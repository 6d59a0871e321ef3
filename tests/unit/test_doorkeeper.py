"""What a member answers to boxes that knock with an invite."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping

import pytest
import trio

from fleet.document import bodies
from fleet.document.op import Op, write_op
from fleet.document.replica import Replica
from fleet.errors import DeniedError, RemoteError
from fleet.gossip import joining
from fleet.gossip.joining import Doorkeeper, join
from fleet.identity.keys import Identity
from tests.harness import Fleet, seed_of

MEMBER = Identity.from_seed(seed_of("member"))


def test_a_token_that_knocks_all_the_time_is_answered_in_full_a_few_times() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        token = fleet.invite(uses=1000)
        replica = Replica(fleet.genesis)
        await replica.offer([op.raw for op in (*fleet.certify(MEMBER.peer_id), token.op)])
        door = Doorkeeper(replica, MEMBER)
        knocks = [
            Knock(token.secret.peer_id, claim_of(fleet, token, Identity.from_seed(seed_of(f"box {at}"))))
            for at in range(40)
        ]
        outcomes = [await outcome(door, knock) for knock in knocks]
        answered = outcomes.count("")
        assert joining.CLAIMS.burst <= answered <= joining.CLAIMS.burst + 10
        assert outcomes.count("overloaded, retryable") == 40 - answered
        assert sum(bool(knock.events) for knock in knocks) == answered

    trio.run(scenario)


class Knock:
    """A call of a box that holds a token's secret."""

    def __init__(self, peer_id: str, body: object) -> None:
        self.peer_id = peer_id
        self.body = body
        self.events: list[Mapping[str, object]] = []

    async def send(self, event: Mapping[str, object]) -> None:
        self.events.append(event)


async def outcome(door: Doorkeeper, knock: Knock) -> str:
    try:
        await door.ask(knock)
    except RemoteError as error:
        return f"{error.remote_code}, {'retryable' if error.retryable else 'final'}"
    return ""


def claim_of(fleet: Fleet, token: joining.Token, box: Identity) -> Mapping[str, object]:
    proof = bodies.prove_invite(token.secret, fleet.genesis.fleet_id, token.invite_id, box.public_key)
    return {"key": box.public_key, "proof": proof}


def test_a_use_that_is_promised_is_kept_for_a_minute_and_whoever_else_knocks_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        fleet = Fleet()
        token = fleet.invite(uses=1)
        replica = Replica(fleet.genesis)
        await replica.offer([op.raw for op in (*fleet.certify(MEMBER.peer_id), token.op)])
        door = Doorkeeper(replica, MEMBER)
        knocker = token.secret.peer_id
        lingering, honest = (Identity.from_seed(secrets.token_bytes(32)) for _ in range(2))
        await door.ask(Knock(knocker, claim_of(fleet, token, lingering)))
        with pytest.raises(RemoteError, match="knock again") as promised:
            await door.ask(Knock(knocker, claim_of(fleet, token, honest)))
        assert (promised.value.remote_code, promised.value.retryable) == ("overloaded", True)

        later = joining._now_ms() + 61_000
        monkeypatch.setattr(joining, "_now_ms", lambda: later)

        async def call(method: str, body: Mapping[str, object], on_event: object) -> object:
            knock = Knock(knocker, body)
            answer = await {joining.METHOD_ASK: door.ask, joining.METHOD_DONE: door.done}[method](knock)
            for event in knock.events:
                await on_event(event)  # type: ignore[operator]
            return answer

        welcome = await join(token, honest, call)
        assert welcome.join.id in replica.ops
        assert replica.view.standing(honest.public_key).admitted
        with pytest.raises(DeniedError, match="used up"):
            await door.ask(Knock(knocker, claim_of(fleet, token, lingering)))

    trio.run(scenario)


async def doorkeeper(fleet: Fleet, token: joining.Token, *more: Op) -> tuple[Replica, Doorkeeper]:
    replica = Replica(fleet.genesis)
    await replica.offer([op.raw for op in (*fleet.certify(MEMBER.peer_id), token.op, *more)])
    return replica, Doorkeeper(replica, MEMBER)


async def delivered(door: Doorkeeper, token: joining.Token, raw: bytes) -> str:
    try:
        await door.done(Knock(token.secret.peer_id, {"op": raw}))
    except (DeniedError, RemoteError) as error:
        return error.message
    return ""


def test_only_a_join_that_was_promised_here_is_delivered() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        token, other = fleet.invite(uses=9), fleet.invite(uses=9)
        box, gone = (Identity.from_seed(secrets.token_bytes(32)) for _ in range(2))
        replica, door = await doorkeeper(fleet, token, other.op, *fleet.certify(gone.peer_id))
        fleet_id = fleet.genesis.fleet_id

        def join_of(by: joining.Token) -> Op:
            proof = bodies.prove_invite(by.secret, fleet_id, by.invite_id, box.public_key)
            claim = bodies.vouch(MEMBER, fleet_id, by.invite_id, box.public_key, by.secret.public_key, proof, 1)
            return write_op(box, fleet_id, seq=1, hlc=1, kind="join", path=by.invite_id, body=claim.body())

        fact = write_op(gone, fleet_id, seq=1, hlc=1, kind="node", path="node", body={})
        before = len(replica.ops)
        assert "only the join" in await delivered(door, token, fact.raw)
        assert "only the join" in await delivered(door, token, join_of(other).raw)
        assert "not vouched" in await delivered(door, token, join_of(token).raw)
        assert len(replica.ops) == before
        await door.ask(Knock(token.secret.peer_id, claim_of(fleet, token, box)))
        assert await delivered(door, token, join_of(token).raw) == ""
        assert await delivered(door, token, join_of(token).raw) == "", "the answer may have been lost"
        assert len(replica.ops) == before + 1

    trio.run(scenario)


def test_bad_knocks_are_looked_at_so_often_and_use_up_nothing_of_the_good_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        fleet = Fleet()
        token = fleet.invite(uses=100)
        _, door = await doorkeeper(fleet, token)
        monkeypatch.setattr(bodies, "proof_holds", counted := Counted(bodies.proof_holds))
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        knocker = token.secret.peer_id
        for _ in range(300):
            with contextlib.suppress(DeniedError, RemoteError):
                await door.ask(Knock(knocker, {"key": bytes(32), "proof": bytes(64)}))
        assert counted.count == joining.TRIES.burst
        now += 1
        for at in range(int(joining.CLAIMS.burst)):
            box = Identity.from_seed(seed_of(f"good {at}"))
            assert await outcome(door, Knock(knocker, claim_of(fleet, token, box))) == ""

    trio.run(scenario)


def test_joins_that_their_author_did_not_sign_are_dear() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        token = fleet.invite(uses=9)
        replica, door = await doorkeeper(fleet, token)
        box = Identity.from_seed(seed_of("box"))
        knock = Knock(token.secret.peer_id, claim_of(fleet, token, box))
        answer = await door.ask(knock)
        proof = claim_of(fleet, token, box)["proof"]
        body = {"key": token.secret.public_key, "proof": proof, **answer}
        op = write_op(box, fleet.genesis.fleet_id, seq=1, hlc=1, kind="join", path=token.invite_id, body=body)
        said = [await delivered(door, token, op.raw[:-1] + bytes([op.raw[-1] ^ 1])) for _ in range(60)]
        assert sum("signature" in one for one in said) < 30
        assert "too many" in said[-1]
        assert op.id not in replica.ops

    trio.run(scenario)


class Counted:
    """Counts the calls of a function."""

    def __init__(self, function: Callable[..., bool]) -> None:
        self.function = function
        self.count = 0

    def __call__(self, *args: bytes | str) -> bool:
        self.count += 1
        return self.function(*args)
