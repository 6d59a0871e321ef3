"""Claiming jobs that any box of the fleet may run, over the broker; the rules are `agent.mqtt.leases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.leases import Leases, claim_payload, read_claim
from agent.mqtt.messages import Incoming, Sent
from agent.mqtt.topics import Topics

#: Seconds to wait for the broker to pass on this box's own claim, and for another's that may be taken back.
CLAIM_LIMIT: Final = 3.0
#: Seconds that a claim stands, after which it is said anew while the job is open, and that it outlasts its job.
LEASE: Final = 60.0
RENEW: Final = 20.0
CLAIM_KEEP: Final = 600.0
#: Claims on jobs that are over which are said anew to a broker that may have forgotten them: the latest.
_SAID_ANEW: Final = 256


class Claims:
    """The claims of one box. `on_other` is called with a job that is this box's and that another one was sent,
    `on_lost` with one that is open here, was this box's, and is another's now."""

    def __init__(self, topics: Topics, client: MqttClient, counts: Counts) -> None:
        self.on_other: Callable[[str], None] = lambda job: None
        self.on_lost: Callable[[str], None] = lambda job: None
        self._topics = topics
        self._client = client
        self._counts = counts
        self._leases = Leases()
        #: Jobs that this box runs or waits to run, and whether the broker has passed on its claim.
        self._open: dict[str, trio.Event] = {}
        #: When claims on jobs that are over are taken back.
        self._over: dict[str, float] = {}
        self._up = trio.Event()

    def went_up(self) -> None:
        """There is a connection, and topics are subscribed to: claims are made anew, it may be another broker."""
        self._up.set()
        for job in self._open:
            self._claim(job)
        granted = self._client.granted
        if granted is None or not granted.session:
            # It may have been away for so long that others' claims count, or have forgotten everything.
            now = trio.current_time()
            for job, until in list(self._over.items())[-_SAID_ANEW:]:
                if until > now:
                    self._publish(job, until - now)

    def went_down(self) -> None:
        """There is no connection. What this box claims next is behind what others claim meanwhile."""
        self._up = trio.Event()
        self._leases.forget(self._topics.node)

    async def claimed(self, job: str) -> bool:
        """Claim a job that other boxes may have been sent too; whether this box may run it.

        Waits for a connection, and then for the broker to pass the claim on. `over` or `give_way` is to follow.
        Cancel-safe.
        """
        echoed = self._open[job] = trio.Event()
        if self._up.is_set():
            self._claim(job)
        while True:
            await self._up.wait()
            with trio.move_on_after(CLAIM_LIMIT) as limit:
                await echoed.wait()
            if not limit.cancelled_caught:
                break
            if self._up.is_set():
                # Such as a broker that does not let this box publish or read claims: the job is run all the same.
                self._counts.note("lease_unconfirmed")
                break
        return not self.is_others(job)

    def holder(self, job: str) -> str | None:
        """The box whose job it is, as far as claims tell."""
        return self._leases.holder(job, trio.current_time())

    def is_others(self, job: str) -> bool:
        """Whether another box has it."""
        return self.holder(job) not in (None, self._topics.node)

    def over(self, job: str) -> None:
        """A job is not run any more; the claim stands for a while, for those who send it again."""
        if self._open.pop(job, None) is not None:
            self._over[job] = trio.current_time() + CLAIM_KEEP
            self._publish(job, CLAIM_KEEP)

    def give_way(self, job: str) -> None:
        """Take this box's claim back at once."""
        self._open.pop(job, None)
        self._over.pop(job, None)
        self._take_back(job)

    def renew(self) -> None:
        """Say claims anew, take back those whose time is over, and forget those of others; every RENEW seconds."""
        now = trio.current_time()
        self._leases.forget_old(now)
        if self._up.is_set():
            for job in self._open:
                self._claim(job)
        for job, until in list(self._over.items()):
            if until <= now and job not in self._open:
                del self._over[job]
                self._take_back(job)

    def _claim(self, job: str) -> None:
        self._publish(job, LEASE)

    def _publish(self, job: str, seconds: float) -> None:
        granted = self._client.granted
        payload = claim_payload(job, round(seconds, 1), granted is not None and granted.shares)
        sent = Sent(expiry=round(seconds))
        self._client.send_now(self._topics.lease(job), payload, qos=1, retain=True, sent=sent)

    def _take_back(self, job: str) -> None:
        self._client.send_now(self._topics.lease(job), b"", qos=1, retain=True)

    # --- messages of the broker --------------------------------------------------------------------------------------

    def heard(self, message: Incoming) -> None:
        """A box claims a job, or takes its claim back."""
        message.settle()
        found = self._topics.leased(message.topic)
        if found is None:
            return
        (node, job), now = found, trio.current_time()
        own = node == self._topics.node
        claim = read_claim(node, job, message.payload, now)
        if own and message.retain:
            # Of an earlier process of this box: it claims anew what it still has.
            if claim is not None and job not in self._open and job not in self._over:
                self._over[job] = min(claim.until, now + CLAIM_KEEP)
        elif claim is None:
            self._leases.taken_back(job, node)
        else:
            self._leases.heard(job, claim, now)
            if own:
                self._echoed(job)
            elif claim.alone and not message.retain and self.holder(job) == self._topics.node:
                self.on_other(job)

    def _echoed(self, job: str) -> None:
        echoed = self._open.get(job)
        if echoed is None:
            return
        if echoed.is_set() and self.is_others(job):
            self.on_lost(job)
        echoed.set()

    def availability(self, message: Incoming) -> None:
        """A box is there, or has gone."""
        message.settle()
        node = self._topics.available(message.topic)
        if node is not None and node != self._topics.node:
            self._leases.available(node, message.payload == b"online")
