"""What admins want: models and placements, read out of the settings of the fleet document. Pure.

A value that is not as a manifest would have it is passed over, and said so: admins can write anything, and one mistake
must not keep a box from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.errors import AgentError
from agent.manifests.selector import Term
from agent.model_names import names_of
from agent.reconcile.selector import read_terms
from fleet.blobs.errors import BlobError
from fleet.blobs.manifest import Manifest, read_manifest
from fleet.document.settings import Setting
from fleet.errors import FleetError, RefusedOpError
from fleet.models.reference import canonical_name, is_hash

_MODEL: Final = "model/"
_PLACE: Final = "place/"
_MAX_COPIES: Final = 10_000


@dataclass(frozen=True)
class FleetModel:
    """A model that the fleet knows. `manifest` is None where the document does not say how its blocks are checked: then
    it cannot travel; `problem` says why. `context_tokens` is what it is to be run with, None for what a box has set."""

    name: str
    hash: str
    manifest: Manifest | None
    problem: str = ""
    context_tokens: int | None = None

    @property
    def size(self) -> int:
        """Bytes of its file, 0 where that is not known."""
        return self.manifest.size if self.manifest else 0


@dataclass(frozen=True)
class Placement:
    """Where a model should be. `least` copies are kept as boxes come and go, at most `most` boxes are given one; None
    for no such bound. `model` is None where no model is meant that can be fetched; `problem` says why."""

    name: str
    reference: str
    terms: tuple[Term, ...]
    least: int | None
    most: int | None
    model: FleetModel | None
    problem: str = ""


@dataclass(frozen=True)
class Wishes:
    """All that is wanted: models by content hash, placements in the order of their names. `names` has the hash for each
    name, of which one content may have several; they are in canonical form."""

    models: Mapping[str, FleetModel] = field(default_factory=dict)
    placements: tuple[Placement, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def by_name(self, name: str) -> FleetModel | None:
        """The model of this name or hash."""
        return self.models.get(name if is_hash(name) else self.names.get(canonical_name(name), ""))

    def called(self, model_hash: str) -> tuple[str, ...]:
        """Every name of a content, in the order of the alphabet."""
        return tuple(sorted(name for name, content in self.names.items() if content == model_hash))


def read_wishes(settings: Mapping[str, Setting]) -> Wishes:
    """What the settings of a view want."""
    models: dict[str, FleetModel] = {}
    names: dict[str, str] = {}
    for path, setting in sorted(settings.items()):
        if path.startswith(_MODEL) and isinstance(setting.value, dict):
            model = _model(path.removeprefix(_MODEL), setting.value)
            if model:
                names.setdefault(model.name, model.hash)
            # Of two names for one content it goes by the one that can be fetched, then by the first of the alphabet.
            if model and (model.hash not in models or (model.manifest and not models[model.hash].manifest)):
                models[model.hash] = model
    wishes = Wishes(models, (), names)
    aliases = names_of(settings).aliases
    placements = []
    for path, setting in sorted(settings.items()):
        if path.startswith(_PLACE) and isinstance(setting.value, dict):
            name, reference = path.removeprefix(_PLACE), setting.value.get("model")
            if not isinstance(reference, str):
                continue
            try:
                target = aliases.resolve(reference).target
            except FleetError:
                target = reference
            placements.append(_placement(name, reference, wishes.by_name(target), setting.value))
    return Wishes(models, tuple(placements), names)


def manifest_body(manifest: Manifest) -> dict[str, object]:
    """What a Model's spec says of how its blocks are checked."""
    return {
        "hash": manifest.sha256,
        "size_bytes": manifest.size,
        "root": manifest.root.hex(),
        "algorithm": manifest.algorithm,
    }


def _model(name: str, spec: Mapping[object, object]) -> FleetModel | None:
    content = spec.get("hash")
    if not isinstance(content, str) or not is_hash(content):
        return None
    name = canonical_name(name)
    root, size = spec.get("root"), spec.get("size_bytes")
    if root is None or size is None:
        return FleetModel(name, content, None, "its manifest has no root and size_bytes; write them: shoal models add")
    try:
        algorithm = spec.get("algorithm", "sha256")
        manifest = read_manifest({"sha256": content, "size": size, "root": root, "algorithm": algorithm})
    except BlobError as error:
        return FleetModel(name, content, None, f"its manifest cannot be used: {error.message}")
    context = spec.get("context_tokens")
    if not isinstance(context, int) or isinstance(context, bool) or not 64 <= context <= 1 << 20:
        context = None
    return FleetModel(name, content, manifest, "", context)


def _placement(name: str, reference: str, model: FleetModel | None, spec: Mapping[object, object]) -> Placement:
    problem = ""
    terms: tuple[Term, ...] = ()
    try:
        terms = read_terms(spec.get("selector", {}))
    except (AgentError, RefusedOpError) as error:
        problem = f"its selector cannot be read: {error.message}"
    least, most = _bounds(spec)
    if model is None:
        problem = problem or f"the fleet knows no model {reference!r} by hash; add it with: shoal models add"
    elif model.manifest is None:
        problem = problem or model.problem
    return Placement(name, reference, terms, least, most, model if not problem else None, problem)


def _bounds(spec: Mapping[object, object]) -> tuple[int | None, int | None]:
    """At least and at most how many copies; `replicas` N is short for both."""
    copies = spec.get("replicas")
    if _is_count(copies):
        return copies, copies  # type: ignore[return-value]  # counts, as just looked at
    least, most = (spec.get(key) if _is_count(spec.get(key)) else None for key in ("min", "max"))
    return least, most  # type: ignore[return-value]  # as above


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_COPIES
