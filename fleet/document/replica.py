"""A replica: the set of ops of this box in memory and on disk, its view, and who is told when it changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import structlog
import trio

from fleet.document.clock import HybridClock
from fleet.document.collector import collector_paused
from fleet.document.op import Kind, Op, read_op, signature_holds, write_op
from fleet.document.opset import OpSet
from fleet.document.view import Governance, View
from fleet.errors import RefusedOpError, StoreError
from fleet.identity.genesis import Genesis
from fleet.identity.keys import Identity

log = structlog.get_logger("shoal.document")

#: Fewer ops than this are checked where they are; more in a thread, so that the box goes on answering.
_INLINE: Final = 8
#: Ops checked, and then committed, together: about 10 ms.
_BATCH: Final = 256
#: Threads that check, however many offers there are: more are no faster, and would crowd out what the box is there for.
_CHECKERS: Final = 2


class Store(Protocol):
    """Where ops are kept; `fleet.document.store.OpStore` is the one on disk. Both methods block."""

    def commit(self, added: Iterable[Op], dropped: Iterable[Op]) -> None:
        """Write one change durably, or raise StoreError."""

    def close(self) -> None:
        """Let go of the files."""


@dataclass(frozen=True)
class Outcome:
    """What became of one offered op. `reason` is the code of a refusal, `op_id` None where it could not be read."""

    op_id: bytes | None
    state: Literal["new", "held", "refused"]
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """What one commit changed. `governance` is set where it may have changed who is in, who may do what, or what
    should be where."""

    added: tuple[Op, ...]
    dropped: tuple[Op, ...]
    governance: bool


@dataclass(frozen=True)
class Draft:
    """An op to be written here: its seq, time and signature are added."""

    kind: Kind
    path: str
    body: object
    sup: tuple[bytes, ...] = ()


Listener = Callable[[Change], None]
#: An op that could be read, and what is wrong with it.
_Checked = tuple[Op | None, str | None]


@dataclass
class _Half:
    """Half a batch, and what checking it found: signatures are checked outside the interpreter's lock, on two cores."""

    raws: Sequence[bytes]
    checked: list[_Checked] = field(default_factory=list)


def _halves(raws: Sequence[bytes]) -> list[Sequence[bytes]]:
    if len(raws) <= 2 * _INLINE:
        return [raws] if raws else []
    middle = len(raws) // 2
    return [raws[:middle], raws[middle:]]


