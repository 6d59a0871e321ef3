"""Claiming jobs that any box of the fleet may run, over the broker; the rules are `agent.mqtt.leases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from agent.mqtt.client import MqttClient
from agent.mqtt.counts import Counts
from agent.mqtt.journal import JobRow
from agent.mqtt.leases import Leases, claim_payload, read_claim
from agent.mqtt.messages import Incoming, Sent
from agent.mqtt.topics import Topics

#: Seconds to wait for the broker to pass on this box's own claim, and that a claim outlasts its job.
CLAIM_LIMIT: Final = 3.0
CLAIM_KEEP: Final = 600.0


class Claims:
    """The claims of one box. `on_other` is called with a job that is this box's and that another one was sent."""

    def __init__(self, topics: Topics, client: MqttClient, counts: Counts, wall: Callable[[], float]) -> None:
        self.on_other: Callable[[str], None] = lambda job: None
        self._topics = topics
        self._client = client
        self._counts = counts
        self._wall = wall
        self._leases = Leases()
        #: Jobs that this box runs or waits to run, and whether the broker has passed on its claim.
        self._open: dict[str, tuple[JobRow, trio.Event]] = {}
        #: When claims on jobs that are over are taken back, by the wall clock.
        self._over: dict[str, float] = {}
        self._up = trio.Event()

    def went_up(self) -> None:
        """There is a connection, and topics are subscribed to: claims are made anew, it may be another broker."""
        self._up.set()
        for row, _ in self._open.values():
            self._claim(row)

    def went_down(self) -> None:
        """There is no connection."""
        self._up = trio.Event()

    async def claimed(self, row: JobRow) -> bool:
        """Claim a job that other boxes may have been sent too; whether this box may run it.

        Waits for a connection, and then for the broker to pass the claim on. `over` or `give_way` is to follow.
        Cancel-safe.
        """
        echoed = trio.Event()
        self._open[row.id] = row, echoed
        if self._up.is_set():
            self._claim(row)
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
        return self.holder(row.id) in (None, self._topics.node)

    def holder(self, job: str) -> str | None:
        """The box whose job it is, as far as claims tell."""
        return self._leases.holder(job, self._wall())

    def over(self, job: str) -> None:
        """A job is not run any more; the claim stands for a while, for those who send it again."""
        if self._open.pop(job, None) is not None:
            self._over[job] = self._wall() + CLAIM_KEEP

    def give_way(self, job: str) -> None:
        """Take this box's claim back at once."""
        self._open.pop(job, None)
        self._take_back(job)

    def tidy(self) -> None:
        """Take back claims whose time is over, and forget those of others."""
        now = self._wall()
        self._leases.forget_old(now)
        for job, until in list(self._over.items()):
            if until <= now and job not in self._open:
                del self._over[job]
                self._take_back(job)

    def _claim(self, row: JobRow) -> None:
        until = row.deadline + CLAIM_KEEP
        granted = self._client.granted
        payload = claim_payload(row.id, until, granted is not None and granted.shares)
        sent = Sent(expiry=round(until - self._wall()))
        self._client.send_now(self._topics.lease(row.id), payload, qos=1, retain=True, sent=sent)

    def _take_back(self, job: str) -> None:
        self._client.send_now(self._topics.lease(job), b"", qos=1, retain=True)

    # --- messages of the broker --------------------------------------------------------------------------------------

    def heard(self, message: Incoming) -> None:
        """A box claims a job, or takes its claim back."""
        message.settle()
        found = self._topics.leased(message.topic)
        if found is None:
            return
        node, job = found
        own = node == self._topics.node
        claim = read_claim(node, job, message.payload, self._wall())
        if own and message.retain:
            # Of an earlier process of this box: it claims anew what it still has.
            if claim is not None and job not in self._open and job not in self._over:
                self._over[job] = min(claim.until, self._wall() + CLAIM_KEEP)
        elif claim is None:
            self._leases.taken_back(job, node)
        else:
            self._leases.heard(job, claim)
            if own:
                if job in self._open:
                    self._open[job][1].set()
            elif claim.alone and not message.retain and self.holder(job) == self._topics.node:
                self.on_other(job)

    def availability(self, message: Incoming) -> None:
        """A box is there, or has gone."""
        message.settle()
        node = self._topics.available(message.topic)
        if node is not None and node != self._topics.node:
            self._leases.available(node, message.payload == b"online")
