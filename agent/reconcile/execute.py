"""Doing what the plan says: fetching, serving, withdrawing and deleting models, one action after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from agent.config import ModelConfig
from agent.engine.pool import EnginePool
from agent.reconcile.checking import check
from agent.reconcile.homes import SCOPE_BLOBS
from agent.reconcile.look import Look, Rules, Work
from agent.reconcile.pins import Pins
from agent.reconcile.plan import (
    Action,
    Actual,
    Adopt,
    Check,
    Drop,
    Fetch,
    Fetching,
    Serve,
    Stop,
    Withdraw,
    plan,
)
from agent.reconcile.schedule import Window
from agent.reconcile.situation import Situation
from agent.reconcile.transfers import Steps, Transfer, Transfers, fetch_look
from fleet.blobs.account import Account
from fleet.blobs.errors import BlobError
from fleet.blobs.manifest import Manifest
from fleet.blobs.store import BlobStore
from fleet.errors import FleetError

#: How much longer than working out what the document means the rest after it is: a large fleet is not to keep a small
#: box busy.
_REST: Final = 20.0
_LEAST_REST: Final = 0.1
_MOST_REST: Final = 60.0
#: Actions between two looks: more than there can be sensibly, so that a mistake does not become a busy loop.
_MOST_ACTIONS: Final = 64

log = structlog.get_logger("shoal.reconcile")


class Fleet(Protocol):
    """What the executor asks of the fleet around it."""

    def situation(self) -> Awaitable[Situation | None]:
        """What the document means for this box now; None where it belongs to no fleet. Does not block the loop."""

    def window(self, situation: Situation) -> Window:
        """When models may travel."""

    def fetch(self, manifest: Manifest, account: Account) -> Awaitable[Path]:
        """Fetch a blob into the store; see `fleet.blobs.swarm.fetch`."""

    def name_of(self, peer_id: str) -> str:
        """What people call a box."""

    def missed(self) -> Collection[bytes]:
        """The boxes that this one cannot reach now, if only for a moment: no copy there is counted on."""

    def note_change(self) -> None:
        """What this box holds has changed: tell others, soon."""


class _Counted(Account):
    """An account that remembers who gave how many bytes, also of those that have gone since."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.given: Counter[str] = Counter()

    def moved(self, peer: str, size: int) -> None:
        """Bytes of a block came; called by threads, one a source."""
        self.given[peer] += size
        super().moved(peer, size)


@dataclass
class _Fetch:
    scope: trio.CancelScope
    account: _Counted
    transfer: Transfer
    over: trio.Event = field(default_factory=trio.Event)


@dataclass
class Ended:
    """What became of the fetches that are over: bytes that came, bytes of these that were for nothing, and how many
    ended how (`done`, `failed`, `stopped`)."""

    received: int = 0
    wasted: int = 0
    fetches: Counter[str] = field(default_factory=Counter)


