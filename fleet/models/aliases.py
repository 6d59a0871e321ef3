"""What a request asks for: a content hash, or a name, once aliases have been followed. Pure.

Aliases are the fleet's own names for models. They mean the same on every box, so they come before the names of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet.models.name import MAX_NAME, ModelName, ModelNameError, parse_name
from fleet.models.reference import canonical_name, is_hash

#: Aliases that may stand for one another in a row.
MAX_STEPS: Final = 8


@dataclass(frozen=True)
class Reference:
    """A model that is asked for. `asked` is the text of the request, `target` what it stands for after `aliases`.

    `model` is what `target` says, if it is a name. Of a hash it says nothing, unless the fleet knows which model that
    is (`known_as`): a hash that nothing is known of can be served by that very content alone.
    """

    asked: str
    target: str
    aliases: tuple[str, ...] = ()
    model: ModelName = field(default=ModelName())

    @property
    def hash(self) -> str:
        """The content hash that is asked for, empty where it is a name."""
        return self.target if is_hash(self.target) else ""

    @property
    def name(self) -> str:
        """The name that is asked for, in the form in which names are compared; empty where it is a hash."""
        return "" if self.hash else canonical_name(self.target)


class Aliases:
    """Short names for models, as the fleet document has them. Immutable; made once for each state of the document."""

    def __init__(self, targets: Mapping[str, str] | None = None) -> None:
        """`targets` has for each alias a hash, a name, or another alias.

        A hash is never an alias. Entries that cannot be meant are left out: an empty text, or one longer than MAX_NAME,
        as alias or as target. Of two spellings of one alias the first in order of the alphabet counts, on every box.
        """
        found: dict[str, str] = {}
        for alias, target in sorted((targets or {}).items()):
            name = canonical_name(alias)
            if name and len(alias) <= MAX_NAME and 0 < len(target) <= MAX_NAME:
                found.setdefault(name, target)
        self._targets = found

    def resolve(self, asked: str, known_as: Mapping[str, str] | None = None) -> Reference:
        """Read what a request asks for. `known_as` has the names of models that the fleet knows by hash.

        Raises ModelNameError where it is empty, longer than MAX_NAME, a hash that is none, or an alias that leads back
        to itself.
        """
        if not asked.strip():
            raise ModelNameError("no model is named: say a name or a content hash; `shoal models` lists them")
        if len(asked) > MAX_NAME:
            raise ModelNameError(f"a model's name has at most {MAX_NAME} characters, not {len(asked)}")
        target, steps = asked, list[str]()
        while not is_hash(target) and (alias := canonical_name(target)) in self._targets:
            if alias in steps or len(steps) == MAX_STEPS:
                chain = " -> ".join([*steps, alias])
                raise ModelNameError(f"the alias {asked} leads nowhere: {chain}; set one of them to a model")
            steps.append(alias)
            target = self._targets[alias]
        if target.startswith("sha256:") and not is_hash(target):
            raise ModelNameError("a content hash is sha256: and 64 hex digits, lower case; `shoal models` lists them")
        name = (known_as or {}).get(target, "")[:MAX_NAME] if is_hash(target) else target
        return Reference(asked, target, tuple(steps), parse_name(name))
