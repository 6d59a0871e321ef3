"""Simulated boxes of a swarm and the links between them: the choices are the product's, time and bytes are modelled.

A link carries as many bytes a second up as down. The blocks that a box is sending share its uplink evenly, those that
it is being sent share its downlink evenly, and each goes at the smaller of its two shares; what one leaves of its share
nobody else gets, which is worse than what TCP makes of it. Messages take half a round trip.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.blobs.bitfield import Bitfield
from fleet.blobs.nearness import Candidate, choose_sources
from fleet.blobs.picker import Picker
from fleet.blobs.seeding import SuperSeeder
from fleet.blobs.slots import Slots

#: Seconds there and back: on one site, and between two.
RTT_SITE: Final = 0.001
RTT_FAR: Final = 0.020
#: The part of a link from which on it counts as used up.
FULL: Final = 0.999
#: Seconds between the looks that boxes take at what has become late.
TICK: Final = 0.5
#: Seconds until a box that got a block has said so.
SAID_AFTER: Final = 0.02


@dataclass(frozen=True)
class Plan:
    """One run: `boxes` fetch `blocks` from one that has them; `block_seconds` is what a block takes a whole link."""

    boxes: int
    blocks: int
    block_seconds: float
    sites: int
    seed: str
    order: str = "rarest first"
    picker: Callable[[int, Bitfield, random.Random], Picker] = Picker
    #: None: the first holder shows all it has.
    seeder: Callable[[int, random.Random], SuperSeeder] | None = SuperSeeder


@dataclass(slots=True)
class Link:
    """One direction of a box's link: the lanes that a block is on its way in, and how much of it they take, 0 to 1."""

    lanes: list[Lane] = field(default_factory=list)
    used: float = 0.0


@dataclass(slots=True, eq=False)
class Lane:
    """What one box sends another: the blocks asked for, and the one on its way (`left` seconds of a whole link)."""

    source: Box
    target: Box
    half_rtt: float
    #: The names of the two, what the one chooses with and what the other shares out with: looked up very often.
    giver: str = field(init=False)
    taker: str = field(init=False)
    picker: Picker = field(init=False)
    slots: Slots = field(init=False)
    queue: deque[int] = field(default_factory=deque)
    block: int = -1
    left: float = 0.0
    rate: float = 0.0
    since: float = 0.0
    due: float = math.inf
    event: float = math.inf
    #: What the target knows: how many blocks it may still ask for, and whether it has asked for a turn.
    credit: int = 0
    wanted: bool = False

    def __post_init__(self) -> None:
        self.giver, self.slots = self.source.name, self.source.slots
        self.taker, self.picker = self.target.name, self.target.picker


@dataclass(slots=True, eq=False)
class Box:
    """One box. `following` are its lanes from others, `followers` those to others, by name."""

    name: str
    site: str
    picker: Picker
    slots: Slots
    seeder: SuperSeeder | None = None
    following: dict[str, Lane] = field(default_factory=dict)
    followers: dict[str, Lane] = field(default_factory=dict)
    up: Link = field(default_factory=Link)
    down: Link = field(default_factory=Link)
    done: float | None = None