class Executor:
    """Keeps the models of this box as the document wants them. One task (`run`); all else returns at once.

    `pins` are what an operator asked for here. The store is open for as long as `run` runs.
    """

    def __init__(
        self, store: BlobStore, pool: EnginePool, fleet: Fleet, pins: Pins, transfers: Transfers, rules: Rules
    ) -> None:
        self._store = store
        self._pool = pool
        self._fleet = fleet
        self._pins = pins
        self._transfers = transfers
        #: The last look at the document and at this box; None before the first.
        self.situation: Situation | None = None
        self.actual = Actual()
        #: Models whose files somebody works on: they are not deleted meanwhile.
        self.busy: set[str] = set()
        #: Models that are about to be deleted: no longer told of.
        self.leaving: set[str] = set()
        #: Of the fetches since the agent started.
        self.ended = Ended()
        self._fetches: dict[str, _Fetch] = {}
        self._adopting: set[str] = set()
        self._look = Look(store, pool, pins, rules)
        #: Seconds that it takes to work out what the document means.
        self._looking = 0.0
        self._wake = trio.Event()
        self._looked = trio.Event()

    def note_change(self) -> None:
        """The document, the pool, the store or the pins may have changed."""
        self._wake.set()

    def running(self) -> Iterable[Account]:
        """The accounts of the fetches that run."""
        return [fetch.account for fetch in self._fetches.values()]

    def forgive(self, model_hash: str) -> None:
        """Try at once what failed before."""
        self._look.forgive(model_hash)
        self.note_change()

    async def looked(self) -> None:
        """Wake it, and return after it has looked again and done what could be done at once."""
        self._wake.set()
        await self._looked.wait()

    async def run(self) -> None:
        """Keep on until cancelled; fetches that run are then left so that they go on from where they were."""
        async with trio.open_nursery() as nursery:
            while True:
                # Whoever asks from here on is answered by the next look: this one may not see what he means.
                self._wake, looked, self._looked = trio.Event(), self._looked, trio.Event()
                self._looking = 0.0
                window = await self._work(nursery)
                looked.set()
                with trio.move_on_after(self._look.until_next(window)):
                    await self._wake.wait()
                await trio.sleep(max(_LEAST_REST, min(self._looking * _REST, _MOST_REST)))

    async def _work(self, nursery: trio.Nursery) -> Window:
        """Act until there is nothing to do."""
        window = Window()
        for _ in range(_MOST_ACTIONS):
            began = trio.current_time()
            self.situation = await self._fleet.situation()
            self._looking = max(self._looking, trio.current_time() - began)
            if self.situation is None:
                return window
            window = self._fleet.window(self.situation)
            self.actual = await self._look.actual(self.situation, self._work_here(self.situation, window))
            action = plan(self.situation.desired, self.actual)
            if action is None:
                return window
            await self._do(action, self.situation, nursery)
        log.warning("models.restless", actions=_MOST_ACTIONS)
        return window

    def _work_here(self, situation: Situation, window: Window) -> Work:
        return Work(
            fetching=tuple(Fetching(blob, _moves(one.account)) for blob, one in self._fetches.items()),
            adopting=frozenset(self._adopting),
            busy=frozenset(self.busy),
            leaving=frozenset(self.leaving),
            closed=_barred(situation) or window.closed(datetime.now().astimezone()),
            missed=self._fleet.missed(),
        )

    # --- acting -------------------------------------------------------------------------------------------------------

    async def _do(self, action: Action, situation: Situation, nursery: trio.Nursery) -> None:
        name = situation.wishes.models[action.hash].name if action.hash in situation.wishes.models else action.hash
        match action:
            case Fetch(blob):
                self._begin(blob, situation, nursery)
            case Stop(blob, why):
                log.info("model.fetch_stopped", model=name, reason=why)
                fetch = self._fetches[blob]
                fetch.transfer.error = why
                fetch.scope.cancel()
                await fetch.over.wait()
            case Serve(blob):
                self._serve(blob, situation)
            case Withdraw(blob, why):
                log.warning("model.withdrawn", model=name, reason=why)
                await self._pool.remove(blob)
            case Check(blob):
                self.busy.add(blob)
                nursery.start_soon(self._check, blob, name)
            case Adopt(blob):
                self._adopting.add(blob)
                nursery.start_soon(self._adopt, blob, name)
            case Drop(blob, why):
                log.info("model.dropped", model=name, reason=why)
                await self.delete(blob)
        self._fleet.note_change()

    def _begin(self, blob: str, situation: Situation, nursery: trio.Nursery) -> None:
        model = situation.wishes.models[blob]
        assert model.manifest is not None  # the plan wants nothing without one
        account = _Counted(model.manifest)

        def look() -> Mapping[str, object]:
            return fetch_look(account.progress(), dict(account.given), self._fleet.name_of)

        transfer = self._transfers.begin("fetch", model.name, look, hash=blob)
        fetch = self._fetches[blob] = _Fetch(trio.CancelScope(), account, transfer)
        nursery.start_soon(self._fetch, blob, model.manifest, fetch)

    async def _fetch(self, blob: str, manifest: Manifest, fetch: _Fetch) -> None:
        name = fetch.transfer.name
        log.info("model.fetching", model=name, hash=blob, size=manifest.size)
        watching = trio.CancelScope()
        try:
            with fetch.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, fetch.account, watching)
                    path = await self._fleet.fetch(manifest, fetch.account)
                    watching.cancel()
                # The store has just hashed the whole of it.
                await trio.to_thread.run_sync(self._pool.note_hash, path, blob)
                progress = fetch.account.progress()
                log.info(
                    "model.fetched", model=name, hash=blob, moved=progress.moved, wasted=progress.wasted,
                    sources=len(fetch.account.given),
                )  # fmt: skip
                self._look.forgive(blob)
                fetch.transfer.end("done")
        except* FleetError as group:
            reason = _message(group)
            self._look.note_failure(blob, reason)
            log.warning("model.fetch_failed", model=name, reason=reason)
            fetch.transfer.end("failed", reason)
        finally:
            if fetch.transfer.state == "running":
                fetch.transfer.end("stopped", fetch.transfer.error or "the agent was stopped")
            progress = fetch.account.progress()
            self.ended.received += progress.moved
            self.ended.wasted += progress.wasted
            self.ended.fetches[fetch.transfer.state] += 1
            del self._fetches[blob]
            fetch.over.set()
            self.note_change()
            self._fleet.note_change()

    async def _watch(self, account: Account, scope: trio.CancelScope) -> None:
        """Look again when a fetch begins to wait or goes on, and tell others when it has come a quarter further."""
        moves, quarters = _moves(account), _quarters(account)
        with scope:
            while True:
                await trio.sleep(1.0)  # threads fill the account, and tell nobody
                if (_moves(account), _quarters(account)) != (moves, quarters):
                    moves, quarters = _moves(account), _quarters(account)
                    self.note_change()
                    self._fleet.note_change()

    def _serve(self, blob: str, situation: Situation) -> None:
        model, held = situation.wishes.models[blob], self._store.held().get(blob)
        if held is None:
            return
        log.info("model.served", model=model.name, hash=blob)
        self._pool.add(ModelConfig(path=held.path, name=model.name, context_tokens=model.context_tokens), blob)

    async def _check(self, blob: str, name: str) -> None:
        """Find out what is wrong with a file of which the engine says that it is another than it should be."""
        try:
            held = self._store.held().get(blob)
            if held is None:
                return
            self._look.note_failure(blob, "its file was found damaged")  # should the engine say so again
            steps = Steps("verifying")
            transfer = self._transfers.begin("verify", name, steps.look, hash=blob)
            found = await check(held, transfer, steps)
            if found == ():
                # What the engine read was wrong, and is not on the disk: it is to look again.
                await trio.to_thread.run_sync(self._pool.note_hash, held.path, blob)
                await self._pool.remove(blob)
            elif found:
                self._look.forgive(blob)  # what is damaged can be fetched at once
        finally:
            self.busy.discard(blob)
            self.note_change()
            self._fleet.note_change()

    async def _adopt(self, blob: str, name: str) -> None:
        path = next((model.path for model in self._pool.models() if model.hash == blob and model.path), None)
        steps = Steps("hashing")
        transfer = self._transfers.begin("add", name, steps.look, hash=blob, source=str(path))
        try:
            if path is None:
                raise BlobError("it is not here any more")
            held = await trio.to_thread.run_sync(lambda: self._store.adopt(path, progress=steps.note))
            if held.manifest.sha256 != blob:
                await trio.to_thread.run_sync(self._store.remove, held.manifest.sha256)
                raise BlobError(f"{path} is another file by now")
            transfer.end("done", result={"hash": blob})
        except FleetError as error:
            self._look.note_failure(blob, error.message)
            transfer.end("failed", error.message)
        finally:
            self._adopting.discard(blob)
            self.note_change()
            self._fleet.note_change()

    async def delete(self, blob: str) -> bool:
        """Tell others no longer of a model, withdraw it, delete its file; whether there was one. Raises FleetError.

        A fetch of it is stopped first.
        """
        fetch = self._fetches.get(blob)
        if fetch is not None:
            fetch.scope.cancel()
            await fetch.over.wait()
        self.leaving.add(blob)
        try:
            self._fleet.note_change()
            await self._pool.remove(blob)
            return await trio.to_thread.run_sync(self._store.remove, blob)
        finally:
            self.leaving.discard(blob)
            self.note_change()
            self._fleet.note_change()


def _barred(situation: Situation) -> str:
    """Why nobody gives this box blocks; empty where they may."""
    if SCOPE_BLOBS in situation.view.standing(situation.own).scopes:
        return ""
    return "the fleet's firewall does not let this box have blocks of models (scope blobs); see shoal firewall ls"


def _moves(account: Account) -> bool:
    return account.progress().state not in ("waiting", "paused")


def _quarters(account: Account) -> int:
    return int(account.progress().fraction * 4)


def _message(group: BaseExceptionGroup[FleetError]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.message if isinstance(error, FleetError) else str(error)
