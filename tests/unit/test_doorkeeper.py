"""What a member answers to boxes that knock with an invite."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import pytest
import trio

from fleet.document import bodies
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
