"""What applying manifests would change: desired state beside the settings of a view. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from agent.manifests.kinds import kind_of
from agent.manifests.read import Manifest
from fleet import cbor
from fleet.document.settings import Setting

#: `settle` writes a value that stands already, because admins contradict one another about it.
Action = Literal["create", "change", "settle", "delete", "same"]


@dataclass(frozen=True)
class Step:
    """What happens at one path. `before` and `after` are plain values, None where there is none; `held` is what
    stands there now, with the values that lost to it."""

    path: str
    action: Action
    before: object
    after: object
    held: Setting | None

    @property
    def in_conflict(self) -> bool:
        """Whether admins have set different values without having seen one another's."""
        return self.held is not None and bool(self.held.rivals)


def plan(settings: Mapping[str, Setting], manifests: Iterable[Manifest], *, prune: bool = False) -> list[Step]:
    """One step a manifest, in the order of paths; with `prune`, also for what no manifest names: it is deleted.

    Policies are never pruned: the fleet falls back to the open default without one, and nobody should come to that by
    leaving a file out.
    """
    wanted = {manifest.path: manifest for manifest in manifests}
    steps = [_step(path, settings.get(path), wanted[path]) for path in sorted(wanted)]
    if prune:
        left = [path for path, held in settings.items() if path not in wanted and is_set(path, held)]
        steps += [delete(path, settings[path]) for path in left if kind_of(path) != "Policy"]
    return steps


def delete(path: str, held: Setting) -> Step:
    """The step that takes a setting away."""
    return Step(path, "delete", held.value, None, held)


def is_set(path: str, held: Setting) -> bool:
    """Whether a path is one that manifests speak of, and holds a value."""
    return kind_of(path) is not None and held.value is not None


def _step(path: str, held: Setting | None, manifest: Manifest) -> Step:
    spec = cbor.decode(manifest.body)
    if held is None or (held.value is None and not held.rivals):
        return Step(path, "create", None, spec, held)
    if held.op.body != manifest.body:
        return Step(path, "change", held.value, spec, held)
    return Step(path, "settle" if held.rivals else "same", held.value, spec, held)
