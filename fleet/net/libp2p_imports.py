"""Importing libp2p without httpx: 2.5 MB of a small box's memory for a client of authorities that no box asks.

libp2p imports everything it has, whatever is used; httpx is for getting TLS certificates from the internet, which Shoal
does not do. The standard library's lazy loader leaves the module out until something touches it, so that whoever does
use httpx still gets all of it. To be imported before libp2p.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import Final

_UNUSED: Final = ("httpx",)


class _Postponing:
    """A finder of modules, of those alone that are to be loaded at their first use."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _UNUSED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def postpone_unused() -> None:
    """Let what libp2p imports and Shoal does not use be loaded at its first use, where it is not loaded already.

    A second `import` of it is such a use.
    """
    if not any(isinstance(finder, _Postponing) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Postponing())
