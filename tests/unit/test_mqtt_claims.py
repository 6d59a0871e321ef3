"""Who has which job, decided alike on every box: claims in the broker's order, which lapse when nobody renews them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
import trio.testing

from agent.mqtt.claiming import CLAIM_LIMIT, LEASE, RENEW, Claims
from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.granted import Granted
from agent.mqtt.leases import MAX_LEASE, Claim, Leases, claim_payload, read_claim
from agent.mqtt.messages import Incoming
from agent.mqtt.topics import Topics

A, B = "a" * 16, "b" * 16


def test_the_first_claim_counts_until_it_ends() -> None:
    leases = Leases()
    leases.heard("j", Claim(A, 100.0), 0.0)
    leases.heard("j", Claim(B, 200.0), 0.0)
    leases.heard("j", Claim(A, 150.0), 90.0)
    assert leases.holder("j", 120.0) == A
    assert leases.holder("j", 160.0) == B
    leases.taken_back("j", B)
    assert leases.holder("j", 0.0) == A
    leases.forget_old(300.0)
    assert leases.holder("j", 0.0) is None


def test_a_claim_that_lapsed_is_behind_what_was_claimed_meanwhile() -> None:
    leases = Leases()
    leases.heard("j", Claim(A, 60.0), 0.0)
    leases.heard("j", Claim(B, 121.0), 61.0)
    leases.heard("j", Claim(A, 122.0), 62.0)
    assert leases.holder("j", 63.0) == B


def test_what_a_box_claimed_that_has_gone_is_free_also_when_it_is_back() -> None:
    leases = Leases()
    leases.heard("j", Claim(A, 100.0), 0.0)
    leases.available(A, False)
    leases.available(A, True)
    assert leases.holder("j", 0.0) is None
    leases.heard("j", Claim(B, 100.0), 0.0)
    leases.heard("j", Claim(A, 100.0), 0.0)
    assert leases.holder("j", 0.0) == B


def test_a_claim_is_read_strictly_and_stands_an_hour_at_most() -> None:
    assert read_claim(A, "j", claim_payload("j", 50.0, True), 7.0) == Claim(A, 57.0, True)
    assert read_claim(A, "j", claim_payload("j", 1e12, False), 5.0) == Claim(A, 5.0 + MAX_LEASE)
    assert read_claim(A, "j", b'{"job":"j","seconds":5,"alone":1}', 0.0) == Claim(A, 5.0)
    for payload in (b"", b"x", b"[]", b'{"job":"k","seconds":5}', b'{"job":"j","seconds":true}', b'{"job":"j"}'):
        assert read_claim(A, "j", payload, 0.0) is None
    assert read_claim(A, "j", b" " * 2000, 0.0) is None


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e999", "-1"])
def test_no_number_in_a_claim_does_anything_but_bound_it(number: str) -> None:
    found = read_claim(A, "j", f'{{"job":"j","seconds":{number}}}'.encode(), 5.0)
    assert found is None or 5.0 <= found.until <= 5.0 + MAX_LEASE


def simulated(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test on a clock that jumps when nothing else is to be done."""

    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.01))

    return run


@dataclass
class Said:
    """What a box has published, in the place of its connection."""

    granted: Granted = field(default_factory=Granted)
    claims: list[tuple[str, bytes]] = field(default_factory=list)

    def send_now(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.claims.append((topic.rsplit("/", 1)[1], payload))
        return True


class Box:
    """The claims of box A; its own come back to it when `echo` is called."""

    def __init__(self) -> None:
        self.said = Said()
        self.topics = Topics("shops", A)
        self.claims = Claims(self.topics, cast("MqttClient", self.said), Counts())
        self.lost: list[str] = []
        self.claims.on_lost = self.lost.append
        self.claims.went_up()

    def hear(self, node: str, job: str, seconds: float = LEASE, retain: bool = False) -> None:
        topic = Topics("shops", node).lease(job)
        self.claims.heard(Incoming(topic, claim_payload(job, seconds, True), retain=retain))

    def echo(self) -> None:
        for job, payload in self.said.claims:
            self.claims.heard(Incoming(self.topics.lease(job), payload))
        self.said.claims.clear()

    async def claim(self, job: str) -> bool:
        async with trio.open_nursery() as nursery:
            found: list[bool] = []

            async def claimed() -> None:
                found.append(await self.claims.claimed(job))

            nursery.start_soon(claimed)
            await trio.testing.wait_all_tasks_blocked()
            self.echo()
        return found[0]


@simulated
async def test_a_box_that_ended_with_its_broker_is_not_waited_for() -> None:
    """Nobody said that it is offline, and its claim was for hours of deadline."""
    box = Box()
    box.hear(B, "j")
    assert not await box.claim("j")
    box.claims.give_way("j")
    await trio.sleep(LEASE + 1)
    assert await box.claim("j")


@simulated
async def test_a_box_that_has_a_job_says_so_while_it_has_it() -> None:
    box = Box()
    assert await box.claim("j")
    for _ in range(5):
        await trio.sleep(RENEW)
        box.claims.renew()
        assert [job for job, _ in box.said.claims] == ["j"]
        box.echo()
        box.hear(B, "j")
        assert box.claims.holder("j") == A
    assert RENEW + CLAIM_LIMIT < LEASE / 2
    box.claims.over("j")
    box.said.claims.clear()
    box.claims.renew()
    assert not box.said.claims


@simulated
async def test_who_comes_back_and_finds_the_job_with_another_has_lost_it() -> None:
    box = Box()
    assert await box.claim("j")
    assert await box.claim("mine")
    box.claims.went_down()
    box.claims.went_up()
    # Kept messages come first, and then what this box has just said.
    box.hear(B, "j", retain=True)
    box.hear(A, "j", retain=True)
    box.echo()
    assert box.lost == ["j"]
    assert box.claims.holder("mine") == A


@simulated
async def test_a_broker_that_forgot_is_told_what_was_answered_lately() -> None:
    box = Box()
    assert await box.claim("j")
    box.claims.over("j")
    box.claims.went_down()
    box.said.claims.clear()
    box.said.granted = Granted(session=True)
    box.claims.went_up()
    assert not box.said.claims
    box.said.granted = Granted(session=False)
    box.claims.went_up()
    assert [job for job, _ in box.said.claims] == ["j"]
