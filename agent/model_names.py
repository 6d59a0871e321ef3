"""What the fleet's document calls models: aliases, and names of what it knows by content hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.routing.offers import Names
from fleet.document.settings import Setting
from fleet.document.view import Governance
from fleet.models.aliases import Aliases
from fleet.models.reference import is_hash

#: Where manifests of the kinds Alias and Model stand in the document.
_ALIAS = "alias/"
_MODEL = "model/"


class ModelNames:
    """Follows the document: the same Names as long as nothing that admins decide has changed."""

    def __init__(self, governance: Callable[[], Governance | None]) -> None:
        self._governance = governance
        self._seen: Governance | None = None
        self._names = Names()

    def now(self) -> Names:
        """What holds now; nothing where this box belongs to no fleet."""
        governance = self._governance()
        if governance is not self._seen:
            self._seen = governance
            self._names = Names() if governance is None else names_of(governance.settings)
        return self._names


def names_of(settings: Mapping[str, Setting]) -> Names:
    """The names among the settings. What is not as a manifest would have it is passed over. Pure."""
    aliases: dict[str, str] = {}
    called: dict[str, list[str]] = {}
    for path, setting in sorted(settings.items()):
        if path.startswith(_ALIAS):
            target = _text(setting.value, "model")
            if target:
                aliases[path.removeprefix(_ALIAS)] = target
        elif path.startswith(_MODEL):
            content = _text(setting.value, "hash")
            if is_hash(content):
                called.setdefault(content, []).append(path.removeprefix(_MODEL))
    for content, names in called.items():
        # A box runs it by one of its names; by whichever it is asked for, it is this content that is meant.
        for name in names if len(names) > 1 else ():
            aliases.setdefault(name, content)
    return Names(Aliases(aliases), {content: names[0] for content, names in called.items()})


def _text(value: object, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
