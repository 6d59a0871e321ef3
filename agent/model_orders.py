"""What an operator asks of the models of one box: take one in, keep one here, check, delete, and see how it stands."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
import trio

from agent.config import Config
from agent.errors import (
    AgentError,
    BadRequestError,
    DrainingError,
    LastCopyError,
    ModelNotFoundError,
    ModelPlacedError,
    ModelSourceError,
)
from agent.model_keeper import ModelKeeper
from agent.models_source import LocalSource, Source, SourceProgress, bring, parse_source
from agent.models_source_url import HUB, HUB_VARIABLE
from agent.reconcile.checking import check
from agent.reconcile.desired import FleetModel, manifest_body
from agent.reconcile.explain import model_facts, placement_facts, want_facts
from agent.reconcile.gauges import ModelGauges, model_gauges
from agent.reconcile.situation import Situation
from agent.reconcile.transfers import Steps, Transfer
from fleet.blobs.held import Held
from fleet.blobs.merkle import ALGORITHMS, Algorithm
from fleet.errors import FleetError
from fleet.models.gguf import GgufError, GgufFacts, read_facts
from fleet.models.reference import canonical_name

#: The folder in the state folder where downloads are kept until they are whole.
DOWNLOADS: Final = "downloads"
_MAX_NAME: Final = 256
#: Seconds that an order waits for the box to look at what it means.
_LOOK_LIMIT: Final = 10.0

log = structlog.get_logger("shoal.models")


@dataclass(frozen=True)
class Waste:
    """Something in the store that nothing wants here. `last` is whether no other box that is there has the whole of
    it; a part is never missed."""

    hash: str
    name: str
    size: int
    why: str
    last: bool

    def plain(self) -> dict[str, object]:
        """For the API."""
        return {"hash": self.hash, "model": self.name, "size_bytes": self.size, "why": self.why, "last": self.last}


class ModelOrders:
    """Carries out orders. What takes long becomes a transfer, which runs on whoever watches it or not."""

    def __init__(self, config: Config, keeper: ModelKeeper) -> None:
        self._keeper = keeper
        self._downloads = config.state_dir / DOWNLOADS
        self._hub = config.transfer.hub or os.environ.get(HUB_VARIABLE) or HUB
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Let orders run until cancelled; those that run are then ended, and can be given again."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- what there is ------------------------------------------------------------------------------------------------

    def catalogue(self) -> Mapping[str, object]:
        """Every model of the fleet, and what else this box's store holds."""
        store, situation = self._keeper.store, self._keeper.executor.situation
        held, partials = store.held(), store.partials()
        models: list[dict[str, object]] = []
        known: set[str] = set()
        if situation is not None:
            names = {key: box.node.name for key, box in situation.boxes.items()}
            for model in sorted(situation.wishes.models.values(), key=lambda one: one.name):
                known.add(model.hash)
                models.append({**model_facts(model, situation, names), "here": self._here(model.hash, situation)})
        return {
            "models": models,
            "unlisted": [
                {"hash": blob, "size_bytes": size}
                for blob, size in sorted(
                    [(blob, one.manifest.size) for blob, one in held.items()]
                    + [(blob, one.manifest.size) for blob, one in partials.items()]
                )
                if blob not in known
            ],
            "disk": {
                "used_bytes": sum(one.manifest.size for one in held.values())
                + sum(one.manifest.size for one in partials.values()),
                "free_bytes": max(0, self._keeper.executor.actual.free),
                "keep_free_bytes": store.keep_free,
            },
        }

    def placements(self) -> Mapping[str, object]:
        """Every placement with where it falls and why, and what this box does about what is wanted of it."""
        executor = self._keeper.executor
        situation = executor.situation
        if situation is None:
            return {"placements": [], "here": [], "closed": ""}
        return {
            "placements": [placement_facts(fall, self._keeper.own) for fall in situation.falls],
            "here": [want_facts(want, situation, executor.actual) for want in situation.desired.wants],
            "closed": executor.actual.closed,
        }

    def transfers(self) -> Mapping[str, object]:
        """What moves or is checked here, and the last of what did; the oldest first."""
        return {"transfers": [one.plain() for one in self._keeper.transfers.all()]}

    def gauges(self) -> ModelGauges:
        """How much moves, for the metrics."""
        return model_gauges(self._keeper.executor, self._keeper.server, self._keeper.store)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def add(self, source: str, algorithm: str) -> Mapping[str, object]:
        """Take a model in from a file, a URL or a hub; gives the transfer, or that of the same source that runs.

        It stays on this box; the fleet knows it once an admin has signed what the transfer's result says. Raises
        BadRequestError for what is no source.
        """
        found = parse_source(source, hub=self._hub)
        if algorithm not in ALGORITHMS:
            raise BadRequestError(f"the algorithm of a model's tree is one of {', '.join(ALGORITHMS)}")
        running = self._keeper.transfers.running("add", source=found.shown)
        if running is not None:
            return running.plain()
        steps = Steps("starting")
        transfer = self._keeper.transfers.begin("add", _name_of(found), steps.look, source=found.shown)
        self._start(lambda: self._add(transfer, steps, found, algorithm))
        return transfer.plain()

    async def pull(self, name: str) -> Mapping[str, object]:
        """Keep a model on this box from now on, whoever wants it elsewhere; gives how it stands.

        Raises ModelNotFoundError, and BadRequestError for one that cannot travel.
        """
        situation = self._situation()
        model = self._model(name, situation)
        if model.manifest is None:
            raise BadRequestError(f"{model.name} cannot be fetched: {model.problem}")
        await trio.to_thread.run_sync(self._keeper.pins.add, model.hash)
        executor = self._keeper.executor
        executor.forgive(model.hash)
        with trio.move_on_after(_LOOK_LIMIT):
            await executor.looked()
        now = executor.situation or situation
        want = next((one for one in now.desired.wants if one.hash == model.hash), None)
        stands = (
            want_facts(want, now, executor.actual) if want else {"state": "waiting", "why": "it is not looked at yet"}
        )
        running = self._keeper.transfers.running("fetch", hash=model.hash)
        return {
            "model": model.name,
            "hash": model.hash,
            "size_bytes": model.size,
            "state": stands["state"],
            "why": stands["why"],
            "transfer": running.id if running else None,
        }

    async def verify(self, name: str) -> Mapping[str, object]:
        """Hash a model of this box's store again; gives the transfer. What is damaged is withdrawn, and fetched again
        where it is wanted. Raises ModelNotFoundError."""
        blob, shown = self._stored(name)
        held = self._keeper.store.held().get(blob)
        if held is None:
            raise ModelNotFoundError(f"{shown} is not whole on this box; see `shoal models show {shown}`")
        running = self._keeper.transfers.running("verify", hash=blob)
        if running is not None:
            return running.plain()
        steps = Steps("verifying")
        transfer = self._keeper.transfers.begin("verify", shown, steps.look, hash=blob)
        self._start(lambda: self._verify(transfer, steps, held))
        return transfer.plain()

    async def remove(self, name: str, *, last: bool) -> Mapping[str, object]:
        """Delete this box's copy of a model, and keep it here no longer.

        Raises ModelNotFoundError, ModelPlacedError where a placement wants it here, and LastCopyError where no other
        box that is there holds the whole of it and `last` does not say that it may be lost.
        """
        situation = self._situation()
        blob, shown = self._stored(name)
        placed = situation.placed_by(blob)
        if placed:
            raise ModelPlacedError(
                f"{shown} is placed here by {', '.join(placed)}, and would be fetched again; change that first, such as"
                f" with: shoal delete place/{placed[0]}",
                details={"placements": list(placed)},
            )
        with self._keeper.keeping.leaving(blob):
            if blob in self._keeper.store.held() and not last:
                await self._check_kept(blob, shown, situation)
            await trio.to_thread.run_sync(self._keeper.pins.remove, blob)
            done = await self._keeper.executor.delete(blob)
        log.info("model.removed", model=shown, hash=blob)
        return {"model": shown, "hash": blob, "removed": done}

    async def collect(self, *, dry_run: bool, last: bool) -> Mapping[str, object]:
        """Delete what nothing wants on this box: neither a placement, nor an operator (`pull`, `add`).

        Copies that no other box that is there keeps are left, unless `last` says that they may be lost.
        """
        waste = self._waste(self._situation())
        doomed = [one for one in waste if last or not one.last]
        removed = []
        kept = [one for one in waste if one not in doomed]
        if not dry_run:
            for one in doomed:
                try:
                    with self._keeper.keeping.leaving(one.hash):
                        if one.hash in self._keeper.store.held() and not last:
                            await self._check_kept(one.hash, one.name, self._situation())
                        await self._keeper.executor.delete(one.hash)
                        await trio.to_thread.run_sync(self._keeper.pins.remove, one.hash)
                    removed.append(one)
                except LastCopyError:
                    kept.append(replace(one, last=True))
                except (AgentError, FleetError) as error:
                    log.warning("model.not_removed", model=one.name, reason=error.message)
        return {
            "found": [one.plain() for one in waste],
            "removed": [one.plain() for one in removed],
            "kept": [one.plain() for one in kept],
        }

    async def _check_kept(self, blob: str, shown: str, situation: Situation) -> None:
        """Raises LastCopyError unless another box keeps a copy, and has just said so."""
        if not situation.present_holders(blob, self._keeper.missed()):
            raise LastCopyError(
                f"no other box that is there holds the whole of {shown}: deleted here, it is lost; to do it all the"
                " same, add --yes",
                details={"models": [shown]},
            )
        if not await self._keeper.kept_elsewhere(blob):
            raise LastCopyError(
                f"no other box that holds the whole of {shown} says that it keeps it: it is being deleted there too, or"
                " does not answer; try again in a minute; to have it lost, add --yes",
                details={"models": [shown]},
            )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is None:
            raise DrainingError("this box is shutting down")
        self._nursery.start_soon(work)

    async def _add(self, transfer: Transfer, steps: Steps, source: Source, algorithm: Algorithm) -> None:
        phase = ""

        def report(progress: SourceProgress) -> None:
            nonlocal phase
            if progress.phase != phase:
                phase = progress.phase
                steps.enter(phase)
            steps.note(progress.bytes, progress.total or 0)

        before = self._keeper.store.held().keys()
        try:
            held = await bring(source, self._keeper.store, self._downloads, report=report, algorithm=algorithm)
            try:
                facts = await trio.to_thread.run_sync(_facts_of, held.path)
            except GgufError as error:
                if held.manifest.sha256 not in before:
                    await trio.to_thread.run_sync(self._keeper.store.remove, held.manifest.sha256)
                raise ModelSourceError(
                    f"{source.shown} cannot be run as a model: {error.message}", keep=False
                ) from None
            await trio.to_thread.run_sync(self._keeper.pins.add, held.manifest.sha256)
        except (AgentError, FleetError) as error:
            log.warning("model.not_added", source=source.shown, reason=error.message)
            transfer.end("failed", error.message)
            return
        transfer.hash = held.manifest.sha256
        log.info("model.added", source=source.shown, hash=transfer.hash, size=held.manifest.size)
        transfer.end("done", result={**manifest_body(held.manifest), **_words_of(facts)})
        self._keeper.executor.note_change()
        self._keeper.note_change()

    async def _verify(self, transfer: Transfer, steps: Steps, held: Held) -> None:
        busy = self._keeper.executor.busy
        busy.add(transfer.hash)
        try:
            await check(held, transfer, steps)
        finally:
            busy.discard(transfer.hash)
        self._keeper.executor.note_change()
        self._keeper.note_change()

    def _situation(self) -> Situation:
        found = self._keeper.executor.situation
        if found is None:
            raise ModelNotFoundError("this box belongs to no fleet yet; see `shoal fleet init` and `shoal join`")
        return found

    def _model(self, name: str, situation: Situation) -> FleetModel:
        model = situation.wishes.by_name(name)
        if model is None:
            known = sorted(one.name for one in situation.wishes.models.values())
            raise ModelNotFoundError(
                f"the fleet knows no model {name[:_MAX_NAME]!r}; it knows: {', '.join(known) or 'none'}; add one with:"
                " shoal models add",
                details={"known": known, "param": "model"},
            )
        return model

    def _stored(self, name: str) -> tuple[str, str]:
        """Hash and name of a model of which this box's store has something; raises ModelNotFoundError."""
        situation, store = self._situation(), self._keeper.store
        model = situation.wishes.by_name(name)
        blob, shown = (model.hash, model.name) if model else (name, name)
        if blob in store.held() or blob in store.partials():
            return blob, shown
        if model is None:
            self._model(name, situation)
        raise ModelNotFoundError(f"this box's store has nothing of {shown}", details={"param": "model"})

    def _here(self, blob: str, situation: Situation) -> dict[str, object]:
        store, executor = self._keeper.store, self._keeper.executor
        partial = store.partials().get(blob)
        held = blob in store.held()
        copy = next((one for one in executor.actual.copies if one.hash == blob), None)
        want = next((one for one in situation.desired.wants if one.hash == blob), None)
        own = blob in executor.actual.own
        return {
            "complete": 1.0 if held or own else partial.blocks / partial.manifest.blocks if partial else 0.0,
            "stored": held,
            "served": own or (copy is not None and copy.served),
            "pinned": blob in self._keeper.pins,
            "wanted": want is not None,
            "why": want_facts(want, situation, executor.actual)["why"] if want else "",
        }

    def _waste(self, situation: Situation) -> list[Waste]:
        store, executor = self._keeper.store, self._keeper.executor
        wanted = {want.hash for want in situation.desired.wants}
        models = situation.wishes.models
        found = []

        def note(blob: str, size: int, why: str, *, last: bool) -> None:
            kept = blob in self._keeper.pins and blob in models
            if blob not in wanted and blob not in executor.busy and not kept:
                name = models[blob].name if blob in models else blob
                found.append(Waste(blob, name, size, why, last))

        for blob, held in store.held().items():
            alone = not situation.present_holders(blob, self._keeper.missed())
            if blob in models:
                note(blob, held.manifest.size, "no placement wants it here, and nobody pulled it", last=alone)
            else:
                note(blob, held.manifest.size, "the fleet knows no such model", last=alone)
        for blob, state in store.partials().items():
            note(blob, state.manifest.size, "a part that nothing wants here", last=False)
        for blob in store.orphans():
            note(blob, 0, "what a crash left of a file", last=False)
        return sorted(found, key=lambda one: (-one.size, one.hash))


def _name_of(source: Source) -> str:
    path = source.path.name if isinstance(source, LocalSource) else source.shown.rpartition("/")[2]
    return canonical_name(path)


def _facts_of(path: Path) -> GgufFacts:
    with path.open("rb") as file:
        return read_facts(file)


def _words_of(facts: GgufFacts) -> dict[str, object]:
    """What a manifest says of a model besides its content, where the file says it."""
    words = {"size": facts.size_label.lower(), "quant": facts.quantisation.lower()}
    return {"words": {key: text for key, text in words.items() if 0 < len(text) <= 32}}