class Swarm:
    """A run of a plan; `run` returns when each box was done (seconds)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.sent = 0
        self.first_sent = 0
        self._rng = random.Random(f"swarm {plan.seed}")
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._left = plan.boxes
        self.boxes = [self._make(number) for number in range(plan.boxes + 1)]
        self.first = self.boxes[0]
        self._connect()

    def _make(self, number: int) -> Box:
        plan = self.plan
        rng = random.Random(f"{plan.seed} {number}")
        site = f"site-{number % plan.sites}"
        if number:
            return Box(f"box-{number:05}", site, plan.picker(plan.blocks, Bitfield(plan.blocks), rng), Slots())
        nothing = Picker(plan.blocks, Bitfield.full(plan.blocks), rng)
        return Box("first", site, nothing, Slots(), plan.seeder and plan.seeder(plan.blocks, rng), done=0.0)

    def _connect(self) -> None:
        by_name = {box.name: box for box in self.boxes}
        for box in self.boxes[1:]:
            candidates = [
                Candidate(
                    other.name,
                    RTT_SITE if other.site == box.site else RTT_FAR,
                    other.site,
                    complete=other is self.first,
                )
                for other in self.boxes
                if other is not box
            ]
            for name in choose_sources(candidates, box.site, (), self._rng):
                source = by_name[name]
                rtt = RTT_SITE if source.site == box.site else RTT_FAR
                lane = Lane(source, box, rtt / 2)
                box.following[name] = lane
                source.followers[box.name] = lane
                shows_all = source is self.first and source.seeder is None
                bits = Bitfield.full(self.plan.blocks) if shows_all else Bitfield(self.plan.blocks)
                box.picker.peer_up(name, bits, rtt=rtt)
        for box in self.boxes[1:]:
            for lane in box.following.values():
                if lane.source.seeder is not None:
                    lane.source.seeder.peer_up(box.name)
                    self._at(lane.half_rtt, self._want, lane)
                self._look(lane)
        self._at(TICK, self._tick)

    def run(self, until: float = float("inf")) -> list[float]:
        """Go on until all are done, nothing happens any more, or until that time."""
        events, pop = self._events, heapq.heappop
        while events and self._left and self.now < until:
            self.now, _, act, arguments = pop(events)
            act(*arguments)
        return [box.done if box.done is not None else float("inf") for box in self.boxes[1:]]

    def _at(self, delay: float, act: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, act, arguments))

    # --- the side that fetches ----------------------------------------------------------------------------------------

    def _look(self, lane: Lane) -> None:
        """Ask for a turn, or for blocks, as far as there is need."""
        picker, name = lane.picker, lane.giver
        if lane.credit:
            count, depth = len(picker.asked(name)), picker.depth(name)
            while lane.credit and count < depth:
                index = picker.next(name, self.now)
                if index is None:
                    if not count:
                        lane.credit = 0
                        self._at(lane.half_rtt, self._finish, lane)
                    return
                count += 1
                lane.credit -= 1
                self._at(lane.half_rtt, self._ask, lane, index)
        if not (lane.credit or lane.wanted) and picker.wants(name, self.now):
            lane.wanted = True
            self._at(lane.half_rtt, self._want, lane)

    def _granted(self, lane: Lane, blocks: int, revealed: Sequence[int]) -> None:
        for index in revealed:
            lane.picker.peer_have(lane.giver, index)
        lane.wanted = False
        lane.credit += blocks
        self._look(lane)

    def _refused(self, lane: Lane, index: int) -> None:
        lane.picker.failed(lane.giver, index)
        lane.credit = 0
        self._look(lane)

    def _arrived(self, lane: Lane, index: int) -> None:
        box, picker = lane.target, lane.picker
        if picker.received(lane.giver, index, self.now):
            for other in picker.to_cancel(index):
                loser = box.following[other]
                self._at(loser.half_rtt, self._cancel, loser, index)
                self._look(loser)
            self._at(SAID_AFTER, self._say, box, index)
            if not picker.remaining:
                box.done = self.now
                self._left -= 1
                for one in box.following.values():
                    self._at(one.half_rtt, self._finish, one)
                return
        self._look(lane)
        self._look_for_more(box)

    def _look_for_more(self, box: Box) -> None:
        """Ask others for a turn where there is room for another source."""
        picker = box.picker
        if not picker.enough:
            for lane in box.following.values():
                if not lane.wanted and not lane.credit and picker.wants(lane.giver, self.now):
                    lane.wanted = True
                    self._at(lane.half_rtt, self._want, lane)

    # --- the side that gives ------------------------------------------------------------------------------------------

    def _say(self, box: Box, index: int) -> None:
        name = box.name
        for lane in box.followers.values():
            picker = lane.picker
            if picker.peer_have(name, index) and (lane.credit or not (lane.wanted or picker.enough)):
                self._look(lane)

    def _want(self, lane: Lane) -> None:
        lane.slots.want(lane.taker, near=lane.half_rtt == RTT_SITE / 2)
        self._share_out(lane.source)

    def _finish(self, lane: Lane) -> None:
        lane.slots.finish(lane.taker)
        if lane.source.seeder is not None:
            self._over(lane)
        self._share_out(lane.source)

    def _over(self, lane: Lane) -> None:
        """A super-seeder wants the next turn on behalf of its follower."""
        seeder = lane.source.seeder
        if seeder is not None and lane.target.done is None:
            seeder.turn_over(lane.taker)
            lane.slots.want(lane.taker, near=lane.half_rtt == RTT_SITE / 2)

    def _ask(self, lane: Lane, index: int) -> None:
        if not lane.slots.asked(lane.taker, self.now):
            self._at(lane.half_rtt, self._refused, lane, index)
            return
        lane.queue.append(index)
        if lane.block < 0:
            self._begin(lane)

    def _cancel(self, lane: Lane, index: int) -> None:
        if index in lane.queue:
            lane.queue.remove(index)
        elif lane.block == index:
            lane.block = -1
            self._next(lane)
        else:
            return
        self._out(lane)

    def _sent(self, lane: Lane, when: float) -> None:
        if when != lane.event:
            return
        if lane.due > self.now:
            self._push(lane)
            return
        lane.event = math.inf
        index = lane.block
        self.sent += 1
        self._at(lane.half_rtt, self._arrived, lane, index)
        seeder = lane.source.seeder
        if lane.source is self.first:
            self.first_sent += 1
        if seeder is not None:
            seeder.sent(lane.taker, index)
            if seeder.done:
                self._show_all(lane.source)
        self._next(lane)
        self._out(lane)

    def _out(self, lane: Lane) -> None:
        lane.slots.sent(lane.taker, self.now)
        if lane.source.seeder is not None and lane.taker not in lane.slots.holders:
            self._over(lane)
        self._share_out(lane.source)

    def _share_out(self, box: Box) -> None:
        for turn in box.slots.grant(self.now):
            lane = box.followers[turn.peer]
            revealed = () if box.seeder is None else box.seeder.reveal(turn.peer, turn.blocks)
            self._at(lane.half_rtt, self._granted, lane, turn.blocks, revealed)

    def _tick(self) -> None:
        for box in self.boxes:
            self._share_out(box)
            if box.done is None:
                self._look_for_more(box)
        self._at(TICK, self._tick)

    def _show_all(self, box: Box) -> None:
        box.seeder = None
        for lane in box.followers.values():
            self._at(lane.half_rtt, self._shown, lane)

    def _shown(self, lane: Lane) -> None:
        lane.picker.peer_up(lane.giver, Bitfield.full(self.plan.blocks))
        self._look(lane)

    # --- the links ----------------------------------------------------------------------------------------------------

    def _begin(self, lane: Lane) -> None:
        lane.block = lane.queue.popleft()
        lane.left = self.plan.block_seconds
        lane.since = self.now
        lane.source.up.lanes.append(lane)
        lane.target.down.lanes.append(lane)
        self._share(lane)

    def _next(self, lane: Lane) -> None:
        """The block that was on its way is not any more: send the next, or leave the links to others."""
        lane.block = -1
        if lane.queue:
            lane.block = lane.queue.popleft()
            lane.left = self.plan.block_seconds
            lane.since = self.now
            self._schedule(lane)
            return
        up, down = lane.source.up, lane.target.down
        for link in (up, down):
            link.lanes.remove(lane)
            link.used -= lane.rate
        lane.rate = 0.0
        lane.due = lane.event = math.inf
        # Others may use what this one did, as far as their other ends let them.
        if any(one.target.down.used < FULL for one in up.lanes):
            self._fill(up)
        if any(one.source.up.used < FULL for one in down.lanes):
            self._fill(down)

    def _share(self, lane: Lane) -> None:
        """Share the links of a lane that has begun anew, then those that are asked for too much by that."""
        full: list[Link] = []
        self._fill(lane.source.up, full)
        self._fill(lane.target.down, full)
        for link in full:
            if link.used > 1.000001:
                self._fill(link)

    def _fill(self, link: Link, full: list[Link] | None = None) -> None:
        """Share a link evenly, but for what lanes cannot use because of their other end. With `full` a lane may take
        an even share of its other end even where that is used up already; that end is then added to `full`."""
        limited = []
        for lane in link.lanes:
            other = lane.target.down if link is lane.source.up else lane.source.up
            limit = 1.0 - other.used + lane.rate
            if full is not None:
                limit = max(limit, 1 / len(other.lanes))
            limited.append((max(0.0, limit), lane, other))
        limited.sort(key=_limit)
        left, count = 1.0, len(limited)
        for limit, lane, other in limited:
            rate = min(limit, left / count)
            left -= rate
            count -= 1
            change = rate - lane.rate
            if not -1e-6 < change < 1e-6:
                link.used += change
                other.used += change
                if full is not None and other.used > 1.000001:
                    full.append(other)
                lane.left -= (self.now - lane.since) * lane.rate
                lane.since = self.now
                lane.rate = rate
                self._schedule(lane)

    def _schedule(self, lane: Lane) -> None:
        lane.due = self.now + max(0.0, lane.left) / lane.rate if lane.rate > 1e-9 else math.inf
        # What is due later than it was is looked at when it was due.
        if lane.due < lane.event:
            self._push(lane)

    def _push(self, lane: Lane) -> None:
        lane.event = lane.due
        if lane.due < math.inf:
            self._count += 1
            heapq.heappush(self._events, (lane.due, self._count, self._sent, (lane, lane.due)))


def _limit(entry: tuple[float, Lane, Link]) -> float:
    return entry[0]