class Replica:
    """One box's copy of the fleet document. All methods belong to one trio run, but for the constructor.

    `store` None keeps it in memory only. `wall_ms` is the wall clock, in milliseconds since the epoch.
    """

    def __init__(
        self,
        genesis: Genesis,
        ops: Iterable[Op] = (),
        store: Store | None = None,
        *,
        wall_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        verify: Callable[[Op], bool] = signature_holds,
    ) -> None:
        self.genesis: Final = genesis
        self.fleet_id: Final = genesis.fleet_id
        self.ops: Final = OpSet(genesis)
        self.refused: Final[Counter[str]] = Counter()
        self._store = store
        self._wall_ms = wall_ms
        self._verify = verify
        self._clock = HybridClock()
        self._listeners: list[Listener] = []
        self._lock = trio.Lock()
        self._checkers = trio.CapacityLimiter(_CHECKERS)
        self._changed = trio.Event()
        self._unsaved: list[Change] = []
        self._governance: tuple[int, Governance] | None = None
        self._view: tuple[int, View] | None = None
        with collector_paused():
            self.ops.restore(ops)
            now = wall_ms()
            for op in self.ops.ops():
                self._clock.observe(op.hlc, now)

    @property
    def view(self) -> View:
        """The view of what is held now; folded when asked for, and kept until something changes."""
        if self._governance is None or self._governance[0] != self.ops.authority_version:
            self._governance = (self.ops.authority_version, Governance(self.genesis, self.ops.governing_ops()))
        if self._view is None or self._view[0] != self.ops.version:
            self._view = (self.ops.version, View(self.genesis, self._governance[1], self.ops.facts()))
        return self._view[1]

    @property
    def governance(self) -> Governance:
        """The part of the view that admins and joins decide; cheap to ask after a change of mere facts."""
        if self._governance is None or self._governance[0] != self.ops.authority_version:
            return self.view.governance
        return self._governance[1]

    @property
    def unsaved(self) -> bool:
        """True while the disk does not take what was accepted; see StoreError in the log."""
        return bool(self._unsaved)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after every commit, in order, in this task's thread; it must not block or raise.

        Returns what ends the subscription.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_change(self) -> None:
        """Return after the next commit."""
        await self._changed.wait()

    async def offer(self, raws: Sequence[bytes]) -> list[Outcome]:
        """Take ops in, from wherever they come; one outcome for each, in order.

        New ones are on disk when this returns. Raises StoreError where the disk does not take them: they are then not
        acknowledged, are tried again with the next, and are not passed on. A refusal is an outcome, never an error.
        The event loop runs on: all but acceptance is done in threads. Cancelling it leaves what was committed so far,
        after at most the 256 ops that are being checked or written, some 10 ms.
        """
        batches = [raws[start : start + _BATCH] for start in range(0, len(raws), _BATCH)]
        outcomes: list[Outcome] = []
        checked: list[_Checked] = []
        for index in range(-1, len(batches)):
            following = batches[index + 1] if index + 1 < len(batches) else ()
            failed: StoreError | None = None
            # One batch is checked while the one before it is written.
            async with trio.open_nursery() as nursery:
                halves = [_Half(half) for half in _halves(following)]
                for half in halves:
                    nursery.start_soon(self._check_half, half)
                if checked:
                    try:
                        outcomes += await self._admit(checked)
                    except StoreError as error:
                        failed = error
                        nursery.cancel_scope.cancel()
            if failed is not None:
                raise failed
            checked = [one for half in halves for one in half.checked]
        return outcomes

    async def write(self, identity: Identity, kind: Kind, path: str, body: object, sup: Iterable[bytes] = ()) -> Op:
        """Write one op of this box's own, or of a key that this process holds; see `write_all`."""
        (op,) = await self.write_all(identity, [Draft(kind, path, body, tuple(sup))])
        return op

    async def write_all(self, identity: Identity, drafts: Sequence[Draft]) -> list[Op]:
        """Sign ops with the key's next seqs and commit them together; returns them once they are on disk.

        Raises RefusedOpError where the rules do not let this key write that, before anything is written for it, and
        StoreError as `offer` does.
        """
        async with self._lock:
            now, seq = self._wall_ms(), self.ops.highest_seq(identity.public_key)
            ops = [
                write_op(
                    identity,
                    self.fleet_id,
                    seq=seq + 1 + index,
                    hlc=self._clock.tick(now),
                    kind=draft.kind,
                    path=draft.path,
                    body=draft.body,
                    sup=draft.sup,
                )
                for index, draft in enumerate(drafts)
            ]
            outcomes = await self._commit([(op, None) for op in ops])
        for outcome in outcomes:
            if outcome.state == "refused":
                raise RefusedOpError(outcome.reason, f"this key may not write that here ({outcome.reason})")
        return ops

    async def _check_half(self, half: _Half) -> None:
        if len(half.raws) <= _INLINE:
            half.checked = self._check(half.raws)
        else:
            half.checked = await trio.to_thread.run_sync(self._check, half.raws, limiter=self._checkers)

    def _check(self, raws: Sequence[bytes]) -> list[_Checked]:
        """Limits, form, signature. Runs in a thread; touches nothing of this object but the set's ids.

        All are read before the first signature is looked at: signatures are checked outside the interpreter's lock, and
        two threads that also had to read ops in between would wait for one another most of the time.
        """
        checked: list[_Checked] = []
        for raw in raws:
            try:
                checked.append((read_op(raw), None))
            except RefusedOpError as error:
                checked.append((None, error.reason))
        for index, (op, _) in enumerate(checked):
            # The signature of one that is held was checked when it came.
            if op is not None and op.id not in self.ops and not self._verify(op):
                checked[index] = (op, "signature")
        return checked

    async def _admit(self, checked: Sequence[_Checked]) -> list[Outcome]:
        async with self._lock:
            return await self._commit(checked)

    async def _commit(self, checked: Sequence[_Checked]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        added: dict[bytes, Op] = {}
        dropped: list[Op] = []
        version = self.ops.authority_version
        now = self._wall_ms()
        for op, problem in checked:
            if op is None or problem is not None:
                outcomes.append(self._refusal(op, problem or "form"))
                continue
            try:
                admitted = self.ops.admit(op)
            except RefusedOpError as error:
                outcomes.append(self._refusal(op, error.reason))
                continue
            outcomes.append(Outcome(op.id, "new" if admitted.new else "held"))
            if admitted.new:
                added[op.id] = op
                self._clock.observe(op.hlc, now)
                for old in admitted.dropped:
                    if added.pop(old.id, None) is None:
                        dropped.append(old)
        if added:
            governance = self.ops.authority_version != version
            self._unsaved.append(Change(tuple(added.values()), tuple(dropped), governance))
        if self._unsaved:
            await self._save()
        return outcomes

    async def _save(self) -> None:
        """Commit what is not on disk yet, then tell the listeners."""
        changes = list(self._unsaved)
        if self._store is not None:
            # A thread cannot be cancelled: waiting for it keeps memory and disk together.
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(_commit, self._store, changes)
                except StoreError as error:
                    log.error("document.unsaved", reason=error.message, ops=sum(len(one.added) for one in changes))
                    raise
        self._unsaved.clear()
        for change in changes:
            self._tell(change)

    def _refusal(self, op: Op | None, reason: str) -> Outcome:
        self.refused[reason] += 1
        return Outcome(op.id if op else None, "refused", reason)

    def _tell(self, change: Change) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for listener in list(self._listeners):
            listener(change)

    def facts_of(self, author: bytes) -> Mapping[str, Op]:
        """The latest facts of one author by path."""
        return self.ops.facts().get(author, {})

    def live(self, kind: Literal["fw", "cfg"], path: str) -> tuple[Op, ...]:
        """The ops that decide a firewall entry or a setting now: what a new one has to name in `sup`."""
        return self.view.governance.live.get((kind, path), ())


def _commit(store: Store, changes: Sequence[Change]) -> None:
    """Write what several changes come to: an op that left the set in one may have come back with a later one."""
    added: dict[bytes, Op] = {}
    dropped: dict[bytes, Op] = {}
    for change in changes:
        for op in change.dropped:
            added.pop(op.id, None)
            dropped[op.id] = op
        added |= {op.id: op for op in change.added}
    store.commit(added.values(), dropped.values())
