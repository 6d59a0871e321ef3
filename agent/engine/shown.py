"""A model of this box as others see it: one record, whether this box runs it itself or a server beside it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from agent.engine.external.held import ExternalModel
from agent.engine.holding import Holding, State
from fleet.models.described import Described, Stated, describe


@dataclass(frozen=True)
class HeldModel:
    """A model of this box as it is now.

    `hash` is empty until the file has been read, or where it cannot be. Rates are tokens per second, None until
    measured. `error` says why a failed model failed. `size_bytes` is the file's; `architecture`, `quantisation` and
    `size_label` are its header's words, empty where unknown. `pid` is the child's, None while there is none.
    `memory_bytes` is what it was given while it is loaded, 0 otherwise; `cells` are the tokens its cache holds then,
    and `plan_note` says what of the wish did not fit. `unsaved` is why its process cannot save conversations, empty
    where it can. `engine_version` is what runs it, by name and version, where this
    box does that itself. `embedding` is whether it gives vectors and no text. `engine` is
    the kind of the server that runs it and `url` where that is, both empty for one that this box runs itself from
    `path`; one that is not to be lent is for this box's own clients alone. `reads` is a name that says which model it
    is, by its name and its header together, empty where that is not known; `doubts` is what the two disagree on. A name
    that is not `named` is that of a file and nobody chose it.
    """

    hash: str
    name: str
    state: State
    context_tokens: int
    decode_rate: float | None
    prefill_rate: float | None
    running: int
    queued: int
    slots: int
    error: str | None
    path: Path | None = None
    size_bytes: int = 0
    architecture: str = ""
    quantisation: str = ""
    size_label: str = ""
    pid: int | None = None
    engine_version: str = ""
    parameters: int = 0
    embedding: bool = False
    memory_bytes: int = 0
    cells: int = 0
    plan_note: str = ""
    unsaved: str = ""
    engine: str = ""
    url: str = ""
    lend: bool = True
    reads: str = ""
    named: bool = True
    doubts: tuple[str, ...] = ()


def shown(model: Holding | ExternalModel) -> HeldModel:
    """A model as it is now."""
    common = HeldModel(
        hash=model.identity.hash,
        name=model.name,
        state=model.state,
        context_tokens=model.context_tokens,
        decode_rate=model.decode.value,
        prefill_rate=model.prefill.value,
        running=model.running,
        queued=model.queued,
        slots=model.slots,
        error=model.error,
    )
    if isinstance(model, ExternalModel):
        listed = model.listed
        stated = Stated(
            architecture=listed.architecture, size_label=listed.size_label, quantisation=listed.quantisation
        )
        described = _described(listed.name, stated)
        return replace(
            common,
            size_bytes=listed.size_bytes,
            architecture=listed.architecture,
            quantisation=listed.quantisation,
            size_label=listed.size_label,
            engine=model.engine.kind,
            url=str(model.engine.settings.url),
            lend=model.lend,
            reads=described.told,
            doubts=described.doubts,
        )
    own = replace(
        common,
        hash="" if model.is_alien else model.identity.hash,
        path=model.path,
        size_bytes=model.identity.stamp.size if model.identity.stamp else 0,
        pid=model.pid,
        unsaved=model.unsaved,
        engine_version=model.engine_version,
        named=model.named,
    )
    if (facts := model.identity.facts) is not None:
        described = _described(model.name, Stated.of(facts))
        own = replace(
            own,
            reads=described.told,
            doubts=described.doubts,
            architecture=facts.architecture,
            quantisation=facts.quantisation,
            size_label=facts.size_label,
            parameters=facts.parameters,
            embedding=facts.embedding,
        )
    if (plan := model.plan) is not None:
        own = replace(own, memory_bytes=plan.estimate.total, cells=plan.cells, plan_note=plan.why)
    return own


@lru_cache(maxsize=1024)
def _described(name: str, stated: Stated) -> Described:
    # Models are looked at with every job, and what they say of themselves stays the same.
    return describe(name, stated)
