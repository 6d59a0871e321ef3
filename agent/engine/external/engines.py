"""All servers beside this box: those that are configured, and those that are found where they usually are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from agent.config import EngineConfig, ExternalEngineConfig
from agent.engine.external.engine import ExternalEngine, Settings
from agent.engine.external.held import ExternalModel
from agent.engine.shares import Shares
from agent.engine_url import WELL_KNOWN, parse_engine_url
from fleet.models.reference import matches

#: Models of all servers together: a box's presence has room for twice as many.
MAX_MODELS: Final = 128


@dataclass(frozen=True)
class EngineFact:
    """A server as it is now. `error` says why it cannot be used, None where it can; `models` is how many it has."""

    kind: str
    url: str
    detected: bool
    lend: bool
    error: str | None
    models: int


class ExternalEngines:
    """The servers of one box. `box` is its PeerID; `on_change` is called when a model's state or load has changed."""

    def __init__(
        self,
        configured: Sequence[ExternalEngineConfig],
        config: EngineConfig,
        box: str,
        on_change: Callable[[], None],
    ) -> None:
        self._engines = [ExternalEngine(settings, box, on_change) for settings in settings_of(configured, config)]

    def share(self, shares: Shares) -> None:
        """Let other boxes have this much of every server from now on."""
        for engine in self._engines:
            engine.workload.shares = shares

    async def run(self) -> None:
        """Use them until cancelled; each has a task of its own, so one that hangs keeps nobody waiting."""
        async with trio.open_nursery() as nursery:
            for engine in self._engines:
                nursery.start_soon(engine.run)
            await trio.sleep_forever()

    async def wait_looked(self) -> None:
        """Return when each has been looked at once, which takes about 1.5 s at most."""
        for engine in self._engines:
            await engine.looked.wait()

    def models(self) -> tuple[ExternalModel, ...]:
        """The models of all servers, at most MAX_MODELS; of several under one name and id, one that works."""
        kept: dict[tuple[str, str], ExternalModel] = {}
        for engine in self._engines:
            for model in engine.models:
                key = (model.identity.hash, model.name)
                if key not in kept and len(kept) == MAX_MODELS:
                    continue
                if key not in kept or (kept[key].state == "failed" != model.state):
                    kept[key] = model
        return tuple(kept.values())

    def find(self, reference: str) -> ExternalModel | None:
        """A model with this id or name; one that works, if there is one."""
        found = [
            model for model in self.models() if matches(reference, model_hash=model.identity.hash, name=model.name)
        ]
        return min(found, key=lambda model: model.state == "failed", default=None)

    def facts(self) -> tuple[EngineFact, ...]:
        """Every server that is configured or has been found."""
        return tuple(self._facts())

    def _facts(self) -> Iterator[EngineFact]:
        for engine in self._engines:
            settings = engine.settings
            if engine.found or not settings.detected:
                kind = engine.kind if engine.found else settings.kind
                yield EngineFact(
                    kind, str(settings.url), settings.detected, settings.lend, engine.error, len(engine.models)
                )


def settings_of(configured: Sequence[ExternalEngineConfig], config: EngineConfig) -> list[Settings]:
    """The servers to use: those that are configured and enabled, then, with `detect`, the well-known ones.

    A place that the configuration names is not looked at for another reason, least of all where it is not enabled.
    """
    found: list[Settings] = []
    named = set()
    for entry in configured:
        url = parse_engine_url(entry.url)
        named.add(url.place)
        if entry.enabled:
            found.append(
                Settings(
                    url,
                    kind=entry.kind,
                    key_file=entry.api_key_file,
                    wanted=entry.models,
                    context_tokens=entry.context_tokens,
                    usual_context=config.context_tokens,
                    slots=entry.slots,
                    lend=entry.lend,
                    max_queue=config.max_queue,
                )
            )
    if config.detect:
        found += [
            Settings(url, usual_context=config.context_tokens, max_queue=config.max_queue, detected=True)
            for url in WELL_KNOWN
            if url.place not in named
        ]
    return found
