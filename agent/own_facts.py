"""What this box says of itself in the fleet document: hardware, addresses, models, rates, what it consumed."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import psutil
import structlog
import trio

from agent.config import Config
from agent.engine.pool import HeldModel
from agent.hardware import gpu_name
from agent.membership import Membership
from agent.version import VERSION
from fleet import cbor
from fleet.document.clock import milliseconds
from fleet.document.facts import Node, Used, read_box
from fleet.document.replica import Change, Draft, Replica
from fleet.errors import FleetError
from fleet.identity.keys import public_key_from_peer_id

#: Changes that follow one another faster than this are written together (seconds).
_COALESCE: Final = 0.5
#: What was consumed changes with every job; it is written at most this often (seconds).
USED_INTERVAL: Final = 30.0
#: A measured rate is written again when it has moved by this share.
_RATE_STEP: Final = 0.1
#: How long a box that has neighbours waits to learn from one how far it had come, before it writes (seconds).
_LEARN_LIMIT: Final = 5.0
#: How long a box keeps quiet when another one with its key contradicts it, at first and at most (seconds).
_CLONE_PAUSE: Final = 10.0
_LONGEST_CLONE_PAUSE: Final = 600.0
#: Peers whose accounts are kept; beyond, the smallest are no longer written.
_MAX_ACCOUNTS: Final = 128
#: Models the document is told of, two facts each, and boxes that are gone. With the accounts and what else there is,
#: that is less than a box may have (`MAX_FACTS`): one fact more would push out the oldest, which would be written
#: again, without end.
MAX_MODELS: Final = 48
_MAX_GONE: Final = 24

log = structlog.get_logger("shoal.facts")


@dataclass(frozen=True)
class Stored:
    """A file of a model in this box's store: how much of it is there, 0 to 1, and its whole size in bytes."""

    hash: str
    name: str
    size: int
    complete: float


@dataclass(frozen=True)
class Room:
    """Bytes of further models that the disk takes, and of memory that models may take."""

    space: int
    budget: int


@dataclass
class Accounts:
    """What this box consumed from others since it joined, by public key."""

    by_peer: dict[bytes, Used]
    on_change: Callable[[], None]

    def note(self, peer_id: str, tokens: int, failed: bool) -> None:
        """One job that a peer ran for this box, or failed to."""
        try:
            key = public_key_from_peer_id(peer_id)
        except FleetError:
            return
        known = self.by_peer.get(key) or Used(key)
        self.by_peer[key] = replace(
            known,
            jobs=known.jobs + (not failed),
            tokens=known.tokens + tokens,
            failures=known.failures + failed,
        )
        self.on_change()


class OwnFacts:
    """Keeps this box's facts in the document as they are; nothing polls, it is told."""

    def __init__(
        self,
        config: Config,
        membership: Membership,
        *,
        addrs: Callable[[], tuple[str, ...]],
        models: Callable[[], tuple[HeldModel, ...]],
        learnt: trio.Event,
        stored: Callable[[], Sequence[Stored]] = tuple,
        room: Callable[[], Room | None] = lambda: None,
        gone: Callable[[], Iterable[bytes]] = tuple,
    ) -> None:
        """`stored` are the files of its store, `room` what there is for more, None where that is not known; `gone` are
        the keys of boxes that this one cannot reach for long and is to tell the fleet of."""
        self._config = config
        self._membership = membership
        self._addrs = addrs
        self._models = models
        self._learnt = learnt
        self._stored = stored
        self._look = room
        self._gone = gone
        self._room: Room | None = None
        self._gpu = gpu_name()
        #: Grows with each time that this box contradicts one that says it is gone; 0 before the first.
        self._here = 0
        self._instance = secrets.token_hex(8)
        self._wake = trio.Event()
        self._used_written = -USED_INTERVAL
        self._started_ms = int(time.time() * 1000)
        self._quiet_until = 0.0
        self.accounts = Accounts({}, self._used_changed)
        self.clones = 0

    def note_change(self) -> None:
        """Something about this box may have changed."""
        self._wake.set()

    def _used_changed(self) -> None:
        if trio.current_time() - self._used_written >= USED_INTERVAL:
            self._wake.set()

    async def run(self) -> None:
        """Write what changed, soon after it changed, until cancelled."""
        replica = await self._membership.wait_belongs()
        with trio.move_on_after(_LEARN_LIMIT):
            await self._learnt.wait()
        self._take_up(replica)
        self._membership.subscribe(self._watch)
        while True:
            self._wake = trio.Event()
            await trio.sleep(max(0.0, self._quiet_until - trio.current_time()))
            await self.flush()
            with trio.move_on_after(USED_INTERVAL):
                await self._wake.wait()
            await trio.sleep(_COALESCE)

    async def flush(self, *, last: bool = False) -> None:
        """Write what differs from what the document says; a disk that does not take it is tried again later.

        The `last` time accounts are written however recently they were.
        """
        replica = self._membership.replica
        if replica is None or not self._is_member(replica):
            return
        if last:
            self._used_written = -USED_INTERVAL
        drafts = [Draft("node", path, body) for path, body in self._due(replica).items()]
        if not drafts:
            return
        try:
            await replica.write_all(self._membership.identity, drafts)
        except FleetError as error:
            log.warning("facts.unwritten", reason=error.message)

    def _is_member(self, replica: Replica) -> bool:
        return self._membership.identity.public_key in replica.governance.authority.members

    def _take_up(self, replica: Replica) -> None:
        """Go on counting from what was written in an earlier life of this process."""
        box = replica.view.box(self._membership.identity.public_key)
        for used in box.used:
            fresh = self.accounts.by_peer.get(used.peer) or Used(used.peer)
            self.accounts.by_peer[used.peer] = Used(
                used.peer, used.jobs + fresh.jobs, used.tokens + fresh.tokens, used.failures + fresh.failures
            )

    def _watch(self, change: Change) -> None:
        """Ops of this box's own key that it did not write: a restored backup, or a second live box with the key.

        The two would answer one another for ever, so each contradicts the other more and more slowly.
        """
        own = self._membership.identity.public_key
        for op in change.added:
            if op.path == f"gone/{own.hex()}" and op.author != own and op.body == cbor.encode(True):
                self._here += 1
                self._wake.set()
            if op.author == own and op.path == "node" and milliseconds(op.hlc) > self._started_ms:
                instance = read_box(own, {"node": op}).node.instance
                if instance != self._instance:
                    self.clones += 1
                    pause = min(_CLONE_PAUSE * 2 ** (self.clones - 1), _LONGEST_CLONE_PAUSE)
                    self._quiet_until = trio.current_time() + pause
                    log.error(
                        "identity.cloned",
                        instance=instance,
                        times=self.clones,
                        remedy="another live box has this box's key; give one of them an identity of its own",
                    )
        if change.governance or any(op.author == own for op in change.added):
            self._wake.set()

    def _due(self, replica: Replica) -> Mapping[str, object]:
        """The facts that are to be written, by path; None takes one back."""
        facts = replica.facts_of(self._membership.identity.public_key)
        wanted = self._wanted(replica)
        due: dict[str, object] = {
            path: body for path, body in wanted.items() if path not in facts or facts[path].body != cbor.encode(body)
        }
        nothing = cbor.encode(None)
        for path, op in facts.items():
            if path not in wanted and op.body != nothing and not path.startswith("used/"):
                due[path] = None
        now = trio.current_time()
        if now - self._used_written < USED_INTERVAL:
            due = {path: body for path, body in due.items() if not path.startswith("used/")}
        elif any(path.startswith("used/") for path in due):
            self._used_written = now
        return due

    def _wanted(self, replica: Replica) -> dict[str, object]:
        wanted: dict[str, object] = {"node": self._node().body(), "addr": list(self._addrs()[:16])}
        published = replica.facts_of(self._membership.identity.public_key)
        if self._here:
            wanted["here"] = self._here
        for key in sorted(self._gone())[:_MAX_GONE]:
            wanted[f"gone/{key.hex()}"] = True
        run = documented(self._models())
        stored = [one for one in self._stored() if all(one.hash != held.hash for held in run)]
        for one in stored[: MAX_MODELS - len(run)]:
            wanted[f"hold/{one.hash}"] = {"name": one.name, "size": one.size, "complete": one.complete}
        for held in run:
            wanted[f"hold/{held.hash}"] = {"name": held.name, "size": held.size_bytes, "complete": 1.0}
            if held.decode_rate is not None:
                path = f"perf/{held.hash}"
                wanted[path] = performance(held)
                if path in published and is_near(cbor.decode(published[path].body), wanted[path]):
                    wanted[path] = cbor.decode(published[path].body)
        largest = sorted(self.accounts.by_peer.values(), key=lambda used: (-used.tokens, used.peer))
        for used in largest[:_MAX_ACCOUNTS]:
            body = {"jobs": used.jobs, "tokens": used.tokens, "failures": used.failures}
            wanted[f"used/{used.peer.hex()}"] = body
        return wanted

    def _node(self) -> Node:
        found = self._look()
        if found is not None:
            known = self._room or Room(0, 0)
            self._room = Room(steady(known.space, found.space), steady(known.budget, found.budget))
        return Node(
            name=self._config.name,
            version=VERSION,
            labels=tuple(sorted(self._config.labels.items())),
            arch=platform.machine(),
            cpus=psutil.cpu_count() or 0,
            memory=psutil.virtual_memory().total,
            disk=psutil.disk_usage(str(self._config.state_dir)).total,
            gpu=self._gpu,
            instance=self._instance,
            space=self._room.space if self._room else None,
            budget=self._room.budget if self._room else None,
        )


def steady(told: int, now: int) -> int:
    """What the document is told of an amount that wanders: never more than there is, and the same for small changes."""
    return told if now * 0.9 <= told <= now else now - now // 20


def documented(models: Iterable[HeldModel]) -> list[HeldModel]:
    """The models that the document is told of: the first that have a hash and are lent, of each hash one."""
    kept: dict[str, HeldModel] = {}
    for held in models:
        if held.hash and held.lend and len(kept) < MAX_MODELS:
            kept.setdefault(held.hash, held)
    return list(kept.values())


def performance(held: HeldModel) -> dict[str, object]:
    """What the document is told of how fast a model is here; of what is not known, nothing."""
    rates = {"decode": held.decode_rate, "prefill": held.prefill_rate}
    said: dict[str, object] = {name: float(f"{rate:.3g}") for name, rate in rates.items() if rate}
    if held.engine_version:
        said["engine"] = held.engine_version
    return said


def is_near(old: object, new: object) -> bool:
    """Whether every rate has moved by less than a tenth: measurements wander, and each write goes to every box."""
    if not isinstance(old, dict) or not isinstance(new, dict) or set(old) != set(new):
        return False
    return all(_is_near(old[key], new[key]) for key in new)


def _is_near(old: object, new: object) -> bool:
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return old == new
    return abs(old - new) <= _RATE_STEP * max(abs(old), 1e-9)
